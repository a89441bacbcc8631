"""Launches the kernels for groups of few channels."""

from __future__ import annotations

import triton
from torch import Tensor

from . import launch
from .configurations import Configuration
from .depthwise_kernels import depthwise_kernel, depthwise_weight_gradient_kernel
from .problem import Correlation, WeightGradient
from .weight_gradient import in_two_passes

# A tile is long in the direction that lies together in memory. Not measured on a GPU yet.
_ALONG_POSITIONS = Configuration(rows=4, columns=256, reduced=1, warps=4, stages=3)
_ALONG_CHANNELS = Configuration(rows=64, columns=16, reduced=1, warps=4, stages=3)


# Of a part; a lane adds up one product at each.
_MOST_STEPS = 256


def _blocks(in_: Tensor) -> Configuration:
    channels_last = in_.stride(1) == 1 and in_.stride(2) != 1
    return _ALONG_CHANNELS if channels_last else _ALONG_POSITIONS


def correlate(problem: Correlation) -> None:
    groups, rows, _, _ = problem.weight.shape
    blocks = _blocks(problem.in_)
    row_blocks = triton.cdiv(groups * rows, blocks.rows)
    positions = triton.cdiv(problem.out.shape[2], problem.classes)
    position_blocks = triton.cdiv(positions, blocks.columns)
    programs = row_blocks * position_blocks * problem.classes * problem.geometry.batch
    arguments = problem.arguments()
    read = blocks.columns * problem.step
    all_channels = problem.in_.shape[1]  # the tile's base is that of the sample
    number = launch.number_type(
        programs,
        read,
        problem.weight.numel(),
        launch.largest_offset(arguments["p_in"], all_channels, read),
        launch.largest_offset(arguments["p_y"], all_channels, read),
        launch.largest_offset(problem.out, groups * rows, blocks.columns * problem.classes),
    )
    group, row, channel, tap = problem.weight.stride()
    arguments |= dict(
        p_weight=problem.weight,
        weight_group=group,
        weight_row=row,
        weight_channel=channel,
        weight_tap=tap,
        row_blocks=row_blocks,
        position_blocks=position_blocks,
        NUMBER=number,
        BLOCK_ROWS=blocks.rows,
        BLOCK_POSITIONS=blocks.columns,
    )
    launch.run(depthwise_kernel, programs, arguments, blocks)


def weight_gradient(problem: WeightGradient) -> None:
    blocks = _blocks(problem.grad_output)
    arguments = problem.arguments()
    taps = arguments["channels"] * arguments["kernel_size"]
    columns = min(4, triton.next_power_of_2(taps))
    arguments |= dict(
        column_blocks=triton.cdiv(taps, columns),
        row_blocks=triton.cdiv(problem.geometry.out_channels, blocks.rows),
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=columns,
        BLOCK_POSITIONS=blocks.columns,
    )
    tiles = arguments["column_blocks"] * arguments["row_blocks"]
    kernel = depthwise_weight_gradient_kernel
    in_two_passes(kernel, problem, arguments, tiles, blocks, _MOST_STEPS)
