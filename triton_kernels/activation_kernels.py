"""Activations at the end of forward, and their derivatives where the gradients load grad_output."""

import triton
import triton.language as tl


@triton.jit
def _tanh(z):
    """Near zero the rational function of Cephes (S. Moshier, tanh.c), elsewhere by exp.

    Written out because Triton's own is a device library's, which its interpreter lacks, and
    because 1 - 2 / (exp(2z) + 1) alone cancels near zero.
    """
    square = z * z
    numerator = -9.64399179425052238628e-1 * square - 9.92877231001918586564e1
    numerator = numerator * square - 1.61468768441708447952e3
    denominator = (square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3
    denominator = denominator * square + 4.84406305325125486048e3
    near_zero = z + z * (square * (numerator / denominator))
    size = 1 - 2 / (tl.exp(2 * tl.abs(z)) + 1)
    elsewhere = tl.where(z < 0, -size, size)
    return tl.where(tl.abs(z) < 0.625, near_zero, elsewhere)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        z = _tanh(z)
    elif ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)  # keeps NaN
    elif ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.70710678118654752440))
    elif ACTIVATION == "sigmoid":
        z = 1 / (1 + tl.exp(-z))
    return z


@triton.jit
def through_activation(gradient, y, ACTIVATION: tl.constexpr):
    """``gradient`` times the derivative of the activation, known from its output ``y``."""
    if ACTIVATION == "tanh":
        gradient = gradient * (1 - y * y)
    elif ACTIVATION == "sigmoid":
        gradient = gradient * ((1 - y) * y)
    elif ACTIVATION == "relu":
        gradient = tl.where(y <= 0, 0.0, gradient)
    return gradient


@triton.jit
def slope_of(z, ACTIVATION: tl.constexpr):
    """The derivative of the activation at ``z``."""
    if ACTIVATION == "silu":
        sigmoid = activate(z, "sigmoid")
        slope = sigmoid * (1 + z * (1 - sigmoid))
    elif ACTIVATION == "gelu":
        slope = 0.5 * (1 + tl.erf(z * 0.70710678118654752440))
        slope += z * tl.exp(-0.5 * z * z) * 0.39894228040143267794
    else:
        slope = through_activation(
            tl.full(z.shape, 1, z.dtype), activate(z, ACTIVATION), ACTIVATION
        )
    return slope
