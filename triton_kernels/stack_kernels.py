"""A stack of convolutions of stride 1 in one launch: a program takes a sample through all layers.

What lies between layers is written to memory, from which the same program reads it a moment later:
it stays in the caches of its multiprocessor. Layers are rows of a plan, so one compiled kernel
serves every stack, however deep.
"""

import triton
import triton.language as tl

from .activation_kernels import activate, slope_of, through_activation
from .stack_plan import (
    ACTIVATION,
    BIAS,
    DILATION,
    FIELDS,
    GATE,
    IN_CHANNELS,
    IN_LENGTH,
    INPUT,
    NONE,
    OUT_CHANNELS,
    OUT_LENGTH,
    PAD,
    RESIDUAL,
    RESULT,
    SLOPE,
    TAPS,
    WEIGHT,
)


@triton.jit
def stack_forward_kernel(
    p_x,
    p_tokens,
    p_weights,
    p_plan,
    p_out_kept,
    p_out,
    x_batch,
    x_channel,
    x_position,
    tokens_batch,
    tokens_position,
    vocab,
    depth,
    kept_size,
    FROM_TOKENS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """``p_x`` is (batch, channels, length), or FROM_TOKENS an embedding (vocab, channels)."""
    sample = tl.program_id(0).to(tl.int64)
    p_kept = p_out_kept + sample * kept_size
    p_tokens += sample * tokens_batch
    if not FROM_TOKENS:
        p_x += sample * x_batch
    channels, length = tl.load(p_plan + IN_CHANNELS), tl.load(p_plan + IN_LENGTH)
    BLOCK: tl.constexpr = BLOCK_ROWS * BLOCK_POSITIONS
    for start in range(0, channels * length, BLOCK):
        o = start + tl.arange(0, BLOCK)
        m_any = o < channels * length
        o_x = (o // length).to(tl.int64) * x_channel
        if FROM_TOKENS:
            b_word = tl.load(
                p_tokens + (o % length).to(tl.int64) * tokens_position, mask=m_any, other=-1
            )
            m_word = (b_word >= 0) & (b_word < vocab)
            o_x += b_word.to(tl.int64) * x_batch
            b_x = tl.load(p_x + o_x, mask=m_any & m_word, other=float("nan"))
        else:
            o_x += (o % length).to(tl.int64) * x_position
            b_x = tl.load(p_x + o_x, mask=m_any)
        tl.store(p_kept + tl.load(p_plan + INPUT) + o, b_x, mask=m_any)

    for layer in range(depth):
        p_layer = p_plan + layer * FIELDS
        in_channels, out_channels = tl.load(p_layer + IN_CHANNELS), tl.load(p_layer + OUT_CHANNELS)
        in_length, out_length = tl.load(p_layer + IN_LENGTH), tl.load(p_layer + OUT_LENGTH)
        pad, dilation = tl.load(p_layer + PAD), tl.load(p_layer + DILATION)
        taps = tl.load(p_layer + TAPS)
        activation, bias = tl.load(p_layer + ACTIVATION), tl.load(p_layer + BIAS)
        residual, slope = tl.load(p_layer + RESIDUAL), tl.load(p_layer + SLOPE)
        p_in = p_kept + tl.load(p_layer + INPUT)
        p_weight = p_weights + tl.load(p_layer + WEIGHT)
        position_blocks = tl.cdiv(out_length, BLOCK_POSITIONS)
        tl.debug_barrier()  # what the layer before wrote
        for tile in range(tl.cdiv(out_channels, BLOCK_ROWS) * position_blocks):
            row = tile // position_blocks * BLOCK_ROWS
            position = tile % position_blocks * BLOCK_POSITIONS
            o_row, o_position = tile_of(row, position, BLOCK_ROWS, BLOCK_POSITIONS)
            m_any = (o_row < out_channels) & (o_position < out_length)
            b_z = product(
                p_weight, in_channels * taps, taps, p_in, in_length, out_channels, in_channels,
                taps, row, position - pad, dilation,
                ACCUMULATE, BLOCK_ROWS, BLOCK_POSITIONS, BLOCK_CHANNELS,
            )  # fmt: skip
            if bias != NONE:
                p_bias = p_weights + bias + o_row
                b_z += tl.load(p_bias, mask=o_row < out_channels, other=0.0).to(ACCUMULATE)
            o = o_row * out_length + o_position
            p_slope = p_kept + slope + o
            if activation == GATE:
                b_other = product(
                    p_weight + out_channels * in_channels * taps, in_channels * taps, taps, p_in,
                    in_length, out_channels, in_channels, taps, row, position - pad, dilation,
                    ACCUMULATE, BLOCK_ROWS, BLOCK_POSITIONS, BLOCK_CHANNELS,
                )  # fmt: skip
                if bias != NONE:
                    p_bias = p_weights + bias + out_channels + o_row
                    b_other += tl.load(p_bias, mask=o_row < out_channels, other=0.0).to(ACCUMULATE)
                b_tanh, b_sigmoid = activate(b_z, "tanh"), activate(b_other, "sigmoid")
                b_y = b_tanh * b_sigmoid
                b_slope = through_activation(b_sigmoid, b_tanh, "tanh")
                if slope != NONE:
                    b_other_slope = through_activation(b_tanh, b_sigmoid, "sigmoid")
                    p_other_slope = p_slope + out_channels * out_length
                    tl.store(p_other_slope, b_other_slope.to(p_out.dtype.element_ty), mask=m_any)
            else:
                b_y, b_slope = _activate(b_z, activation)
            if slope != NONE:
                tl.store(p_slope, b_slope.to(p_out.dtype.element_ty), mask=m_any)
            if residual != 0:
                o_before = o_position + (in_length - out_length)
                p_before = p_in + o_row * in_length + o_before
                b_before = tl.load(p_before, mask=m_any & (o_before >= 0), other=0.0)
                b_y += b_before.to(ACCUMULATE)
            b_result = b_y.to(p_out.dtype.element_ty)
            if layer + 1 < depth:
                tl.store(p_kept + tl.load(p_layer + RESULT) + o, b_result, mask=m_any)
            else:
                tl.store(p_out + sample * (out_channels * out_length) + o, b_result, mask=m_any)


@triton.jit
def _activate(b_z, activation):
    """The activation of that number, and its slope."""
    b_y, b_slope = b_z, b_z
    if activation == 1:
        b_y, b_slope = activate(b_z, "tanh"), slope_of(b_z, "tanh")
    elif activation == 2:
        b_y, b_slope = activate(b_z, "relu"), slope_of(b_z, "relu")
    elif activation == 3:
        b_y, b_slope = activate(b_z, "silu"), slope_of(b_z, "silu")
    elif activation == 4:
        b_y, b_slope = activate(b_z, "gelu"), slope_of(b_z, "gelu")
    elif activation == 5:
        b_y, b_slope = activate(b_z, "sigmoid"), slope_of(b_z, "sigmoid")
    return b_y, b_slope


@triton.jit
def tile_of(row, position, BLOCK_ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr):
    o_row = row + tl.arange(0, BLOCK_ROWS)
    o_position = position + tl.arange(0, BLOCK_POSITIONS)
    return o_row[:, None], o_position[None, :]


@triton.jit
def product(
    p_weight,
    weight_row,
    weight_channel,
    p_in,
    in_length,
    rows,
    channels,
    taps,
    row,
    read,
    step,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """sum over taps, channels of weight[row, channel, tap] * in[channel, read + tap * step].

    Outside [0, in_length) ``p_in`` is zero. The taps of a weight lie side by side.
    """
    o_row = row + tl.arange(0, BLOCK_ROWS)
    o_read = read + tl.arange(0, BLOCK_POSITIONS)
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    b_sum = tl.zeros((BLOCK_ROWS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    for i in range(taps * channel_blocks):
        tap = i // channel_blocks
        o_channel = i % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        m_channel = o_channel < channels
        o_weight = (o_row * weight_row)[:, None] + (o_channel * weight_channel)[None, :] + tap
        m_weight = (o_row < rows)[:, None] & m_channel[None, :]
        b_weight = tl.load(p_weight + o_weight, mask=m_weight, other=0.0)
        o_from = o_read + tap * step
        m_in = m_channel[:, None] & ((o_from >= 0) & (o_from < in_length))[None, :]
        o_in = (o_channel * in_length)[:, None] + o_from[None, :]
        b_in = tl.load(p_in + o_in, mask=m_in, other=0.0)
        b_sum = tl.dot(b_weight, b_in, b_sum, input_precision="ieee", out_dtype=ACCUMULATE)
    return b_sum
