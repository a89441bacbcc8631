"""The CUDA kernels, executed by the emulator, against the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    BY_HAND,
    CASES,
    DEPTHWISE,
    DTYPES,
    GROUPS,
    LAYOUTS,
    LENGTHS,
    SETTINGS,
    Case,
    parametrize,
    problem,
)
from checks import check, check_activated, check_batches, check_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import (
    FROM_OUTPUT,
    assert_close,
    exact_forward,
)

from build import SANITIZE, forced, operators, run_sanitized
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.geometry import output_length

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# The emulator's threads take turns: some 10 ns a multiply-add, 40 us for an element of the weight.
MOST_PRODUCTS = 400_000 if SANITIZE else 4_000_000
MOST_WEIGHTS = 400 if SANITIZE else 13_000
AFFORDABLE = [
    case
    for case in CASES
    if math.prod(case.weight_shape) <= MOST_WEIGHTS
    and math.prod(case.weight_shape) * case.batch * case.out_length <= MOST_PRODUCTS
]


@parametrize("dtype", DTYPES)
@parametrize("case", AFFORDABLE)
def test_all_three_functions(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@parametrize("dtype", (torch.float32, torch.bfloat16))
@parametrize("case", [*LENGTHS[:6], *SETTINGS[:6], *GROUPS, DEPTHWISE[2]])
def test_the_direct_kernel_takes_what_others_are_chosen_for(case: Case, dtype: torch.dtype) -> None:
    with forced("direct"):
        check(case, dtype)


def test_most_cases_are_affordable() -> None:
    assert len(AFFORDABLE) > len(CASES) // (3 if SANITIZE else 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    check(BY_HAND, torch.float32, layout)
    check(SETTINGS[2], torch.bfloat16, layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("dtype", (torch.float32, torch.float64))
def test_fused_activation(activation: str, dtype: torch.dtype) -> None:
    p = problem(BY_HAND, dtype)
    y = operators()[0](p.x, p.weight, p.bias, *BY_HAND.window, activation)
    exact = exact_forward(*p[:3], BY_HAND.window)
    value = ACTIVATIONS[activation](exact.value)
    rounding = 4 * torch.finfo(dtype).eps * value.abs()
    assert_close(y, value, 1.13 * exact.sum_error(dtype) + rounding)


@pytest.mark.parametrize("activation", FROM_OUTPUT)
@parametrize("dtype", DTYPES)
@parametrize("case", [BY_HAND, SETTINGS[2]])
def test_gradients_of_activated_outputs(case: Case, dtype: torch.dtype, activation: str) -> None:
    check_activated(case, dtype, activation, "transposed")


def test_the_order_of_threads_changes_nothing() -> None:
    check_orders(BY_HAND)


def test_a_sample_has_the_same_bits_in_any_batch() -> None:
    check_batches(BY_HAND)


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    groups = number(3)
    kernel_size, stride, dilation = number(6), number(5), number(4)
    pads = number(9, 0), number(9, 0)
    length = number(40, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    assert output_length(length, kernel_size, stride, dilation, *pads) >= 1
    channels = groups * number(5), groups * number(5)
    return Case("", number(3), *channels, length, kernel_size, stride, dilation, groups, pads)


@given(small_cases(), st.sampled_from(DTYPES))
@settings(max_examples=20 if SANITIZE else 60, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_all_of_this_under_the_sanitizers() -> None:
    run_sanitized(__file__, "direct or float32 or bfloat16 or layouts or batch or fuzz")
