"""The emulator's tensor cores and loads of matrices, against plain products and indices."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from build import library


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("tf32", torch.float32)],
)
def test_products_of_matrices(name: str, dtype: torch.dtype) -> None:
    """Of small integers, which all types hold exactly, and no two rows or columns alike."""
    depth = 32 // dtype.itemsize
    a = torch.randperm(16 * depth, generator=torch.Generator().manual_seed(0)) % 61 - 30
    b = torch.randperm(8 * depth, generator=torch.Generator().manual_seed(1)) % 59 - 29
    a, b = a.view(16, depth), b.view(8, depth)
    before = torch.arange(128.0).view(16, 8)
    sums = before.clone()
    operands = a.to(dtype), b.to(dtype)  # kept alive for the call
    getattr(library(), f"multiply_{name}")(*map(pointer, operands), pointer(sums))
    assert torch.equal(sums, before + (a @ b.T))


def loaded(values: Tensor, transposed: bool) -> Tensor:
    """By lane, matrix, and half of the 32 bits."""
    words = torch.zeros(32, 4, 2, dtype=torch.int16)
    library().load(pointer(values), pointer(words), ctypes.c_bool(transposed))
    return words


def test_loads_of_matrices() -> None:
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)  # matrix, row, column
    words = loaded(matrices, transposed=False)
    transposed = loaded(matrices, transposed=True)
    for lane in range(32):
        group, pair = lane // 4, 2 * (lane % 4)
        assert torch.equal(words[lane], matrices[:, group, pair : pair + 2])
        assert torch.equal(transposed[lane], matrices[:, pair : pair + 2, group])


@pytest.mark.parametrize("mask", [1, 2, 4, 16, 31])
def test_lanes_exchange_values(mask: int) -> None:
    values, results = torch.randn(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    library().exchange_lanes(pointer(values), ctypes.c_int(mask), pointer(results))
    assert torch.equal(results, values[torch.arange(32) ^ mask])


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.0, 1.0),
        (1 + 2**-11, 1 + 2**-10),  # a tie goes away from zero
        (-1 - 2**-11, -1 - 2**-10),
        (1 + 2**-11 - 2**-20, 1.0),
        (2 - 2**-12, 2.0),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_rounding_to_tf32(value: float, rounded: float) -> None:
    function = library().rounded_to_tf32
    function.restype = ctypes.c_float
    assert function(ctypes.c_float(value)) == rounded
    assert math.isnan(function(ctypes.c_float(math.nan)))


def test_a_divisor_divides() -> None:
    divide = library().divide
    for divisor in range(1, 513):
        for number in {*range(0, 2048, 37), *range(divisor - 1, 2048, divisor), 2047}:
            assert divide(number, divisor) == number // divisor
