"""The checks of the native code, in its order and words, on sizes that may be symbolic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .geometry import output_length


def shape_of(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def check_one_device(
    function: str, other_argument: str, other: Tensor, **tensors: Tensor | None
) -> None:
    """Raises RuntimeError unless all ``tensors`` are where ``other`` is.

    An operator with one tensor on the meta device runs its fake version, whatever the others are.
    """
    for argument, tensor in tensors.items():
        # Not torch._check, whose first call takes half a second to import sympy, which knows sizes.
        if tensor is not None and tensor.device != other.device:
            raise RuntimeError(f"{function}: {argument} and {other_argument} must be on one device")


def shape_of_losses(rows: Tensor | None) -> tuple[int, ...]:
    """What a call returns for the rows of a step, or of several, (steps, batch)."""
    return () if rows is None or rows.dim() != 2 else rows.shape[:1]


class GeometryChecks:
    """Those of ``csrc/checks.h``."""

    def __init__(
        self,
        function: str,
        stride: int,
        pad_left: int,
        pad_right: int,
        dilation: int,
        groups: int,
        fp32_precision: str,
    ) -> None:
        self.function = function
        self.at_least("stride", stride, 1)
        self.at_least("pad_left", pad_left, 0)
        self.at_least("pad_right", pad_right, 0)
        self.at_least("dilation", dilation, 1)
        self.at_least("groups", groups, 1)
        self.require(
            fp32_precision in ("ieee", "tf32"),
            f"fp32_precision must be ieee or tf32, got '{fp32_precision}'",
        )
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.pad_left, self.pad_right = pad_left, pad_right

    def require(self, condition: Any, message: str) -> None:
        torch._check(condition, lambda: f"{self.function}: {message}")

    def at_least(self, argument: str, value: int, least: int) -> None:
        self.require(value >= least, f"{argument} must be at least {least}, got {value}")

    def three_dimensional(self, argument: str, tensor: Tensor, dimensions: str) -> None:
        self.require(
            tensor.dim() == 3,
            f"{argument} must have the three dimensions {dimensions}, got shape {shape_of(tensor)}",
        )

    def same_kind(self, argument: str, tensor: Tensor, other_argument: str, other: Tensor) -> None:
        self.require(
            tensor.dtype == other.dtype,
            f"{argument} and {other_argument} must have one dtype, "
            f"got {tensor.dtype} and {other.dtype}",
        )
        self.same_device(argument, tensor, other_argument, other)

    def same_device(
        self, argument: str, tensor: Tensor, other_argument: str, other: Tensor
    ) -> None:
        check_one_device(self.function, other_argument, other, **{argument: tensor})

    def x(self, x: Tensor) -> None:
        self.three_dimensional("x", x, "(batch, in_channels, length)")

    def channels(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        self.at_least("in_channels", in_channels, 1)
        self.at_least("out_channels", out_channels, 1)
        self.at_least("kernel_size", kernel_size, 1)
        for argument, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            self.require(
                count % self.groups == 0,
                f"{argument} ({count}) must be divisible by groups ({self.groups})",
            )

    def weight(self, weight: Tensor) -> int:
        """Checks ``weight``; returns in_channels."""
        dimensions = "(out_channels, in_channels / groups, kernel_size)"
        self.three_dimensional("weight", weight, dimensions)
        in_channels = weight.shape[1] * self.groups
        self.channels(in_channels, weight.shape[0], weight.shape[2])
        return in_channels

    def out_length(self, length: int, kernel_size: int) -> int:
        self.at_least("length", length, 0)
        out_length = output_length(
            length, kernel_size, self.stride, self.dilation, self.pad_left, self.pad_right
        )
        self.require(
            out_length >= 1,
            f"the kernel spans {self.dilation * (kernel_size - 1) + 1} positions, which is greater "
            f"than the padded input's {length + self.pad_left + self.pad_right}",
        )
        return out_length

    def grad_output(
        self, grad_output: Tensor, batch: int, out_channels: int, out_length: int
    ) -> None:
        for axis, size in enumerate((batch, out_channels, out_length)):
            self.require(
                grad_output.shape[axis] == size,
                f"grad_output must have the shape ({batch}, {out_channels}, {out_length}), "
                f"got {shape_of(grad_output)}",
            )

    def activated(self, y: Tensor | None, activation: str, grad_output: Tensor) -> None:
        self.require(
            activation in ("none", "tanh", "relu", "sigmoid"),
            f"activation must be none, tanh, relu or sigmoid, got '{activation}'",
        )
        self.require(
            (y is not None) == (activation != "none"),
            f"y must be given with an activation, and only then, got activation '{activation}' "
            + ("without y" if y is None else "with y"),
        )
        if y is not None:
            self.same_kind("y", y, "grad_output", grad_output)
            self.require(
                y.shape == grad_output.shape,
                f"y must have the shape of grad_output, {shape_of(grad_output)}, got {shape_of(y)}",
            )

    def activation(self, activation: str) -> None:
        self.require(
            activation in ("none", "tanh", "relu", "silu", "gelu", "sigmoid"),
            f"activation must be none, tanh, relu, silu, gelu or sigmoid, got '{activation}'",
        )

    def bias(self, bias: Tensor, out_channels: int) -> None:
        self.require(
            bias.dim() == 1 and bias.shape[0] == out_channels,
            f"bias must have the shape ({out_channels}), got {shape_of(bias)}",
        )


class LookupChecks(GeometryChecks):
    """Those of ``csrc/lookup_checks.h``."""

    def __init__(
        self, function: str, stride: int, pad_left: int, pad_right: int, dilation: int
    ) -> None:
        super().__init__(function, stride, pad_left, pad_right, dilation, 1, "ieee")

    def indices(
        self,
        argument: str,
        tensor: Tensor,
        dimensions: str,
        other_argument: str,
        other: Tensor,
    ) -> None:
        self.require(
            tensor.dim() == 2,
            f"{argument} must have the two dimensions {dimensions}, got shape {shape_of(tensor)}",
        )
        self.require(
            tensor.dtype in (torch.int64, torch.int32),
            f"{argument} must be int64 or int32, got {tensor.dtype}",
        )
        self.same_device(argument, tensor, other_argument, other)

    def tokens(self, tokens: Tensor, other_argument: str, other: Tensor) -> None:
        self.indices("tokens", tokens, "(batch, length)", other_argument, other)

    def embedding(self, embedding: Tensor, weight: Tensor) -> int:
        """Returns kernel_size."""
        self.three_dimensional("weight", weight, "(out_channels, embedding_dim, kernel_size)")
        self.require(
            embedding.dim() == 2,
            "embedding must have the two dimensions (vocab, embedding_dim), "
            f"got shape {shape_of(embedding)}",
        )
        embedding_dim = embedding.shape[1]
        self.at_least("embedding_dim", embedding_dim, 1)
        if weight.shape[1] == embedding_dim:
            return weight.shape[2]
        self.require(
            weight.shape[1] == 1 and weight.shape[2] % embedding_dim == 0,
            f"weight must have the shape (out_channels, {embedding_dim}, kernel_size) or "
            f"(out_channels, 1, kernel_size * {embedding_dim}), got {shape_of(weight)}",
        )
        return weight.shape[2] // embedding_dim

    def table_sizes(self, kernel_size: int, vocab: int, out_channels: int) -> None:
        self.at_least("vocab", vocab, 1)
        self.channels(vocab, out_channels, kernel_size)
