"""Layers within torch's own wrappers for several processes: DistributedDataParallel and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from cases import random
from ranks import run
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from convlm_kernels import CausalConv1d, Conv1d, DilatedStack, EmbeddingConv1d, StackLayer
from convlm_kernels.optim import sgd_step

PROCESSES, ROWS, CHANNELS, VOCAB = 2, 6, 5, 7


def layers() -> nn.Module:
    return nn.Sequential(
        Conv1d(CHANNELS, 6, 3, stride=2, dilation=2, padding=(3, 1), groups=1, activation="tanh"),
        CausalConv1d(6, 4, 2, dilation=3),
    )


def stack() -> nn.Module:
    gated = (StackLayer(4, 4, 2, dilation=2**i, gated=True, residual=True) for i in range(2))
    return DilatedStack(EmbeddingConv1d(VOCAB, 3, 4, 2, padding="causal"), *gated)


def signal() -> Tensor:
    return random(ROWS, CHANNELS, 11, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.arange(ROWS * 9).remainder(VOCAB).view(ROWS, 9)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "layers": (layers, signal),
    "stack": (stack, tokens),
}


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    return fully_shard(model)


def fsdp_by_layer(model: nn.Module) -> nn.Module:
    for layer in model.children():
        fully_shard(layer)
    return fully_shard(model)


def equals_one_process(rank: int) -> None:
    """After a step on a part of the rows each, the outputs and weights are those of one process."""
    for name, (build, rows) in MODELS.items():
        for wrap in (ddp, fsdp, fsdp_by_layer):
            if wrap is fsdp_by_layer and name == "stack":
                continue  # one operator takes the parameters of all layers
            torch.manual_seed(0)
            whole = build().double()
            torch.manual_seed(0)
            own = build().double()
            split = wrap(own)
            x = rows()
            expected, y = whole(x), split(x.chunk(PROCESSES)[rank])
            torch.testing.assert_close(y, expected.chunk(PROCESSES)[rank])
            expected.square().mean().backward()
            y.square().mean().backward()
            for model in (whole, own):
                sgd_step(model.parameters(), 0.1)
            for updated, right in zip(own.parameters(), whole.parameters(), strict=True):
                if wrap is not ddp:
                    updated = updated.full_tensor()
                torch.testing.assert_close(updated, right)


def test_layers_equal_one_process(tmp_path: Path) -> None:
    run(equals_one_process, PROCESSES, tmp_path)
