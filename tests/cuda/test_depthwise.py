"""The depthwise CUDA kernels beyond the named cases: layouts, tiles, and what is left to others."""

from __future__ import annotations

import pytest
import torch
from cases import DEPTHWISE, DTYPES, Case, parametrize, problem
from checks import all_three, check, check_activated, check_batches, check_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FROM_OUTPUT, assert_close, exact_forward

from build import SANITIZE, operators, run_sanitized
from convlm_kernels import _host
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")

CAUSAL = Case("several channels, whole vectors and rests", 3, 37, 37, 150, 4, 1, 3, 37, (9, 0))
STRIDED = Case("classes of positions, two outputs a channel", 2, 9, 18, 131, 5, 3, 2, 9, (4, 2))


def kernels(**changes: int) -> set[str]:
    """Which kernels the dtypes get."""
    sizes = dict(batch=2, in_channels=24, out_channels=24, length=4000, kernel_size=4, groups=24)
    return {
        _host.cuda_kernel(dtype, **(sizes | changes))
        for dtype in ("float32", "float64", "bfloat16", "float16")
    }


def test_what_is_depthwise() -> None:
    assert kernels() == {"depthwise"}
    assert kernels(out_channels=8 * 24) == {"depthwise"}
    assert kernels(stride=16, kernel_size=100, dilation=7) == {"depthwise"}
    assert kernels(batch=1, length=4) == kernels(batch=1000, length=2**40) == {"depthwise"}


def test_what_is_left_to_others() -> None:
    assert "depthwise" not in kernels(out_channels=9 * 24)  # more products for each input
    assert "depthwise" not in kernels(groups=12)
    assert "depthwise" not in kernels(stride=17)  # more classes of positions than are prepared
    assert "depthwise" not in kernels(length=10**6, dilation=10**5)  # than shared memory holds


@parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("layout", ["sliced", "channels_last", "unaligned", "expanded_all"])
@parametrize("case", [CAUSAL, STRIDED])
def test_layouts(case: Case, layout: str, dtype: torch.dtype) -> None:
    check(case, dtype, layout)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layouts", [("channels_last", "sliced"), ("sliced", "channels_last")])
@parametrize("case", [CAUSAL, STRIDED, CAUSAL._replace(in_channels=2, out_channels=2, groups=2)])
def test_unlike_layouts(case: Case, layouts: tuple[str, str], dtype: torch.dtype) -> None:
    check(case, dtype, layouts[0], grad_layout=layouts[1])


@pytest.mark.parametrize("layouts", [("channels_last", "sliced"), ("sliced", "channels_last")])
@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_gradients_of_activated_outputs(
    activation: str, dtype: torch.dtype, layouts: tuple[str, str]
) -> None:
    """Both contiguous, both channels-last, or each its own way."""
    for layout, layout_of_y in [(None, None), (layouts[0], layouts[0]), layouts]:
        check_activated(CAUSAL._replace(length=70), dtype, activation, layout_of_y, layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_activation(activation: str) -> None:
    p = problem(CAUSAL, torch.float32)
    exact = exact_forward(*p[:3], CAUSAL.window)
    value = ACTIVATIONS[activation](exact.value)
    y = operators()[0](p.x, p.weight, p.bias, *CAUSAL.window, activation)
    rounding = 4 * torch.finfo(torch.float32).eps * value.abs()
    assert_close(y, value, 1.13 * exact.sum_error(torch.float32) + rounding)


@parametrize("case", [CAUSAL, STRIDED, DEPTHWISE[2]])
def test_the_order_of_threads_changes_nothing(case: Case) -> None:
    check_orders(case)


@parametrize("case", [CAUSAL, STRIDED])
def test_a_sample_has_the_same_bits_in_any_batch(case: Case) -> None:
    check_batches(case)


def test_pieces_of_several_tiles() -> None:
    check(Case("more samples than blocks", 2100, 1, 1, 3, 2, 1, 1, 1, (1, 0)), torch.float32)


@pytest.mark.parametrize("batch", [0, 2])
def test_an_input_of_length_zero(batch: int) -> None:
    case = Case("all padding", batch, 3, 6, 0, 3, 2, 1, 3, (2, 3))
    y, grad_x, grad_w, grad_b = all_three(case)
    p = problem(case, torch.float32)
    torch.testing.assert_close(y, p.bias.tanh()[:, None].expand(case.y_shape))
    assert grad_x.shape == case.x_shape
    assert torch.equal(grad_w, torch.zeros(case.weight_shape))
    torch.testing.assert_close(grad_b, p.grad_output.sum((0, 2)))


@st.composite
def depthwise_cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    channels, multiplier = number(40), number(3)
    kernel_size, stride, dilation = number(12), number(5), number(20)
    pads = number(30, 0), number(30, 0)
    length = number(300, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    sizes = channels, channels * multiplier, length, kernel_size
    return Case("", number(2), *sizes, stride, dilation, channels, pads)


layouts = st.sampled_from([None, "channels_last", "unaligned", "transposed"])


@given(depthwise_cases(), st.sampled_from(DTYPES), layouts, layouts)
@settings(max_examples=10 if SANITIZE else 30, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype, layout: str | None, grad_layout: str | None) -> None:
    check(case, dtype, layout, grad_layout=grad_layout)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "layouts or (activated and float32) or batch or zero or fuzz")
