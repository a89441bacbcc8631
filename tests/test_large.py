"""Sizes past 2^31, without the memory: expanded inputs, and strides that jump over most of them."""

from __future__ import annotations

import torch
from cases import random

from convlm_kernels import ops

LENGTH = 2**33 + 5
STRIDE = 2**21
DILATION = 2**22 + 1
WINDOW = (STRIDE, 3, 0, DILATION, 1, "ieee")


def test_forward_and_grad_weight_of_a_length_past_2_31() -> None:
    x = random(1, 2, 1, dtype=torch.float64).expand(3, 2, LENGTH)
    weight = random(4, 2, 3, dtype=torch.float64)
    y = ops.forward(x, weight, None, *WINDOW, "none")
    out_length = (LENGTH + 3 - 2 * DILATION - 1) // STRIDE + 1
    assert y.shape == (3, 4, out_length)
    by_tap = torch.einsum("oik,i->ko", weight, x[0, :, 0])
    assert torch.allclose(y[:, :, 0], by_tap[1:].sum(0))  # the first tap reads padding
    assert torch.allclose(y[:, :, 1:], by_tap.sum(0)[:, None])

    grad_w, _ = ops.grad_weight(torch.ones_like(y), x, 3, *WINDOW, False)
    reads = torch.tensor([out_length - 1.0, out_length, out_length], dtype=torch.float64)
    expected = 3 * x[0, :, :1] * reads
    assert torch.allclose(grad_w, expected.expand(4, 2, 3))
