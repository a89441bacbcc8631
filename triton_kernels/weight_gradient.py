"""Launches the two passes of grad_weight."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import exploration, launch
from .configurations import Configuration, key, kind_of
from .problem import WeightGradient
from .weight_gradient_kernels import sum_of_parts_kernel, weight_gradient_kernel

# How many programs the first pass is cut into where tiles of the weight are fewer: twice the 132
# multiprocessors of an H100. A constant, so that results do not depend on the GPU's size.
PROGRAMS = 264

# Where there are so many positions that this leaves parts long: products of a part, at most.
_MOST_PRODUCTS = 65536
# And those of a chain within it, where each product is an addition that rounds to float32. On
# tensor cores 8 or 16 are, and factors or results are rounded to less.
_CHAIN_PRODUCTS = 256


def chain_steps(kind: str, positions: int) -> int:
    """Steps of so many positions after which a chain of sums ends; 0: none ends within a part."""
    return _CHAIN_PRODUCTS // positions if kind == "ieee" else 0


def most_steps(positions: int) -> int:
    """Steps of so many positions that a part has, at most."""
    return _MOST_PRODUCTS // positions


def weight_gradient(problem: WeightGradient) -> None:
    rows = problem.geometry.out_channels // problem.geometry.groups
    chosen = key("weight_gradient", _kind(problem), rows)
    exploration.run(chosen, tuple(problem.geometry), lambda blocks: _launch(problem, blocks))


def _kind(problem: WeightGradient) -> str:
    return kind_of(problem.x.dtype, problem.fp32_precision)


def _launch(problem: WeightGradient, blocks: Configuration) -> None:
    arguments = problem.arguments()
    rows, channels, kernel_size = (arguments[name] for name in ("rows", "channels", "kernel_size"))
    folded = channels < blocks.columns
    columns = launch.block(channels * kernel_size if folded else channels, blocks.columns)
    if folded:
        column_blocks = triton.cdiv(channels * kernel_size, columns)
    else:
        column_blocks = triton.cdiv(channels, columns) * kernel_size
    arguments |= dict(
        column_blocks=column_blocks + arguments["WITH_BIAS"],
        row_blocks=triton.cdiv(rows, blocks.rows),
        PRECISION=problem.fp32_precision,
        CHAIN=chain_steps(_kind(problem), blocks.reduced),
        FOLDED=folded,
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=columns,
        BLOCK_POSITIONS=blocks.reduced,
    )
    tiles = arguments["column_blocks"] * arguments["row_blocks"] * arguments["groups"]
    most = most_steps(blocks.reduced)
    in_two_passes(weight_gradient_kernel, problem, arguments, tiles, blocks, most)


def in_two_passes(
    kernel: Any,
    problem: WeightGradient,
    arguments: dict[str, Any],
    tiles: int,
    blocks: Configuration,
    most_steps_of_part: int,
) -> None:
    """Runs ``kernel`` with as many parts as keep a GPU busy, or more, then adds these up."""
    position_blocks = triton.cdiv(arguments["out_length"], arguments["BLOCK_POSITIONS"])
    steps = problem.geometry.batch * position_blocks
    steps_of_part = min(most_steps_of_part, triton.cdiv(steps, triton.cdiv(PROGRAMS, tiles)))
    parts = triton.cdiv(steps, steps_of_part)

    read = arguments["BLOCK_POSITIONS"] * arguments["stride"]
    read += arguments["kernel_size"] * arguments["dilation"]
    rows, columns = arguments["BLOCK_ROWS"], arguments["BLOCK_COLUMNS"]
    number = launch.number_type(
        tiles * parts,
        steps,
        read,
        launch.largest_offset(problem.x, columns, read),
        launch.largest_offset(problem.grad_output, rows, arguments["BLOCK_POSITIONS"]),
        launch.largest_offset(arguments["p_y"], rows, arguments["BLOCK_POSITIONS"]),
    )
    sums = torch.float64 if problem.x.dtype == torch.float64 else torch.float32
    part_sums = problem.x.new_empty((parts, problem.part_size), dtype=sums)
    arguments |= dict(
        p_out=part_sums,
        position_blocks=position_blocks,
        steps=steps,
        steps_of_part=steps_of_part,
        NUMBER=number,
    )
    launch.run(kernel, tiles * parts, arguments, blocks)

    add_up_parts(part_sums, problem.grad_weight, problem.grad_bias)


def add_up_parts(part_sums: Tensor, grad_weight: Tensor, grad_bias: Tensor | None) -> None:
    """Fills both from ``part_sums`` (parts, all weights, then all biases), part after part."""
    parts, part_size = part_sums.shape
    block = 256
    arguments = dict(
        p_parts=part_sums,
        p_out_weight=grad_weight,
        p_out_bias=grad_weight if grad_bias is None else grad_bias,
        weights=grad_weight.numel(),
        biases=part_size - grad_weight.numel(),
        parts=parts,
        BLOCK=block,
    )
    summing = Configuration(1, block, parts, warps=4, stages=3)
    launch.run(sum_of_parts_kernel, triton.cdiv(part_size, block), arguments, summing)
