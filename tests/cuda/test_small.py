"""The CUDA kernels of small layers beyond the named cases, and what is small."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, SEED, Case, parametrize, problem
from checks import all_three, check, check_activated, check_batches, check_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FROM_OUTPUT

from build import SANITIZE, forced, operators, run_sanitized
from convlm_kernels import _host

pytestmark = pytest.mark.usefixtures("nan_in_empty")

SMALL = [
    Case("two blocks of rows either way, two of columns", 2, 37, 40, 19, 3, 1, 2, 1, (3, 1)),
    Case("classes of positions, one without taps", 3, 5, 9, 31, 2, 3, 3, 1, (2, 4)),
    Case("more samples than fit at a time", 5, 6, 34, 256, 4, 1, 3, 1, (9, 0)),
    Case("a stride longer than the input", 2, 3, 4, 5, 2, 9, 1, 1, (4, 4)),
]


def kernel(dtype: str, case: Case, batch: int = 32) -> str:
    settings = ("stride", "pad_left", "pad_right", "dilation", "groups", "fp32_precision")
    window = dict(zip(settings, case.window, strict=True))
    return _host.cuda_kernel(dtype, batch, *case[2:6], **window)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@parametrize("case", [*SEED, *SMALL])
def test_what_is_small(case: Case, dtype: str) -> None:
    for batch in (1, 32, 100_000):
        assert kernel(dtype, case, batch) == "small"


@parametrize(
    "case",
    [
        SMALL[0]._replace(in_channels=129),
        SMALL[0]._replace(out_channels=129),
        SMALL[0]._replace(length=257),
        SMALL[0]._replace(in_channels=36, groups=2),
        SMALL[0]._replace(in_channels=128, out_channels=128, kernel_size=7),
        SMALL[1]._replace(stride=17),
    ],
)
def test_what_is_left_to_others(case: Case) -> None:
    assert kernel("float32", case) != "small"


@parametrize("dtype", DTYPES)
@parametrize("case", SMALL)
def test_all_three_functions(case: Case, dtype: torch.dtype) -> None:
    with forced("small"):
        check(case, dtype)


@parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("layout", LAYOUTS)
@parametrize("case", SMALL[:2])
def test_layouts(case: Case, layout: str, dtype: torch.dtype) -> None:
    check(case, dtype, layout)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_gradients_of_activated_outputs(activation: str, dtype: torch.dtype) -> None:
    check_activated(SMALL[1], dtype, activation, "channels_last")


@parametrize("case", SMALL[:2])
def test_the_order_of_threads_changes_nothing(case: Case) -> None:
    check_orders(case)


@parametrize("case", SMALL[:2])
def test_a_sample_has_the_same_bits_in_any_batch(case: Case) -> None:
    check_batches(case)


@pytest.mark.parametrize("batch", [0, 2])
def test_an_input_of_length_zero(batch: int) -> None:
    case = Case("all padding", batch, 2, 6, 0, 3, 2, 1, 1, (2, 3))
    with forced("small"):
        y, grad_x, grad_w, grad_b = all_three(case)
    p = problem(case, torch.float32)
    torch.testing.assert_close(y, p.bias.tanh()[:, None].expand(case.y_shape))
    assert grad_x.shape == case.x_shape
    assert torch.equal(grad_w, torch.zeros(case.weight_shape))
    torch.testing.assert_close(grad_b, p.grad_output.sum((0, 2)))


def test_no_bias_is_written_where_none_is_asked_for() -> None:
    case = SMALL[0]
    p = problem(case, torch.float32)
    grad_w, empty = operators()[2](p.grad_output, p.x, case.kernel_size, *case.window, False)
    assert empty.shape == (0,)
    assert torch.equal(grad_w, all_three(case)[2])


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    kernel_size, stride, dilation = number(9), number(11), number(6)
    pads = number(20, 0), number(20, 0)
    length = number(60, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    channels = number(36), number(36)
    return Case("", number(4), *channels, length, kernel_size, stride, dilation, 1, pads)


@given(
    small_cases(),
    st.sampled_from(DTYPES),
    st.sampled_from([None, "channels_last", "unaligned", "transposed"]),
)
@settings(max_examples=10 if SANITIZE else 30, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype, layout: str | None) -> None:
    with forced("small"):
        check(case, dtype, layout)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    names = "(three and float32) or layouts or (activated and float32) or batch or zero or fuzz"
    run_sanitized(__file__, names)
