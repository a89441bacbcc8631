"""What a result should be, and how far from that it may be.

The oracle is torch's convolution in float64, on the same numbers: torch's own bfloat16 on the CPU
is wrong in places.

An output is a sum of products. Whatever their order, each addition errs by up to half a unit in the
last place of the partial sum. So an error is measured against the sum of the products' absolute
values, here called magnitude (the same convolution of absolute values): a bound on the result alone
would not do, because the sum may cancel. And it grows with the number of products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Window = tuple[int, int, int, int, int, str]


class Tolerance(NamedTuple):
    accumulated: torch.dtype  # dtype of the partial sums
    times: int  # the allowance for one sum
    reason: str


TABLE = {
    torch.float64: Tolerance(torch.float64, 2, "the oracle is float64 itself and errs as much"),
    torch.float32: Tolerance(torch.float32, 1, "sums in float32"),
    torch.bfloat16: Tolerance(torch.float32, 1, "sums in float32, rounded once"),
    torch.float16: Tolerance(torch.float32, 1, "sums in float32, rounded once"),
}

# Activations are vectorised approximations: a few units in the last place of float32 or float64.
ACTIVATION_ULPS = 8.0

# |activation(z + error) - activation(z)| / |error|; silu and gelu are steeper than 1 in places.
ACTIVATION_SLOPE = 1.13


# Both factors of a product are rounded to 11 significant bits.
TF32_FACTORS = 2 * 2**-11 + 2**-22


# What a gradient of y = activation(z) becomes as one of z, told by y alone.
FROM_OUTPUT = {
    "tanh": lambda gradient, y: gradient * (1 - y * y),
    "sigmoid": lambda gradient, y: gradient * y * (1 - y),
    "relu": lambda gradient, y: gradient * (y > 0),
}


def roundings(products: int, alike: bool) -> float:
    """How many half units of the magnitude the additions of a sum may come to.

    No sum errs by more than one for each product, and one of numbers that are all ``alike`` may:
    they round alike. Roundings of random numbers are a random walk.
    """
    return products if alike else min(products, 4 + products**0.5)


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


class Exact(NamedTuple):
    """A result of the oracle, and what is needed to say how near another one must be."""

    value: Tensor
    magnitude: Tensor
    products: int

    def sum_error(self, dtype: torch.dtype, alike: bool = False) -> Tensor:
        """Largest error of the sums behind a result of ``dtype``, before it is rounded to that."""
        tolerance = TABLE[dtype]
        count = tolerance.times * (1 + roundings(self.products, alike))  # 1: the bias
        return count * roundoff(tolerance.accumulated) * self.magnitude

    def allows(self, actual: Tensor, alike: bool = False, precision: str = "ieee") -> None:
        error = self.sum_error(actual.dtype, alike)
        if precision == "tf32" and actual.dtype == torch.float32:
            error = error + TF32_FACTORS * self.magnitude
        assert_close(actual, self.value, error)


def assert_close(actual: Tensor, exact: Tensor, error_before_rounding: Tensor) -> None:
    """``actual`` of any dtype against the float64 ``exact``; NaN is never close."""
    assert actual.shape == exact.shape
    limits = torch.finfo(actual.dtype)
    rounding = roundoff(actual.dtype) * (exact.abs() + error_before_rounding)
    allowed = error_before_rounding + rounding + limits.smallest_normal * limits.eps
    error = (actual.double() - exact).abs()
    wrong = ~(error <= allowed)
    if wrong.any():
        worst = torch.where(wrong, error / allowed, 0).nan_to_num(torch.inf).argmax()
        at = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} wrong; at {at} got {actual[at].item()}, exact "
            f"{exact[at].item()}, error {error[at].item():.3g}, allowed {allowed[at].item():.3g}"
        )


def torch_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    stride, pad_left, pad_right, dilation, groups, _ = window
    return F.conv1d(F.pad(x, (pad_left, pad_right)), weight, bias, stride, 0, dilation, groups)


def exact_forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Exact:
    operands = [t if t is None else t.detach().double() for t in (x, weight, bias)]
    value = torch_conv1d(*operands, window)
    magnitude = torch_conv1d(*(t if t is None else t.abs() for t in operands), window)
    return Exact(value, magnitude, weight[0].numel())


def _gradients(x: Tensor, weight: Tensor, grad_output: Tensor, window: Window) -> list[Tensor]:
    bias = x.new_zeros(weight.shape[0])
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    return list(torch.autograd.grad(torch_conv1d(*leaves, window), leaves, grad_output))


def exact_gradients(
    x: Tensor, weight: Tensor, grad_output: Tensor, window: Window
) -> tuple[Exact, Exact, Exact]:
    """Of x, weight and bias."""
    operands = [t.detach().double() for t in (x, weight, grad_output)]
    values = _gradients(*operands, window)
    magnitudes = _gradients(*(t.abs() for t in operands), window)
    positions = grad_output[:, 0].numel()
    *_, groups, _ = window
    products = weight[:, 0].numel() // groups, positions, positions
    return tuple(map(Exact, values, magnitudes, products))  # type: ignore[return-value]


def kinds(values: Tensor) -> Tensor:
    """0 for a number, 1 for NaN, 2 and 3 for the infinities."""
    return values.isnan() + 2 * values.isposinf() + 3 * values.isneginf()
