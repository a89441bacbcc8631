"""The kernels that compute by tiles, implicit_gemm and register_tile, on problems of any size.

Selection gives them problems that fill their tiles; here they are forced on all others too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from cases import (
    BY_HAND,
    CASES,
    CHANNELS,
    FEW,
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
from test_kernels import small_cases
from tolerances import FROM_OUTPUT, TABLE, assert_close, exact_forward, exact_gradients, roundoff

from build import SANITIZE, forced, operators, run_sanitized
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")


class Way(NamedTuple):
    kernel: str
    dtype: torch.dtype
    precision: str = "ieee"

    def __str__(self) -> str:
        return f"{self.kernel}_{str(self.dtype).removeprefix('torch.')}"


BFLOAT16 = Way("implicit_gemm", torch.bfloat16)
TF32 = Way("implicit_gemm", torch.float32, "tf32")
FLOAT32 = Way("register_tile", torch.float32)
WAYS = [
    BFLOAT16,
    Way("implicit_gemm", torch.float16),
    TF32,
    FLOAT32,
    Way("register_tile", torch.float64),
]

# What tiles are cut at: 64 or 128 rows, 128 columns, blocks of 8, 16 or 32 channels, stages of some
# taps and 192 rows of x.
EDGES = [
    Case("one row and one position beyond a tile", 1, 33, 65, 129, 1),
    Case("a large tile of rows, and a large one with a remainder", 1, 40, 200, 30, 3, 1, 2),
    Case("eight samples in a tile and two in the next", 10, 9, 8, 16, 2, 1, 1, 1, (1, 0)),
    Case("samples of one output", 19, 12, 8, 3, 3),
    Case("more taps than a stage, in even stages", 2, 8, 9, 40, 8, 1, 1, 1, (4, 3)),
    Case("taps so far apart that each is a stage", 1, 16, 8, 300, 3, 1, 100, 1, (150, 50)),
    Case("two of three taps in a stage", 1, 8, 8, 260, 3, 1, 40, 1, (80, 0)),
    Case("chains of a stride, of unequal length", 2, 8, 10, 70, 5, 3, 2, 1, (3, 4)),
    Case("chains of a stride, each of one tap", 2, 8, 8, 64, 3, 8, 1, 1, (0, 2)),
    Case("positions in pieces, samples that end within stages", 5, 10, 8, 203, 2, 1, 3, 1, (3, 0)),
    Case("columns of sixteen taps", 2, 8, 8, 70, 33, 1, 1, 1, (16, 16)),
    Case("all padding", 2, 9, 8, 0, 3, 2, 1, 1, (2, 3)),
    Case("columns of three taps, the last of them too many", 2, 40, 8, 50, 4, 1, 2, 1, (6, 0)),
]


def cost(case: Case) -> int:
    """Products, with those of tiles that are not full."""
    channels, rows = case.in_channels // case.groups, case.out_channels // case.groups
    full = math.ceil(channels / 32) * 32 * math.ceil(rows / 64) * 64 * case.groups
    return full * case.kernel_size * max(128, case.batch * case.length)


AFFORDABLE = [case for case in CASES if cost(case) <= 5_000_000]
SOME = [*FEW, SETTINGS[8], GROUPS[1]]


@parametrize("way", [BFLOAT16, FLOAT32])
@parametrize("case", AFFORDABLE)
def test_all_three_functions(case: Case, way: Way) -> None:
    with forced(way.kernel):
        check(case, way.dtype, precision=way.precision)


@parametrize("way", WAYS)
@parametrize("case", EDGES)
def test_edges_of_tiles(case: Case, way: Way) -> None:
    with forced(way.kernel):
        check(case, way.dtype, precision=way.precision)


@parametrize("way", [way for way in WAYS if way not in (BFLOAT16, FLOAT32)])
@parametrize("case", SOME)
def test_other_types(case: Case, way: Way) -> None:
    with forced(way.kernel):
        check(case, way.dtype, precision=way.precision)


@parametrize("way", [BFLOAT16, TF32, FLOAT32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, way: Way) -> None:
    with forced(way.kernel):
        check(SETTINGS[1], way.dtype, layout, way.precision)


def test_a_kernel_refuses_types_that_it_has_not() -> None:
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    with forced("implicit_gemm"), pytest.raises(ValueError, match="does not take"):
        operators()[0](x, x, None, *BY_HAND.window, "none")


@parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_fused_activation(activation: str, way: Way) -> None:
    case, window = EDGES[7], (*EDGES[7].window[:-1], way.precision)
    p = problem(case, way.dtype)
    with forced(way.kernel):
        y = operators()[0](p.x, p.weight, p.bias, *window, activation)
        without = operators()[0](p.x, p.weight, p.bias, *window, "none")
    exact = exact_forward(p.x, p.weight, p.bias, window)
    value = ACTIVATIONS[activation](exact.value)
    error = (without.double() - exact.value).abs() + exact.sum_error(way.dtype)
    rounding = 4 * roundoff(TABLE[way.dtype].accumulated) * value.abs()
    assert_close(y, value, 1.13 * error + rounding)


@parametrize("way", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_gradients_of_activated_outputs(activation: str, way: Way) -> None:
    with forced(way.kernel):
        check_activated(EDGES[7], way.dtype, activation, "transposed")


@parametrize("way", [BFLOAT16, TF32, FLOAT32])
def test_the_order_of_threads_changes_nothing(way: Way) -> None:
    with forced(way.kernel):
        check_orders(SETTINGS[2], way.dtype, way.precision)


@parametrize("way", [BFLOAT16, TF32, FLOAT32])
@parametrize("case", [EDGES[2], EDGES[3], LENGTHS[7], CHANNELS[6]])
def test_a_sample_has_the_same_bits_in_any_batch(case: Case, way: Way) -> None:
    with forced(way.kernel):
        check_batches(case, way.dtype, way.precision)


@parametrize("way", [BFLOAT16, TF32, FLOAT32])
@pytest.mark.parametrize("position", [0, 1, 40, 48, 49])
def test_infinities_stay_where_a_direct_sum_has_them(position: int, way: Way) -> None:
    """Of the first and last positions, some taps read none: not even times a zero of a tile."""
    case = Case("", 2, 8, 8, 50, 3, 1, 2, 1, (0, 0))
    p = problem(case, way.dtype)
    p.x[:, 3, position] = torch.inf
    p.grad_output[0, 2, min(position, 45)] = -torch.inf
    window = *case.window[:-1], way.precision
    forward, grad_input, grad_weight = operators()
    with forced(way.kernel):
        actual = [forward(p.x, p.weight, p.bias, *window, "none")]
        actual += [grad_input(p.grad_output, p.weight, case.length, *window)]
        actual += grad_weight(p.grad_output, p.x, case.kernel_size, *window, True)
    exact = [exact_forward(p.x, p.weight, p.bias, window)]
    exact += exact_gradients(p.x, p.weight, p.grad_output, window)
    for one, other in zip(actual, exact, strict=True):
        assert torch.equal(one.isfinite(), other.value.isfinite())


def test_an_empty_batch() -> None:
    forward, grad_input, grad_weight = operators()
    x, weight = torch.empty(0, 8, 20), torch.ones(8, 8, 3)
    for way in (TF32, FLOAT32):
        window = 1, 0, 0, 1, 1, way.precision
        with forced(way.kernel):
            y = forward(x, weight, None, *window, "none")
            assert y.shape == (0, 8, 18)
            assert grad_input(y, weight, 20, *window).shape == x.shape
            grads = grad_weight(y, x, 3, *window, True)
            assert torch.equal(grads[0], torch.zeros(8, 8, 3))
            assert torch.equal(grads[1], torch.zeros(8))


@given(small_cases())
@settings(max_examples=8 if SANITIZE else 25, deadline=None, derandomize=True)
def test_fuzz(case: Case) -> None:
    for way in (BFLOAT16, TF32, FLOAT32):
        with forced(way.kernel):
            check(case, way.dtype, precision=way.precision)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_edges_under_the_sanitizers() -> None:
    run_sanitized(__file__, "edges and (bfloat16 or float32) or empty")
