"""The problems that every kernel is tested on, each with the reason why it is there."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from convlm_kernels.geometry import output_length


class Case(NamedTuple):
    why: str
    batch: int
    in_channels: int
    out_channels: int
    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pads: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        shape = f"b{self.batch}_i{self.in_channels}_o{self.out_channels}_l{self.length}"
        settings = f"k{self.kernel_size}_s{self.stride}_d{self.dilation}_g{self.groups}"
        return f"{shape}_{settings}_p{self.pads[0]}+{self.pads[1]}"

    @property
    def out_length(self) -> int:
        return output_length(self.length, self.kernel_size, self.stride, self.dilation, *self.pads)

    @property
    def window(self) -> tuple[int, int, int, int, int, str]:
        """The settings in the order of the operators."""
        return self.stride, *self.pads, self.dilation, self.groups, "ieee"

    @property
    def x_shape(self) -> tuple[int, int, int]:
        return self.batch, self.in_channels, self.length

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        return self.out_channels, self.in_channels // self.groups, self.kernel_size

    @property
    def y_shape(self) -> tuple[int, int, int]:
        return self.batch, self.out_channels, self.out_length


BY_HAND = Case("part 1 of the seed, the layer written by hand", 32, 3, 6, 10, 3, 4, 2, 1, (1, 1))

SEED = [
    BY_HAND,
    Case("part 2: characters to logits in one step", 4, 1, 28, 230, 80, 10),
    Case("part 3: pairs, one input channel, stride 10", 4, 1, 100, 230, 20, 10),
    Case("part 3: fours, most of the work", 4, 100, 100, 22, 2, 1, 2),
    Case("part 3: eights, fewer output channels than a register block", 4, 100, 28, 20, 2, 1, 4),
]

LENGTHS = [
    Case("one position: each output reads it with another tap", 2, 3, 5, 1, 3, 1, 1, 1, (2, 2)),
    Case("two positions, even kernel", 3, 3, 4, 2, 2, 1, 1, 1, (1, 0)),
    Case("three positions, padded longer than the input", 2, 2, 3, 3, 4, 2, 2, 1, (5, 4)),
    Case("out_length 1: kernel as long as the input", 3, 5, 7, 9, 9),
    Case("out_length 1 with stride: the tail of the input is unread", 2, 4, 3, 12, 3, 16, 2),
    Case("one below a vector multiple", 2, 3, 28, 127, 3, 1, 2, 1, (2, 2)),
    Case("a vector multiple", 2, 3, 28, 128, 5, 1, 1, 1, (2, 2)),
    Case("one above a vector multiple", 2, 28, 3, 129, 4, 1, 3, 1, (9, 0)),
    Case("prime, so that no tile divides it", 2, 28, 29, 151, 3, 2, 3, 1, (1, 4)),
    Case("a little over a power of two", 2, 3, 5, 1026, 5, 3, 2, 1, (3, 1)),
    Case("several cache tiles and a remainder", 1, 3, 5, 4099, 7, 1, 4, 1, (24, 0)),
]

CHANNELS = [
    Case("one channel in and out, strided", 2, 1, 1, 40, 4, 3, 2, 1, (1, 2)),
    Case("one channel in", 2, 1, 17, 33, 3, 2, 2, 1, (0, 3)),
    Case("one channel out", 2, 17, 1, 33, 3, 2, 2, 1, (3, 0)),
    Case("one above a power of two, both sides", 2, 129, 129, 19, 3, 2, 2, 1, (2, 1)),
    Case("pointwise", 3, 28, 100, 37, 1),
    Case("pointwise, strided: a gather", 3, 28, 10, 37, 1, 5),
    Case("many channels, short rows", 5, 100, 100, 3, 2, 1, 2, 1, (2, 0)),
]

SETTINGS = [
    Case("stride longer than the kernel: inputs that nothing reads", 3, 4, 5, 50, 2, 7, 3),
    Case("stride equal to the kernel: inputs read once, the last three never", 2, 10, 12, 63, 5, 5),
    Case("stride and dilation with a common factor", 3, 4, 6, 41, 3, 4, 6, 1, (5, 2)),
    Case(
        "dilation longer than the input: one tap at a time hits it", 2, 3, 4, 5, 3, 1, 7, 1, (7, 7)
    ),
    Case("taps that read only padding", 2, 3, 4, 6, 5, 2, 4, 1, (16, 1)),
    Case("a span nearly as long as the input: few taps a position", 2, 20, 24, 350, 13, 1, 25),
    Case("the same with more taps than channels", 2, 2, 17, 400, 31, 3, 12, 1, (7, 5)),
    Case("outputs of nothing but padding, more taps than channels", 2, 1, 3, 5, 2, pads=(70, 0)),
    Case("a short input, and taps far beyond it", 2, 12, 40, 9, 14, 1, 4, 1, (40, 12)),
    Case("padding on the right alone", 2, 6, 6, 23, 4, 2, 1, 1, (0, 9)),
    Case("kernel 80 at stride 1", 2, 2, 9, 130, 80, 1, 1, 1, (0, 7)),
    Case("causal", 3, 8, 8, 31, 4, 1, 8, 1, (24, 0)),
    Case("classes of the stride with unlike outputs and taps", 2, 40, 33, 301, 5, 3, 2, 1, (2, 1)),
    Case("classes of the stride, one of them without taps", 2, 34, 48, 300, 3, 4, 1, 1, (1, 0)),
    Case("the first class of the stride without taps", 2, 9, 12, 90, 20, 6, 4, 1, (15, 13)),
    Case("few taps for many classes of the stride", 2, 3, 4, 700, 5, 200, 30, 1, (410, 0)),
]

# Fast filtering in some of the functions: in the others too many taps read padding.
PARTLY_FAST = [
    Case("fast filtering, one block of tiles", 1, 80, 80, 256, 3, 1, 64),
    Case(
        "fast filtering, the last block fills one part of two",
        3,
        64,
        80,
        600,
        3,
        1,
        100,
        1,
        (50, 0),
    ),
]

# Large enough for fast filtering to pay, small enough for many tests.
FAST = [
    Case("fast filtering, neighbours: tiles of 2 and 4 do not divide 133", 2, 64, 64, 135, 3),
    Case("fast filtering, causal, runs shorter than a vector", 2, 64, 80, 109, 3, 1, 2, 1, (4, 0)),
    Case("fast filtering, runs that are no power of two", 1, 120, 130, 157, 3, 1, 5, 1, (3, 9)),
    Case("fast filtering, half a vector a run", 1, 96, 98, 133, 3, 1, 8, 1, (8, 8)),
    Case("fast filtering, long runs, cut", 1, 96, 96, 1000, 3, 1, 100, 1, (170, 0)),
    Case("fast filtering, four taps: a group and a lone one", 2, 160, 160, 191, 4, 1, 3, 1, (0, 9)),
    Case("fast filtering, two groups of taps, the last of two", 1, 96, 96, 127, 5, 1, 1, 1, (2, 2)),
    Case("fast filtering, seven taps far apart", 1, 112, 112, 631, 7, 1, 21, 1, (63, 63)),
    Case("fast filtering, two taps need more channels", 2, 160, 150, 95, 2, 1, 4, 1, (4, 0)),
    Case("fast filtering, a lone tap that ends with the input", 1, 64, 64, 2051, 4),
    Case("fast filtering, two groups and a lone tap", 1, 64, 64, 2072, 7, 1, 4),
    Case("fast filtering in each of two groups", 2, 128, 140, 83, 3, 1, 1, 2, (1, 1)),
    Case("fast filtering, several stretches and a remainder", 1, 64, 64, 1100, 3, 1, 1, 1, (2, 0)),
    Case("fast filtering, a vector a run", 2, 64, 66, 300, 3, 1, 16, 1, (32, 0)),
    Case("fast filtering, groups of taps in the padding", 1, 64, 66, 1100, 7, 1, 64, 1, (384, 0)),
    Case("fast filtering, padding at both ends", 1, 80, 80, 900, 7, 1, 130, 1, (390, 390)),
    Case("fast filtering, two taps far apart", 1, 160, 150, 780, 2, 1, 130, 1, (130, 0)),
    Case("fast filtering, some channels at a time", 1, 520, 32, 260, 13, 1, 1, 1, (6, 6)),
    Case("the same for several samples", 3, 130, 90, 95, 50, 1, 1, 1, (25, 24)),
    Case("the same in each of two groups", 2, 260, 120, 150, 31, 1, 1, 2, (30, 0)),
    Case("fast filtering, weights in parts", 1, 400, 232, 260, 13, 1, 1, 1, (6, 6)),
    Case("the same with samples side by side", 3, 32, 600, 125, 13, 1, 2, 1, (12, 12)),
]

GROUPS = [
    Case("groups, uneven channels in them", 3, 6, 9, 25, 3, 2, 2, 3, (2, 1)),
    Case("groups wider than a vector", 2, 40, 68, 29, 3, 1, 2, 2, (1, 3)),
    Case("depthwise", 3, 29, 29, 65, 4, 1, 1, 29, (3, 0)),
    Case("depthwise, strided and dilated", 3, 7, 7, 130, 5, 3, 2, 7, (4, 4)),
    Case("depthwise with a multiplier", 2, 5, 15, 33, 3, 2, 3, 5, (3, 2)),
    Case("many channels into one in each group", 2, 24, 4, 30, 3, 1, 1, 4, (1, 1)),
]

# Short samples, joined where a batch has several of them.
JOINED = [
    Case("joined, runs that tiles cut", 41, 20, 28, 13, 3, 1, 1, 1, (1, 1)),
    Case("joined, less than a vector a sample", 30, 12, 40, 10, 3, 1, 1, 1, (1, 0)),
    Case("joined, a vector and a lane, odd channels", 19, 17, 35, 19, 3),
    Case("joined, strided and dilated, unlike pads", 14, 9, 23, 41, 5, 3, 2, 1, (4, 1)),
    Case("joined, one channel in, in steps of ten", 26, 1, 36, 230, 20, 10, 1, 1, (7, 12)),
    Case("joined, many taps, a few of them in each phase", 9, 2, 20, 120, 31, 7, 1, 1, (3, 5)),
    Case("joined, a stride longer than the kernel", 18, 10, 21, 130, 3, 7, 2, 1, (1, 0)),
    Case("joined, more taps than phases, apart", 8, 1, 43, 34, 7, 6),
    Case("joined, more taps than phases, apart, with padding", 3, 1, 53, 20, 6, 5, 1, 1, (2, 0)),
    Case("joined, taps beyond the input", 12, 16, 18, 11, 4, 1, 5, 1, (15, 3)),
    Case("joined in each of two groups", 15, 24, 34, 21, 4, 1, 2, 2, (0, 3)),
    Case("joined, weights a power of two apart", 6, 64, 32, 20, 2, 1, 2),
    Case("joined, several tiles of products and of inputs", 33, 130, 40, 24, 5),
]

# The same of few rows, whose weights' gradients are joined, too.
FEW_ROWS = [
    Case("joined, few rows", 32, 190, 8, 40, 1),
    Case("joined, few rows, strided and dilated", 32, 45, 4, 55, 14, 2, 4, 1, (26, 26)),
    Case("joined, few rows, a vector and a lane", 19, 60, 5, 17, 3, 1, 2, 1, (4, 0)),
    Case("joined, few rows in each of two groups", 30, 120, 8, 21, 4, 1, 2, 2, (0, 3)),
    Case("joined, few rows, several tiles of products and of inputs", 33, 130, 6, 24, 5),
]

# Rows too few for a copy of what they read to pay.
IN_PLACE = [
    Case("few rows, read in place", 2, 40, 5, 117, 1),
    Case("few rows, read in place, dilated", 3, 12, 4, 131, 3, 1, 7),
    Case("few rows, read in place in pieces of the channels", 2, 150, 9, 190, 1),
    Case("few rows in each of two groups, read in place", 2, 80, 10, 164, 1, groups=2),
]

# More weights, or more of what joined samples read, than the caches of a CPU hold at once.
IN_PARTS = [
    Case("a reduction in parts, joined and strided", 5, 60, 24, 56, 25, 2, 1, 1, (3, 1)),
    Case("a reduction in parts, more taps than channels", 2, 20, 24, 56, 51, 1, 1, 1, (3, 1)),
    Case("pieces of the channels, one tile of a sample", 1, 330, 260, 420, 5, 2, 1, 1, (3, 1)),
    Case("pieces of the channels, several tiles", 2, 300, 520, 600, 2, 2, 1, 1, (1, 0)),
    Case("pieces of the channels of a pointwise layer", 2, 519, 510, 301, 1),
]

# On GPUs these have kernels of their own, which work in tiles of channels and positions.
DEPTHWISE = [
    Case("depthwise, rows of several tiles", 1, 2, 2, 5000, 4, 1, 1, 2, (3, 0)),
    Case("depthwise, taps far apart", 2, 3, 3, 700, 3, 1, 64, 3, (128, 0)),
    Case(
        "depthwise, a multiplier in several tiles, many taps", 1, 35, 70, 40, 12, 2, 2, 35, (3, 3)
    ),
    Case("depthwise, a stride as long as the kernel", 2, 5, 5, 300, 16, 16, 1, 5, (3, 3)),
    Case("depthwise, a stride longer than the input", 2, 5, 5, 7, 3, 9, 2, 5, (3, 3)),
]

# Few rows, or an input that is short against the reach of its taps: products by taps come first.
TAPS_FIRST = [
    Case("one row, two blocks of outputs, inputs in several tiles", 1, 40, 1, 2500, 5, 1, 3),
    Case("two rows and long rows", 2, 20, 2, 700, 7, 1, 9, 1, (54, 0)),
    Case("one channel's gradient from many", 3, 1, 70, 300, 4, 1, 11, 1, (33, 33)),
    Case("short rows side by side, taps far apart", 5, 24, 30, 9, 12, 1, 3, 1, (33, 9)),
    Case("more columns than a row block, a tile and a half", 1, 12, 3, 390, 9, 1, 40, 1, (320, 0)),
    Case("in each of three groups", 2, 60, 3, 270, 3, 1, 2, 3, (4, 0)),
    Case("gradients of classes of a stride", 2, 2, 60, 260, 9, 3, 2, 1, (5, 6)),
    Case("the same with rows of several stretches", 1, 1, 24, 1200, 5, 2, 1, 1, (3, 1)),
]

# On CPUs rows of some length are read in place, but for their edges.
FEW_CHANNELS = [
    Case("depthwise, edges on both sides", 5, 3, 3, 1003, 5, 1, 3, 3, (6, 6)),
    Case("depthwise, no edges but those of grad_input", 2, 2, 2, 1000, 3, 1, 7, 2),
    Case("depthwise, more taps than share a pass", 2, 3, 3, 1200, 9, 1, 1, 3, (8, 0)),
    Case("depthwise, one tap", 2, 70, 70, 700, 1, 1, 1, 70),
    Case("depthwise, two taps, a row of several sums", 1, 1, 1, 9001, 2, 1, 5, 1, (5, 5)),
    Case("depthwise, padding longer than what is read", 2, 3, 3, 700, 3, 1, 300, 3, (900, 100)),
    Case("depthwise, every second", 2, 3, 3, 1501, 4, 2, 1, 3, (2, 1)),
    Case("depthwise, every third, two channels to one and one to two", 2, 4, 8, 700, 4, 3, 2, 4),
    Case("depthwise, every fourth, not all read", 2, 3, 9, 2601, 2, 4, 3, 3, (0, 5)),
    Case("depthwise, every fifth", 2, 3, 12, 800, 7, 5, 1, 3, (1, 1)),
    Case("depthwise, every sixth", 2, 3, 3, 900, 7, 6, 1, 3, (1, 1)),
    Case("depthwise, every eighth", 2, 3, 3, 900, 9, 8, 3, 3, (1, 1)),
    Case("three channels to one", 2, 3, 1, 900, 5, 1, 2, 1, (4, 4)),
]

# On CPUs short rows of many groups are turned: vectors hold groups.
MANY_GROUPS = [
    Case("short rows, several blocks of groups, strided", 3, 150, 150, 14, 4, 2, 1, 150, (1, 2)),
    Case("short rows, three channels to two", 2, 60, 40, 12, 3, 1, 2, 20, (3, 0)),
    Case("short rows, a stride longer than them", 5, 37, 74, 2, 4, 3, 1, 37, (4, 4)),
    Case("short rows, more than a unit of them", 40, 33, 33, 9, 1, 1, 1, 33),
    Case("longer rows, every fifth", 3, 20, 20, 190, 6, 5, 2, 20, (5, 5)),
    Case(
        "longer rows, turned for the gradient of weights alone", 5, 20, 20, 80, 3, 1, 1, 20, (1, 1)
    ),
]

# On CPUs weights that meet few positions are read as they lie.
FEW_POSITIONS = [
    Case("one position: weights times a vector", 1, 330, 67, 1, 1),
    Case("few positions, as many taps as inputs", 3, 90, 70, 5, 5),
    Case("few positions, padding at both ends", 2, 170, 69, 5, 5, 1, 1, 1, (1, 1)),
    Case("few positions, strided and dilated", 2, 66, 90, 7, 3, 2, 3, 1, (1, 0)),
    Case("few positions in each of two groups", 3, 150, 98, 3, 4, 1, 1, 2, (1, 0)),
    Case("few positions, sums of several chains", 2, 1100, 67, 2, 2, 1, 1, 1, (1, 0)),
    Case("few positions, sums of several chains: the gradient", 1, 40, 300, 4, 3),
    Case("few positions a sample, several tiles of them", 60, 130, 150, 3, 3, 1, 1, 1, (1, 0)),
    Case("few positions, taps that read only padding", 1, 220, 70, 2, 4, 1, 1, 1, (1, 2)),
]

# The batch decides among kernels with the same bits.
OF_ANY_BATCH = [
    Case("by positions alone, joined in a batch", 32, 20, 70, 62, 6, 1, 4),
    Case("the same with a stride", 32, 27, 87, 231, 7, 2),
    Case("by positions alone, by rows in a batch", 32, 96, 79, 59, 7, 2, 1, 1, (6, 0)),
    Case("more taps than channels, and a stride", 32, 4, 60, 93, 11, 2),
]

# One tile of rows, whose weights are packed when they are multiplied, many of them in pieces.
PACKED_LATE = [
    Case("packed late, an odd number of channels", 1, 701, 100, 44, 5, 3, 1, 1, (4, 0)),
    Case("packed late, more taps than channels", 1, 60, 62, 30, 62, 2, 1, 1, (61, 0)),
    Case("packed late, many taps", 1, 300, 120, 12, 16, 2, 1, 1, (15, 0)),
    Case("packed late for two samples", 2, 300, 60, 16, 16, 2, 1, 1, (15, 0)),
    Case("packed late, more taps than a chain has", 1, 40, 60, 40, 100, 3, 1, 1, (99, 0)),
    Case("packed late in each of two groups", 1, 300, 100, 40, 5, 2, 2, 2, (8, 0)),
]

# Layers of many channels whose classes of positions are computed together.
STRIDED = [
    Case("taps that read padding alone", 5, 6, 3, 38, 100, 3, 1, 1, (87, 29)),
    Case("taps that read padding alone, dilated", 1, 5, 2, 36, 16, 6, 3, 1, (0, 20)),
    Case("every second, an odd length", 2, 20, 24, 301, 4, 2, 1, 1, (1, 2)),
    Case("every third, one tap for each", 1, 30, 40, 500, 3, 3, 4),
    Case("every fourth, several tiles", 1, 4, 300, 1203, 4, 4, 3, 1, (5, 1)),
    Case("every fifth", 2, 20, 24, 402, 6, 5, 1, 1, (1, 0)),
    Case("every fourth, a class without taps", 2, 20, 24, 300, 3, 4),
    Case("every fourth, one class with taps, one channel to read", 2, 20, 1, 333, 1, 4, 3),
    Case("every twentieth, more classes than go together", 2, 20, 24, 1900, 7, 20, 3),
    Case("classes of positions, one channel to read", 2, 30, 1, 700, 5, 2, 2, 1, (3, 1)),
    Case("classes by positions, some of them empty", 1, 64, 32, 1500, 5, 8),
]

CASES = (
    SEED
    + LENGTHS
    + CHANNELS
    + SETTINGS
    + PARTLY_FAST
    + FAST
    + GROUPS
    + JOINED
    + FEW_ROWS
    + IN_PLACE
    + IN_PARTS
    + OF_ANY_BATCH
    + PACKED_LATE
    + DEPTHWISE
    + FEW_CHANNELS
    + MANY_GROUPS
    + STRIDED
    + TAPS_FIRST
    + FEW_POSITIONS
)

# One of each kind, where a test is about something else than the shape.
FEW = [
    BY_HAND,
    LENGTHS[8],
    CHANNELS[3],
    SETTINGS[2],
    FAST[1],
    GROUPS[0],
    GROUPS[4],
    JOINED[3],
    MANY_GROUPS[1],
    FEW_POSITIONS[2],
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def name_of(value: object) -> str | None:
    """Test ids that spell the problem."""
    if isinstance(value, Case):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return None


def parametrize(argument: str, values: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, values, ids=name_of)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for every dtype but for their rounding."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor


def problem(case: Case, dtype: torch.dtype) -> Problem:
    return Problem(
        random(*case.x_shape, dtype=dtype, seed=1),
        random(*case.weight_shape, dtype=dtype, seed=2),
        random(case.out_channels, dtype=dtype, seed=3),
        random(*case.y_shape, dtype=dtype, seed=4),
    )


def _sliced(tensor: Tensor) -> Tensor:
    room = torch.full([2 * size + 1 for size in tensor.shape], torch.nan, dtype=tensor.dtype)
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    order = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 1 else tensor


def _offset(tensor: Tensor) -> Tensor:
    room = torch.full((tensor.numel() + 1,), torch.nan, dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


# What a user's tensor may look like in memory; the values stay, except that the expanded ones
# repeat the first (stride 0).
def spread_out(t: Tensor) -> Tensor:
    """The same values, a place apart in memory."""
    return torch.stack([t, t + 1], dim=-1)[..., 0]


LAYOUTS = {
    "sliced": _sliced,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "unaligned": _offset,
    "expanded_first": lambda t: t[:1].expand(t.shape),
    "expanded_last": lambda t: t[..., :1].expand(t.shape),
    "expanded_all": lambda t: t[(slice(1),) * t.dim()].expand(t.shape),
}
