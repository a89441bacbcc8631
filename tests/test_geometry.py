"""Lengths and positions: Python, C++ and torch give one answer."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from convlm_kernels import _host
from convlm_kernels.geometry import (
    Conv1dGeometry,
    as_int,
    input_position,
    output_length,
    resolve_padding,
)

SETTINGS = list(product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (0, 1, 3), (0, 2)))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 10])
def test_output_length(length: int) -> None:
    for kernel_size, stride, dilation, pad_left, pad_right in SETTINGS:
        arguments = length, kernel_size, stride, dilation, pad_left, pad_right
        ours = output_length(*arguments)
        assert _host.output_length(*arguments) == ours, arguments
        x = F.pad(torch.zeros(1, 1, length), (pad_left, pad_right))
        weight = torch.zeros(1, 1, kernel_size)
        if ours >= 1:
            y = F.conv1d(x, weight, stride=stride, dilation=dilation)
            assert y.shape == (1, 1, ours), arguments
        else:
            with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
                F.conv1d(x, weight, stride=stride, dilation=dilation)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_input_position(length: int) -> None:
    x = torch.arange(1.0, length + 1)  # no zeros: those are padding
    for kernel_size, stride, dilation, pad_left, pad_right in SETTINGS:
        out_length = output_length(length, kernel_size, stride, dilation, pad_left, pad_right)
        if out_length < 1:
            continue
        padded = F.pad(x, (pad_left, pad_right))[None, None]
        taps = torch.eye(kernel_size)[:, None]  # output channel t is what tap t reads
        read = F.conv1d(padded, taps, stride=stride, dilation=dilation)[0]
        for tap, out in product(range(kernel_size), range(out_length)):
            arguments = out, tap, stride, dilation, pad_left
            position = input_position(*arguments)
            assert _host.input_position(*arguments) == position, arguments
            inside = 0 <= position < length
            assert read[tap, out].item() == (x[position].item() if inside else 0), arguments


def test_lengths_beyond_32_bits() -> None:
    arguments = 2**40, 3, 2, 2**33, 5, 7
    assert _host.output_length(*arguments) == output_length(*arguments)
    assert _host.input_position(2**39, 2, 2, 2**33, 5) == 2**40 + 2**34 - 5


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, (0, 0)),
        (3, (3, 3)),
        ((2,), (2, 2)),
        ([2], (2, 2)),
        ((2, 5), (2, 5)),
        ("valid", (0, 0)),
        ("causal", (9, 0)),
        ("same", (4, 5)),
    ],
)
def test_resolve_padding(padding: object, expected: tuple[int, int]) -> None:
    assert resolve_padding(padding, kernel_size=4, stride=1, dilation=3) == expected


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_pads_as_torch(kernel_size: int, dilation: int) -> None:
    pads = resolve_padding("same", kernel_size, 1, dilation)
    x, weight = torch.randn(1, 1, 20), torch.randn(1, 1, kernel_size)
    expected = F.conv1d(x, weight, padding="same", dilation=dilation)
    torch.testing.assert_close(F.conv1d(F.pad(x, pads), weight, dilation=dilation), expected)


@pytest.mark.parametrize(
    ("padding", "stride", "error", "message"),
    [
        (-1, 1, RuntimeError, "padding must not be negative, got -1"),
        ((0, -2), 1, RuntimeError, "padding must not be negative, got (0, -2)"),
        ((1, 2, 3), 1, RuntimeError, "sequence of one, or a (left, right) pair, got (1, 2, 3)"),
        ((), 1, RuntimeError, "an int, a sequence of one, or a (left, right) pair, got ()"),
        ("full", 1, RuntimeError, "padding must be one of ('same', 'valid', 'causal')"),
        ("same", 2, RuntimeError, "padding='same' needs stride 1, got stride 2"),
        (1.5, 1, TypeError, "padding must be an int"),
        (True, 1, TypeError, "padding must be an int"),
        ((1, 2.0), 1, TypeError, "padding[1] must be an int"),
        (None, 1, TypeError, "padding must be an int"),
    ],
)
def test_bad_padding(padding: object, stride: int, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        resolve_padding(padding, 3, stride, 1)
    assert message in str(raised.value)


def test_as_int() -> None:
    numpy = pytest.importorskip("numpy")
    for value in (3, (3,), [3], numpy.int64(3), torch.tensor(3)):
        result = as_int("stride", value)
        assert result == 3
        assert type(result) is int


def test_geometry_knows_its_out_length() -> None:
    geometry = Conv1dGeometry(32, 3, 6, 1, 10, 3, 4, 2, 1, 1)
    assert geometry.out_length == 2
