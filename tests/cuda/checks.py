"""The CUDA kernels on the emulator, against the oracle."""

from __future__ import annotations

import torch
from cases import LAYOUTS, Case, problem
from tolerances import FROM_OUTPUT, TABLE, assert_close, exact_forward, exact_gradients, roundoff
from torch import Tensor

from build import library, operators
from convlm_kernels.activations import ACTIVATIONS


def check(
    case: Case,
    dtype: torch.dtype,
    layout: str | None = None,
    precision: str = "ieee",
    grad_layout: str | None = None,
) -> None:
    """All three functions, with every input laid out like ``layout``, but grad_output like
    ``grad_layout`` where that is given."""
    forward, grad_input, grad_weight = operators()
    p = problem(case, dtype)
    grad_output = p.grad_output
    if layout:
        p = type(p)(*map(LAYOUTS[layout], p))
    if grad_layout:
        p = p._replace(grad_output=LAYOUTS[grad_layout](grad_output))
    window = *case.window[:-1], precision
    y = forward(p.x, p.weight, p.bias, *window, "none")
    exact_forward(p.x, p.weight, p.bias, window).allows(y, bool(layout), precision)
    grad_x = grad_input(p.grad_output, p.weight, case.length, *window)
    grad_w, grad_b = grad_weight(p.grad_output, p.x, case.kernel_size, *window, True)
    exact = exact_gradients(p.x, p.weight, p.grad_output, window)
    for expected, actual in zip(exact, (grad_x, grad_w, grad_b), strict=True):
        expected.allows(actual, bool(layout or grad_layout), precision)


def check_activated(
    case: Case,
    dtype: torch.dtype,
    activation: str,
    layout_of_y: str | None,
    layout: str | None = None,
) -> None:
    """The gradients of an activated output; ``layout`` is that of its gradient."""
    _, grad_input, grad_weight = operators()
    p = problem(case, dtype)
    y = ACTIVATIONS[activation](p.grad_output)
    product = FROM_OUTPUT[activation](p.grad_output.double(), y.double())
    exact = exact_gradients(p.x, p.weight, product, case.window)
    gradient = LAYOUTS[layout](p.grad_output) if layout else p.grad_output
    activated = LAYOUTS[layout_of_y](y) if layout_of_y else y, activation
    gradients = (
        grad_input(gradient, p.weight, case.length, *case.window, *activated),
        *grad_weight(gradient, p.x, case.kernel_size, *case.window, True, *activated),
    )
    own = roundoff(dtype) + 4 * roundoff(TABLE[dtype].accumulated)
    for right, actual in zip(exact, gradients, strict=True):
        assert_close(actual, right.value, right.sum_error(dtype) + own * right.magnitude)


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
