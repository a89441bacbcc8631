"""Look-ups on the emulator, against the convolution of one-hot vectors in float64."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, random
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import exact_forward, exact_gradients
from torch import Tensor
from torch.nn import functional as F

from build import SANITIZE, emulated, library, run_sanitized
from convlm_kernels import lookup_ops

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# in_channels are the words
CASES = [
    Case("the seed's first layer", 3, 28, 100, 23, 2, 1, 1, 1, (0, 0)),
    Case("the seed's CNN", 2, 28, 28, 23, 8, 1, 1, 1, (0, 0)),
    Case("more positions and more words than a block takes", 1, 70, 5, 75, 3, 1, 2, 1, (4, 0)),
    Case("strided, padded on both sides", 5, 9, 33, 31, 3, 3, 4, 1, (5, 7)),
    Case("more samples than blocks, one word", 70, 1, 1, 2, 1, 1, 1, 1, (0, 1)),
]


def tokens_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(case.in_channels, (case.batch, case.length), generator=generator)


def check(case: Case, dtype: torch.dtype, layout: str | None = None) -> None:
    tokens, window = tokens_of(case), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels, dtype=dtype)
    bias, grad_output = random(case.out_channels, dtype=dtype), random(*case.y_shape, dtype=dtype)
    if layout:
        table, bias, grad_output = map(LAYOUTS[layout], (table, bias, grad_output))
    one_hot = F.one_hot(tokens, case.in_channels).mT.to(dtype)
    weight = table.permute(2, 1, 0)
    y = emulated("lookup")(tokens, table, bias, *window, "none")
    exact_forward(one_hot, weight, bias, case.window).allows(y, bool(layout))
    grads = emulated("lookup_grad_table")(
        grad_output, tokens, case.kernel_size, case.in_channels, *window, True
    )
    _, exact_t, exact_b = exact_gradients(one_hot, weight, grad_output, case.window)
    exact_t.allows(grads[0].permute(2, 1, 0), bool(layout))
    exact_b.allows(grads[1], bool(layout))


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_result_and_gradients(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, dtype: torch.dtype) -> None:
    check(CASES[3], dtype, layout)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_as_on_the_cpu(activation: str) -> None:
    case, dtype = CASES[3], torch.float64
    table = random(case.kernel_size, case.in_channels, case.out_channels, dtype=dtype)
    arguments = tokens_of(case).int(), table, None, *case.window[:4], activation
    expected = lookup_ops.lookup(*arguments)
    torch.testing.assert_close(emulated("lookup")(*arguments), expected)


def both(case: Case) -> list[Tensor]:
    tokens, window = tokens_of(case), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels)
    y = emulated("lookup")(tokens, table, None, *window, "tanh")
    sizes = case.kernel_size, case.in_channels
    return [y, *emulated("lookup_grad_table")(y, tokens, *sizes, *window, True)]


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_threads_changes_nothing(order: int) -> None:
    expected = both(CASES[3])
    library().set_order(order)
    try:
        assert all(map(torch.equal, both(CASES[3]), expected))
    finally:
        library().set_order(0)


def test_a_batch_of_nothing() -> None:
    y, grad_table, grad_bias = both(CASES[3]._replace(batch=0))
    assert y.shape[0] == 0
    assert not grad_table.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("wrong", [-1, 28])
def test_a_token_that_is_no_word(wrong: int) -> None:
    """It shows as NaN where it is read, and has no part in a gradient."""
    case = CASES[0]
    tokens, window = tokens_of(case), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels)
    right = emulated("lookup")(tokens, table, None, *window, "none")
    tokens[1, 5] = wrong
    y = emulated("lookup")(tokens, table, None, *window, "none")
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[1, :, 4:6] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(y.nan_to_num(0), right.where(~expected, 0))
    sizes = case.kernel_size, case.in_channels
    ones = torch.ones_like(y)
    grad_table, _ = emulated("lookup_grad_table")(ones, tokens, *sizes, *window, False)
    counted = grad_table[..., 0].sum().item()
    assert counted == case.batch * case.kernel_size * y.shape[2] - 2


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    kernel_size, stride, dilation = number(5), number(4), number(4)
    pads = number(9, 0), number(9, 0)
    length = number(50, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    return Case("", number(4), number(40), number(40), length, kernel_size, stride, dilation, 1,
                pads)  # fmt: skip


@given(cases(), st.sampled_from(DTYPES))
@settings(max_examples=10 if SANITIZE else 30, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "(result and float32) or word or nothing or fuzz")
