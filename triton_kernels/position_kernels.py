"""Which positions a kernel reads: the arithmetic of ``convlm_kernels.geometry``, on the device."""

import triton
import triton.language as tl


@triton.jit
def input_position(out, tap, stride, dilation, pad_left):
    """Position in the unpadded input that ``tap`` of output ``out`` reads; outside it is a zero."""
    return out * stride + tap * dilation - pad_left


@triton.jit
def reads_of_class(
    start,
    out_length,
    kernel_size,
    stride,
    dilation,
    pad_left,
    divisor,
    inverse,
    TRANSPOSED: tl.constexpr,
):
    """The taps that outputs of a class have, and the positions that they read.

    In forward there is one class, of all outputs. TRANSPOSED is grad_input, which is computed at
    positions p, and reads outputs of forward: (p + pad_left - tap * dilation) / stride, where that
    is whole. Positions start, start + stride, ... are a class. They have the same taps, every
    ``stride / divisor``-th, and neighbours among them read neighbours; nothing is multiplied by the
    zeros in between. ``divisor`` is the greatest common divisor of stride and dilation, ``inverse``
    the inverse of dilation / divisor modulo stride / divisor.

    Returns (outputs, taps, first tap, taps from one to the next, offset, step, tap_step): output q
    of the class reads position q * step + t * tap_step + offset with the t-th of its taps.
    """
    if TRANSPOSED:
        period = stride // divisor
        residue = (start + pad_left) % stride
        first = (residue // divisor) * inverse % period
        reached = (residue % divisor == 0) & (first < kernel_size)
        taps = tl.where(reached, (kernel_size - 1 - first) // period + 1, 0).to(tl.int32)
        offset = (start + pad_left - first * dilation) // stride
        outputs = (out_length - start + stride - 1) // stride
        return outputs, taps, first, period, offset, 1, -(dilation // divisor)
    else:
        offset = input_position(start, 0, stride, dilation, pad_left)
        return out_length, kernel_size, 0, 1, offset, stride, dilation


@triton.jit
def bounds_within_tile(base, length, NUMBER: tl.constexpr):
    """Offsets from position ``base`` that lie in [0, length), as (least, end).

    ``base`` and ``length`` may have 64 bits where NUMBER, in which a tile counts, has 32.
    """
    largest: tl.constexpr = 2**30 if NUMBER is tl.int32 else 2**62
    least = tl.minimum(tl.maximum(-base, -largest), largest)
    end = tl.minimum(tl.maximum(length - base, -largest), largest)
    return least.to(NUMBER), end.to(NUMBER)


@triton.jit
def store_outputs(
    p_out,
    b_out,
    o_row,
    m_row,
    out,
    outputs,
    classes,
    out_length,
    NUMBER: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Writes a tile of rows and of outputs from ``out`` on; ``p_out`` is output 0 of the class."""
    o_out = tl.arange(0, BLOCK_POSITIONS).to(NUMBER)
    m_out = o_out < tl.minimum(outputs - out, BLOCK_POSITIONS).to(NUMBER)
    o = o_row.to(NUMBER)[:, None] * out_length + (o_out * classes)[None, :]
    b = b_out.to(p_out.dtype.element_ty)
    tl.store(p_out + out * classes + o, b, mask=m_row[:, None] & m_out[None, :])
