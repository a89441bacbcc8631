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
        p_result = p_kept + tl.load(p_layer + RESULT)
        if layer + 1 == depth:
            p_result = p_out + sample * (out_channels * out_length)
        # A tile of a gate has as many rows of either half, so that it ends in whole results.
        HALF: tl.constexpr = BLOCK_ROWS // 2
        tile_rows = tl.where(activation == GATE, HALF, BLOCK_ROWS)
        o_in_tile = tl.arange(0, BLOCK_ROWS) % tile_rows
        o_half = tl.arange(0, BLOCK_ROWS) // tile_rows * out_channels
        position_blocks = tl.cdiv(out_length, BLOCK_POSITIONS)
        tl.debug_barrier()  # what the layer before wrote
        for tile in range(tl.cdiv(out_channels, tile_rows) * position_blocks):
            row = tile // position_blocks * tile_rows
            position = tile % position_blocks * BLOCK_POSITIONS
            m_row = row + o_in_tile < out_channels
            o_row = row + o_in_tile + o_half
            b_z = product(
                p_weights + tl.load(p_layer + WEIGHT), in_channels * taps, taps, p_in, in_length,
                in_channels, taps, o_row, m_row, position - pad, dilation,
                ACCUMULATE, BLOCK_ROWS, BLOCK_POSITIONS, BLOCK_CHANNELS,
            )  # fmt: skip
            if bias != NONE:
                b_bias = tl.load(p_weights + bias + o_row, mask=m_row, other=0.0)
                b_z += b_bias.to(ACCUMULATE)[:, None]
            if activation == GATE:
                _store_gated(
                    b_z, p_in, p_kept, slope, p_result, residual, row, position, out_channels,
                    in_length, out_length,
                )  # fmt: skip
            else:
                _store_activated(
                    b_z, activation, p_in, p_kept, slope, p_result, residual, row, position,
                    out_channels, in_length, out_length,
                )  # fmt: skip


@triton.jit
def _store_gated(
    b_z, p_in, p_kept, slope, p_result, residual, row, position, channels, in_length, out_length
):
    """The result of a tile of both halves, and its slopes in either."""
    b_halves = b_z.reshape(2, b_z.shape[0] // 2, b_z.shape[1]).permute(1, 2, 0)
    b_a, b_b = tl.split(b_halves)
    b_tanh, b_sigmoid = activate(b_a, "tanh"), activate(b_b, "sigmoid")
    if slope != NONE:
        p_slope = p_kept + slope
        b_slope = through_activation(b_sigmoid, b_tanh, "tanh")
        _store(p_slope, b_slope, row, position, channels, out_length)
        b_slope = through_activation(b_tanh, b_sigmoid, "sigmoid")
        _store(p_slope + channels * out_length, b_slope, row, position, channels, out_length)
    b_y = b_tanh * b_sigmoid
    if residual != 0:
        b_y += _before(p_in, b_y, row, position, channels, in_length, out_length)
    _store(p_result, b_y, row, position, channels, out_length)


@triton.jit
def _store_activated(
    b_z,
    activation,
    p_in,
    p_kept,
    slope,
    p_result,
    residual,
    row,
    position,
    channels,
    in_length,
    out_length,
):
    b_y, b_slope = _activate(b_z, activation)
    if slope != NONE:
        _store(p_kept + slope, b_slope, row, position, channels, out_length)
    if residual != 0:
        b_y += _before(p_in, b_y, row, position, channels, in_length, out_length)
    _store(p_result, b_y, row, position, channels, out_length)


@triton.jit
def _store(p, b, row, position, channels, length):
    """A tile of a contiguous (channels, length)."""
    o_row, o_position = tile_of(row, position, b.shape[0], b.shape[1])
    m_any = (o_row < channels) & (o_position < length)
    tl.store(p + o_row * length + o_position, b.to(p.dtype.element_ty), mask=m_any)


@triton.jit
def _before(p_in, b, row, position, channels, in_length, out_length):
    """What a residual adds to the tile ``b``: the last positions of the layer's input."""
    o_row, o_position = tile_of(row, position, b.shape[0], b.shape[1])
    m_any = (o_row < channels) & (o_position < out_length)
    o_before = o_position + (in_length - out_length)
    p_before = p_in + o_row * in_length + o_before
    return tl.load(p_before, mask=m_any & (o_before >= 0), other=0.0).to(b.dtype)


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
    channels,
    taps,
    o_row,
    m_row,
    read,
    step,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """sum over taps, channels of weight[row, channel, tap] * in[channel, read + tap * step].

    Of the rows ``o_row``, and of positions one after the other.

    Outside [0, in_length) ``p_in`` is zero. The taps of a weight lie side by side.
    """
    o_read = read + tl.arange(0, BLOCK_POSITIONS)
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    b_sum = tl.zeros((BLOCK_ROWS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    for i in range(taps * channel_blocks):
        tap = i // channel_blocks
        o_channel = i % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        m_channel = o_channel < channels
        o_weight = (o_row * weight_row)[:, None] + (o_channel * weight_channel)[None, :] + tap
        m_weight = m_row[:, None] & m_channel[None, :]
        b_weight = tl.load(p_weight + o_weight, mask=m_weight, other=0.0)
        o_from = o_read + tap * step
        m_in = m_channel[:, None] & ((o_from >= 0) & (o_from < in_length))[None, :]
        o_in = (o_channel * in_length)[:, None] + o_from[None, :]
        b_in = tl.load(p_in + o_in, mask=m_in, other=0.0)
        b_sum = tl.dot(b_weight, b_in, b_sum, input_precision="ieee", out_dtype=ACCUMULATE)
    return b_sum
