"""forward and grad_input as sums of matrix products, one for each tap: an implicit GEMM.

Both are correlations. Within a group, where rows and channels stand for out_channels and
in_channels of forward, and the other way round of grad_input:

    out[row, position] = sum over taps, channels of weight[tap, row, channel] * in[channel, read]

A program computes a tile of rows and positions of one sample. For each tap and each block of
channels, the tile of ``in`` is the same one shifted, so that what one tap has brought into the
cache the next one finds there. No im2col matrix is ever written.
"""

import triton
import triton.language as tl

from .activation_kernels import activate, through_activation
from .position_kernels import bounds_within_tile, input_position, reads_of_class, store_outputs


@triton.jit
def correlation_kernel(
    p_in,
    p_y,
    p_weight,
    p_bias,
    p_out,
    in_batch,
    in_channel,
    in_position,
    y_batch,
    y_channel,
    y_position,
    weight_tap,
    weight_group,
    weight_row,
    batch,
    groups,
    rows,
    channels,
    length,
    out_length,
    kernel_size,
    stride,
    dilation,
    pad_left,
    divisor,
    inverse,
    row_blocks,
    position_blocks,
    classes,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GRADIENT_OF: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    DESCRIBED: tl.constexpr,
    FOLDED: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """``p_in``, ``p_y`` and ``p_weight`` are pointers, or tensor descriptors where DESCRIBED."""
    # Rows first: programs that run at a time then share tiles of `in`. Classes next, whose outputs
    # lie between each other's.
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    row = tile % row_blocks * BLOCK_ROWS
    start = (tile // row_blocks % classes).to(tl.int64)
    tile = tile // row_blocks // classes
    out = (tile % position_blocks).to(tl.int64) * BLOCK_POSITIONS
    sample = (tile // position_blocks % batch).to(tl.int64)
    group = (tile // position_blocks // batch).to(tl.int64)
    if group >= groups:  # a grid of two dimensions may have programs to spare
        return

    outputs, taps, tap, tap_period, offset, step, tap_step = reads_of_class(
        start, out_length, kernel_size, stride, dilation, pad_left, divisor, inverse, TRANSPOSED
    )
    read = input_position(out, 0, step, tap_step, -offset)

    o_row = tl.arange(0, BLOCK_ROWS)
    b_out = tl.zeros((BLOCK_ROWS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    if DESCRIBED:
        b_out = _sum_described_tiles(
            b_out, p_in, p_y, p_weight, sample.to(tl.int32), group.to(tl.int32),
            read.to(tl.int32), row, taps, tap, tap_period, tap_step, groups, channels,
            row_blocks * BLOCK_ROWS, GRADIENT_OF, PRECISION, ACCUMULATE,
            BLOCK_ROWS, BLOCK_POSITIONS, BLOCK_CHANNELS,
        )  # fmt: skip
    else:
        o_read = tl.arange(0, BLOCK_POSITIONS).to(NUMBER) * step
        o_weight = (o_row.to(NUMBER) * weight_row)[:, None]
        p_weight += group * weight_group + row.to(tl.int64) * weight_row
        p_weight += tl.cast(tap, tl.int64) * weight_tap
        p_in += sample * in_batch + group * channels * in_channel + read * in_position
        p_y += sample * y_batch + group * channels * y_channel + read * y_position

        reach = (taps - 1) * tap_step
        last = read + (BLOCK_POSITIONS - 1) * step
        if (tl.minimum(read, read + reach) >= 0) & (tl.maximum(last, last + reach) < length):
            b_out = _sum_over_taps(
                b_out, p_in, p_y, p_weight, o_weight, o_read, read, length, taps, tap_step,
                channels, in_channel, in_position, y_channel, y_position, weight_tap * tap_period,
                GRADIENT_OF, PRECISION, ACCUMULATE, NUMBER, FOLDED, EVEN_CHANNELS, False,
                BLOCK_CHANNELS,
            )  # fmt: skip
        else:
            b_out = _sum_over_taps(
                b_out, p_in, p_y, p_weight, o_weight, o_read, read, length, taps, tap_step,
                channels, in_channel, in_position, y_channel, y_position, weight_tap * tap_period,
                GRADIENT_OF, PRECISION, ACCUMULATE, NUMBER, FOLDED, EVEN_CHANNELS, True,
                BLOCK_CHANNELS,
            )  # fmt: skip

    m_row = row + o_row < rows
    if HAS_BIAS:
        b_bias = tl.load(p_bias + group * rows + row + o_row, mask=m_row, other=0.0)
        b_out += b_bias.to(ACCUMULATE)[:, None]
    b_out = activate(b_out, ACTIVATION)
    p_out += ((sample * groups + group) * rows + row) * out_length + start
    store_outputs(
        p_out, b_out, o_row, m_row, out, outputs, classes, out_length, NUMBER, BLOCK_POSITIONS
    )


@triton.jit
def _sum_over_taps(
    b_out,
    p_in,
    p_y,
    p_weight,
    o_weight,
    o_read,
    read,
    length,
    taps,
    tap_step,
    channels,
    in_channel,
    in_position,
    y_channel,
    y_position,
    weight_tap,
    GRADIENT_OF: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    FOLDED: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    EDGE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Adds all products of a tile to ``b_out``, in one loop over taps and, inside, channels.

    One loop and not two, so that loads run ahead of the products across taps too. FOLDED: a block
    of channels goes over into those of the next tap, for channels that are fewer than a block.
    EDGE: positions that are read may lie outside [0, length).
    """
    o_channel = tl.arange(0, BLOCK_CHANNELS).to(NUMBER)
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    steps = tl.cdiv(taps * channels, BLOCK_CHANNELS) if FOLDED else taps * channel_blocks
    for i in range(steps):
        if FOLDED:
            o_tap = (i * BLOCK_CHANNELS + o_channel) // channels
            o_channel_of_tap = (i * BLOCK_CHANNELS + o_channel) % channels
            o_shift = o_tap * tap_step
            m_channel = o_tap < taps
            o_in = (o_channel_of_tap * in_channel + o_shift * in_position)[:, None]
            o_y = (o_channel_of_tap * y_channel + o_shift * y_position)[:, None]
            o_position = o_shift[:, None] + o_read[None, :]
            least, end = bounds_within_tile(read, length, NUMBER)
            o_tap_of_weight = (o_tap * weight_tap + o_channel_of_tap)[None, :]
            b_weight = tl.load(
                p_weight + o_weight + o_tap_of_weight, mask=m_channel[None, :], other=0.0
            )
            p_in_of_tap, p_y_of_tap = p_in, p_y
        else:
            tap = (i // channel_blocks).to(tl.int64)
            channel = (i % channel_blocks) * BLOCK_CHANNELS
            shift = tap * tap_step
            m_channel = channel + o_channel < channels
            o_in = (o_channel * in_channel)[:, None]
            o_y = (o_channel * y_channel)[:, None]
            o_position = o_read[None, :]
            least, end = bounds_within_tile(read + shift, length, NUMBER)
            p_weight_of_tap = p_weight + tap * weight_tap + channel
            b_weight = tl.load(p_weight_of_tap + o_weight + o_channel[None, :])
            p_in_of_tap = p_in + channel.to(tl.int64) * in_channel + shift * in_position
            p_y_of_tap = p_y + channel.to(tl.int64) * y_channel + shift * y_position
        o_in += (o_read * in_position)[None, :]
        if EDGE:
            m_in = m_channel[:, None] & (o_position >= least) & (o_position < end)
            b_in = tl.load(p_in_of_tap + o_in, mask=m_in, other=0.0)
        elif FOLDED or not EVEN_CHANNELS:
            m_in = m_channel[:, None]
            b_in = tl.load(p_in_of_tap + o_in, mask=m_in, other=0.0)
        else:
            m_in = None
            b_in = tl.load(p_in_of_tap + o_in)
        if GRADIENT_OF != "none":
            o_y += (o_read * y_position)[None, :]
            b_y = tl.load(p_y_of_tap + o_y, mask=m_in)
            b_y = b_y.to(ACCUMULATE)
            b_in = through_activation(b_in.to(ACCUMULATE), b_y, GRADIENT_OF).to(b_in.dtype)
        b_out = tl.dot(b_weight, b_in, b_out, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return b_out


@triton.jit
def _sum_described_tiles(
    b_out,
    d_in,
    d_y,
    d_weight,
    sample,
    group,
    read,
    row,
    taps,
    tap,
    tap_period,
    tap_step,
    groups,
    channels,
    rows,
    GRADIENT_OF: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The same sum of channels-last tiles, which a unit of their own copies (Hopper's TMA).

    It fills in zeros outside the length and outside the channels of a group, so that nothing is
    left to mask and a thread holds no addresses.
    """
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    for i in range(taps * channel_blocks):
        position = (read + i // channel_blocks * tap_step).to(tl.int32)
        channel = (i % channel_blocks * BLOCK_CHANNELS).to(tl.int32)
        tap_of_weight = tap + i // channel_blocks * tap_period
        row_of_weight = (tap_of_weight * groups + group) * rows + row
        b_weight = d_weight.load([row_of_weight.to(tl.int32), channel])
        b_in = d_in.load([sample, position, group, channel])
        b_in = b_in.reshape(BLOCK_POSITIONS, BLOCK_CHANNELS)
        if GRADIENT_OF != "none":
            b_y = d_y.load([sample, position, group, channel])
            b_y = b_y.reshape(BLOCK_POSITIONS, BLOCK_CHANNELS).to(ACCUMULATE)
            b_in = through_activation(b_in.to(ACCUMULATE), b_y, GRADIENT_OF).to(b_in.dtype)
        b_out = tl.dot(b_weight, b_in.T, b_out, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return b_out
