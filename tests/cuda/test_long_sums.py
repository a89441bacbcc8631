"""Sums over many terms that are all alike, which are the worst for a chain of additions."""

from __future__ import annotations

import pytest
import torch
from stacks import Inputs, Stack
from torch import Tensor

from build import emulated, forced, operators

TERM = torch.tensor(1.9).item()  # of few bits, sums would be exact


def assert_near(actual: Tensor, terms: int, allowed: float) -> None:
    assert (actual.double() / (terms * TERM) - 1).abs().max() < allowed


# register_tile adds up 256 terms at a time, and then those sums; the others 128.
@pytest.mark.parametrize(
    ("kernel", "batch", "channels", "length", "allowed"),
    [
        ("small", 1 << 15, 1, 1, 2e-6),
        ("small", 1 << 12, 1, 16, 2e-6),
        ("direct", 1 << 18, 1, 1, 2e-6),
        ("depthwise", 1 << 15, 1, 1, 2e-6),
        ("register_tile", 1, 512, 1 << 13, 3e-6),
    ],
)
def test_gradients_of_weight_and_bias(
    kernel: str, batch: int, channels: int, length: int, allowed: float
) -> None:
    x, grad_output = torch.ones(batch, channels, length), torch.full((1, 1, 1), TERM)
    grad_output = grad_output.expand(batch, channels, length)
    with forced(kernel):
        gradients = operators()[2](grad_output, x, 1, 1, 0, 0, 1, 1, "ieee", True)
    for gradient in gradients:
        assert_near(gradient, batch * length, allowed)


def test_the_gradient_of_a_table() -> None:
    tokens, grad_output = torch.zeros(1 << 17, 1).long(), torch.full((1 << 17, 1, 1), TERM)
    gradients = emulated("lookup_grad_table")(grad_output, tokens, 1, 1, 1, 0, 0, 1, True)
    for gradient in gradients:
        assert_near(gradient, 1 << 17, 2e-6)


def test_a_stack() -> None:
    stack = Stack("one layer, one channel", 1 << 12, 1, (1, 1), 1, (1,), ("none",), vocab=1)
    one, tokens = torch.ones(1, 1), torch.zeros(stack.batch, 1).long()
    inputs = Inputs(one, tokens, [one[None]], [one[0]])
    seed = torch.full((stack.batch, 1, 1), TERM)
    _, saved = emulated("stack_forward")(*inputs, stack.settings, False, True)
    gradients = emulated("stack_backward")(seed, saved, *inputs, stack.settings, False, True)
    for gradient in gradients:
        assert_near(gradient, stack.batch, 2e-6)
