"""Layers whose length is split over processes, against the same layers unsplit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import random
from ranks import run

from convlm_kernels import Conv1d
from convlm_kernels.parallel import SequenceParallelConv1d

# Layer arguments, and how many positions each process holds.
SPLITS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "causal": (dict(kernel_size=3, dilation=4, padding="causal"), [20, 20, 20]),
    "same, even kernel": (dict(kernel_size=4, padding="same"), [10, 17, 5]),
    "halo past the neighbour": (dict(kernel_size=3, dilation=9, padding="causal"), [3, 30, 4, 2]),
    "no padding": (dict(kernel_size=3, dilation=2), [9, 8, 7]),
    "more outputs than positions": (dict(kernel_size=2, padding=(3, 6)), [5, 6]),
    "outputs of padding alone": (dict(kernel_size=3, dilation=4, padding=(40, 3)), [6, 30]),
    "strided": (dict(kernel_size=5, stride=3, dilation=2, padding=(4, 2)), [10, 11, 13]),
    "groups and an activation": (
        dict(kernel_size=3, padding="same", groups=2, activation="tanh"),
        [6, 9],
    ),
}
CHANNELS = 4, 6


def equals_unsplit(rank: int, processes: int, names: list[str]) -> None:
    for name in names:
        arguments, lengths = SPLITS[name]
        split, whole = (
            kind(*CHANNELS, **arguments, dtype=torch.float64)
            for kind in (SequenceParallelConv1d, Conv1d)
        )
        with torch.no_grad():
            for own, other in zip(split.parameters(), whole.parameters(), strict=True):
                own.copy_(other.copy_(random(*other.shape, dtype=torch.float64)))
        x = random(2, CHANNELS[0], sum(lengths), dtype=torch.float64).requires_grad_()
        expected = whole(x)
        gradient = random(*expected.shape, dtype=torch.float64, seed=1)
        x_grad, *right = torch.autograd.grad(expected, [x, *whole.parameters()], gradient)

        part = x.detach().split(lengths, 2)[rank].requires_grad_()
        y = split(part)
        outputs = [None] * processes
        dist.all_gather_object(outputs, y.shape[2])
        torch.testing.assert_close(y, expected.split(outputs, 2)[rank])
        part_grad, *grads = torch.autograd.grad(
            y, [part, *split.parameters()], gradient.split(outputs, 2)[rank].contiguous()
        )
        torch.testing.assert_close(part_grad, x_grad.split(lengths, 2)[rank])
        torch.testing.assert_close(grads, right)
        assert torch.equal(split(part, lengths), y)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_equals_the_unsplit_layer(processes: int, tmp_path: Path) -> None:
    names = [name for name, (_, lengths) in SPLITS.items() if len(lengths) == processes]
    assert names
    run(equals_unsplit, processes, tmp_path, processes, names)


def refuses(rank: int) -> None:
    layer = SequenceParallelConv1d(4, 6, 3, stride=8)
    with pytest.raises(ValueError, match="process 1 holds 2 of 11 positions, in which no output"):
        layer(random(1, 4, 9 if rank == 0 else 2))
    with pytest.raises(RuntimeError, match=r"got shape \(4, 9\)"):
        layer(random(4, 9))
    wrong: list[tuple[type[Exception], list[Any], str]] = [
        (ValueError, [], r"lengths must be one for each of 2 processes, got \[\]"),
        (ValueError, [9, 9, 9], r"for each of 2 processes, got \[9, 9, 9\]"),
        (TypeError, [9, 9.0], r"lengths\[1\] must be an integer, got 9.0"),
        (ValueError, [8, 8], rf"lengths\[{rank}\] must be the length of .* input, 9, got 8"),
        (ValueError, [9, -9] if rank == 0 else [-9, 9], "lengths must not be negative, got "),
    ]
    for error, lengths, message in wrong:
        with pytest.raises(error, match=message):
            layer(random(1, 4, 9), lengths)


def test_what_cannot_be_split_is_said(tmp_path: Path) -> None:
    run(refuses, 2, tmp_path)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros'"):
        SequenceParallelConv1d(4, 6, 3, padding_mode="reflect")
    with pytest.raises(RuntimeError, match="torch.distributed is not initialised"):
        SequenceParallelConv1d(4, 6, 3)(random(1, 4, 8))
