"""Differentiation of fused stacks.

First derivatives are one operator. Second and higher ones, ``torch.func`` and forward mode are
those of the same layers composed, which are differentiable to any order: right, not fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, indices, lookup, stack_ops
from .activations import activate
from .ops import composite
from .stack_ops import Settings
from .transforms import called_directly, transformed

_exporting = torch.compiler.is_exporting


@torch.fx.wrap  # whose proxies are on no device
def gate(z: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels."""
    a, b = z.chunk(2, dim=-2)
    return torch.tanh(a) * activate(b, "sigmoid")


def compose(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    kernels: str = "native",
) -> Tensor:
    """What :func:`stack` computes, layer by layer."""
    if tokens is not None:
        x = lookup.embed(tokens, x, kernels)
    for weight, bias, (dilation, pad, activation, residual) in zip(
        weights, biases, stack_ops.layers_of(settings), strict=True
    ):
        gated = activation == "gate"
        y = autograd.forward(
            x,
            weight,
            bias if bias.numel() else None,
            (1, pad, 0, dilation, 1, "ieee"),
            "none" if gated else activation,
            kernels,
        )
        if gated:
            y = gate(y)
        x = y + x[..., x.shape[-1] - y.shape[-1] :] if residual else y
    return x


@called_directly
class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor | None,
        settings: Settings,
        share: bool,
        kernels: str,
        x: Tensor,
        *parameters: Any,
    ) -> Tensor:
        operands = x, tokens, *_halves(parameters), settings
        y, saved = stack_ops.OPERATORS[kernels].stack_forward(*operands, share, True)
        ctx.save_for_backward(tokens, saved, x, *parameters)
        ctx.settings = settings, share, kernels
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        tokens, saved, x, *parameters = ctx.saved_tensors
        settings, share, kernels = ctx.settings
        operands = x, tokens, *_halves(parameters)
        needed = ctx.needs_input_grad[4:]
        gradients: Any
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiable or _is_batched(grad_output):
            with torch.enable_grad():
                y = compose(*operands, settings, kernels)
            gradients = _gradients_of(
                y, grad_output, [x, *parameters], needed, create_graph=differentiable
            )
        else:
            gradients = stack_ops.OPERATORS[kernels].stack_backward(
                grad_output, saved, *operands, settings, share, needed[0]
            )
        return None, None, None, None, *_wanted(gradients, needed)


@called_directly
class _CrossEntropy(torch.autograd.Function):
    """The mean loss, which comes with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        target: Tensor,
        settings: Settings,
        share: bool,
        x: Tensor,
        *parameters: Any,
    ) -> Tensor:
        loss, gradients = stack_ops.stack_cross_entropy(
            x, tokens, target, *_halves(parameters), settings, share
        )
        ctx.save_for_backward(tokens, target, x, *parameters, *gradients)
        ctx.settings = settings
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        tokens, target, *rest = ctx.saved_tensors
        inputs, gradients = _halves(rest)
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():  # to be differentiated again: by the formula
            logits = compose(inputs[0], tokens, *_halves(inputs[1:]), ctx.settings)
            loss = indices.cross_entropy(logits, target)
            found = _gradients_of(loss, grad_loss, inputs, needed, create_graph=True)
        else:
            found = [g * grad_loss for g in gradients]
        return None, None, None, None, *_wanted(found, needed)


def _is_batched(grad_output: Tensor) -> bool:
    """Whether it stands for many, of ``is_grads_batched`` or of ``vmap``: no operator takes it."""
    if torch.compiler.is_compiling():
        return False
    return transformed() or autograd.is_grads_batched(grad_output)


def _halves(parameters: Any) -> tuple[list[Tensor], list[Tensor]]:
    half = len(parameters) // 2
    return list(parameters[:half]), list(parameters[half:])


def _wanted(gradients: Any, needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(gradients, needed, strict=True)]


def _gradients_of(
    y: Tensor,
    grad_output: Tensor,
    inputs: list[Tensor],
    needed: tuple[bool, ...],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients through the graph of ``y``."""
    leaves = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(y, leaves, grad_output, create_graph=create_graph, allow_unused=True)
    )
    return [next(found) if need else None for need in needed]


def _wants_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def stack(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool = True,
    kernels: str = "native",
    exported: bool = False,
) -> Tensor:
    """A chain of convolutions of stride 1 in one operator, differentiable to any order.

    Args:
        x: (batch, channels, length); with ``tokens`` (batch, length), int64 or int32, an embedding
            (vocab, channels) of them. float32, float64, bfloat16 or float16.
        weights: (out_channels, in_channels, kernel_size) for each layer, of the dtype of ``x``; the
            out_channels of a gated layer are twice those of its result.
        biases: (out_channels), or empty, for each layer.
        share: over tokens, compute a layer once for each distinct receptive field where most of
            them repeat. The result has the same bits.
        kernels: an entry of ``stack_ops.OPERATORS``.
        exported: that of ``autograd.forward``.

    Returns:
        (batch, out_channels, out_length) of the last layer.

    Raises:
        RuntimeError: sizes that do not fit, or on the CPU a token outside [0, vocab); names
            argument and value.
    """
    if _exporting() and not exported:
        return exported_stack(x, tokens, weights, biases, settings, share, kernels)
    if transformed():
        return compose(x, tokens, weights, biases, settings, kernels)
    if tokens is not None and not exported and are_gathered(x, tokens, kernels):
        x, tokens = lookup.embed(tokens, x, kernels), None
    if _wants_gradients(x, *weights, *biases):
        return _Stack.apply(tokens, settings, share, kernels, x, *weights, *biases)
    operands = x, tokens, weights, biases, settings
    y, _ = stack_ops.OPERATORS[kernels].stack_forward(*operands, share, False)
    return y


def are_gathered(x: Tensor, tokens: Tensor, kernels: str) -> bool:
    """Whether a stack on the embedding ``x`` first gathers the rows that positions read.

    Else the other rows would be multiplied too. Compiled or exported, it is one graph for any
    number of positions.
    """
    if kernels != "native" or torch.compiler.is_compiling():
        return False
    return x.shape[0] > tokens.shape[0] * tokens.shape[1]


def _run_exported(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool,
    kernels: str,
) -> Tensor:
    return stack(x, tokens, weights, biases, settings, share, kernels, exported=True)


exported_stack = composite(
    "exported_stack(Tensor x, Tensor? tokens, Tensor[] weights, Tensor[] biases, int[] settings, "
    "bool share, str kernels) -> Tensor",
    _run_exported,
)


def cross_entropy(
    x: Tensor,
    tokens: Tensor,
    target: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    reduction: str = "mean",
    share: bool = True,
) -> Tensor:
    """Softmax cross-entropy of a stack over tokens, differentiable to any order.

    The logits never leave the cache; the mean comes with its gradients in one operator, as that of
    :func:`convlm_kernels.embedding_conv1d_cross_entropy`.

    Args:
        target: (batch, out_length), int64 or int32, in [0, out_channels).
        reduction: "mean", "sum" or "none".
        The others are those of :func:`stack`, float32 or float64.

    Returns:
        A scalar, or with "none" (batch, out_length).

    Raises:
        ValueError: an unknown ``reduction``.
        RuntimeError: a target outside [0, out_channels), and as :func:`stack`.
    """
    indices.check_reduction(reduction)
    composed = transformed() or torch.compiler.is_compiling()
    wants_gradients = _wants_gradients(x, *weights, *biases)
    if composed or (wants_gradients and reduction != "mean"):
        logits = stack(x, tokens, weights, biases, settings, share)
        return indices.cross_entropy(logits, target, reduction)
    if wants_gradients:
        return _CrossEntropy.apply(tokens, target, settings, share, x, *weights, *biases)
    losses = stack_ops.stack_losses(x, tokens, target, weights, biases, settings, share)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()
