"""What a result should be, and how far from that it may be.

The oracle is torch's convolution in float64, on the same numbers: torch's own bfloat16 on the CPU
is wrong in places.

An output is a sum of products. Whatever their order, each addition errs by half a unit in the last
place of the partial sum, so the error scales with the sum of the products' absolute values, which
``magnitude`` holds (the same convolution of absolute values): it grows with the number of products,
and no bound on the result alone would do, because the sum may cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Window = tuple[int, int, int, int, int]


class Tolerance(NamedTuple):
    accumulated: torch.dtype  # dtype of the partial sums
    additions: float  # errors of additions, in units of roundoff x magnitude
    reason: str


# Of random numbers: a random walk of n roundings stays well under n times the largest, and a sum of
# at most 4 terms cannot err by more than this at all. Equal numbers round alike: for those a sum of
# n products may err by n, and the tests say so with ``additions``.
ADDITIONS = 4.0

TABLE = {
    torch.float64: Tolerance(
        torch.float64, 2 * ADDITIONS, "the oracle is float64 itself and errs as much"
    ),
    torch.float32: Tolerance(torch.float32, ADDITIONS, "sums in float32"),
    torch.bfloat16: Tolerance(torch.float32, ADDITIONS, "sums in float32, rounded once"),
    torch.float16: Tolerance(torch.float32, ADDITIONS, "sums in float32, rounded once"),
}

# Activations are vectorised approximations: a few units in the last place of float32 or float64.
ACTIVATION_ULPS = 8.0

# |activation(z + error) - activation(z)| / |error|; silu and gelu are steeper than 1 in places.
ACTIVATION_SLOPE = 1.13


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def bound(
    dtype: torch.dtype, exact: Tensor, magnitude: Tensor, additions: float = 0
) -> Tensor:
    """Largest error allowed in each element of a convolution's result of ``dtype``."""
    tolerance = TABLE[dtype]
    summed = max(additions, tolerance.additions) * _roundoff(tolerance.accumulated) * magnitude
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return summed + _roundoff(dtype) * (exact.abs() + summed) + subnormal


def assert_close(actual: Tensor, exact: Tensor, allowed: Tensor) -> None:
    """``actual`` of any dtype against the float64 ``exact``; NaN is never close."""
    assert actual.shape == exact.shape
    error = (actual.double() - exact).abs()
    wrong = ~(error <= allowed)
    if wrong.any():
        worst = torch.where(wrong, error / allowed, 0).nan_to_num(torch.inf).argmax()
        at = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} wrong; at {at} got {actual[at].item()}, exact "
            f"{exact[at].item()}, error {error[at].item():.3g}, allowed {allowed[at].item():.3g}"
        )


class Exact(NamedTuple):
    """A result of the oracle and its magnitude, see above."""

    value: Tensor
    magnitude: Tensor

    def allows(self, actual: Tensor, additions: float = 0) -> None:
        allowed = bound(actual.dtype, self.value, self.magnitude, additions)
        assert_close(actual, self.value, allowed)


def torch_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    stride, pad_left, pad_right, dilation, groups = window
    return F.conv1d(F.pad(x, (pad_left, pad_right)), weight, bias, stride, 0, dilation, groups)


def exact_forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Exact:
    operands = [t if t is None else t.detach().double() for t in (x, weight, bias)]
    value = torch_conv1d(*operands, window)
    return Exact(value, torch_conv1d(*(t if t is None else t.abs() for t in operands), window))


def _gradients(x: Tensor, weight: Tensor, grad_output: Tensor, window: Window) -> list[Tensor]:
    bias = torch.zeros(weight.shape[0], dtype=x.dtype)
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    return list(torch.autograd.grad(torch_conv1d(*leaves, window), leaves, grad_output))


def exact_gradients(
    x: Tensor, weight: Tensor, grad_output: Tensor, window: Window
) -> tuple[Exact, Exact, Exact]:
    """Of x, weight and bias."""
    operands = [t.detach().double() for t in (x, weight, grad_output)]
    values = _gradients(*operands, window)
    magnitudes = _gradients(*(t.abs() for t in operands), window)
    return tuple(map(Exact, values, magnitudes))  # type: ignore[return-value]
