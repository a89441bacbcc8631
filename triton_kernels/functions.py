"""forward, grad_input and grad_weight: each describes its product and chooses the kernel for it.

Outputs are allocated by the caller, contiguous; inputs may have any strides. Nothing is checked
here: geometry, shapes and dtypes belong together.
"""

from __future__ import annotations

from torch import Tensor

from convlm_kernels.geometry import Conv1dGeometry

from . import correlation, depthwise, weight_gradient
from .problem import Correlation, WeightGradient

# Rows and channels of a group, up to which multiplying and adding beats a matrix product, whose
# smallest tile has sixteen of each.
_FEW = 4


def _groups_are_small(geometry: Conv1dGeometry) -> bool:
    channels = max(geometry.in_channels, geometry.out_channels)
    return geometry.groups > 1 and channels <= _FEW * geometry.groups


def forward(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Conv1dGeometry,
    fp32_precision: str,
    activation: str,
) -> None:
    """Fills ``y``, (batch, out_channels, out_length), with activation(conv(x, weight) + bias)."""
    rows = weight.unflatten(0, (geometry.groups, -1))
    _correlate(Correlation(y, x, rows, bias, None, activation, geometry, fp32_precision, False))


def grad_input(
    grad_x: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    geometry: Conv1dGeometry,
    fp32_precision: str,
    y: Tensor | None,
    activation: str,
) -> None:
    """Fills ``grad_x``, (batch, in_channels, length).

    With ``y``, grad_output is first multiplied by the derivative of ``activation`` (tanh, sigmoid
    or relu) where its output is y.
    """
    rows = weight.unflatten(0, (geometry.groups, -1)).transpose(1, 2)
    _correlate(
        Correlation(grad_x, grad_output, rows, None, y, activation, geometry, fp32_precision, True)
    )


def _correlate(problem: Correlation) -> None:
    if problem.out.numel() == 0:
        return
    small = _groups_are_small(problem.geometry)
    (depthwise if small else correlation).correlate(problem)


def grad_weight(
    grad_w: Tensor,
    grad_b: Tensor | None,
    grad_output: Tensor,
    x: Tensor,
    geometry: Conv1dGeometry,
    fp32_precision: str,
    y: Tensor | None,
    activation: str,
) -> None:
    """Fills ``grad_w`` and, unless None, ``grad_b``; ``y`` as in :func:`grad_input`."""
    if x.shape[0] == 0:
        for out in (grad_w, grad_b):
            if out is not None:
                out.zero_()
        return
    problem = WeightGradient(
        grad_w, grad_b, grad_output, x, y, activation, geometry, fp32_precision
    )
    small = _groups_are_small(geometry)
    (depthwise if small else weight_gradient).weight_gradient(problem)
