"""The three functions as the two products that kernels compute, without their configuration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from convlm_kernels.geometry import Conv1dGeometry


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    axes = ("batch", "channel", "position")
    return {f"{name}_{axis}": step for axis, step in zip(axes, tensor.stride(), strict=True)}


class Correlation(NamedTuple):
    """forward, or (``transposed``) grad_input: fills ``out`` from ``in_``.

    ``weight`` is (groups, rows, channels, kernel_size). ``y`` is the output of the activation that
    ``in_`` is to be taken back through, or None.
    """

    out: Tensor
    in_: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor | None
    activation: str
    geometry: Conv1dGeometry
    fp32_precision: str
    transposed: bool

    @property
    def classes(self) -> int:
        """Positions of grad_input a stride apart have the same taps: they are one class."""
        return min(self.geometry.stride, self.geometry.length) if self.transposed else 1

    @property
    def step(self) -> int:
        """How far the next output of a class reads."""
        return 1 if self.transposed else self.geometry.stride

    def arguments(self) -> dict[str, Any]:
        """Those that all kernels take."""
        groups, rows, channels, kernel_size = self.weight.shape
        stride, dilation = self.geometry.stride, self.geometry.dilation
        divisor = math.gcd(stride, dilation)
        y = self.in_ if self.y is None else self.y
        return dict(
            p_in=self.in_,
            p_y=y,
            p_bias=self.in_ if self.bias is None else self.bias.contiguous(),
            p_out=self.out,
            **_strides("in", self.in_),
            **_strides("y", y),
            batch=self.geometry.batch,
            groups=groups,
            rows=rows,
            channels=channels,
            length=self.in_.shape[2],
            out_length=self.out.shape[2],
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            pad_left=self.geometry.pad_left,
            divisor=divisor,
            inverse=pow(dilation // divisor, -1, stride // divisor),
            classes=self.classes,
            TRANSPOSED=self.transposed,
            HAS_BIAS=self.bias is not None,
            ACTIVATION="none" if self.transposed else self.activation,
            GRADIENT_OF="none" if self.y is None else self.activation,
            ACCUMULATE=accumulate_type(self.out.dtype),
        )


class WeightGradient(NamedTuple):
    """grad_weight and, unless None, grad_bias: fills both from ``grad_output`` and ``x``."""

    grad_weight: Tensor
    grad_bias: Tensor | None
    grad_output: Tensor
    x: Tensor
    y: Tensor | None
    activation: str
    geometry: Conv1dGeometry
    fp32_precision: str

    @property
    def part_size(self) -> int:
        """Numbers that one part of the positions writes: all weights, then all biases."""
        biases = 0 if self.grad_bias is None else self.grad_bias.numel()
        return self.grad_weight.numel() + biases

    def arguments(self) -> dict[str, Any]:
        """Those that all kernels take."""
        geometry = self.geometry
        y = self.grad_output if self.y is None else self.y
        return dict(
            p_grad=self.grad_output,
            p_y=y,
            p_x=self.x,
            **_strides("grad", self.grad_output),
            **_strides("y", y),
            **_strides("x", self.x),
            groups=geometry.groups,
            rows=geometry.out_channels // geometry.groups,
            channels=geometry.in_channels // geometry.groups,
            length=geometry.length,
            out_length=self.grad_output.shape[2],
            kernel_size=geometry.kernel_size,
            stride=geometry.stride,
            dilation=geometry.dilation,
            pad_left=geometry.pad_left,
            part_size=self.part_size,
            WITH_BIAS=self.grad_bias is not None,
            GRADIENT_OF="none" if self.y is None else self.activation,
            ACCUMULATE=accumulate_type(self.x.dtype),
        )


def accumulate_type(dtype: torch.dtype) -> tl.dtype:
    """What sums are in."""
    return tl.float64 if dtype == torch.float64 else tl.float32
