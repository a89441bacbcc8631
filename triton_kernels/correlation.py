"""Launches the correlation kernel."""

from __future__ import annotations

import triton
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from . import exploration, launch
from .configurations import TABLE, Configuration, key, kind_of
from .correlation_kernels import correlation_kernel
from .problem import Correlation


def correlate(problem: Correlation) -> None:
    kind = kind_of(problem.out.dtype, problem.fp32_precision)
    described = kind in TABLE["described_correlation"] and _describable(problem)
    kernel = "described_correlation" if described else "correlation"
    name = (*problem.geometry, problem.transposed)
    exploration.run(
        key(kernel, kind, problem.weight.shape[1]),
        name,
        lambda blocks: _launch(problem, blocks, described),
    )


def _launch(problem: Correlation, blocks: Configuration, described: bool) -> None:
    groups, rows, channels, kernel_size = problem.weight.shape
    folded = channels < blocks.reduced and not described
    reduced = launch.block(channels * kernel_size if folded else channels, blocks.reduced)
    packed = _pack(problem.weight, blocks.rows, 1 if folded else reduced)

    classes = problem.classes
    row_blocks = triton.cdiv(rows, blocks.rows)
    position_blocks = triton.cdiv(triton.cdiv(problem.out.shape[2], classes), blocks.columns)
    programs = row_blocks * classes * position_blocks * problem.geometry.batch * groups

    arguments = problem.arguments()
    read = blocks.columns * problem.step
    if folded:
        read += kernel_size * problem.geometry.dilation
    number = launch.number_type(
        programs,
        read,
        launch.largest_offset(arguments["p_in"], reduced, read),
        launch.largest_offset(arguments["p_y"], reduced, read),
        launch.largest_offset(problem.out, blocks.rows, blocks.columns * classes),
        packed.numel() // groups,
    )
    if described:
        for name in ("p_in", "p_y"):
            arguments[name] = _describe(arguments[name], groups, blocks.columns, reduced)
    arguments |= dict(
        p_weight=_describe_weight(packed, blocks.rows, reduced) if described else packed,
        weight_tap=packed.stride(0),
        weight_group=packed.stride(1),
        weight_row=packed.stride(2),
        row_blocks=row_blocks,
        position_blocks=position_blocks,
        PRECISION=problem.fp32_precision,
        NUMBER=number,
        DESCRIBED=described,
        FOLDED=folded,
        EVEN_CHANNELS=channels % reduced == 0,
        BLOCK_ROWS=blocks.rows,
        BLOCK_POSITIONS=blocks.columns,
        BLOCK_CHANNELS=reduced,
    )
    launch.run(correlation_kernel, programs, arguments, blocks)


def _pack(weight: Tensor, rows_multiple: int, channels_multiple: int) -> Tensor:
    """(groups, rows, channels, taps) as contiguous (taps, groups, rows, channels), zeros appended.

    A tap's weights then lie side by side, as the kernel loads them, and whole blocks of rows and
    channels need no masks.
    """
    _, rows, channels, _ = weight.shape
    appended = (0, -channels % channels_multiple, 0, -rows % rows_multiple)
    return F.pad(weight.permute(3, 0, 1, 2), appended).contiguous()


def _describable(problem: Correlation) -> bool:
    """Whether the hardware can copy tiles of the input by itself: channels-last and aligned.

    Not with positions last, where a tap shifts the first element of a row by less than the 16 bytes
    that it has to be a multiple of.
    """
    _, rows, channels, _ = problem.weight.shape
    if problem.step != 1 or min(rows, channels) < 32:
        return False
    tensors = [problem.in_] if problem.y is None else [problem.in_, problem.y]
    aligned = all(_aligned(tensor, channels) for tensor in tensors)
    return aligned and launch.has_descriptors(problem.out.device)


def _aligned(tensor: Tensor, channels: int) -> bool:
    batch, channel, position = tensor.stride()
    steps = batch, position, channels
    small = max(tensor.shape) < 2**31 and min(steps) > 0
    aligned = all(step * tensor.itemsize % 16 == 0 for step in steps)
    return channel == 1 and small and aligned and tensor.data_ptr() % 16 == 0


def _describe(tensor: Tensor, groups: int, positions: int, channels: int) -> TensorDescriptor:
    """(batch, all channels, length), channels-last, in tiles of positions and channels."""
    batch, all_channels, length = tensor.shape
    step_of_batch, _, step = tensor.stride()
    of_group = all_channels // groups
    shape, strides = [batch, length, groups, of_group], [step_of_batch, step, of_group, 1]
    return TensorDescriptor(tensor, shape, strides, [1, positions, 1, channels])


def _describe_weight(packed: Tensor, rows: int, channels: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(packed.flatten(0, 2), [rows, channels])
