"""The gradients of a stack: a program takes a sample back through all layers, and then programs add
up over the samples what these share, the weights."""

import triton
import triton.language as tl

from .activation_kernels import through_activation
from .stack_kernels import product, tile_of
from .stack_plan import (
    ACTIVATION,
    BIAS,
    COLUMNS,
    DILATION,
    END_TILE,
    FIELDS,
    FIRST_TILE,
    GRAD_INPUT,
    GRAD_RESULT,
    IN_CHANNELS,
    IN_LENGTH,
    INPUT,
    NONE,
    OUT_CHANNELS,
    OUT_LENGTH,
    PAD,
    PRODUCTS,
    RELU,
    RESIDUAL,
    SLOPE,
    TAPS,
    WEIGHT,
)


@triton.jit
def stack_backward_kernel(
    p_grad,
    p_weights,
    p_plan,
    p_kept,
    p_out_products,
    p_out_flow,
    grad_batch,
    grad_channel,
    grad_position,
    depth,
    kept_size,
    products_size,
    flow_size,
    with_input,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Back through the layers: leaves the gradients of what the convolutions give in
    ``p_out_products``, and that of the stack's input where the plan says in ``p_out_flow``."""
    sample = tl.program_id(0).to(tl.int64)
    p_kept += sample * kept_size
    p_products = p_out_products + sample * products_size
    p_flow = p_out_flow + sample * flow_size
    p_grad += sample * grad_batch
    BLOCK: tl.constexpr = BLOCK_ROWS * BLOCK_POSITIONS
    p_last = p_plan + (depth - 1) * FIELDS
    length, results = tl.load(p_last + OUT_LENGTH), tl.load(p_last + OUT_CHANNELS)
    results *= length
    for start in range(0, results, BLOCK):
        o = start + tl.arange(0, BLOCK)
        o_grad = (o // length).to(tl.int64) * grad_channel
        o_grad += (o % length).to(tl.int64) * grad_position
        b_grad = tl.load(p_grad + o_grad, mask=o < results, other=0.0).to(ACCUMULATE)
        tl.store(p_flow + tl.load(p_last + GRAD_RESULT) + o, b_grad, mask=o < results)

    for i in range(depth):
        layer = depth - 1 - i
        p_layer = p_plan + layer * FIELDS
        columns, out_channels = tl.load(p_layer + COLUMNS), tl.load(p_layer + OUT_CHANNELS)
        in_length, out_length = tl.load(p_layer + IN_LENGTH), tl.load(p_layer + OUT_LENGTH)
        in_channels, taps = tl.load(p_layer + IN_CHANNELS), tl.load(p_layer + TAPS)
        pad, dilation = tl.load(p_layer + PAD), tl.load(p_layer + DILATION)
        residual, slope = tl.load(p_layer + RESIDUAL), tl.load(p_layer + SLOPE)
        activation = tl.load(p_layer + ACTIVATION)
        p_grad_result = p_flow + tl.load(p_layer + GRAD_RESULT)
        p_grad_input = p_flow + tl.load(p_layer + GRAD_INPUT)
        p_product = p_products + tl.load(p_layer + PRODUCTS)
        results = out_channels * out_length
        tl.debug_barrier()  # what the layer after wrote
        for start in range(0, columns * out_length, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_any = o < columns * out_length
            o_result = tl.where(o < results, o, o - results)  # of a gate, both halves
            b_grad = tl.load(p_grad_result + o_result, mask=m_any, other=0.0)
            if slope != NONE:
                b_slope = tl.load(p_kept + slope + o, mask=m_any, other=0.0).to(ACCUMULATE)
                if activation == RELU:  # lets no infinity through
                    b_grad = through_activation(b_grad, b_slope, "relu")
                else:
                    b_grad *= b_slope
            tl.store(p_product + o, b_grad.to(p_product.dtype.element_ty), mask=m_any)
        tl.debug_barrier()
        position_blocks = tl.cdiv(in_length, BLOCK_POSITIONS)
        tiles = tl.cdiv(in_channels, BLOCK_ROWS) * position_blocks
        if (layer == 0) & (with_input == 0):
            tiles = 0
        for tile in range(tiles):
            row = tile // position_blocks * BLOCK_ROWS
            position = tile % position_blocks * BLOCK_POSITIONS
            o_row, o_position = tile_of(row, position, BLOCK_ROWS, BLOCK_POSITIONS)
            m_any = (o_row < in_channels) & (o_position < in_length)
            o_channel = row + tl.arange(0, BLOCK_ROWS)
            b_sum = product(
                p_weights + tl.load(p_layer + WEIGHT), taps, in_channels * taps, p_product,
                out_length, columns, taps, o_channel, o_channel < in_channels, position + pad,
                -dilation,
                ACCUMULATE, BLOCK_ROWS, BLOCK_POSITIONS, BLOCK_CHANNELS,
            )  # fmt: skip
            if residual != 0:
                o_after = o_position - (in_length - out_length)
                p_after = p_grad_result + o_row * out_length + o_after
                b_sum += tl.load(p_after, mask=m_any & (o_after >= 0), other=0.0)
            tl.store(p_grad_input + o_row * in_length + o_position, b_sum, mask=m_any)


@triton.jit
def stack_weight_gradient_kernel(
    p_products,
    p_kept,
    p_plan,
    p_out,
    depth,
    batch,
    kept_size,
    products_size,
    part_size,
    tiles,
    parts,
    CHAIN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """A tile of a layer's weight, over a part of all positions of all samples.

    Columns are the channels of a tap; after those of all taps come programs for the bias, which add
    up the gradient alone. CHAIN: as in ``weight_gradient_kernel``.
    """
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles
    o_layer = tl.arange(0, LAYERS)
    ends = tl.load(p_plan + o_layer * FIELDS + END_TILE, mask=o_layer < depth, other=tiles)
    p_layer = p_plan + tl.sum((ends <= tile).to(tl.int32), axis=0) * FIELDS
    tile -= tl.load(p_layer + FIRST_TILE)

    columns, taps = tl.load(p_layer + COLUMNS), tl.load(p_layer + TAPS)
    in_channels, bias = tl.load(p_layer + IN_CHANNELS), tl.load(p_layer + BIAS)
    in_length, out_length = tl.load(p_layer + IN_LENGTH), tl.load(p_layer + OUT_LENGTH)
    p_products += tl.load(p_layer + PRODUCTS)
    p_kept += tl.load(p_layer + INPUT)
    p_out += part.to(tl.int64) * part_size
    channel_blocks = tl.cdiv(in_channels, BLOCK_COLUMNS)
    weight_blocks = taps * channel_blocks
    column_blocks = weight_blocks
    if bias != NONE:
        column_blocks += 1
    column_block = tile % column_blocks
    o_row = tile // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m_row = o_row < columns
    position_blocks = tl.cdiv(out_length, BLOCK_POSITIONS)
    steps = batch * position_blocks
    steps_of_part = tl.cdiv(steps, parts)
    first = part * steps_of_part
    last = tl.minimum(first + steps_of_part, steps)
    o_out = tl.arange(0, BLOCK_POSITIONS)

    if column_block == weight_blocks:
        b_bias = tl.zeros((BLOCK_ROWS,), dtype=tl.float64)
        for i in range(first, last):
            sample = (i // position_blocks).to(tl.int64)
            out = i % position_blocks * BLOCK_POSITIONS + o_out
            o_grad = (o_row * out_length)[:, None] + out[None, :]
            m_grad = m_row[:, None] & (out < out_length)[None, :]
            b_grad = tl.load(p_products + sample * products_size + o_grad, mask=m_grad, other=0.0)
            b_bias += tl.sum(b_grad.to(ACCUMULATE), axis=1).to(tl.float64)
        tl.store(p_out + bias + o_row, b_bias.to(p_out.dtype.element_ty), mask=m_row)
    else:
        tap = column_block // channel_blocks
        o_channel = column_block % channel_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        m_channel = o_channel < in_channels
        shift = tap * tl.load(p_layer + DILATION) - tl.load(p_layer + PAD)
        b_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        b_chain = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        for i in range(first, last):
            sample = (i // position_blocks).to(tl.int64)
            out = i % position_blocks * BLOCK_POSITIONS + o_out
            o_grad = (o_row * out_length)[:, None] + out[None, :]
            m_grad = m_row[:, None] & (out < out_length)[None, :]
            b_grad = tl.load(p_products + sample * products_size + o_grad, mask=m_grad, other=0.0)
            o_read = out + shift
            m_read = (out < out_length) & (o_read >= 0) & (o_read < in_length)
            o_x = (o_channel * in_length)[None, :] + o_read[:, None]
            m_x = m_read[:, None] & m_channel[None, :]
            b_x = tl.load(p_kept + sample * kept_size + o_x, mask=m_x, other=0.0)
            b_chain = tl.dot(b_grad, b_x, b_chain, input_precision="ieee", out_dtype=ACCUMULATE)
            if CHAIN > 0:  # noqa: SIM102 (known to the compiler, unlike the other condition)
                if (i - first) % CHAIN == CHAIN - 1:
                    b_sum += b_chain
                    b_chain = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=ACCUMULATE)
        b_sum += b_chain
        o_weight = ((o_row * in_channels)[:, None] + o_channel[None, :]) * taps + tap
        p_weight = p_out + tl.load(p_layer + WEIGHT) + o_weight
        b_sum = b_sum.to(p_out.dtype.element_ty)
        tl.store(p_weight, b_sum, mask=m_row[:, None] & m_channel[None, :])
