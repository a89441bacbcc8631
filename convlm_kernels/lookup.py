"""Look-ups that can be differentiated: sums of rows of a table, one row for each tap.

    lookup(tokens, table)[n, :, t] = sum over taps of table[tap, tokens[n, position(t, tap)]]

is linear in the table, and so is its gradient in the gradient of the output: the two operators are
each other's derivatives. The table of an embedding followed by a convolution is a pointwise
convolution, whose derivatives are those of ``autograd``.

``window`` stands for the settings (stride, pad_left, pad_right, dilation) throughout, ``kernels``
for an entry of ``lookup_ops.OPERATORS``: whose two operators compute them; ``settings`` for all
that is no tensor, as in ``autograd``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, indices, lookup_ops
from .activations import FROM_OUTPUT, activate
from .autograd import refuse_batched_graph
from .ops import composite
from .transforms import apply_transformed, called_directly, direct, transformed

Window = tuple[int, int, int, int]

_grad_enabled = torch.is_grad_enabled
_exporting = torch.compiler.is_exporting

_POINTWISE = (1, 0, 0, 1, 1, "ieee")


class _Lookup(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, table: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        window, activation, kernels = settings
        return lookup_ops.OPERATORS[kernels].lookup(tokens, table, bias, *window, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tokens, table, _, settings = inputs
        ctx.settings = table.shape[0], table.shape[1], *settings
        ctx.save_for_backward(tokens, table, output)
        ctx.save_for_forward(tokens, table, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if _grad_enabled():
            refuse_batched_graph(grad_output)
        tokens, _, y = ctx.saved_tensors
        kernel_size, vocab, window, activation, kernels = ctx.settings
        _, table_needed, bias_needed, _ = ctx.needs_input_grad
        grad_t = grad_b = None
        if activation != "none":
            grad_output = FROM_OUTPUT[activation](grad_output, y)
        if table_needed:
            grad_t, grad_b = grad_table(
                grad_output, tokens, kernel_size, vocab, window, bias_needed, kernels
            )
        elif bias_needed:
            grad_b = grad_output.sum((0, 2))
        return None, grad_t, grad_b if bias_needed else None, None

    @staticmethod
    def jvp(ctx: Any, _: None, table_tangent: Any, bias_tangent: Any, __: None) -> Tensor:
        tokens, table, y = ctx.saved_tensors
        _, _, window, activation, kernels = ctx.settings
        if table_tangent is None:
            table_tangent = torch.zeros_like(table)
        tangent = lookup(tokens, table_tangent, bias_tangent, window, kernels=kernels)
        return tangent if activation == "none" else FROM_OUTPUT[activation](tangent, y)


class _GradTable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, tokens: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
        kernel_size, vocab, window, with_bias, kernels = settings
        operator = lookup_ops.OPERATORS[kernels].lookup_grad_table
        return operator(grad_output, tokens, kernel_size, vocab, *window, with_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, tokens, ctx.settings = inputs
        ctx.save_for_backward(tokens)
        ctx.save_for_forward(tokens)

    @staticmethod
    def backward(ctx: Any, grad_t: Tensor, grad_b: Tensor) -> Any:
        (tokens,) = ctx.saved_tensors
        _, _, window, with_bias, kernels = ctx.settings
        bias = grad_b if with_bias else None
        grad_grad_output = lookup(tokens, grad_t, bias, window, kernels=kernels)
        return grad_grad_output, None, None

    @staticmethod
    def jvp(ctx: Any, grad_output_tangent: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        (tokens,) = ctx.saved_tensors
        return grad_table(grad_output_tangent, tokens, *ctx.settings)


def _lookup_and_save(
    ctx: Any, tokens: Tensor, table: Tensor, bias: Tensor | None, settings: Any
) -> Tensor:
    y = _Lookup.forward(tokens, table, bias, settings)
    ctx.settings = table.shape[0], table.shape[1], *settings
    ctx.save_for_backward(tokens, None, None if settings[1] == "none" else y)
    return y


_LookupDirect = direct(_Lookup, _lookup_and_save)
_GradTableDirect = direct(_GradTable)


def by_tap(weight: Tensor, embedding_dim: int) -> Tensor:
    """A weight for embeddings laid end to end as one for them side by side; a view.

    (out_channels, 1, kernel_size * embedding_dim), or without the 1 as a linear layer's, to
    (out_channels, embedding_dim, kernel_size); one of this shape is returned as it is.
    """
    if weight.dim() == 3 and weight.shape[1] == embedding_dim:
        return weight
    return weight.reshape(weight.shape[0], -1, embedding_dim).mT


def end_to_end(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``by_tap(weight, ...)`` in the shape of ``weight``."""
    return gradient if gradient.shape == weight.shape else gradient.mT.reshape(weight.shape)


def make_table(embedding: Tensor, weight: Tensor, kernels: str = "native") -> Tensor:
    """The table (kernel_size, vocab, out_channels) of an embedding and the convolution after it.

    Shapes: embedding (vocab, embedding_dim), weight (out_channels, embedding_dim, kernel_size).
    Differentiable to any order.
    """
    operands = weight.permute(2, 1, 0), embedding.unsqueeze(2), None
    return autograd.forward(*operands, _POINTWISE, kernels=kernels)


def lookup(
    tokens: Tensor,
    table: Tensor,
    bias: Tensor | None,
    window: Any,
    activation: str = "none",
    kernels: str = "native",
    exported: bool = False,
) -> Tensor:
    """activation(sums of rows of ``table`` + bias), differentiable to any order.

    Shapes: tokens (batch, length), int64 or int32; table (kernel_size, vocab, out_channels), bias
    (out_channels), result (batch, out_channels, out_length), of one dtype. ``exported`` is that of
    ``autograd.forward``.

    Raises:
        RuntimeError: a token outside [0, vocab) on the CPU, where a GPU gives NaN; an impossible
            geometry; names argument and value.
    """
    if _exporting() and not exported:
        return exported_lookup(tokens, table, bias, *window, activation, kernels)
    fused = activation == "none" or activation in FROM_OUTPUT
    settings = window, activation if fused else "none", kernels
    if transformed():
        y = apply_transformed(_Lookup, tokens, table, bias, settings=settings)
    elif wants_gradients(table, bias):
        y = _LookupDirect.apply(tokens, table, bias, settings)
    else:
        return lookup_ops.OPERATORS[kernels].lookup(tokens, table, bias, *window, activation)
    return y if fused else activate(y, activation)


def _run_exported(tokens: Tensor, table: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    *window, activation, kernels = settings
    return lookup(tokens, table, bias, window, activation, kernels, exported=True)


exported_lookup = composite(
    "exported_lookup(Tensor tokens, Tensor table, Tensor? bias, SymInt stride, SymInt pad_left, "
    "SymInt pad_right, SymInt dilation, str activation, str kernels) -> Tensor",
    _run_exported,
)


def embed(tokens: Tensor, embedding: Tensor, kernels: str) -> Tensor:
    """embedding[tokens].mT by a table of one tap, which checks the tokens on the way."""
    return lookup(tokens, embedding.unsqueeze(0), None, (1, 0, 0, 1), kernels=kernels)


def grad_table(
    grad_output: Tensor,
    tokens: Tensor,
    kernel_size: int,
    vocab: int,
    window: Any,
    with_bias: bool,
    kernels: str = "native",
) -> tuple[Tensor, Tensor]:
    """Gradients of table and of bias (empty unless ``with_bias``), differentiable to any order."""
    settings = kernel_size, vocab, window, with_bias, kernels
    if transformed():
        return apply_transformed(_GradTable, grad_output, tokens, settings=settings)
    if _grad_enabled() and grad_output.requires_grad:
        return _GradTableDirect.apply(grad_output, tokens, settings)
    return _GradTable.forward(grad_output, tokens, settings)


@called_directly
class _CrossEntropy(torch.autograd.Function):
    """The mean loss, which comes with its gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        tokens, target, embedding, weight, bias, *window = inputs
        loss, *gradients = lookup_ops.cross_entropy(tokens, target, None, *inputs[2:])
        ctx.window = window
        ctx.save_for_backward(tokens, target, embedding, weight, bias, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        tokens, target, embedding, weight, bias, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:5]
        if _grad_enabled():  # to be differentiated again: by the formula, not by its values
            loss = composed_cross_entropy(tokens, target, embedding, weight, bias, ctx.window)
            operands = embedding, weight, bias
            leaves = [t for t, wanted in zip(operands, needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(loss, leaves, grad_loss, create_graph=True))
            gradients = [next(found) if wanted else None for wanted in needed]
        else:
            gradients = [
                value * grad_loss if wanted else None
                for value, wanted in zip(values, needed, strict=True)
            ]
        return None, None, *gradients, *(None,) * 4


def composed_cross_entropy(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Any,
) -> Tensor:
    """:func:`cross_entropy` step by step, differentiable to any order."""
    weight = by_tap(weight, embedding.shape[1])
    logits = lookup(tokens, make_table(embedding, weight), bias, window)
    return indices.cross_entropy(logits, target)


def cross_entropy(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Any,
) -> Tensor:
    """Mean cross-entropy of looked-up logits, in one pass with its gradients.

    Shapes: tokens (batch, length), target (batch, out_length); the others as in
    :func:`make_table` and :func:`lookup`. float32 or float64.

    Raises:
        RuntimeError: a token outside [0, vocab) or a target outside [0, out_channels).
    """
    operands = tokens, target, embedding, weight, bias
    if transformed() or torch.compiler.is_compiling():
        return composed_cross_entropy(*operands, window)
    if wants_gradients(embedding, weight, bias):
        return _CrossEntropy.apply(*operands, *window)
    return losses(*operands, window).mean()


def losses(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Any,
) -> Tensor:
    """Cross-entropies (batch, out_length) of looked-up logits; otherwise as above, no gradients."""
    return lookup_ops.losses(tokens, target, embedding, weight, bias, *window)


def wants_gradients(*operands: Tensor | None) -> bool:
    """Whether anything must be kept for a derivative of an operation with these."""
    return transformed() or (
        _grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    )
