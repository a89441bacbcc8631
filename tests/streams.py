"""Layers and stacks that stream, for the tests of every device, and their outputs by steps."""

from __future__ import annotations

import torch
from cases import CASES, Case, random
from torch import Tensor, nn

from convlm_kernels import CausalConv1d, Conv1d, DilatedStack, StackLayer
from convlm_kernels.network_layers import layers_of
from convlm_kernels.streaming import Streaming, StreamState

LENGTH = 23


def causal(case: Case) -> Case:
    """The case with the most padding on its left that may be, and nothing else of it."""
    reach = case.dilation * (case.kernel_size - 1)
    pads = min(case.pads[0], reach), 0
    return case._replace(why="", batch=2, length=reach + LENGTH - pads[0], stride=1, pads=pads)


STREAMS = sorted({causal(case) for case in CASES if case.kernel_size * case.dilation < 100})
# Two more: chains that begin with the second weight of a pair.
ODD_CHAINS = [Case("", 2, c, 9, LENGTH, k, 1, 1, 1, (k - 1, 0)) for c, k in ((65, 2), (2, 65))]


def layer_of(case: Case, dtype: torch.dtype, **options: object) -> Conv1d:
    layer = Conv1d(
        case.in_channels,
        case.out_channels,
        case.kernel_size,
        padding=case.pads,
        dilation=case.dilation,
        groups=case.groups,
        dtype=dtype,
        **options,
    )
    with torch.no_grad():
        layer.weight.copy_(random(*case.weight_shape, dtype=dtype, seed=2))
        layer.bias.copy_(random(case.out_channels, dtype=dtype, seed=3))
    return layer


def run_steps(module: Streaming, x: Tensor, state: StreamState, **options: object) -> Tensor:
    return torch.stack([module.step(column, state, **options) for column in x.unbind(-1)], dim=2)


def stream(module: Streaming, x: Tensor) -> Tensor:
    """All outputs by steps, without the NaNs before the first one."""
    y = run_steps(module, x, module.init_state(len(x)))
    lag = sum(layer.lag for layer in module.stream_layers())
    assert y[:, :, :lag].isnan().all()
    return y[:, :, lag:]


def gated(channels: int, dilation: int, **options: object) -> StackLayer:
    return StackLayer(channels, channels, 2, dilation=dilation, gated=True, **options)


STACKS = {
    "gates and residuals": lambda: DilatedStack(
        StackLayer(3, 8, 2),
        gated(8, 1, residual=True),
        gated(8, 2, residual=True),
        StackLayer(8, 5, 1, activation="relu"),
    ),
    "residuals without gates": lambda: DilatedStack(
        StackLayer(19, 19, 3, dilation=4, activation="silu", residual=True),
        StackLayer(19, 19, 3, padding=0, activation="gelu", residual=True),
    ),
    "no padding": lambda: DilatedStack(
        Conv1d(3, 70, 2, activation="tanh"), Conv1d(70, 20, 2, dilation=3)
    ),
    "padding after a layer without, and less than causal": lambda: DilatedStack(
        Conv1d(3, 7, 3, activation="sigmoid"),
        CausalConv1d(7, 7, 3, dilation=2),
        Conv1d(7, 4, 3, padding=(1, 0), dilation=2),
        nn.Sequential(CausalConv1d(4, 4, 5, groups=4), CausalConv1d(4, 6, 2, groups=2)),
    ),
    "the seed's": lambda: DilatedStack(
        Conv1d(1, 100, 20, stride=10, activation="tanh"),
        Conv1d(100, 100, 2, dilation=2, activation="tanh"),
        Conv1d(100, 28, 2, dilation=4),
    ),
}


def stack_and_input(name: str, dtype: torch.dtype = torch.float64) -> tuple[Streaming, Tensor]:
    torch.manual_seed(0)
    stack = STACKS[name]().to(dtype)
    return stack, random(3, layers_of(stack)[0].in_channels, LENGTH, dtype=dtype)


def forward(stack: Streaming, x: Tensor) -> Tensor:
    """Layer by layer: a stack may have quicker ways, which round otherwise."""
    x = x.mT.reshape(len(x), 1, -1) if stack[0].stride != (1,) else x
    with torch.no_grad():
        for layer in stack:
            x = layer(x)
    return x
