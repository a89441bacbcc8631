"""The operators with the Triton kernels behind them, ``torch.ops.convlm_triton``.

Imported when the backend is first asked for, because Triton takes a while to import. The schemas,
checks, fake versions and vmap rules are those of the native operators in ``ops`` and
``lookup_ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import flops, lookup_ops, ops
from .geometry import Conv1dGeometry
from .triton_kernels import functions, launch, lookup

# With TRITON_INTERPRET=1 when Triton was imported.
INTERPRETED = launch.interpreted()

_library = torch.library.Library("convlm_triton", "DEF")


def _geometry(x_shape: torch.Size, weight_shape: torch.Size, window: Any) -> Conv1dGeometry:
    stride, pad_left, pad_right, dilation, groups = window
    batch, in_channels, length = x_shape
    out_channels, _, kernel_size = weight_shape
    return Conv1dGeometry(
        batch=batch,
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        length=length,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
        pad_left=pad_left,
        pad_right=pad_right,
    )


# The fake versions check their arguments and allocate the results; the kernels fill these.


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    y = ops.forward_fake(x, weight, bias, *settings)
    *window, fp32_precision, activation = settings
    geometry = _geometry(x.shape, weight.shape, window)
    functions.forward(y, x, weight, bias, geometry, fp32_precision, activation)
    return y


def _grad_input(
    grad_output: Tensor,
    weight: Tensor,
    length: int,
    stride: int,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
    fp32_precision: str,
    y: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    window = stride, pad_left, pad_right, dilation, groups
    grad_x = ops.grad_input_fake(
        grad_output, weight, length, *window, fp32_precision, y, activation
    )
    geometry = _geometry(grad_x.shape, weight.shape, window)
    functions.grad_input(grad_x, grad_output, weight, geometry, fp32_precision, y, activation)
    return grad_x


def _grad_weight(
    grad_output: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
    fp32_precision: str,
    with_bias: bool,
    y: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    window = stride, pad_left, pad_right, dilation, groups
    grad_w, grad_b = ops.grad_weight_fake(
        grad_output, x, kernel_size, *window, fp32_precision, with_bias, y, activation
    )
    geometry = _geometry(x.shape, grad_w.shape, window)
    functions.grad_weight(
        grad_w,
        grad_b if with_bias else None,
        grad_output,
        x,
        geometry,
        fp32_precision,
        y,
        activation,
    )
    return grad_w, grad_b


def _lookup(tokens: Tensor, table: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    y = lookup_ops.lookup_fake(tokens, table, bias, *settings)
    *window, activation = settings
    geometry = _lookup_geometry(tokens, table.shape, window)
    lookup.forward(y, tokens, table, bias, geometry, activation)
    return y


def _lookup_grad_table(
    grad_output: Tensor, tokens: Tensor, kernel_size: int, vocab: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    grad_t, grad_b = lookup_ops.grad_table_fake(grad_output, tokens, kernel_size, vocab, *settings)
    *window, with_bias = settings
    lookup.grad_table(grad_t, grad_output, tokens, _lookup_geometry(tokens, grad_t.shape, window))
    if with_bias:
        torch.sum(grad_output, (0, 2), out=grad_b)
    return grad_t, grad_b


def _lookup_geometry(tokens: Tensor, table_shape: torch.Size, window: Any) -> Conv1dGeometry:
    kernel_size, vocab, out_channels = table_shape
    one_hot = torch.Size((tokens.shape[0], vocab, tokens.shape[1]))
    return _geometry(one_hot, torch.Size((out_channels, vocab, kernel_size)), (*window, 1))


def define(
    natives: Iterable[OpOverload], implementations: Iterable[Callable]
) -> Iterator[OpOverload]:
    """Operators of this namespace with the names and schemas of ``natives``."""
    for native, implementation in zip(natives, implementations, strict=True):
        name, schema = native.name().split("::")[1], str(native._schema).split("::")[1]
        _library.define(schema)
        for key in ("CPU", "CUDA") if INTERPRETED else ("CUDA",):
            _library.impl(name, implementation, key)
        yield getattr(torch.ops.convlm_triton, name).default
    flops.count("convlm_triton")


ops.OPERATORS["triton"] = ops.Operators(
    *define(ops.OPERATORS["native"], (_forward, _grad_input, _grad_weight))
)
ops.register("convlm_triton", ops.OPERATORS["triton"])

lookup_ops.OPERATORS["triton"] = lookup_ops.Operators(
    *define(lookup_ops.OPERATORS["native"], (_lookup, _lookup_grad_table))
)
lookup_ops.register("convlm_triton", lookup_ops.OPERATORS["triton"])
