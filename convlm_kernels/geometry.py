"""The arithmetic of a one-dimensional convolution, and the words that describe its padding.

Nothing here computes with tensors. Every function also takes symbolic sizes, so that one compiled
graph can serve every length.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch

Padding = int | str | tuple[int, ...]

PADDING_WORDS = ("same", "valid", "causal")


def output_length(
    length: int, kernel_size: int, stride: int, dilation: int, pad_left: int, pad_right: int
) -> int:
    """Number of outputs; zero or less where the dilated kernel is longer than the padded input."""
    return (length + pad_left + pad_right - dilation * (kernel_size - 1) - 1) // stride + 1


def input_position(out: int, tap: int, stride: int, dilation: int, pad_left: int) -> int:
    """Position in the unpadded input that ``tap`` of output ``out`` reads; outside it is a zero."""
    return out * stride + tap * dilation - pad_left


class Conv1dGeometry(NamedTuple):
    """A convolution problem without its data; the predicates in ``backends`` are asked about it."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    length: int
    kernel_size: int
    stride: int
    dilation: int
    pad_left: int
    pad_right: int

    @property
    def out_length(self) -> int:
        return output_length(
            self.length,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.pad_left,
            self.pad_right,
        )


def as_int(name: str, value: object) -> int:
    """``value`` as an int, where it is one or (like ``nn.Conv1d``'s settings) a sequence of one.

    Raises:
        TypeError: it is neither.
        RuntimeError: a sequence of any other length.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 1:
            raise RuntimeError(f"{name} must be an int or a sequence of one int, got {value!r}")
        value = value[0]
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or a sequence of one int, got {value!r}")
    return operator.index(value)


def resolve_padding(
    padding: Padding, kernel_size: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Zeros to add before and after the input, as ``(pad_left, pad_right)``.

    ``padding`` is an int or a sequence of one (both sides alike), a ``(left, right)`` pair, or a
    word: "valid" (none), "same" (as many outputs as inputs; an odd total puts its extra zero on
    the right, as torch does; only for stride 1), "causal" (all on the left, so that an output
    depends on nothing to its right).

    Raises:
        TypeError: not an int, a sequence of ints or a string.
        RuntimeError: a negative number, a sequence of three or more, an unknown word, or "same"
            with a stride other than 1.
    """
    reach = dilation * (kernel_size - 1)
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding == "causal":
            return reach, 0
        if padding == "same":
            if stride != 1:
                raise RuntimeError(f"padding='same' needs stride 1, got stride {stride}")
            return reach // 2, reach - reach // 2
        raise RuntimeError(f"padding must be one of {PADDING_WORDS} or numbers, got {padding!r}")
    if isinstance(padding, (tuple, list)) and len(padding) == 2:
        left, right = as_int("padding[0]", padding[0]), as_int("padding[1]", padding[1])
    elif isinstance(padding, (tuple, list)) and len(padding) != 1:
        raise RuntimeError(
            f"padding must be an int, a sequence of one, or a (left, right) pair, got {padding!r}"
        )
    else:
        left = right = as_int("padding", padding)
    if left < 0 or right < 0:
        raise RuntimeError(f"padding must not be negative, got {padding!r}")
    return left, right
