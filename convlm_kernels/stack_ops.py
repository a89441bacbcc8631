"""The operators of fused stacks, bound once, and their fake versions.

Private, as those of ``ops`` are: ``stack_autograd`` is differentiable. ``csrc/stack_checks.h`` has
the checks of sizes, which the fake versions leave to it, but for what shapes the results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import _library
from .checks import check_one_device, shape_of_losses
from .geometry import output_length

ACTIVATIONS = ("none", "tanh", "relu", "silu", "gelu", "sigmoid", "gate")  # as C++ numbers them


class LayerSettings(NamedTuple):
    """A layer of a stack without its parameters."""

    dilation: int
    pad: int  # zeros on the left
    activation: str  # one of ACTIVATIONS: that of a convolution, or a gate
    residual: bool


# Those of all layers, as the operators take them: four numbers each, since lists of words take
# longer to hand over than a small stack to compute.
Settings = list[int]


def settings_of(layers: Iterable[LayerSettings]) -> Settings:
    return [
        number
        for layer in layers
        for number in (
            layer.dilation,
            layer.pad,
            ACTIVATIONS.index(layer.activation),
            int(layer.residual),
        )
    ]


def layers_of(settings: Settings) -> list[LayerSettings]:
    """What :func:`settings_of` was given."""
    return [
        LayerSettings(dilation, pad, ACTIVATIONS[activation], bool(residual))
        for dilation, pad, activation, residual in zip(*[iter(settings)] * 4, strict=True)
    ]


stack_forward = torch.ops.convlm.stack_forward.default
stack_backward = torch.ops.convlm.stack_backward.default
stack_cross_entropy = torch.ops.convlm.stack_cross_entropy.default
stack_losses = torch.ops.convlm.stack_losses.default
stack_sgd_ = torch.ops.convlm.stack_sgd_.default
stack_rows = torch.ops.convlm.stack_rows.default


class Operators(NamedTuple):
    """The two operators of one set of kernels, as in ``ops``; the others are native alone."""

    stack_forward: OpOverload
    stack_backward: OpOverload


OPERATORS = {"native": Operators(stack_forward, stack_backward)}


def reason_does_not_fit(
    x: Tensor,
    length: int,
    has_tokens: bool,
    weights: list[Tensor],
    settings: Settings,
    kernels: str = "native",
) -> str | None:
    """Why no GPU kernel takes a stack on ``x`` with inputs of this length, or None.

    A sample's activations must fit the shared memory of a block; ``csrc/cuda/stack_fits.h`` counts.
    Those of ``kernels="triton"`` stay in memory, as far as the caches hold a layer.
    """
    if torch.compiler.is_compiling():
        return "torch.compile traces one graph for any length"
    if kernels == "triton":
        from . import triton_stack_ops

        return triton_stack_ops.reason_does_not_fit(x, length, weights, settings)
    sizes = _sizes(x, length, has_tokens, weights, settings)
    reason: str | None = _library.host.cuda_reason_stack_not_fused(**sizes)
    return reason


def reason_contexts_not_shared(
    x: Tensor, tokens: Tensor, weights: list[Tensor], settings: Settings
) -> str | None:
    """Why a stack that fits a GPU computes each position of ``tokens`` for itself, or None.

    ``csrc/cuda/shared_fits.h`` has the rule, which knows sizes only.
    """
    sizes = _sizes(x, tokens.shape[1], True, weights, settings)
    reason: str | None = _library.host.cuda_reason_contexts_not_shared(
        **sizes, batch=tokens.shape[0]
    )
    return reason


def _sizes(
    x: Tensor, length: int, has_tokens: bool, weights: list[Tensor], settings: Settings
) -> dict[str, Any]:
    """What the rules of ``csrc/cuda`` know of a stack."""
    major, minor = torch.cuda.get_device_capability(x.device)
    layers = layers_of(settings)
    return {
        "dtype": str(x.dtype).removeprefix("torch."),
        "channels": x.shape[1],
        "length": length,
        "vocab": x.shape[0] if has_tokens else 0,
        "weights": [(weight.shape[0], weight.shape[2]) for weight in weights],
        "dilations": [layer.dilation for layer in layers],
        "pads": [layer.pad for layer in layers],
        "gated": [layer.activation == "gate" for layer in layers],
        "capability": 10 * major + minor,
    }


_LINE = 64  # bytes: where rows begin
_TILE = 32  # rows, of which some kernels keep whole tiles


def _row_bytes(channels: int, dtype: torch.dtype) -> int:
    """Of one row in the type that the kernels compute in, as in ``stack_call.h``."""
    return -(-channels * max(4, dtype.itemsize) // _LINE) * _LINE


def _shapes(
    x: Tensor, tokens: Tensor | None, weights: list[Tensor], settings: Settings
) -> tuple[Any, int]:
    """The shape of the result, and the bytes that are kept for the gradients."""
    batch, length = (x.shape[0], x.shape[2]) if tokens is None else tokens.shape
    channels, saved = x.shape[1], 0
    for weight, layer in zip(weights, layers_of(settings), strict=True):
        torch._check(weight.shape[1] == channels)
        length = output_length(length, weight.shape[2], 1, layer.dilation, layer.pad, 0)
        torch._check(length >= 1)
        columns = weight.shape[0]
        channels = columns // 2 if layer.activation == "gate" else columns
        row = _row_bytes(channels, x.dtype) + _row_bytes(columns, x.dtype)
        saved = saved + (batch * length + _TILE) * row + 1024
    return (batch, channels, length), saved


@torch.library.register_fake("convlm::stack_forward")
def _stack_forward_fake(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    check_one_device("stack_forward", "x", x, tokens=tokens)
    shape, saved = _shapes(x, tokens, weights, settings)
    return x.new_empty(shape), x.new_empty(saved if save else 0, dtype=torch.uint8)


@torch.library.register_fake("convlm::stack_backward")
def _stack_backward_fake(
    grad_output: Tensor,
    saved: Tensor,
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool,
    with_x: bool,
) -> list[Tensor]:
    return empty_gradients(x, weights, biases, with_x)


def empty_gradients(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], with_x: bool = True
) -> list[Tensor]:
    grad_x = x.new_empty(x.shape if with_x else (0,))
    grads_b = [b.new_empty(b.shape) for b in biases]
    return [grad_x, *(torch.empty_like(w) for w in weights), *grads_b]


@torch.library.register_fake("convlm::stack_cross_entropy")
def _stack_cross_entropy_fake(
    x: Tensor,
    tokens: Tensor,
    target: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool,
) -> tuple[Tensor, list[Tensor]]:
    check_one_device("stack_cross_entropy", "x", x, tokens=tokens, target=target)
    return x.new_empty(()), empty_gradients(x, weights, biases)


@torch.library.register_fake("convlm::stack_sgd_")
def _stack_sgd_fake(
    x: Tensor, tokens: Tensor, target: Tensor, rows: Tensor | None, *others: Any
) -> Tensor:
    check_one_device("stack_sgd_", "x", x, tokens=tokens, target=target, rows=rows)
    return x.new_empty(shape_of_losses(rows))


@torch.library.register_fake("convlm::stack_losses")
def _stack_losses_fake(x: Tensor, tokens: Tensor, target: Tensor, *others: Any) -> Tensor:
    check_one_device("stack_losses", "x", x, tokens=tokens, target=target)
    return x.new_empty(target.shape)
