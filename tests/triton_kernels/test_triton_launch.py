"""Which kernel and which configuration a problem gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convlm_kernels import ops, triton_ops
from convlm_kernels.triton_kernels import exploration, launch
from convlm_kernels.triton_kernels.configurations import Configuration, key

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
KERNELS = ops.OPERATORS["triton"]


def test_which_tensors_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels-last, aligned, and read position by position: nothing else."""
    launched: list[dict] = []

    def note(kernel: object, programs: int, arguments: dict, blocks: Configuration) -> None:
        launched.append(arguments)

    monkeypatch.setattr(launch, "run", note)
    monkeypatch.setattr(launch, "has_descriptors", lambda device: True)

    def described(x: Tensor, stride: int = 1, precision: str = "ieee") -> bool:
        weight = torch.zeros(64, x.shape[1], 3, dtype=x.dtype, device=DEVICE)
        KERNELS.forward(x, weight, None, stride, 0, 0, 1, 1, precision, "none")
        return launched[-1]["DESCRIBED"]

    def last(channels: int, dtype: torch.dtype = torch.float16, start: int = 0) -> Tensor:
        memory = torch.zeros(2 * 20 * channels + start, dtype=dtype, device=DEVICE)
        return memory[start:].view(2, 20, channels).transpose(1, 2)

    assert described(last(64))
    assert described(last(64, torch.float32), precision="tf32")
    assert not described(last(64, torch.float32))
    assert not described(last(64, torch.float64))
    assert not described(last(64), stride=2)
    assert not described(last(68)), "136 bytes from one position to the next"
    assert not described(last(64, start=1)), "not aligned"
    assert not described(last(24)), "few channels"
    assert not described(last(64).contiguous()), "positions last"
    assert not described(last(64)[:, :, :1].expand(-1, -1, 20))


def test_exploration_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings = tmp_path / "findings.jsonl"
    monkeypatch.setenv("CONVLM_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("CONVLM_TRITON_FINDINGS", str(findings))
    monkeypatch.setattr(exploration, "_fastest", {})
    chosen = key("correlation", "ieee", 9)
    two = [chosen.configuration, chosen.configuration._replace(columns=64)]
    monkeypatch.setattr(exploration, "candidates", lambda key: iter(two))
    times = iter([2.0, 1.0])
    monkeypatch.setattr(exploration, "measure", lambda function: function() or next(times))
    launched: list[Configuration] = []
    for _ in range(2):
        exploration.run(chosen, ("a problem",), launched.append)
    assert launched == [*two, two[1], two[1]], "each once, and then the fastest twice"
    assert [json.loads(line)["milliseconds"] for line in findings.read_text().splitlines()] == [
        2,
        1,
    ]


def test_candidates_are_different_and_start_with_the_tables_own() -> None:
    chosen = key("weight_gradient", "half", 100)
    candidates = list(exploration.candidates(chosen))
    assert candidates[0] == chosen.configuration == Configuration(128, 128, 32, 8, 4)
    assert len(set(candidates)) == len(candidates)
