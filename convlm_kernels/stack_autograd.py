"""Differentiation of fused stacks.

First derivatives are one operator. Second and higher ones, ``torch.func`` and forward mode are
those of the same layers composed, which are differentiable to any order: right, not fast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import autograd, stack_ops


class Settings(NamedTuple):
    """A stack without its parameters: one entry for each layer."""

    dilations: list[int]
    pads: list[int]  # zeros on the left
    activations: list[str]  # "none", as of a convolution, or "gate"
    residuals: list[int]  # 0 or 1


def gate(z: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels."""
    a, b = z.chunk(2, dim=-2)
    return torch.tanh(a) * torch.sigmoid(b)


def compose(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
) -> Tensor:
    """What :func:`stack` computes, layer by layer."""
    if tokens is not None:
        x = F.embedding(tokens, x).transpose(1, 2)
    for weight, bias, dilation, pad, activation, residual in zip(
        weights, biases, *settings, strict=True
    ):
        gated = activation == "gate"
        y = autograd.forward(
            x,
            weight,
            bias if bias.numel() else None,
            (1, pad, 0, dilation, 1, "ieee"),
            "none" if gated else activation,
        )
        if gated:
            y = gate(y)
        x = y + x[..., x.shape[-1] - y.shape[-1] :] if residual else y
    return x


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor | None,
        settings: Settings,
        share: bool,
        x: Tensor,
        *parameters: Any,
    ) -> Tensor:
        weights, biases = _halves(parameters)
        y, saved = stack_ops.stack_forward(x, tokens, weights, biases, *settings, share, True)
        ctx.save_for_backward(tokens, saved, x, *parameters)
        ctx.settings = settings, share
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        tokens, saved, x, *parameters = ctx.saved_tensors
        settings, share = ctx.settings
        weights, biases = _halves(parameters)
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = _composed_gradients(grad_output, tokens, settings, [x, *parameters], needed)
        else:
            gradients = stack_ops.stack_backward(
                grad_output, saved, x, tokens, weights, biases, *settings, share, needed[0]
            )
        wanted = (g if need else None for g, need in zip(gradients, needed, strict=True))
        return None, None, None, *wanted


def _halves(parameters: Any) -> tuple[list[Tensor], list[Tensor]]:
    depth = len(parameters) // 2
    return list(parameters[:depth]), list(parameters[depth:])


def _composed_gradients(
    grad_output: Tensor,
    tokens: Tensor | None,
    settings: Settings,
    inputs: list[Tensor],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients with a graph of their own, for derivatives of them."""
    y = compose(inputs[0], tokens, *_halves(inputs[1:]), settings)
    found = torch.autograd.grad(
        y,
        [t for t, need in zip(inputs, needed, strict=True) if need],
        grad_output,
        create_graph=True,
        allow_unused=True,
    )
    gradients = iter(found)
    return [next(gradients) if need else None for need in needed]


def stack(
    x: Tensor,
    tokens: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    settings: Settings,
    share: bool = True,
) -> Tensor:
    """A chain of convolutions of stride 1 in one operator, differentiable to any order.

    Args:
        x: (batch, channels, length); with ``tokens`` (batch, length), int64, an embedding
            (vocab, channels) of them. float32, float64, bfloat16 or float16, on the CPU.
        weights: (out_channels, in_channels, kernel_size) for each layer, of the dtype of ``x``; the
            out_channels of a gated layer are twice those of its result.
        biases: (out_channels), or empty, for each layer.
        share: over tokens, compute a layer once for each distinct receptive field where most of
            them repeat. The result has the same bits.

    Returns:
        (batch, out_channels, out_length) of the last layer.

    Raises:
        RuntimeError: sizes that do not fit; names the argument and its value.
    """
    if autograd._transformed():
        return compose(x, tokens, weights, biases, settings)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        return _Stack.apply(tokens, settings, share, x, *weights, *biases)
    y, _ = stack_ops.stack_forward(x, tokens, weights, biases, *settings, share, False)
    return y
