"""Launches the kernels of fused stacks. Nothing is checked here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from . import launch
from .configurations import Configuration, kind_of
from .problem import accumulate_type
from .stack_gradient_kernels import stack_backward_kernel, stack_weight_gradient_kernel
from .stack_kernels import stack_forward_kernel
from .stack_plan import Layer, Plan, plan_of
from .weight_gradient import PROGRAMS, add_up_parts, chain_steps, most_steps

# Rows, positions and channels that are multiplied at a time. Not measured on a GPU yet.
_SAMPLES = {
    "half": Configuration(64, 64, 32, warps=8, stages=2),
    "ieee": Configuration(32, 64, 32, warps=8, stages=2),
    "float64": Configuration(32, 32, 16, warps=8, stages=2),
}
# Rows, columns, and positions.
_WEIGHTS = {
    "half": Configuration(64, 64, 32, warps=4, stages=3),
    "ieee": Configuration(32, 64, 16, warps=4, stages=2),
    "float64": Configuration(32, 32, 16, warps=4, stages=2),
}

# What a program reads again and again should stay in the first cache of its multiprocessor.
MOST_BYTES = 160 * 1024
_MOST_NUMBERS = 2**30  # which 32 bits count


def reason_does_not_fit(layers: Sequence[Layer], dtype: torch.dtype) -> str | None:
    """Why no program takes a sample through ``layers``, or None."""
    for i, layer in enumerate(layers):
        if layer.out_length < 1:
            return f"layer {i} has no output for {layer.in_length} positions"
        needed = (layer.inputs + layer.products) * dtype.itemsize
        if needed > MOST_BYTES:
            return (
                f"layer {i} needs {needed} bytes of cache for the positions of a sample, and the "
                f"kernel takes {MOST_BYTES}"
            )
        if layer.pad + layer.in_length > _MOST_NUMBERS:
            return f"layer {i} has {layer.pad} positions of padding, too many for the kernel"
    weights = sum(layer.weights for layer in layers)
    if weights > _MOST_NUMBERS:
        return f"it has {weights} weights, and the kernel takes {_MOST_NUMBERS}"
    return None


def _plan(layers: tuple[Layer, ...], save: bool, like: Tensor) -> Plan:
    tile = _WEIGHTS[kind_of(like.dtype, "ieee")]
    return plan_of(layers, save, (tile.rows, tile.columns), like.device)


def _samples(layers: Sequence[Layer], like: Tensor) -> Configuration:
    """The tile, no larger than the largest layer."""
    most = _SAMPLES[kind_of(like.dtype, "ieee")]
    rows = max(max(layer.in_channels, layer.columns) for layer in layers)
    longest = max(max(layer.in_length, layer.out_length) for layer in layers)
    return most._replace(
        rows=launch.block(rows, most.rows), columns=launch.block(longest, most.columns)
    )


def _packed(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in (*weights, *biases)])


def forward(
    y: Tensor,
    saved: Tensor | None,
    x: Tensor,
    tokens: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    layers: tuple[Layer, ...],
) -> None:
    """Fills ``y``, (batch, out_channels, out_length), and ``saved``, (batch, saved_size).

    ``x`` is (batch, channels, length), or with ``tokens`` (batch, length) an embedding (vocab,
    channels) of them. An empty bias is none.
    """
    batch = y.shape[0]
    if batch == 0:
        return
    plan, blocks = _plan(layers, saved is not None, y), _samples(layers, y)
    words = x if tokens is None else tokens
    arguments = dict(
        p_x=x,
        p_tokens=words,
        p_weights=_packed(weights, biases),
        p_plan=plan.rows,
        p_out_kept=y.new_empty((batch, plan.kept)) if saved is None else saved,
        p_out=y,
        x_batch=x.stride(0),
        x_channel=x.stride(1),
        x_position=0 if tokens is not None else x.stride(2),
        tokens_batch=words.stride(0),
        tokens_position=words.stride(1),
        vocab=x.shape[0],
        depth=len(layers),
        kept_size=plan.kept,
        FROM_TOKENS=tokens is not None,
        ACCUMULATE=accumulate_type(y.dtype),
        BLOCK_ROWS=blocks.rows,
        BLOCK_POSITIONS=blocks.columns,
        BLOCK_CHANNELS=blocks.reduced,
    )
    launch.run(stack_forward_kernel, batch, arguments, blocks)


def backward(
    grad_output: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    layers: tuple[Layer, ...],
    with_x: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of the input, (batch, channels, length), and those of weights and biases.

    The first is in the type of sums, and only there ``with_x``. The others lie one after the
    other, in the order and the layout of contiguous weights and then of biases.
    """
    batch = grad_output.shape[0]
    dtype = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    plan, blocks = _plan(layers, True, grad_output), _samples(layers, grad_output)
    products = grad_output.new_empty((batch, plan.products))
    flow = grad_output.new_empty((batch, plan.flow), dtype=dtype)
    shared = grad_output.new_empty(plan.weights)
    grad_x = flow[:, : layers[0].inputs].unflatten(1, (layers[0].in_channels, -1))
    if batch == 0:
        return grad_x, shared.zero_()
    accumulate = accumulate_type(dtype)
    arguments = dict(
        p_grad=grad_output,
        p_weights=_packed(weights, biases),
        p_plan=plan.rows,
        p_kept=saved,
        p_out_products=products,
        p_out_flow=flow,
        grad_batch=grad_output.stride(0),
        grad_channel=grad_output.stride(1),
        grad_position=grad_output.stride(2),
        depth=len(layers),
        kept_size=plan.kept,
        products_size=plan.products,
        flow_size=plan.flow,
        with_input=int(with_x),
        ACCUMULATE=accumulate,
        BLOCK_ROWS=blocks.rows,
        BLOCK_POSITIONS=blocks.columns,
        BLOCK_CHANNELS=blocks.reduced,
    )
    launch.run(stack_backward_kernel, batch, arguments, blocks)

    kind = kind_of(grad_output.dtype, "ieee")
    blocks = _WEIGHTS[kind]
    steps = batch * triton.cdiv(max(layer.out_length for layer in layers), blocks.reduced)
    parts = min(steps, triton.cdiv(PROGRAMS, plan.tiles))
    parts = max(parts, triton.cdiv(steps, most_steps(blocks.reduced)))
    part_sums = shared if parts == 1 else shared.new_empty((parts, plan.weights), dtype=dtype)
    arguments = dict(
        p_products=products,
        p_kept=saved,
        p_plan=plan.rows,
        p_out=part_sums,
        depth=len(layers),
        batch=batch,
        kept_size=plan.kept,
        products_size=plan.products,
        part_size=plan.weights,
        tiles=plan.tiles,
        parts=parts,
        CHAIN=chain_steps(kind, blocks.reduced),
        ACCUMULATE=accumulate,
        LAYERS=triton.next_power_of_2(len(layers)),
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        BLOCK_POSITIONS=blocks.reduced,
    )
    launch.run(stack_weight_gradient_kernel, plan.tiles * parts, arguments, blocks)
    if parts > 1:
        add_up_parts(part_sums, shared, None)
    return grad_x, shared
