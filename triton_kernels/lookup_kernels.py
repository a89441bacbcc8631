"""Look-ups, sums of rows of a table, and the table's gradient, sums over the readers of each row.

    out[channel, output] = sum over taps of table[tap, tokens[read], channel]

Neither multiplies anything: a row is loaded where a product with a one-hot vector would find it.
"""

import triton
import triton.language as tl

from .activation_kernels import activate
from .position_kernels import input_position


@triton.jit
def lookup_kernel(
    p_tokens,
    p_table,
    p_bias,
    p_out,
    tokens_batch,
    tokens_position,
    table_tap,
    table_word,
    table_channel,
    vocab,
    channels,
    length,
    out_length,
    kernel_size,
    stride,
    dilation,
    pad_left,
    channel_blocks,
    position_blocks,
    batch,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """A token that is no word makes NaN of what reads it, and nothing is read for it."""
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    channel = tile % channel_blocks * BLOCK_CHANNELS
    out = (tile // channel_blocks % position_blocks).to(tl.int64) * BLOCK_POSITIONS
    sample = (tile // channel_blocks // position_blocks).to(tl.int64)
    if sample >= batch:  # a grid of two dimensions may have programs to spare
        return

    o_out = out + tl.arange(0, BLOCK_POSITIONS)
    o_channel = channel.to(NUMBER) + tl.arange(0, BLOCK_CHANNELS)
    m_out = o_out < out_length
    m_channel = (o_channel < channels)[None, :]
    p_tokens += sample * tokens_batch
    p_table += (o_channel * table_channel)[None, :]
    b_sum = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), dtype=ACCUMULATE)
    for tap in range(kernel_size):
        o_read = input_position(o_out, tl.cast(tap, tl.int64), stride, dilation, pad_left)
        m_read = m_out & (o_read >= 0) & (o_read < length)
        b_word = tl.load(p_tokens + o_read * tokens_position, mask=m_read, other=0)
        m_word = m_read & (b_word >= 0) & (b_word < vocab)
        o_word = tl.where(m_word, b_word, 0).to(NUMBER) * table_word
        p_rows = p_table + tl.cast(tap, tl.int64) * table_tap + o_word[:, None]
        b_row = tl.load(p_rows, mask=m_word[:, None] & m_channel, other=0.0).to(ACCUMULATE)
        b_sum += tl.where((m_read & ~m_word)[:, None], float("nan"), b_row)
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_channel, mask=o_channel < channels, other=0.0)
        b_sum += b_bias.to(ACCUMULATE)[None, :]
    b_sum = activate(b_sum, ACTIVATION)
    o = (sample * channels + o_channel)[None, :] * out_length + o_out[:, None]
    tl.store(p_out + o, b_sum.to(p_out.dtype.element_ty), mask=m_out[:, None] & m_channel)


@triton.jit
def table_gradient_kernel(
    p_grad,
    p_order,
    p_starts,
    p_out,
    grad_batch,
    grad_channel,
    grad_position,
    vocab,
    channels,
    length,
    out_length,
    kernel_size,
    stride,
    dilation,
    pad_left,
    channel_blocks,
    parts,
    part_size,
    ACCUMULATE: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Of a tap, a word and a part of the positions that have it.

    ``p_order`` lists positions of the flattened tokens by word, those of a word in their order;
    word w has the entries from ``p_starts[w]`` up to ``p_starts[w + 1]``.
    """
    tile = tl.program_id(0).to(NUMBER) + tl.program_id(1).to(NUMBER) * tl.num_programs(0)
    o_channel = tile % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row = tile // channel_blocks
    word, tap = (row % vocab).to(tl.int64), (row // vocab % kernel_size).to(tl.int64)
    part = (row // vocab // kernel_size).to(tl.int64)
    if part >= parts:  # a grid of two dimensions may have programs to spare
        return

    start, end = tl.load(p_starts + word), tl.load(p_starts + word + 1)
    steps = tl.cdiv(tl.cdiv(end - start, BLOCK_POSITIONS), parts)
    first = start + part * steps * BLOCK_POSITIONS
    m_channel = o_channel < channels
    o_grad = (o_channel.to(tl.int64) * grad_channel)[None, :]
    b_sum = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float64)
    for i in range(steps):
        o = first + i * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        m_any = o < end
        o_position = tl.load(p_order + o, mask=m_any, other=0)
        # Which output reads it with this tap: input_position, solved for the output.
        o_from = o_position % length - input_position(0, tap, stride, dilation, pad_left)
        o_out = o_from // stride
        m_read = m_any & (o_from >= 0) & (o_from % stride == 0) & (o_out < out_length)
        o_row = o_position // length * grad_batch + o_out * grad_position
        p_rows = p_grad + o_row[:, None] + o_grad
        b_grad = tl.load(p_rows, mask=m_read[:, None] & m_channel[None, :], other=0.0)
        b_sum += tl.sum(b_grad.to(ACCUMULATE), axis=0).to(tl.float64)
    p_out += part * part_size + (tap * vocab + word) * channels
    tl.store(p_out + o_channel, b_sum.to(p_out.dtype.element_ty), mask=m_channel)
