"""The three operators with the Triton kernels behind them, ``torch.ops.convlm_triton``.

Imported when the backend is first asked for, because Triton takes a while to import. The schemas,
checks, fake versions and vmap rules are those of the native operators in ``ops``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .geometry import Conv1dGeometry
from .triton_kernels import functions, launch

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


def _define() -> ops.Operators:
    implementations = _forward, _grad_input, _grad_weight
    for native, implementation in zip(ops.OPERATORS["native"], implementations, strict=True):
        name, schema = native.name().split("::")[1], str(native._schema).split("::")[1]
        _library.define(schema)
        for key in ("CPU", "CUDA") if INTERPRETED else ("CUDA",):
            _library.impl(name, implementation, key)
    namespace = torch.ops.convlm_triton
    operators = ops.Operators(
        namespace.forward.default, namespace.grad_input.default, namespace.grad_weight.default
    )
    ops.register("convlm_triton", operators)
    return operators


ops.OPERATORS["triton"] = _define()
