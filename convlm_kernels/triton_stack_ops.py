"""The operators of fused stacks with the Triton kernels behind them, as in ``triton_ops``.

What they save is theirs alone: (batch, numbers), of the dtype of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import stack_ops
from .checks import GeometryChecks, LookupChecks, shape_of
from .geometry import Conv1dGeometry, output_length
from .stack_ops import LayerSettings, Settings
from .triton_kernels import lookup, stack
from .triton_kernels.stack_plan import Layer, saved_size
from .triton_ops import define


def reason_does_not_fit(
    x: Tensor, length: int, weights: list[Tensor], settings: Settings
) -> str | None:
    """Why no program takes a sample of this length through such layers, or None."""
    layers, channels = [], x.shape[1]
    for weight, (dilation, pad, activation, residual) in zip(
        weights, stack_ops.layers_of(settings), strict=True
    ):
        columns, _, taps = weight.shape
        out_length = output_length(length, taps, 1, dilation, pad, 0)
        sizes = channels, columns, taps, dilation, pad, length, out_length
        layers.append(Layer(*sizes, activation, residual, False))
        channels, length = layers[-1].out_channels, out_length
    return stack.reason_does_not_fit(layers, x.dtype)


class _StackChecks(GeometryChecks):
    """The checks of ``csrc/stack_checks.h`` and ``csrc/stack_call.h``, in their order and words."""

    def __init__(self, function: str) -> None:
        super().__init__(function, 1, 0, 0, 1, 1, "ieee")

    def layers(
        self,
        x: Tensor,
        tokens: Tensor | None,
        weights: list[Tensor],
        biases: list[Tensor],
        settings: Settings,
    ) -> tuple[Layer, ...]:
        self.require(len(weights) > 0, "weights must have at least one entry")
        self.require(
            len(biases) == len(weights),
            f"biases must have one entry for each of the {len(weights)} weights, got {len(biases)}",
        )
        self.require(
            len(settings) == 4 * len(weights),
            f"settings must have 4 entries for each of the {len(weights)} weights, got "
            f"{len(settings)}",
        )
        last = len(stack_ops.ACTIVATIONS) - 1
        for i, activation in enumerate(settings[2::4]):
            self.require(
                0 <= activation <= last,
                f"the activation of layer {i} must be from 0 to {last}, got {activation}",
            )
        if tokens is None:
            self.x(x)
            length = x.shape[2]
        else:
            self.require(
                x.dim() == 2,
                "x, the embedding of the tokens, must have the two dimensions (vocab, channels), "
                f"got shape {shape_of(x)}",
            )
            LookupChecks(self.function, 1, 0, 0, 1).tokens(tokens, "x", x)
            length = tokens.shape[1]
        found: list[Layer] = []
        channels = x.shape[1]
        settings_of_layers = stack_ops.layers_of(settings)
        for i, entries in enumerate(zip(weights, biases, settings_of_layers, strict=True)):
            found.append(self._layer(i, x, channels, length, *entries))
            channels, length = found[-1].out_channels, found[-1].out_length
        return tuple(found)

    def _layer(
        self,
        i: int,
        x: Tensor,
        channels: int,
        length: int,
        weight: Tensor,
        bias: Tensor,
        settings: LayerSettings,
    ) -> Layer:
        dilation, pad, activation, residual = settings
        checks = GeometryChecks(self.function, 1, pad, 0, dilation, 1, "ieee")
        name = f"weights[{i}]"
        self.same_kind(name, weight, "x", x)
        self.require(
            weight.dim() == 3 and weight.shape[1] == channels,
            f"{name} must have the shape (out_channels, {channels}, kernel_size), got "
            f"{shape_of(weight)}",
        )
        checks.weight(weight)
        columns, _, taps = weight.shape
        out_length = checks.out_length(length, taps)
        gated = activation == "gate"
        self.require(
            not gated or columns % 2 == 0,
            f"{name} of a gated layer must have an even number of out_channels, got {columns}",
        )
        has_bias = bias.numel() > 0
        sizes = channels, columns, taps, dilation, pad, length, out_length
        layer = Layer(*sizes, activation, residual, has_bias)
        self.require(
            not residual or layer.out_channels == channels,
            f"residual layer {i} must have as many channels as its input, {channels}, got "
            f"{layer.out_channels}",
        )
        reach = dilation * (taps - 1)
        self.require(
            not residual or pad <= reach,
            f"residual layer {i} must not be padded by more than its reach, {reach}, got {pad}",
        )
        if has_bias:
            self.same_kind(f"biases[{i}]", bias, "x", x)
            self.require(
                bias.dim() == 1 and bias.shape[0] == columns,
                f"biases[{i}] must have the shape ({columns}) or be empty, got {shape_of(bias)}",
            )
        return layer


def _outputs(
    x: Tensor, tokens: Tensor | None, layers: tuple[Layer, ...], save: bool
) -> tuple[Tensor, Tensor]:
    batch = (x if tokens is None else tokens).shape[0]
    y = x.new_empty((batch, layers[-1].out_channels, layers[-1].out_length))
    return y, x.new_empty((batch, saved_size(layers)) if save else 0)


def _forward_fake(x: Tensor, tokens: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    *operands, _share, save = others
    layers = _StackChecks("stack_forward").layers(x, tokens, *operands)
    return _outputs(x, tokens, layers, save)


def _forward(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    *others: Any,
) -> tuple[Tensor, Tensor]:
    settings, _share, save = others
    layers = _StackChecks("stack_forward").layers(x, tokens, weights, biases, settings)
    _check_fits("stack_forward", layers, x)
    y, saved = _outputs(x, tokens, layers, save)
    stack.forward(y, saved if save else None, x, tokens, weights, biases, layers)
    return y, saved


def _check_fits(function: str, layers: tuple[Layer, ...], x: Tensor) -> None:
    reason = stack.reason_does_not_fit(layers, x.dtype)
    torch._check(reason is None, lambda: f"{function}: this stack cannot be fused: {reason}")


def _check_backward(
    grad_output: Tensor, saved: Tensor, x: Tensor, tokens: Tensor | None, *others: Any
) -> tuple[Layer, ...]:
    *operands, _share, _with_x = others
    checks = _StackChecks("stack_backward")
    layers = checks.layers(x, tokens, *operands)
    batch = (x if tokens is None else tokens).shape[0]
    checks.same_kind("grad_output", grad_output, "x", x)
    checks.three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)")
    checks.grad_output(grad_output, batch, layers[-1].out_channels, layers[-1].out_length)
    size = batch * saved_size(layers)
    checks.require(saved.numel() == size, f"saved must have {size} elements, got {saved.numel()}")
    checks.same_kind("saved", saved, "x", x)
    return layers


def _backward_fake(grad_output: Tensor, saved: Tensor, x: Tensor, *others: Any) -> list[Tensor]:
    _check_backward(grad_output, saved, x, *others)
    _tokens, weights, biases, _settings, _share, with_x = others
    return stack_ops.empty_gradients(x, weights, biases, with_x)


def _backward(
    grad_output: Tensor,
    saved: Tensor,
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    *others: Any,
) -> list[Tensor]:
    layers = _check_backward(grad_output, saved, x, tokens, weights, biases, *others)
    _check_fits("stack_backward", layers, x)
    with_x = others[-1]
    gradients = stack_ops.empty_gradients(x, weights, biases, with_x)
    grad_x, shared = stack.backward(grad_output, saved, weights, biases, layers, with_x)
    sizes = [t.numel() for t in (*weights, *biases)]
    parts = [part.view(t.shape) for part, t in zip(shared.split(sizes), gradients[1:], strict=True)]
    torch._foreach_copy_(gradients[1:], parts)
    if with_x and tokens is None:
        gradients[0].copy_(grad_x)
    elif with_x and tokens is not None:
        batch, length = tokens.shape
        vocab, channels = x.shape
        words = Conv1dGeometry(batch, vocab, channels, 1, length, 1, 1, 1, 0, 0)
        lookup.grad_table(gradients[0].unsqueeze(0), grad_x, tokens, words)
    return gradients


stack_ops.OPERATORS["triton"] = stack_ops.Operators(
    *define(stack_ops.OPERATORS["native"], (_forward, _backward))
)
torch.library.register_fake("convlm_triton::stack_forward", _forward_fake)
torch.library.register_fake("convlm_triton::stack_backward", _backward_fake)
