"""The Triton kernels against the oracle, through their operators."""

from __future__ import annotations

import math
import os

import pytest
import torch
from cases import (
    BY_HAND,
    CASES,
    CHANNELS,
    DTYPES,
    GROUPS,
    LAYOUTS,
    LENGTHS,
    SETTINGS,
    Case,
    Problem,
    parametrize,
    problem,
    random,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import (
    ACTIVATION_SLOPE,
    ACTIVATION_ULPS,
    FROM_OUTPUT,
    TABLE,
    assert_close,
    exact_forward,
    exact_gradients,
    roundoff,
)
from torch import Tensor

from convlm_kernels import ops, triton_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.geometry import output_length
from convlm_kernels.triton_kernels import launch

pytestmark = pytest.mark.usefixtures("nan_in_empty")

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
KERNELS = ops.OPERATORS["triton"]


def steps(case: Case) -> int:
    """About how many programs all three functions run, and how many products of tiles."""
    out_channels, in_channels = case.out_channels // case.groups, case.in_channels // case.groups
    small = max(out_channels, in_channels) <= 4
    tiles = case.batch * math.ceil(case.length / 128) * (1 if small else case.groups)
    programs = math.ceil(out_channels / 64) + math.ceil(in_channels / 64) * case.stride
    products = math.ceil(case.kernel_size * in_channels / 32) * math.ceil(out_channels / 64)
    return tiles * (programs + 3 * products)


# In the interpreter a step takes some 30 ms. A GPU, or who has the time, runs every case.
EVERY_CASE = DEVICE == "cuda" or os.environ.get("CONVLM_TRITON_EVERY_CASE") == "1"
TWO_SAMPLES = [case._replace(batch=min(case.batch, 2)) for case in CASES]
AFFORDABLE = CASES if EVERY_CASE else [case for case in TWO_SAMPLES if steps(case) <= 45]
# Dense and folded, strided, grouped, and depthwise.
FEW_SAMPLES = BY_HAND._replace(batch=2)
SOME = [FEW_SAMPLES, LENGTHS[8], SETTINGS[2], CHANNELS[4], GROUPS[0], GROUPS[4]]


def on_device(p: Problem) -> Problem:
    return Problem(*(t.to(DEVICE) for t in p))


def gradients(p: Problem, case: Case, *activated: object) -> list[Tensor]:
    grad_x = KERNELS.grad_input(p.grad_output, p.weight, case.length, *case.window, *activated)
    with_bias = case.kernel_size, *case.window, True
    return [grad_x, *KERNELS.grad_weight(p.grad_output, p.x, *with_bias, *activated)]


def check(case: Case, dtype: torch.dtype, layout: str | None = None) -> None:
    p = problem(case, dtype)
    if layout:
        p = Problem(*map(LAYOUTS[layout], p))
    # Strides go along only where the device is the same.
    own = p if DEVICE == "cpu" else Problem(*(_moved(t) for t in p))
    y = KERNELS.forward(own.x, own.weight, own.bias, *case.window, "none")
    exact_forward(p.x, p.weight, p.bias, case.window).allows(y.cpu(), alike=bool(layout))
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for right, actual in zip(exact, gradients(own, case), strict=True):
        assert actual.dtype == dtype
        assert actual.is_contiguous()
        right.allows(actual.cpu(), alike=bool(layout))


def _moved(tensor: Tensor) -> Tensor:
    """On the device, with the same strides."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((extent,), (1,)).to(DEVICE)
    return memory.as_strided(tensor.shape, tensor.stride())


@parametrize("case", AFFORDABLE)
def test_all_three_functions(case: Case) -> None:
    check(case, torch.float32)


def test_a_third_of_the_cases_is_affordable() -> None:
    assert 3 * len(AFFORDABLE) >= len(CASES)


@parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
@parametrize("case", CASES if EVERY_CASE else SOME[::2])
def test_the_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    check(FEW_SAMPLES, torch.bfloat16, layout)
    check(GROUPS[4], torch.float16, layout)


# Taken by tensor descriptor, where channels of a group are whole blocks and where they are not; by
# pointers, and depthwise.
CHANNELS_LAST = [
    Case("whole blocks, causal", 2, 64, 64, 150, 3, 1, 2, 1, (4, 0)),
    Case("groups, parts of blocks, positions on both sides", 2, 80, 144, 20, 4, 1, 3, 2, (2, 5)),
    Case("grad_input alone: forward has a stride", 2, 40, 48, 33, 3, 2, 1, 1, (1, 2)),
    LENGTHS[8],
    GROUPS[2]._replace(batch=2),
]


@parametrize("case", CHANNELS_LAST)
def test_channels_last(case: Case) -> None:
    p = problem(case, torch.bfloat16)
    last = [t.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2) for t in (p.x, p.grad_output)]
    own = on_device(p)._replace(x=last[0], grad_output=last[1])
    y = KERNELS.forward(own.x, own.weight, own.bias, *case.window, "none")
    exact_forward(p.x, p.weight, p.bias, case.window).allows(y.cpu())
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for right, actual in zip(exact, gradients(own, case), strict=True):
        right.allows(actual.cpu())


@parametrize("dtype", DTYPES if EVERY_CASE else (torch.float32, torch.float64))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("case", [FEW_SAMPLES, GROUPS[4]] if EVERY_CASE else [FEW_SAMPLES])
def test_fused_activation(case: Case, activation: str, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    x = 3 * p.x  # into the flat parts of tanh and sigmoid
    exact = exact_forward(x, p.weight, p.bias, case.window)
    own = on_device(p._replace(x=x))
    y = KERNELS.forward(own.x, own.weight, own.bias, *case.window, activation).cpu()
    value = ACTIVATIONS[activation](exact.value)
    own_error = ACTIVATION_ULPS * torch.finfo(TABLE[dtype].accumulated).eps
    sum_error = ACTIVATION_SLOPE * exact.sum_error(dtype)
    assert_close(y, value, sum_error + own_error * value.abs().clamp(min=1e-3))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("dtype", (torch.float32, torch.float64))
def test_activation_of_extreme_values(activation: str, dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1e-7, -1e-4, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4]
    x = torch.tensor([*values, torch.inf, -torch.inf, torch.nan]).to(dtype).view(1, 1, -1)
    weight = torch.ones(1, 1, 1, dtype=dtype, device=DEVICE)
    y = KERNELS.forward(x.to(DEVICE), weight, None, 1, 0, 0, 1, 1, "ieee", activation).cpu()
    expected = ACTIVATIONS[activation](x.double()).to(dtype)
    # exp of float32 is that of two, whose argument is rounded once more.
    bound = 1e-5 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=bound, atol=1.2e-38)


@parametrize("dtype", DTYPES if EVERY_CASE else (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("activation", FROM_OUTPUT)
@parametrize("case", [FEW_SAMPLES, GROUPS[4]])
def test_gradients_of_activated_outputs(case: Case, activation: str, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    y = ACTIVATIONS[activation](random(*case.y_shape, dtype=dtype, seed=5))
    product = FROM_OUTPUT[activation](p.grad_output.double(), y.double())
    exact = exact_gradients(p.x, p.weight, product, case.window)
    own = roundoff(dtype) + 4 * roundoff(TABLE[dtype].accumulated)
    for actual, right in zip(
        gradients(on_device(p), case, y.to(DEVICE), activation), exact, strict=True
    ):
        assert_close(actual.cpu(), right.value, right.sum_error(dtype) + own * right.magnitude)


@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_described_gradients_of_activated_outputs(activation: str) -> None:
    case = CHANNELS_LAST[1]
    p = problem(case, torch.float16)
    y = ACTIVATIONS[activation](random(*case.y_shape, dtype=torch.float16, seed=5))
    product = FROM_OUTPUT[activation](p.grad_output.double(), y.double())
    exact = exact_gradients(p.x, p.weight, product, case.window)[0]
    own = p.grad_output.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    y = y.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    weight = p.weight.to(DEVICE)
    actual = KERNELS.grad_input(own, weight, case.length, *case.window, y, activation).cpu()
    allowed = exact.sum_error(torch.float16) + 2 * roundoff(torch.float16) * exact.magnitude
    assert_close(actual, exact.value, allowed)


@parametrize("case", SOME if EVERY_CASE else SOME[::2])
def test_a_sample_has_the_same_bits_in_any_batch(case: Case) -> None:
    p = on_device(problem(case, torch.float32))
    y = KERNELS.forward(p.x, p.weight, p.bias, *case.window, "tanh")
    grad_x, grad_w, grad_b = gradients(p, case)
    again = gradients(p, case)
    assert all(map(torch.equal, again, (grad_x, grad_w, grad_b)))
    part = slice(1, 2)
    y_part = KERNELS.forward(p.x[part], p.weight, p.bias, *case.window, "tanh")
    assert torch.equal(y_part, y[part])
    grad_part = KERNELS.grad_input(p.grad_output[part], p.weight, case.length, *case.window)
    assert torch.equal(grad_part, grad_x[part])


@pytest.mark.parametrize("out_length", [1, 7, 40])
@pytest.mark.parametrize("groups", [1, 5])
def test_infinities_stay_in_the_sums_they_belong_to(out_length: int, groups: int) -> None:
    case = Case("", 2, 5, 10, out_length + 4, 3, 1, 2, groups, (0, 0))
    p = problem(case, torch.float32)
    p.weight[3, -1, 0] = torch.inf
    p.x[0, 2, -1] = torch.inf
    p.grad_output[0, 6, 0] = torch.inf
    own = on_device(p)
    y = KERNELS.forward(own.x, own.weight, own.bias, *case.window, "none")
    exact = [exact_forward(p.x, p.weight, p.bias, case.window)]
    exact += exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for actual, right in zip((y, *gradients(own, case)[1:]), [exact[0], *exact[2:]], strict=True):
        assert torch.equal(actual.cpu().isnan(), right.value.isnan())
        assert torch.equal(actual.cpu().isinf(), right.value.isinf())


@parametrize("case", [FEW_SAMPLES, CHANNELS[4], GROUPS[4]])
def test_numbers_of_64_bits_and_grids_of_two_dimensions(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LARGEST_IN_TILE", 0)
    monkeypatch.setattr(launch, "LARGEST_GRID", 3)
    check(case, torch.float32)


def test_tf32_is_for_float32_alone() -> None:
    """Its error on a GPU is that of operands rounded to 11 bits; the interpreter does not round."""
    case = LENGTHS[8]
    window = *case.window[:-1], "tf32"
    for dtype in DTYPES:
        p = problem(case, dtype)
        own = on_device(p)
        y = KERNELS.forward(own.x, own.weight, own.bias, *window, "none")
        exact = exact_forward(p.x, p.weight, p.bias, case.window)
        error = exact.sum_error(dtype)
        if dtype == torch.float32:
            error = error + 2**-10 * exact.magnitude
        assert_close(y.cpu(), exact.value, error)


def test_empty_batch() -> None:
    case = BY_HAND._replace(batch=0)
    p = on_device(problem(case, torch.float32))
    y = KERNELS.forward(p.x, p.weight, p.bias, *case.window, "none")
    grad_x, grad_w, grad_b = gradients(p, case)
    assert (y.shape, grad_x.shape) == (case.y_shape, case.x_shape)
    assert torch.equal(grad_w.cpu(), torch.zeros(case.weight_shape))
    assert torch.equal(grad_b.cpu(), torch.zeros(case.out_channels))


def test_an_input_of_length_zero_is_all_padding() -> None:
    case = Case("", 2, 3, 4, 0, 3, 1, 1, 1, (2, 3))
    p = on_device(problem(case, torch.float32))
    y = KERNELS.forward(p.x, p.weight, p.bias, *case.window, "none")
    assert torch.equal(y, p.bias[:, None].expand(case.y_shape))
    grad_x, grad_w, _ = gradients(p, case)
    assert grad_x.shape == case.x_shape
    assert torch.equal(grad_w.cpu(), torch.zeros(case.weight_shape))


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    groups = number(3)
    kernel_size, stride, dilation = number(6), number(5), number(4)
    pads = number(9, 0), number(9, 0)
    length = number(40, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    assert output_length(length, kernel_size, stride, dilation, *pads) >= 1
    channels = groups * number(6), groups * number(6)
    return Case("", number(3), *channels, length, kernel_size, stride, dilation, groups, pads)


@given(small_cases(), st.sampled_from(DTYPES))
@settings(max_examples=200 if EVERY_CASE else 15, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)
