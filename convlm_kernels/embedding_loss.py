"""The cross-entropy of an embedding followed by a convolution, in one pass with its gradients.

The loss is the end of a network, so its gradients are known with it, and the logits need never be
written out: the idea of Liger-Kernel's fused linear cross-entropy (Hsu et al., 2024, arXiv
2410.10989).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends, indices, lookup, lookup_ops, stack_autograd, stack_ops
from .embedding import (
    _by_tap,
    _check_operands,
    _kernels,
    _prefers_table,
    _window,
    embedding_conv1d,
)
from .functional import autocast_enabled, check_tensors
from .geometry import Padding
from .lookup import Window, end_to_end
from .optim import mark_changed
from .stack_layers import reason_not_fusable
from .stack_ops import LayerSettings, Settings


def embedding_conv1d_cross_entropy(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, ...] = 1,
    *,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """cross_entropy(embedding_conv1d(tokens, ...), target), differentiable to any order.

    Every position counts: there is no ``ignore_index``, and a target of -100 is an error.

    On the CPU in float32 and float64, the logits stay in the cache: one pass over the tokens makes
    the mean loss and its gradients, or the losses where no gradient is wanted. So does
    ``backend="cuda"`` at stride 1 without padding on the right, as a stack of one layer.

    Args:
        tokens: (batch, length), int64 or int32, in [0, vocab).
        target: (batch, out_length), int64 or int32, in [0, out_channels); on a GPU and in compiled
            code one outside gives NaN.
        embedding, weight, bias, stride, padding, dilation, backend: as for
            :func:`embedding_conv1d`.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or with "none" (batch, out_length); of the dtype of ``embedding``, float32 for
        the 16-bit ones.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown ``reduction`` or ``backend``.
        RuntimeError: a target outside [0, out_channels) on the CPU, or one of another shape or
            dtype; tokens without a batch, and as :func:`embedding_conv1d`.
    """
    indices.check_reduction(reduction)
    backends.check_name(backend)
    check_tensors(target=target)
    _check_operands(tokens, embedding, weight, bias)
    if tokens.dim() != 2:
        raise RuntimeError(f"tokens must be (batch, length), got shape {tuple(tokens.shape)}")
    window = _window(_by_tap(embedding, weight), stride, padding, dilation)
    if _is_gpu_stack(tokens, embedding, weight, window, backend):
        (weights, biases), settings = _as_stack(embedding, weight, bias, window)
        return stack_autograd.cross_entropy(
            embedding, tokens, target, weights, biases, settings, reduction
        )
    if _is_fused(tokens, embedding, weight, window, backend, tokens.shape[0]):
        if reduction == "mean":
            return lookup.cross_entropy(tokens, target, embedding, weight, bias, window)
        if not lookup.wants_gradients(embedding, weight, bias):
            losses = lookup.losses(tokens, target, embedding, weight, bias, window)
            return losses.sum() if reduction == "sum" else losses
    logits = embedding_conv1d(
        tokens, embedding, weight, bias, stride, padding, dilation, backend=backend
    )
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return indices.cross_entropy(logits, target, reduction)


def loss_with_gradients(
    tokens: Tensor,
    target: Tensor,
    rows: Tensor | None,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The mean cross-entropy, and its gradients of embedding, weight and bias, at stride 1.

    For training loops that do without autograd, whose overhead is larger than the work of a small
    model. ``rows`` (batch), int64, names the rows of ``tokens`` and ``target`` that are the batch,
    None all of them; the other arguments and errors are those of
    :func:`embedding_conv1d_cross_entropy`. None where the loss does not come with its gradients.
    """
    if _is_gpu_stack(tokens, embedding, weight, _STEP_WINDOW, backend):
        if rows is not None:
            tokens, target = tokens.index_select(0, rows), target.index_select(0, rows)
        stack, settings = _as_stack(embedding, weight, bias, _STEP_WINDOW)
        with torch.no_grad():
            loss, (grad_e, grad_w, grad_b) = stack_ops.stack_cross_entropy(
                embedding, tokens, target, *stack, settings, False
            )
        return loss, grad_e, end_to_end(grad_w, weight), grad_b
    if not _steps_fused(tokens, rows, embedding, weight, backend):
        return None
    with torch.set_grad_enabled(False):  # no_grad() takes three times as long
        return lookup_ops.cross_entropy(
            tokens, target, rows, embedding, weight, bias, *_STEP_WINDOW
        )


def sgd_step_of_loss(
    tokens: Tensor,
    target: Tensor,
    rows: Tensor | None,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lr: float,
    *,
    backend: str = "auto",
) -> Tensor | None:
    """The mean cross-entropy, of which embedding, weight and bias take a step of gradient descent.

    In place, unless the loss is not finite. On the CPU ``rows`` may be those of several steps,
    (steps, batch), and what is returned their losses. The other arguments, the errors and None are
    as of :func:`loss_with_gradients`.
    """
    changed = [embedding, weight] if bias is None else [embedding, weight, bias]
    if _is_gpu_stack(tokens, embedding, weight, _STEP_WINDOW, backend):
        with torch.set_grad_enabled(False):
            stack, settings = _as_stack(embedding, weight, bias, _STEP_WINDOW)
            operands = embedding, tokens, target, rows, *stack, settings
            loss = stack_ops.stack_sgd_(*operands, False, lr)
    elif _steps_fused(tokens, rows, embedding, weight, backend):
        with torch.set_grad_enabled(False):
            loss = lookup_ops.sgd_(tokens, target, rows, embedding, weight, bias, *_STEP_WINDOW, lr)
    else:
        return None
    mark_changed(changed)
    return loss


_STEP_WINDOW = (1, 0, 0, 1)


def steps_on_gpu(tokens: Tensor, embedding: Tensor, weight: Tensor, backend: str) -> bool:
    """Whether :func:`sgd_step_of_loss` is work for a GPU alone, which nobody waits for."""
    return _is_gpu_stack(tokens, embedding, weight, _STEP_WINDOW, backend)


def _is_gpu_stack(
    tokens: Tensor, embedding: Tensor, weight: Tensor, window: Window, backend: str
) -> bool:
    """Whether a GPU takes the loss as that of a stack of one layer."""
    stride, _, pad_right, _ = window
    if backend != "cuda" or not tokens.is_cuda or (stride, pad_right) != (1, 0):
        return False
    if embedding.dtype not in (torch.float32, torch.float64):
        return False
    if reason_not_fusable(embedding) is not None:
        return False
    (weights, _), settings = _as_stack(embedding, weight, None, window)
    length = tokens.shape[-1]
    return stack_ops.reason_does_not_fit(embedding, length, True, weights, settings) is None


def _as_stack(
    embedding: Tensor, weight: Tensor, bias: Tensor | None, window: Window
) -> tuple[tuple[list[Tensor], list[Tensor]], Settings]:
    _, pad_left, _, dilation = window
    biases = [embedding.new_empty(0) if bias is None else bias]
    settings = stack_ops.settings_of([LayerSettings(dilation, pad_left, "none", False)])
    return ([_by_tap(embedding, weight)], biases), settings


def _steps_fused(
    tokens: Tensor, rows: Tensor | None, embedding: Tensor, weight: Tensor, backend: str
) -> bool:
    batch = tokens.shape[0] if rows is None else rows.shape[-1]
    return _is_fused(tokens, embedding, weight, _STEP_WINDOW, backend, batch)


def _is_fused(
    tokens: Tensor, embedding: Tensor, weight: Tensor, window: Window, backend: str, batch: int
) -> bool:
    _, channels, taps = weight.shape
    kernel_size = channels * taps // embedding.shape[1]
    return (
        embedding.dtype in (torch.float32, torch.float64)
        and not tokens.is_cuda
        and _kernels(tokens, embedding, backend) == "native"
        and not autocast_enabled(tokens)
        and _prefers_table(embedding, batch, tokens.shape[1], kernel_size, window)
    )
