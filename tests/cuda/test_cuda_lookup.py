"""Look-ups on the emulator, against the convolution of one-hot vectors in float64."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, random
from hypothesis import given, settings
from hypothesis import strategies as st
from lookups import (
    CASES,
    Operators,
    cases,
    check,
    check_a_token_that_is_no_word,
    results,
    tokens_of,
)

from build import SANITIZE, emulated, library, run_sanitized
from convlm_kernels import lookup_ops

pytestmark = pytest.mark.usefixtures("nan_in_empty")

EMULATED = Operators(emulated("lookup"), emulated("lookup_grad_table"))


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_result_and_gradients(case: Case, dtype: torch.dtype) -> None:
    check(EMULATED, case, dtype)


@parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, dtype: torch.dtype) -> None:
    check(EMULATED, CASES[3], dtype, layout)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_as_on_the_cpu(activation: str) -> None:
    case, dtype = CASES[3], torch.float64
    table = random(case.kernel_size, case.in_channels, case.out_channels, dtype=dtype)
    arguments = tokens_of(case).int(), table, None, *case.window[:4], activation
    expected = lookup_ops.lookup(*arguments)
    torch.testing.assert_close(EMULATED.lookup(*arguments), expected)


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_threads_changes_nothing(order: int) -> None:
    expected = results(EMULATED, CASES[3])
    library().set_order(order)
    try:
        assert all(map(torch.equal, results(EMULATED, CASES[3]), expected))
    finally:
        library().set_order(0)


def test_a_batch_of_nothing() -> None:
    y, grad_table, grad_bias = results(EMULATED, CASES[3]._replace(batch=0))
    assert y.shape[0] == 0
    assert not grad_table.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("wrong", [-1, 28])
def test_a_token_that_is_no_word(wrong: int) -> None:
    check_a_token_that_is_no_word(EMULATED, wrong)


@given(cases(), st.sampled_from(DTYPES))
@settings(max_examples=10 if SANITIZE else 30, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype) -> None:
    check(EMULATED, case, dtype)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "(result and float32) or word or nothing or fuzz")
