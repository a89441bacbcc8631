"""The operators, bound once, and what torch must know about them besides their kernels.

They are private: nothing here is differentiable, ``autograd`` is. (Torch itself warns when a
backward pass reaches one of them.) Shapes and errors are described in ``csrc/library.cpp`` and
``csrc/checks.h``; the fake versions below repeat both without touching data, for any mix of
concrete and symbolic sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import _library, flops  # noqa: F401  (importing _library loads the operators)
from .geometry import output_length

forward = torch.ops.convlm.forward.default
forward_with_state = torch.ops.convlm.forward_with_state.default
grad_input = torch.ops.convlm.grad_input.default
grad_weight = torch.ops.convlm.grad_weight.default
gradients = torch.ops.convlm.gradients.default


class Operators(NamedTuple):
    """The three operators of one set of kernels; all sets have the same schemas."""

    forward: OpOverload
    grad_input: OpOverload
    grad_weight: OpOverload


# "native": the dispatcher chooses between C++ and CUDA by the device. What else there is adds
# itself when it is imported.
OPERATORS = {"native": Operators(forward, grad_input, grad_weight)}


_fragment = torch.library.Library("convlm", "FRAGMENT")


def define(schema: str, function: Callable, dispatch_key: str) -> OpOverload:
    """A further operator, of what Python does with those of the binaries."""
    name = schema[: schema.index("(")]
    _fragment.define(schema)
    _fragment.impl(name, function, dispatch_key)
    operator: OpOverload = getattr(torch.ops.convlm, name).default
    return operator


def composite(schema: str, function: Callable) -> OpOverload:
    """An operator that is ``function``, gradients included, and stays whole where torch exports."""
    return define(schema, function, "CompositeImplicitAutograd")


class _Checks:
    """The checks of ``csrc/checks.h``, in its order and words, on sizes that may be symbolic."""

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
            f"{argument} must have the three dimensions {dimensions}, got shape {_text(tensor)}",
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
        self.require(
            tensor.device == other.device,
            f"{argument} and {other_argument} must be on one device",
        )

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
                f"got {_text(grad_output)}",
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
                f"y must have the shape of grad_output, {_text(grad_output)}, got {_text(y)}",
            )

    def activation(self, activation: str) -> None:
        self.require(
            activation in ("none", "tanh", "relu", "silu", "gelu", "sigmoid"),
            f"activation must be none, tanh, relu, silu, gelu or sigmoid, got '{activation}'",
        )

    def bias(self, bias: Tensor, out_channels: int) -> None:
        self.require(
            bias.dim() == 1 and bias.shape[0] == out_channels,
            f"bias must have the shape ({out_channels}), got {_text(bias)}",
        )

    def forward_operands(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
        """Checks all three; returns in_channels."""
        self.same_kind("weight", weight, "x", x)
        self.x(x)
        in_channels = self.weight(weight)
        self.require(
            x.shape[1] == in_channels,
            f"x has {x.shape[1]} channels, but weight with groups = {self.groups} takes "
            f"{in_channels}",
        )
        if bias is not None:
            self.same_kind("bias", bias, "x", x)
            self.bias(bias, weight.shape[0])
        return in_channels


def _text(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _with_defaults(
    settings: tuple[Any, ...], count: int, y: Tensor | None = None, activation: str = "none"
) -> tuple[Any, Tensor | None, str]:
    """The first ``count`` settings, y and activation: the last two may be among the settings."""
    if len(settings) > count:
        y = settings[count]
    if len(settings) > count + 1:
        activation = settings[count + 1]
    return settings[:count], y, activation


_Y_DIMENSIONS = "(batch, out_channels, out_length)"


def forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    *window, activation = settings
    checks = _Checks("forward", *window)
    checks.forward_operands(x, weight, bias)
    out_length = checks.out_length(x.shape[2], weight.shape[2])
    checks.activation(activation)
    return x.new_empty((x.shape[0], weight.shape[0], out_length))


@torch.library.register_fake("convlm::forward_with_state")
def _forward_with_state_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    dilation: int,
    groups: int,
    fp32_precision: str,
    activation: str,
) -> tuple[Tensor, Tensor]:
    checks = _Checks("forward_with_state", 1, 0, 0, dilation, groups, fp32_precision)
    in_channels = checks.forward_operands(x, weight, bias)
    checks.same_kind("state", state, "x", x)
    checks.pad_left = dilation * (weight.shape[2] - 1)
    out_length = checks.out_length(x.shape[2], weight.shape[2])
    expected = x.shape[0], in_channels, checks.pad_left
    checks.require(
        state.dim() == 3 and tuple(state.shape) == expected,
        f"state must have the shape ({', '.join(map(str, expected))}), got {_text(state)}",
    )
    return x.new_empty((x.shape[0], weight.shape[0], out_length)), x.new_empty(expected)


def grad_input_fake(
    grad_output: Tensor,
    weight: Tensor,
    length: int,
    *settings: Any,
    y: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    window, y, activation = _with_defaults(settings, 6, y, activation)
    checks = _Checks("grad_input", *window)
    checks.same_kind("weight", weight, "grad_output", grad_output)
    in_channels = checks.weight(weight)
    checks.three_dimensional("grad_output", grad_output, _Y_DIMENSIONS)
    out_length = checks.out_length(length, weight.shape[2])
    checks.grad_output(grad_output, grad_output.shape[0], weight.shape[0], out_length)
    checks.activated(y, activation, grad_output)
    return grad_output.new_empty((grad_output.shape[0], in_channels, length))


def grad_weight_fake(
    grad_output: Tensor,
    x: Tensor,
    kernel_size: int,
    *settings: Any,
    y: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    (*window, with_bias), y, activation = _with_defaults(settings, 7, y, activation)
    checks = _Checks("grad_weight", *window)
    checks.same_kind("x", x, "grad_output", grad_output)
    checks.x(x)
    checks.three_dimensional("grad_output", grad_output, _Y_DIMENSIONS)
    in_channels, out_channels = x.shape[1], grad_output.shape[1]
    checks.channels(in_channels, out_channels, kernel_size)
    out_length = checks.out_length(x.shape[2], kernel_size)
    checks.grad_output(grad_output, x.shape[0], out_channels, out_length)
    checks.activated(y, activation, grad_output)
    grad_w = x.new_empty((out_channels, in_channels // checks.groups, kernel_size))
    return grad_w, x.new_empty(out_channels if with_bias else 0)


@torch.library.register_fake("convlm::gradients")
def _gradients_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *window, with_bias = settings
    groups = window[4]
    torch._check(
        x.dim() == 3 and weight.dim() == 3 and x.shape[1] == weight.shape[1] * groups,
        lambda: (
            "gradients: x and weight must have three dimensions and the same channels, "
            f"got shapes {_text(x)} and {_text(weight)}"
        ),
    )
    grad_x = grad_input_fake(grad_output, weight, x.shape[2], *window)
    return grad_x, *grad_weight_fake(grad_output, x, weight.shape[2], *window, with_bias)


# vmap. A batched x alone is a longer batch. A batched weight makes every example a convolution of
# its own, side by side: that is what groups are, so the examples become groups.


def _front(tensor: Tensor, batch_dim: int | None, size: int) -> Tensor:
    if batch_dim is None:
        return tensor.expand(size, *tensor.shape)
    return tensor.movedim(batch_dim, 0)


def _into_channels(tensor: Tensor, batch_dim: int | None, size: int) -> Tensor:
    return _front(tensor, batch_dim, size).movedim(0, 1).flatten(1, 2)


def _into_batch(tensor: Tensor, batch_dim: int | None, size: int) -> Tensor:
    return _front(tensor, batch_dim, size).flatten(0, 1)


def _forward_vmap(
    forward: Any,
    info: Any,
    in_dims: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, int]:
    x_dim, weight_dim, bias_dim, *_ = in_dims
    size = info.batch_size
    if weight_dim is None and bias_dim is None:
        y = forward(_into_batch(x, x_dim, size), weight, bias, *settings)
        return y.unflatten(0, (size, -1)), 0
    *window, groups, fp32_precision, activation = settings
    y = forward(
        _into_channels(x, x_dim, size),
        _into_batch(weight, weight_dim, size),
        None if bias is None else _into_batch(bias, bias_dim, size),
        *window,
        groups * size,
        fp32_precision,
        activation,
    )
    return y.unflatten(1, (size, -1)), 1


def _grad_input_vmap(
    grad_input: Any, info: Any, in_dims: Any, grad_output: Tensor, weight: Tensor, *settings: Any
) -> tuple[Tensor, int]:
    grad_dim, weight_dim, *_ = in_dims
    size = info.batch_size
    (length, *window, groups, fp32_precision), y, activation = _with_defaults(settings, 7)
    y_dim = None if y is None else in_dims[-2]
    if weight_dim is None:  # then one of the two others is batched
        grad_x = grad_input(
            _into_batch(grad_output, grad_dim, size),
            weight,
            length,
            *window,
            groups,
            fp32_precision,
            None if y is None else _into_batch(y, y_dim, size),
            activation,
        )
        return grad_x.unflatten(0, (size, -1)), 0
    grad_x = grad_input(
        _into_channels(grad_output, grad_dim, size),
        _into_batch(weight, weight_dim, size),
        length,
        *window,
        groups * size,
        fp32_precision,
        None if y is None else _into_channels(y, y_dim, size),
        activation,
    )
    return grad_x.unflatten(1, (size, -1)), 1


def _grad_weight_vmap(
    grad_weight: Any, info: Any, in_dims: Any, grad_output: Tensor, x: Tensor, *settings: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    grad_dim, x_dim, *_ = in_dims
    size = info.batch_size
    window_settings, y, activation = _with_defaults(settings, 8)
    *window, groups, fp32_precision, with_bias = window_settings
    grad_w, grad_b = grad_weight(
        _into_channels(grad_output, grad_dim, size),
        _into_channels(x, x_dim, size),
        *window,
        groups * size,
        fp32_precision,
        with_bias,
        None if y is None else _into_channels(y, in_dims[-2], size),
        activation,
    )
    grad_w = grad_w.unflatten(0, (size, -1))
    return (grad_w, grad_b.unflatten(0, (size, -1)) if with_bias else grad_b), (
        0,
        0 if with_bias else None,
    )


def register(namespace: str, operators: Operators) -> None:
    """Gives the operators of ``namespace`` their fake versions and vmap rules."""
    fakes: Sequence[Callable] = (forward_fake, grad_input_fake, grad_weight_fake)
    vmaps: Sequence[Callable] = (_forward_vmap, _grad_input_vmap, _grad_weight_vmap)
    for name, operator, fake, vmap in zip(Operators._fields, operators, fakes, vmaps, strict=True):
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", functools.partial(vmap, operator))


register("convlm", OPERATORS["native"])


def _activate(x: Tensor, activation: str) -> Tensor:
    # By a convolution that leaves x as it is: a weight of one 1 for each channel.
    channels = x.shape[1]
    weight = x.new_ones(channels, 1, 1)
    return forward(x, weight, None, 1, 0, 0, 1, channels, "ieee", activation)


# An activation of each element alone, on the CPU. As an operator it counts no products.
activate = define("activate(Tensor x, str activation) -> Tensor", _activate, "CPU")
torch.library.register_fake("convlm::activate", lambda x, _: x.new_empty(x.shape))


@torch.library.register_vmap("convlm::activate")
def _activate_vmap(info: Any, in_dims: Any, x: Tensor, activation: str) -> tuple[Tensor, int]:
    y = activate(_into_batch(x, in_dims[0], info.batch_size), activation)
    return y.unflatten(0, (info.batch_size, -1)), 0


flops.count("convlm")
