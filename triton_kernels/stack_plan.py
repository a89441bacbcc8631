"""The plan of a stack: what its kernels must know of the layers, as numbers on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Layer(NamedTuple):
    """A convolution of stride 1 with what follows it, for inputs of one length."""

    in_channels: int
    columns: int  # the convolution's own output channels, twice the layer's where it is gated
    taps: int
    dilation: int
    pad: int  # zeros on the left
    in_length: int
    out_length: int
    activation: str  # as of a convolution, or "gate"
    residual: bool
    has_bias: bool

    @property
    def out_channels(self) -> int:
        return self.columns // 2 if self.activation == "gate" else self.columns

    @property
    def inputs(self) -> int:
        return self.in_channels * self.in_length

    @property
    def results(self) -> int:
        return self.out_channels * self.out_length

    @property
    def products(self) -> int:
        return self.columns * self.out_length

    @property
    def weights(self) -> int:
        return self.columns * self.in_channels * self.taps


class Row(NamedTuple):
    """A layer in the plan. Offsets count elements in the buffer of a sample, or of all weights."""

    in_channels: int
    columns: int  # the convolution's own output channels, twice the layer's where it is gated
    out_channels: int
    taps: int
    dilation: int
    pad: int
    in_length: int
    out_length: int
    activation: int
    residual: int
    weight: int
    bias: int  # NONE without one
    input: int  # kept of forward, as `slope`
    result: int
    slope: int  # NONE where it is one, or not kept
    products: int  # of backward: the gradient of what the convolution gives
    grad_input: int
    grad_result: int
    first_tile: int  # of the gradients of weights
    end_tile: int


(
    IN_CHANNELS, COLUMNS, OUT_CHANNELS, TAPS, DILATION, PAD, IN_LENGTH, OUT_LENGTH, ACTIVATION,
    RESIDUAL, WEIGHT, BIAS, INPUT, RESULT, SLOPE, PRODUCTS, GRAD_INPUT, GRAD_RESULT, FIRST_TILE,
    END_TILE,
) = map(tl.constexpr, range(len(Row._fields)))  # fmt: skip
FIELDS = tl.constexpr(len(Row._fields))

NONE = tl.constexpr(-1)

# The numbers of activations in the plan.
ACTIVATIONS = ("none", "tanh", "relu", "silu", "gelu", "sigmoid", "gate")
GATE = tl.constexpr(ACTIVATIONS.index("gate"))
RELU = tl.constexpr(ACTIVATIONS.index("relu"))


class Plan(NamedTuple):
    """Sizes are in numbers, and of a sample but for ``weights``."""

    rows: Tensor  # (layers, fields of Row), int32
    kept: int  # of forward: inputs and slopes; two buffers in turn where they are not saved
    products: int
    flow: int  # gradients of results and inputs, two buffers in turn; the last is the first one
    weights: int  # layer by layer, then all biases
    tiles: int  # of the gradients of weights


def saved_size(layers: Iterable[Layer]) -> int:
    """Of what backward reads of forward, a sample; sizes may be symbolic."""
    slopes = (layer.products for layer in layers if layer.activation != "none")
    return sum(layer.inputs for layer in layers) + sum(slopes)


@functools.lru_cache(maxsize=128)  # a copy to the device takes longer than the rest of a call
def plan_of(
    layers: tuple[Layer, ...], save: bool, tile: tuple[int, int], device: torch.device
) -> Plan:
    """``save``: as backward reads it. ``tile``: of rows and columns of a weight's gradient."""
    largest = max(max(layer.inputs, layer.results) for layer in layers)
    kept, products, weights, tiles = _Room(), _Room(), _Room(), _Room()
    starts = [weights.take(layer.weights) for layer in layers]
    inputs, slopes = [i % 2 * largest for i in range(len(layers) + 1)], [NONE.value] * len(layers)
    if save:
        inputs = [*(kept.take(layer.inputs) for layer in layers), NONE.value]
        slopes = [
            NONE.value if layer.activation == "none" else kept.take(layer.products)
            for layer in layers
        ]
    else:
        kept.take(2 * largest)
    rows = []
    for i, layer in enumerate(layers):
        columns = layer.taps * triton.cdiv(layer.in_channels, tile[1]) + layer.has_bias
        row = Row(
            in_channels=layer.in_channels,
            columns=layer.columns,
            out_channels=layer.out_channels,
            taps=layer.taps,
            dilation=layer.dilation,
            pad=layer.pad,
            in_length=layer.in_length,
            out_length=layer.out_length,
            activation=ACTIVATIONS.index(layer.activation),
            residual=layer.residual,
            weight=starts[i],
            bias=weights.take(layer.columns) if layer.has_bias else NONE.value,
            input=inputs[i],
            result=inputs[i + 1],
            slope=slopes[i],
            products=products.take(layer.products),
            grad_input=i % 2 * largest,
            grad_result=(i + 1) % 2 * largest,
            first_tile=tiles.take(triton.cdiv(layer.columns, tile[0]) * columns),
            end_tile=tiles.used,
        )
        rows.append(row)
    table = torch.tensor(rows, dtype=torch.int32, device=device)
    sizes = kept.used, products.used, 2 * largest, weights.used, tiles.used
    return Plan(table, *sizes)


class _Room:
    used = 0

    def take(self, size: int) -> int:
        first = self.used
        self.used += size
        return first
