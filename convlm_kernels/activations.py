"""Activations as functions of a tensor, where none can be fused into the convolution before it.

torch computes silu, gelu and sigmoid on the CPU a vector at a time, and by another formula what is
left over at the end of each thread's share: bits that depend on the batch and on the threads. So
these are our own kernel's on the CPU, and their derivatives of operations that have no such ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import ops
from .backends import is_traced
from .transforms import apply_transformed, direct, transformed

_aten = torch.ops.aten
_grad_enabled = torch.is_grad_enabled

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}

# Derivatives that need only the output, which is kept anyway. The other activations are fused
# only where no gradient is wanted: theirs need the convolution's own result, so that must be
# written out in any case. Elementwise, so one formula serves both directions.
FROM_OUTPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": _aten.tanh_backward.default,
    "sigmoid": _aten.sigmoid_backward.default,
    "relu": lambda gradient, y: _aten.threshold_backward.default(gradient, y, 0),
}


def _silu_slope(x: Tensor) -> Tensor:
    s = activate(x, "sigmoid")
    return _aten.sigmoid_backward.default(x, s).add_(s)  # x s (1 - s) + s


def _gelu_slope(x: Tensor) -> Tensor:
    u = x * math.sqrt(0.5)
    e = (u * u).neg_().exp_()
    return u.erf().add_(u * e, alpha=2 / math.sqrt(math.pi)).add_(1).mul_(0.5)


_SLOPES = {"silu": _silu_slope, "gelu": _gelu_slope}
_OWN = frozenset({"sigmoid", *_SLOPES})


def _times_slope(tangent: Tensor, kept: Tensor, activation: str) -> Tensor:
    if activation in FROM_OUTPUT:
        return FROM_OUTPUT[activation](tangent, kept)
    # Several operations, of which none is to round to 16 bits.
    if kept.dtype in (torch.bfloat16, torch.float16):
        return (tangent.float() * _SLOPES[activation](kept.float())).to(kept.dtype)
    return tangent * _SLOPES[activation](kept)


class _Activate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, settings: tuple[str]) -> Tensor:
        return ops.activate(x, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.settings = inputs
        kept = output if ctx.settings[0] in FROM_OUTPUT else x
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _times_slope(grad_output, kept, *ctx.settings), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (kept,) = ctx.saved_tensors
        return _times_slope(tangent, kept, *ctx.settings)


_ActivateDirect = direct(_Activate)


def activate(x: Tensor, activation: str) -> Tensor:
    """``activation``, one of ACTIVATIONS, of each element; differentiable to any order.

    ``x`` is (batch, channels, length) or without batch, of a dtype that the kernels have.
    """
    by_torch = activation not in _OWN or not x.is_cpu
    if by_torch or torch.compiler.is_compiling() or is_traced():
        return ACTIVATIONS[activation](x)
    if x.dim() == 2:
        return activate(x.unsqueeze(0), activation).squeeze(0)
    if transformed():
        return apply_transformed(_Activate, x, settings=(activation,))
    if _grad_enabled() and x.requires_grad:
        return _ActivateDirect.apply(x, (activation,))
    return _Activate.forward(x, (activation,))
