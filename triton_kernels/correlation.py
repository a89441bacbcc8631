"""Launches the correlation kernel."""

from __future__ import annotations

import triton
from torch import Tensor
from torch.nn import functional as F

from . import exploration, launch
from .configurations import Configuration, key
from .correlation_kernels import correlation_kernel
from .problem import Correlation


def correlate(problem: Correlation) -> None:
    rows = problem.weight.shape[1]
    chosen = key("correlation", problem.out.dtype, problem.fp32_precision, rows)
    name = (*problem.geometry, problem.transposed)
    exploration.run(chosen, name, lambda blocks: _launch(problem, blocks))


def _launch(problem: Correlation, blocks: Configuration) -> None:
    groups, rows, channels, kernel_size = problem.weight.shape
    folded = channels < blocks.reduced
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
    arguments |= dict(
        p_weight=packed,
        weight_tap=packed.stride(0),
        weight_group=packed.stride(1),
        weight_row=packed.stride(2),
        row_blocks=row_blocks,
        position_blocks=position_blocks,
        PRECISION=problem.fp32_precision,
        NUMBER=number,
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
