"""The CUDA kernels on the emulator, against the oracle."""

from __future__ import annotations

import torch
from cases import LAYOUTS, Case, problem
from tolerances import exact_forward, exact_gradients

from build import operators


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
