"""grad_weight, and grad_bias, in two passes: sums over parts of the positions, then over the parts.

Within a group, where rows and channels stand for out_channels and in_channels:

    grad_weight[row, channel, tap] = sum over samples, outputs of grad_output[row, output] * x[channel, read]

So a tap's gradient is a product of grad_output and the shifted x, over all positions of all samples.
There are often fewer tiles of the weight than a GPU has multiprocessors, so the positions are cut
into parts, each of which writes its own sums, and a second kernel adds these up in their order: no
atomics, so the same bits every time.
"""  # noqa: E501

import triton
import triton.language as tl

from .activation_kernels import through_activation
from .position_kernels import bounds_within_tile, input_position


@triton.jit
def weight_gradient_kernel(
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
    PRECISION: tl.constexpr,
    CHAIN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Columns are the channels of one tap; FOLDED, those of all taps, a channel's side by side.

    WITH_BIAS: the last block of columns are programs that add up grad_output alone. CHAIN: steps
    whose sum is one of the sums that are added up, 0 for all.
    """
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    column_block = tile % column_blocks
    row = tile // column_blocks % row_blocks * BLOCK_ROWS
    tile = tile // column_blocks // row_blocks
    group = (tile % groups).to(tl.int64)
    part = tile // groups
    first = part * steps_of_part
    last = tl.minimum(first + steps_of_part, steps)
    if first >= steps:  # a grid of two dimensions may have programs to spare
        return

    o_out = tl.arange(0, BLOCK_POSITIONS).to(NUMBER)
    o_row = tl.arange(0, BLOCK_ROWS).to(NUMBER)
    m_row = row + o_row < rows
    o_grad = (o_row * grad_channel)[:, None] + (o_out * grad_position)[None, :]
    o_y = (o_row * y_channel)[:, None] + (o_out * y_position)[None, :]
    p_grad += (group * rows + row) * grad_channel
    p_y += (group * rows + row) * y_channel
    p_out += part.to(tl.int64) * part_size

    if WITH_BIAS and column_block == column_blocks - 1:
        b_bias = tl.zeros((BLOCK_ROWS,), dtype=tl.float64)
        for i in range(first, last):
            sample = (i // position_blocks).to(tl.int64)
            out = (i % position_blocks).to(tl.int64) * BLOCK_POSITIONS
            m_out = o_out < tl.minimum(out_length - out, BLOCK_POSITIONS).to(NUMBER)
            b_grad = _load_gradient(
                p_grad + sample * grad_batch + out * grad_position,
                p_y + sample * y_batch + out * y_position,
                o_grad, o_y, m_row[:, None] & m_out[None, :],
                GRADIENT_OF, ACCUMULATE,
            )  # fmt: skip
            b_bias += tl.sum(b_grad.to(ACCUMULATE), axis=1).to(tl.float64)
        biases = groups * rows * channels * kernel_size + group * rows
        tl.store(p_out + biases + row + o_row, b_bias.to(ACCUMULATE), mask=m_row)
    else:
        o_column = tl.arange(0, BLOCK_COLUMNS).to(NUMBER)
        if FOLDED:
            o_column += column_block * BLOCK_COLUMNS
            o_channel, o_tap, tap = o_column // kernel_size, o_column % kernel_size, 0
        else:
            o_channel = column_block // kernel_size * BLOCK_COLUMNS + o_column
            tap = (column_block % kernel_size).to(tl.int64)
            o_tap = o_column * 0
        m_column = o_channel < channels
        o_shift = o_tap * dilation
        o_x = (o_channel * x_channel + o_shift * x_position)[None, :]
        o_x += (o_out * stride * x_position)[:, None]
        o_read = o_shift[None, :] + (o_out * stride)[:, None]
        p_x += group * channels * x_channel

        b_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        b_chain = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        for i in range(first, last):
            sample = (i // position_blocks).to(tl.int64)
            out = (i % position_blocks).to(tl.int64) * BLOCK_POSITIONS
            m_out = o_out < tl.minimum(out_length - out, BLOCK_POSITIONS).to(NUMBER)
            b_grad = _load_gradient(
                p_grad + sample * grad_batch + out * grad_position,
                p_y + sample * y_batch + out * y_position,
                o_grad, o_y, m_row[:, None] & m_out[None, :],
                GRADIENT_OF, ACCUMULATE,
            )  # fmt: skip
            read = input_position(out, tap, stride, dilation, pad_left)
            least, end = bounds_within_tile(read, length, NUMBER)
            m_x = m_out[:, None] & m_column[None, :] & (o_read >= least) & (o_read < end)
            b_x = tl.load(p_x + sample * x_batch + read * x_position + o_x, mask=m_x, other=0.0)
            b_chain = tl.dot(b_grad, b_x, b_chain, input_precision=PRECISION, out_dtype=ACCUMULATE)
            if CHAIN > 0:  # noqa: SIM102 (known to the compiler, unlike the other condition)
                if (i - first) % CHAIN == CHAIN - 1:
                    b_sum += b_chain
                    b_chain = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        b_sum += b_chain
        o_weight = (group * rows + row + o_row)[:, None] * channels + o_channel[None, :]
        o_weight = o_weight * kernel_size + tap + o_tap[None, :]
        tl.store(p_out + o_weight, b_sum, mask=m_row[:, None] & m_column[None, :])


@triton.jit
def _load_gradient(
    p_grad, p_y, o_grad, o_y, mask, GRADIENT_OF: tl.constexpr, ACCUMULATE: tl.constexpr
):
    """A tile of grad_output, times the derivative of the activation that made y."""
    b_grad = tl.load(p_grad + o_grad, mask=mask, other=0.0)
    if GRADIENT_OF != "none":
        b_y = tl.load(p_y + o_y, mask=mask, other=0.0).to(ACCUMULATE)
        b_through = through_activation(b_grad.to(ACCUMULATE), b_y, GRADIENT_OF)
        b_grad = b_through.to(b_grad.dtype)
    return b_grad


@triton.jit
def sum_of_parts_kernel(
    p_parts,
    p_out_weight,
    p_out_bias,
    weights,
    biases,
    parts,
    BLOCK: tl.constexpr,
):
    """Element by element, the parts from first to last: weights, then biases.

    In float64: there may be as many parts as the batch is large.
    """
    tile = tl.program_id(0).to(tl.int64) + tl.program_id(1).to(tl.int64) * tl.num_programs(0)
    o = tile * BLOCK + tl.arange(0, BLOCK)
    m_any = o < weights + biases
    b_sum = tl.zeros((BLOCK,), dtype=tl.float64)
    for part in range(parts):
        p_part = p_parts + tl.cast(part, tl.int64) * (weights + biases)
        b_sum += tl.load(p_part + o, mask=m_any, other=0.0).to(tl.float64)
    tl.store(p_out_weight + o, b_sum.to(p_out_weight.dtype.element_ty), mask=o < weights)
    b_bias = b_sum.to(p_out_bias.dtype.element_ty)
    tl.store(p_out_bias + (o - weights), b_bias, mask=m_any & (o >= weights))
