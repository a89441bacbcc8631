"""Launches the kernels of look-ups. Nothing is checked here, and ``geometry`` has groups 1.

A look-up is a convolution of one-hot vectors: ``in_channels`` of its geometry are the words.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from convlm_kernels.geometry import Conv1dGeometry

from . import launch
from .configurations import Configuration
from .lookup_kernels import lookup_kernel, table_gradient_kernel
from .problem import accumulate_type
from .weight_gradient import PROGRAMS, add_up_parts

# Rows are positions, columns channels, which lie side by side in memory. Not measured on a GPU yet.
_LOOKUP = Configuration(rows=32, columns=64, reduced=1, warps=4, stages=1)
_TABLE_GRADIENT = Configuration(rows=32, columns=64, reduced=1, warps=4, stages=1)


def _settings(geometry: Conv1dGeometry) -> dict[str, Any]:
    return dict(
        vocab=geometry.in_channels,
        channels=geometry.out_channels,
        length=geometry.length,
        out_length=geometry.out_length,
        kernel_size=geometry.kernel_size,
        stride=geometry.stride,
        dilation=geometry.dilation,
        pad_left=geometry.pad_left,
    )


def forward(
    y: Tensor,
    tokens: Tensor,
    table: Tensor,
    bias: Tensor | None,
    geometry: Conv1dGeometry,
    activation: str,
) -> None:
    """Fills ``y``, (batch, out_channels, out_length), with activation(sums of rows + bias)."""
    if y.numel() == 0:
        return
    blocks = _LOOKUP
    columns = launch.block(geometry.out_channels, blocks.columns)
    rows = launch.block(geometry.out_length, blocks.rows)
    channel_blocks = triton.cdiv(geometry.out_channels, columns)
    position_blocks = triton.cdiv(geometry.out_length, rows)
    programs = channel_blocks * position_blocks * geometry.batch
    tap, word, channel = table.stride()
    arguments = dict(
        p_tokens=tokens,
        p_table=table,
        p_bias=table if bias is None else bias.contiguous(),
        p_out=y,
        tokens_batch=tokens.stride(0),
        tokens_position=tokens.stride(1),
        table_tap=tap,
        table_word=word,
        table_channel=channel,
        **_settings(geometry),
        channel_blocks=channel_blocks,
        position_blocks=position_blocks,
        batch=geometry.batch,
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        ACCUMULATE=accumulate_type(y.dtype),
        NUMBER=launch.number_type(
            programs, geometry.in_channels * word + geometry.out_channels * channel
        ),
        BLOCK_CHANNELS=columns,
        BLOCK_POSITIONS=rows,
    )
    launch.run(lookup_kernel, programs, arguments, blocks)


def grad_table(
    grad_t: Tensor, grad_output: Tensor, tokens: Tensor, geometry: Conv1dGeometry
) -> None:
    """Fills ``grad_t``, (kernel_size, vocab, out_channels), with the sums by tap and token.

    Positions are sorted by their token first, once for all taps. Then each row of the table has a
    list of its own, and the work is that of the positions, however many words there are. A token
    that is no word is in no list.
    """
    vocab = geometry.in_channels
    words, order = tokens.flatten().sort(stable=True)
    every_word = torch.arange(vocab + 1, dtype=words.dtype, device=words.device)
    starts = torch.searchsorted(words, every_word)
    # Channels of a position side by side: a list jumps from one position to the next.
    grad_output = grad_output.transpose(1, 2).contiguous().transpose(1, 2)

    blocks = _TABLE_GRADIENT
    columns = launch.block(geometry.out_channels, blocks.columns)
    channel_blocks = triton.cdiv(geometry.out_channels, columns)
    tiles = channel_blocks * vocab * geometry.kernel_size
    steps = triton.cdiv(order.numel(), blocks.rows)
    parts = max(1, min(steps, triton.cdiv(PROGRAMS, tiles)))
    batch, channel, position = grad_output.stride()
    sums = torch.float64 if grad_t.dtype == torch.float64 else torch.float32
    part_sums = grad_t.new_empty((parts, grad_t.numel()), dtype=sums) if parts > 1 else grad_t
    arguments = dict(
        p_grad=grad_output,
        p_order=order,
        p_starts=starts,
        p_out=part_sums,
        grad_batch=batch,
        grad_channel=channel,
        grad_position=position,
        **_settings(geometry),
        channel_blocks=channel_blocks,
        parts=parts,
        part_size=grad_t.numel(),
        ACCUMULATE=accumulate_type(grad_t.dtype),
        NUMBER=launch.number_type(tiles * parts, geometry.out_channels),
        BLOCK_CHANNELS=columns,
        BLOCK_POSITIONS=blocks.rows,
    )
    launch.run(table_gradient_kernel, tiles * parts, arguments, blocks)
    if parts > 1:
        add_up_parts(part_sums, grad_t, None)
