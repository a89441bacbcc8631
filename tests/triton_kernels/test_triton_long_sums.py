"""Sums over many terms that are all alike, which are the worst for a chain of additions."""

from __future__ import annotations

import pytest
import torch
from stacks import Inputs, Stack
from torch import Tensor

from convlm_kernels import lookup_ops, ops, stack_ops, triton_ops
from convlm_kernels.triton_kernels import lookup, stack, weight_gradient

pytestmark = pytest.mark.usefixtures("nan_in_empty", "one_program")

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
TERM = torch.tensor(1.9).item()  # of few bits, sums would be exact


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts become as long as they may be."""
    for module in (weight_gradient, lookup, stack):
        monkeypatch.setattr(module, "PROGRAMS", 1)


def assert_near(actual: Tensor, terms: int) -> None:
    """As near as chains of 256 are."""
    assert (actual.double() / (terms * TERM) - 1).abs().max() < 3e-6


# Depthwise, each of 256 lanes has a chain of its own.
@pytest.mark.parametrize(("groups", "length"), [(1, 1 << 14), (2, 1 << 18)])
def test_gradients_of_weight_and_bias(groups: int, length: int) -> None:
    x = torch.ones(1, 2, length, device=DEVICE)
    window = 1, 1, 0, 0, 1, groups, "ieee"
    grad_output = torch.full_like(x, TERM)
    for gradient in ops.OPERATORS["triton"].grad_weight(grad_output, x, *window, True):
        assert_near(gradient, length)


def test_the_gradient_of_a_table() -> None:
    length = 1 << 14
    tokens = torch.zeros(1, length, dtype=torch.int64, device=DEVICE)
    grad_output = torch.full((1, 1, length), TERM, device=DEVICE)
    grad_table = lookup_ops.OPERATORS["triton"].lookup_grad_table
    gradient, _ = grad_table(grad_output, tokens, 1, 1, 1, 0, 0, 1, False)
    assert_near(gradient, length)


def test_a_stack() -> None:
    one_layer = Stack("one layer, one channel", 1, 1 << 13, (1, 1), 1, (1,), ("none",))
    x, one = torch.ones(1, 1, one_layer.length), torch.ones(1)
    inputs = Inputs(x, None, [one[None, None]], [one]).to(DEVICE)
    forward, backward = stack_ops.OPERATORS["triton"]
    _, saved = forward(*inputs, one_layer.settings, False, True)
    seed = torch.full_like(inputs.x, TERM)
    _, *gradients = backward(seed, saved, *inputs, one_layer.settings, False, True)
    for gradient in gradients:
        assert_near(gradient, one_layer.length)
