"""The operators of look-ups, bound once, and what torch must know about them besides their kernels.

A look-up sums rows of a table (kernel_size, vocab, out_channels), one row for each tap: the
convolution of one-hot vectors, whose weight is the table. Private like those of ``ops``: nothing
here is differentiable, ``lookup`` is. ``window`` is (stride, pad_left, pad_right, dilation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from .checks import LookupChecks, shape_of, shape_of_losses
from .ops import _front, _into_batch

lookup = torch.ops.convlm.lookup.default
grad_table = torch.ops.convlm.lookup_grad_table.default
cross_entropy = torch.ops.convlm.lookup_cross_entropy.default
losses = torch.ops.convlm.lookup_losses.default
sgd_ = torch.ops.convlm.lookup_sgd_.default


class Operators(NamedTuple):
    """The two operators of one set of kernels, as in ``ops``; the others are native alone."""

    lookup: OpOverload
    lookup_grad_table: OpOverload


OPERATORS = {"native": Operators(lookup, grad_table)}


def lookup_fake(tokens: Tensor, table: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    *window, activation = settings
    checks = LookupChecks("lookup", *window)
    checks.tokens(tokens, "table", table)
    checks.three_dimensional("table", table, "(kernel_size, vocab, out_channels)")
    kernel_size, vocab, out_channels = table.shape
    checks.table_sizes(kernel_size, vocab, out_channels)
    if bias is not None:
        checks.same_kind("bias", bias, "table", table)
        checks.bias(bias, out_channels)
    out_length = checks.out_length(tokens.shape[1], kernel_size)
    checks.activation(activation)
    return table.new_empty((tokens.shape[0], out_channels, out_length))


def grad_table_fake(
    grad_output: Tensor, tokens: Tensor, kernel_size: int, vocab: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    *window, with_bias = settings
    checks = LookupChecks("lookup_grad_table", *window)
    checks.tokens(tokens, "grad_output", grad_output)
    checks.three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)")
    out_channels = grad_output.shape[1]
    checks.table_sizes(kernel_size, vocab, out_channels)
    out_length = checks.out_length(tokens.shape[1], kernel_size)
    checks.grad_output(grad_output, tokens.shape[0], out_channels, out_length)
    grad_table = grad_output.new_empty((kernel_size, vocab, out_channels))
    return grad_table, grad_output.new_empty(out_channels if with_bias else 0)


def _check_cross_entropy(
    function: str,
    tokens: Tensor,
    target: Tensor,
    rows: Tensor | None,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *window: Any,
    of_steps: bool = False,
) -> None:
    checks = LookupChecks(function, *window)
    checks.require(
        weight.dtype in (torch.float32, torch.float64),
        f"weight must be float32 or float64, got {weight.dtype}",
    )
    checks.tokens(tokens, "weight", weight)
    checks.same_kind("embedding", embedding, "weight", weight)
    kernel_size = checks.embedding(embedding, weight)
    out_channels = weight.shape[0]
    checks.table_sizes(kernel_size, embedding.shape[0], out_channels)
    if bias is not None:
        checks.same_kind("bias", bias, "weight", weight)
        checks.bias(bias, out_channels)
    out_length = checks.out_length(tokens.shape[1], kernel_size)
    checks.indices("target", target, "(batch, out_length)", "weight", weight)
    for axis, size in enumerate((tokens.shape[0], out_length)):
        checks.require(
            target.shape[axis] == size,
            f"target must have the shape ({tokens.shape[0]}, {out_length}), got {shape_of(target)}",
        )
    if rows is not None:
        checks.require(
            rows.dtype == torch.int64 and (rows.dim() == 1 or (of_steps and rows.dim() == 2)),
            f"rows must have one dimension{', or (steps, batch),' if of_steps else ''} and be "
            f"int64, got shape {shape_of(rows)} and {rows.dtype}",
        )
        checks.same_device("rows", rows, "tokens", tokens)


@torch.library.register_fake("convlm::lookup_losses")
def _losses_fake(tokens: Tensor, target: Tensor, *others: Any) -> Tensor:
    _check_cross_entropy("lookup_losses", tokens, target, None, *others)
    return others[1].new_empty(target.shape)


@torch.library.register_fake("convlm::lookup_cross_entropy")
def _cross_entropy_fake(
    tokens: Tensor,
    target: Tensor,
    rows: Tensor | None,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *window: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_cross_entropy(
        "lookup_cross_entropy", tokens, target, rows, embedding, weight, bias, *window
    )
    grad_bias = weight.new_empty(0 if bias is None else weight.shape[0])
    gradients = weight.new_empty(embedding.shape), weight.new_empty(weight.shape), grad_bias
    return weight.new_empty(()), *gradients


@torch.library.register_fake("convlm::lookup_sgd_")
def _sgd_fake(
    tokens: Tensor, target: Tensor, rows: Tensor | None, embedding: Tensor, *arguments: Any
) -> Tensor:
    *others, _lr = arguments
    _check_cross_entropy("lookup_sgd_", tokens, target, rows, embedding, *others, of_steps=True)
    return embedding.new_empty(shape_of_losses(rows))


# vmap. Batched tokens alone are a longer batch. Batched gradients of tables are one of a vocabulary
# that is as many times as large, in which every example has words of its own.


def _lookup_vmap(
    lookup: Any,
    info: Any,
    in_dims: Any,
    tokens: Tensor,
    table: Tensor,
    bias: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, int]:
    tokens_dim, table_dim, bias_dim, *_ = in_dims
    size = info.batch_size
    if table_dim is None and bias_dim is None:
        y = lookup(_into_batch(tokens, tokens_dim, size), table, bias, *settings)
        return y.unflatten(0, (size, -1)), 0
    examples = [
        lookup(
            _example(tokens, tokens_dim, i),
            _example(table, table_dim, i),
            None if bias is None else _example(bias, bias_dim, i),
            *settings,
        )
        for i in range(size)
    ]
    return torch.stack(examples), 0


def _example(tensor: Tensor, batch_dim: int | None, i: int) -> Tensor:
    return tensor if batch_dim is None else tensor.select(batch_dim, i)


def _grad_table_vmap(
    grad_table: Any,
    info: Any,
    in_dims: Any,
    grad_output: Tensor,
    tokens: Tensor,
    kernel_size: int,
    vocab: int,
    *settings: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    *window, with_bias = settings
    size = info.batch_size
    grads = _front(grad_output, in_dims[0], size)
    words = _front(tokens, in_dims[1], size)
    grad_b = grads.sum((1, 3)) if with_bias else grads.new_empty(0)
    first_words = vocab * torch.arange(size, dtype=words.dtype, device=words.device)
    known = (words >= 0) & (words < vocab)  # what is none must not become another example's
    words = torch.where(known, words + first_words[:, None, None], -1)
    grad_t, _ = grad_table(
        grads.flatten(0, 1),
        words.flatten(0, 1),
        kernel_size,
        size * vocab,
        *window,
        False,
    )
    return (grad_t.unflatten(1, (size, vocab)), grad_b), (1, 0 if with_bias else None)


def register(namespace: str, operators: Operators) -> None:
    """Gives the operators of ``namespace`` their fake versions and vmap rules."""
    fakes: Sequence[Callable] = (lookup_fake, grad_table_fake)
    vmaps: Sequence[Callable] = (_lookup_vmap, _grad_table_vmap)
    for name, operator, fake, vmap in zip(Operators._fields, operators, fakes, vmaps, strict=True):
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", functools.partial(vmap, operator))


register("convlm", OPERATORS["native"])
