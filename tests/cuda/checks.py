"""The CUDA kernels on the emulator, against the oracle."""

from __future__ import annotations

import torch
from cases import LAYOUTS, Case, problem
from tolerances import exact_forward, exact_gradients
from torch import Tensor

from build import library, operators


def check(
    case: Case, dtype: torch.dtype, layout: str | None = None, precision: str = "ieee"
) -> None:
    """All three functions, with every input laid out like ``layout``."""
    forward, grad_input, grad_weight = operators()
    p = problem(case, dtype)
    if layout:
        p = type(p)(*map(LAYOUTS[layout], p))
    window = *case.window[:-1], precision
    y = forward(p.x, p.weight, p.bias, *window, "none")
    exact_forward(p.x, p.weight, p.bias, window).allows(y, bool(layout), precision)
    grad_x = grad_input(p.grad_output, p.weight, case.length, *window)
    grad_w, grad_b = grad_weight(p.grad_output, p.x, case.kernel_size, *window, True)
    exact = exact_gradients(p.x, p.weight, p.grad_output, window)
    for expected, actual in zip(exact, (grad_x, grad_w, grad_b), strict=True):
        expected.allows(actual, bool(layout), precision)


def all_three(
    case: Case,
    dtype: torch.dtype = torch.float32,
    precision: str = "ieee",
    part: slice = slice(None),
) -> list[Tensor]:
    """y, activated, and the gradients, of some of the samples."""
    forward, grad_input, grad_weight = operators()
    p, window = problem(case, dtype), (*case.window[:-1], precision)
    return [
        forward(p.x[part], p.weight, p.bias, *window, "tanh"),
        grad_input(p.grad_output[part], p.weight, case.length, *window),
        *grad_weight(p.grad_output[part], p.x[part], case.kernel_size, *window, True),
    ]


def check_orders(case: Case, dtype: torch.dtype = torch.float32, precision: str = "ieee") -> None:
    """The order of threads changes nothing."""
    expected = all_three(case, dtype, precision)
    for order in (1, 2, 3):
        library().set_order(order)
        try:
            actual = all_three(case, dtype, precision)
        finally:
            library().set_order(0)
        assert all(map(torch.equal, actual, expected)), order


def check_batches(case: Case, dtype: torch.dtype = torch.float32, precision: str = "ieee") -> None:
    """A sample has the same bits in any batch."""
    part = slice(1, None)
    y, grad_x, *_ = all_three(case, dtype, precision)
    y_part, grad_part, *_ = all_three(case, dtype, precision, part)
    assert torch.equal(y_part, y[part])
    assert torch.equal(grad_part, grad_x[part])
