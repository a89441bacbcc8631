"""Stacks against the same layers composed from torch's own."""

from __future__ import annotations

import pytest
import torch
from cases import random
from torch import nn
from torch.nn import functional as F

from convlm_kernels.stack import DilatedStack, StackLayer


@pytest.mark.parametrize("padding", ["causal", 0])
def test_gate_and_residual_are_those_of_wavenet(padding: str | int) -> None:
    layer = StackLayer(5, 5, 3, padding, 2, gated=True, residual=True, dtype=torch.float64)
    x = random(2, 5, 17, dtype=torch.float64)
    padded = F.pad(x, (4, 0)) if padding == "causal" else x
    a, b = F.conv1d(padded, layer.weight, layer.bias, dilation=2).chunk(2, dim=1)
    y = a.tanh() * b.sigmoid()
    torch.testing.assert_close(layer(x), y + x[:, :, 17 - y.shape[2] :])


def test_a_stack_is_a_sequential_and_shares_its_state_dict() -> None:
    stack = DilatedStack(StackLayer(3, 8, 2, activation="tanh"), StackLayer(8, 4, 2, dilation=2))
    plain = nn.Sequential(nn.Conv1d(3, 8, 2), nn.Conv1d(8, 4, 2, dilation=2))
    plain.load_state_dict(stack.state_dict())
    x = random(2, 3, 11)
    y = plain[1](F.pad(plain[0](F.pad(x, (1, 0))).tanh(), (2, 0)))
    torch.testing.assert_close(stack(x), y)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="activation must be None, got 'tanh'"):
        StackLayer(3, 3, 2, gated=True, activation="tanh")
    with pytest.raises(ValueError, match="residual needs out_channels == in_channels, got 4 and 3"):
        StackLayer(3, 4, 2, residual=True)
