"""The operators, bound once, and what torch must know about them besides their kernels.

They are private: nothing here is differentiable, ``autograd`` is. (Torch itself warns when a
backward pass reaches one of them.) Shapes and errors are described in ``csrc/library.cpp`` and
``csrc/checks.h``; the fake versions below repeat both (``checks``) without touching data, for any
mix of concrete and symbolic sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import _library, flops  # noqa: F401  (importing _library loads the operators)
from .checks import GeometryChecks, shape_of

forward = torch.ops.convlm.forward.default
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
    checks = GeometryChecks("forward", *window)
    checks.same_kind("weight", weight, "x", x)
    checks.x(x)
    in_channels = checks.weight(weight)
    checks.require(
        x.shape[1] == in_channels,
        f"x has {x.shape[1]} channels, but weight with groups = {checks.groups} takes "
        f"{in_channels}",
    )
    if bias is not None:
        checks.same_kind("bias", bias, "x", x)
        checks.bias(bias, weight.shape[0])
    out_length = checks.out_length(x.shape[2], weight.shape[2])
    checks.activation(activation)
    return x.new_empty((x.shape[0], weight.shape[0], out_length))


def grad_input_fake(
    grad_output: Tensor,
    weight: Tensor,
    length: int,
    *settings: Any,
    y: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    window, y, activation = _with_defaults(settings, 6, y, activation)
    checks = GeometryChecks("grad_input", *window)
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
    checks = GeometryChecks("grad_weight", *window)
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
            f"got shapes {shape_of(x)} and {shape_of(weight)}"
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
