"""Every backend's three functions on the device, against the oracle."""

from __future__ import annotations

import pytest
import torch
from cases import BY_HAND, CASES, DTYPES, FEW, LAYOUTS, Case, Problem, parametrize, problem
from device import convolve, needs_gpu, settings_of, skip_unless_can_run, to_device
from hypothesis import HealthCheck, given, settings
from test_fuzz import cases as drawn_cases
from tolerances import (
    ACTIVATION_SLOPE,
    ACTIVATION_ULPS,
    FROM_OUTPUT,
    TABLE,
    Exact,
    assert_close,
    exact_forward,
    exact_gradients,
    roundoff,
)
from torch import Tensor

from convlm_kernels import conv1d
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# As large as users' layers: many tiles in each direction, and remainders.
LARGE = [
    Case("a layer of a language model", 4, 256, 256, 4096, 3, 1, 4, 1, (8, 0)),
    Case("wide, many taps far apart", 2, 512, 512, 2048, 7, 1, 64, 1, (384, 0)),
    Case("one more than tiles in each direction", 3, 257, 129, 2051, 5, 1, 3, 1, (5, 7)),
    Case("stride 3, dilation 4: KernelBench's, shorter", 2, 64, 128, 52_428, 3, 3, 4),
    Case("stride and dilation with odd sizes", 2, 129, 257, 5003, 5, 2, 3, 1, (4, 3)),
    Case("four groups", 4, 128, 256, 4096, 3, 1, 1, 4, (1, 1)),
    Case("depthwise", 4, 1024, 1024, 4096, 4, 1, 1, 1024, (3, 0)),
    Case("depthwise, strided, dilated", 4, 511, 511, 4099, 4, 2, 4, 511, (12, 0)),
    Case("more samples than a grid has in y and z", 70_000, 8, 8, 23, 3, 1, 2, 1, (4, 0)),
    Case("one long row", 1, 1, 1, 5_000_003, 9, 1, 1000, 1, (8000, 0)),
    Case("more channels than positions", 8, 2048, 2048, 9, 2, 1, 1, 1, (1, 0)),
]

# TF32 has ten bits of fraction, and hardware may cut the others off either operand.
TF32_ERROR = 2.0**-9


def exact_results(case: Case, p: Problem) -> list[Exact]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # torch's own kernels on a GPU are not, all of them
    try:
        y = exact_forward(p.x, p.weight, p.bias, case.window)
        return [y, *exact_gradients(p.x, p.weight, p.grad_output, case.window)]
    finally:
        torch.use_deterministic_algorithms(deterministic)


def check(case: Case, dtype: torch.dtype, backend: str, on_device: bool = False) -> None:
    """The oracle runs on the CPU, or where that would take too long, in float64 on the device."""
    skip_unless_can_run(backend, case, dtype)
    p = problem(case, dtype)
    q = to_device(p)
    exact = exact_results(case, q if on_device else p)
    for right, own in zip(exact, convolve(backend, case, q), strict=True):
        assert own.dtype == dtype
        assert own.is_contiguous()
        right.allows(own if on_device else own.cpu())


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_all_three_functions(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend)


@parametrize("dtype", DTYPES)
@parametrize("case", LARGE)
def test_large_problems(backend: str, case: Case, dtype: torch.dtype) -> None:
    needs_gpu()
    check(case, dtype, backend, on_device=True)


@pytest.mark.parametrize("precision", ["tf32"], indirect=True)
@parametrize("case", [*FEW, *LARGE])
def test_tf32(backend: str, case: Case, precision: str) -> None:
    needs_gpu()
    p = to_device(problem(case, torch.float32))
    for right, own in zip(exact_results(case, p), convolve(backend, case, p), strict=True):
        error = right.sum_error(torch.float32) + TF32_ERROR * right.magnitude
        assert_close(own, right.value, error)


@parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@parametrize("case", FEW)
def test_any_strides(backend: str, case: Case, layout: str, dtype: torch.dtype) -> None:
    skip_unless_can_run(backend, case, dtype)
    p = Problem(*map(LAYOUTS[layout], problem(case, dtype)))
    # to() would make some of them contiguous.
    q = Problem(*map(LAYOUTS[layout], to_device(problem(case, dtype))))
    for right, own in zip(exact_results(case, p), convolve(backend, case, q), strict=True):
        right.allows(own.cpu(), alike="expanded" in layout)


def check_activated(right: Exact, own: Tensor, activation: str, dtype: torch.dtype) -> None:
    value = ACTIVATIONS[activation](right.value)
    own_error = ACTIVATION_ULPS * torch.finfo(TABLE[dtype].accumulated).eps
    sum_error = ACTIVATION_SLOPE * right.sum_error(dtype)
    assert_close(own, value, sum_error + own_error * value.abs().clamp(min=1e-3))


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("case", FEW)
def test_activations(backend: str, case: Case, activation: str, dtype: torch.dtype) -> None:
    skip_unless_can_run(backend, case, dtype)
    p = problem(case, dtype)
    q = to_device(p)
    with torch.no_grad():
        y = conv1d(*q[:3], **settings_of(case), activation=activation, backend=backend)
    exact = exact_forward(p.x, p.weight, p.bias, case.window)
    check_activated(exact, y.cpu(), activation, dtype)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FROM_OUTPUT)
@parametrize("case", FEW)
def test_gradients_of_activated_outputs(
    backend: str, case: Case, activation: str, dtype: torch.dtype
) -> None:
    skip_unless_can_run(backend, case, dtype)
    p = problem(case, dtype)
    y, *gradients = convolve(backend, case, to_device(p), activation)
    # What they must be follows from the y that was kept.
    product = FROM_OUTPUT[activation](p.grad_output.double(), y.cpu().double())
    exact = exact_gradients(p.x, p.weight, product, case.window)
    # A 16-bit product may be rounded before it is summed up, and 1 - y * y is where y is near 1: by
    # a share of grad_output, of which the product is less.
    own_error = roundoff(dtype) + 4 * roundoff(TABLE[dtype].accumulated)
    whole = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for right, unscaled, own in zip(exact, whole, gradients, strict=True):
        error = right.sum_error(dtype) + own_error * unscaled.magnitude
        assert_close(own.cpu(), right.value, error)


@parametrize("dtype", DTYPES)
def test_empty_batch(backend: str, dtype: torch.dtype) -> None:
    case = BY_HAND._replace(batch=0)
    skip_unless_can_run(backend, case, dtype)
    y, grad_x, grad_w, grad_b = convolve(backend, case, to_device(problem(case, dtype)))
    assert (y.shape, grad_x.shape) == (case.y_shape, case.x_shape)
    assert not grad_w.any()
    assert not grad_b.any()
    assert grad_w.shape == case.weight_shape


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@parametrize("dtype", DTYPES)
def test_infinities_and_nans_stay_in_their_sums(
    backend: str, dtype: torch.dtype, value: float
) -> None:
    case = Case("", 2, 5, 9, 601, 3, 1, 2, 1, (0, 0))  # no padding: inf * 0 would be NaN
    p = problem(case, dtype)
    p.x[0, 2, 300] = value
    p.grad_output[1, 3, 17] = value
    for right, own in zip(
        exact_results(case, p), convolve(backend, case, to_device(p)), strict=True
    ):
        assert torch.equal(own.cpu().isnan(), right.value.isnan())
        assert torch.equal(own.cpu().isinf(), right.value.isinf())


@parametrize("dtype", DTYPES)
@given(case=drawn_cases())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the backend's name, no more
)
def test_fuzz(backend: str, dtype: torch.dtype, case: Case) -> None:
    check(case, dtype, backend)
