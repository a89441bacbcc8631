"""Groups of so few channels that matrix products would be mostly zeros: depthwise convolutions.

Here a row is one channel of the output of all groups, and memory is what limits speed: a tile of
rows and positions adds up its taps by multiplying and adding, reading what neighbours and taps
share from the first-level cache.
"""

import triton
import triton.language as tl

from .activation_kernels import activate, through_activation
from .position_kernels import bounds_within_tile, input_position, reads_of_class, store_outputs


@triton.jit
def depthwise_kernel(
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
    weight_group,
    weight_row,
    weight_channel,
    weight_tap,
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
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """forward and grad_input, as in ``correlation_kernel``."""
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    start = (tile % classes).to(tl.int64)
    out = (tile // classes % position_blocks).to(tl.int64) * BLOCK_POSITIONS
    tile = tile // classes // position_blocks
    row = tile % row_blocks * BLOCK_ROWS
    sample = (tile // row_blocks).to(tl.int64)
    if sample >= batch:  # a grid of two dimensions may have programs to spare
        return

    outputs, taps, first_tap, tap_period, offset, step, tap_step = reads_of_class(
        start, out_length, kernel_size, stride, dilation, pad_left, divisor, inverse, TRANSPOSED
    )

    o_row = row + tl.arange(0, BLOCK_ROWS)
    m_row = o_row < groups * rows
    o_group = (o_row // rows).to(NUMBER)
    o_out = tl.arange(0, BLOCK_POSITIONS).to(NUMBER)
    o_read = o_out * step
    o_in = (o_group * (channels * in_channel))[:, None] + (o_read * in_position)[None, :]
    o_y = (o_group * (channels * y_channel))[:, None] + (o_read * y_position)[None, :]
    o_weight = o_group * weight_group + (o_row % rows) * weight_row
    p_in += sample * in_batch
    p_y += sample * y_batch

    b_out = tl.zeros((BLOCK_ROWS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    for i in range(channels * taps):
        channel, tap = i // taps, i % taps
        o_weight_of_tap = channel * weight_channel + (first_tap + tap * tap_period) * weight_tap
        b_weight = tl.load(p_weight + o_weight_of_tap + o_weight, mask=m_row, other=0.0)
        read = input_position(out, tl.cast(tap, tl.int64), step, tap_step, -offset)
        least, end = bounds_within_tile(read, length, NUMBER)
        m_in = m_row[:, None] & ((o_read >= least) & (o_read < end))[None, :]
        p_in_of_tap = p_in + channel * in_channel + read * in_position
        b_in = tl.load(p_in_of_tap + o_in, mask=m_in, other=0.0).to(ACCUMULATE)
        if GRADIENT_OF != "none":
            p_y_of_tap = p_y + channel * y_channel + read * y_position
            b_y = tl.load(p_y_of_tap + o_y, mask=m_in, other=0.0).to(ACCUMULATE)
            b_in = through_activation(b_in, b_y, GRADIENT_OF)
        b_out += b_weight.to(ACCUMULATE)[:, None] * b_in

    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_row, mask=m_row, other=0.0)
        b_out += b_bias.to(ACCUMULATE)[:, None]
    b_out = activate(b_out, ACTIVATION)
    p_out += sample * (groups * rows) * out_length + start
    store_outputs(
        p_out, b_out, o_row, m_row, out, outputs, classes, out_length, NUMBER, BLOCK_POSITIONS
    )


@triton.jit
def depthwise_weight_gradient_kernel(
    p_grad,
    p_y,
    p_x,
    p_out,
    grad_batch,
    grad_channel,
    grad_position,
    y_batch,
    y_channel,
    y_position,
    x_batch,
    x_channel,
    x_position,
    groups,
    rows,
    channels,
    length,
    out_length,
    kernel_size,
    stride,
    dilation,
    pad_left,
    column_blocks,
    row_blocks,
    position_blocks,
    steps,
    steps_of_part,
    part_size,
    WITH_BIAS: tl.constexpr,
    GRADIENT_OF: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """The first pass of grad_weight and grad_bias; a column is a tap of a channel."""
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    column_block = tile % column_blocks
    row = tile // column_blocks % row_blocks * BLOCK_ROWS
    part = tile // column_blocks // row_blocks
    first = part * steps_of_part
    if first >= steps:  # a grid of two dimensions may have programs to spare
        return

    o_out = tl.arange(0, BLOCK_POSITIONS).to(NUMBER)
    o_row = (row + tl.arange(0, BLOCK_ROWS)).to(NUMBER)
    o_column = (column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(NUMBER)
    m_row = o_row < groups * rows
    m_column = o_column < channels * kernel_size
    o_channel = (o_row // rows * channels)[:, None] + (o_column // kernel_size)[None, :]
    o_shift = o_column % kernel_size * dilation
    o_read = o_shift[None, :, None] + (o_out * stride)[None, None, :]
    o_x = (o_channel * x_channel)[:, :, None] + o_read * x_position
    o_grad = (o_row * grad_channel)[:, None] + (o_out * grad_position)[None, :]
    o_y = (o_row * y_channel)[:, None] + (o_out * y_position)[None, :]

    b_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    b_bias = tl.zeros((BLOCK_ROWS, BLOCK_POSITIONS), dtype=ACCUMULATE)
    for i in range(first, tl.minimum(first + steps_of_part, steps)):
        sample = (i // position_blocks).to(tl.int64)
        out = (i % position_blocks).to(tl.int64) * BLOCK_POSITIONS
        m_out = o_out < tl.minimum(out_length - out, BLOCK_POSITIONS).to(NUMBER)
        m_grad = m_row[:, None] & m_out[None, :]
        p_grad_tile = p_grad + sample * grad_batch + out * grad_position
        b_grad = tl.load(p_grad_tile + o_grad, mask=m_grad, other=0.0).to(ACCUMULATE)
        if GRADIENT_OF != "none":
            p_y_tile = p_y + sample * y_batch + out * y_position
            b_y = tl.load(p_y_tile + o_y, mask=m_grad, other=0.0).to(ACCUMULATE)
            b_grad = through_activation(b_grad, b_y, GRADIENT_OF)
        read = input_position(out, 0, stride, dilation, pad_left)
        least, end = bounds_within_tile(read, length, NUMBER)
        m_x = m_grad[:, None, :] & m_column[None, :, None] & (o_read >= least) & (o_read < end)
        p_x_tile = p_x + sample * x_batch + read * x_position
        b_x = tl.load(p_x_tile + o_x, mask=m_x, other=0.0).to(ACCUMULATE)
        b_sum += b_grad[:, None, :] * b_x
        if WITH_BIAS:
            b_bias += b_grad

    p_out += part.to(tl.int64) * part_size
    columns = channels * kernel_size
    o_weight = o_row[:, None] * columns + o_column[None, :]
    tl.store(p_out + o_weight, tl.sum(b_sum, axis=2), mask=m_row[:, None] & m_column[None, :])
    if WITH_BIAS:  # noqa: SIM102 (known to the compiler, unlike the other condition)
        if column_block == 0:
            tl.store(p_out + groups * rows * columns + o_row, tl.sum(b_bias, axis=1), mask=m_row)
