"""Runs the tests of the Triton kernels in Triton's interpreter, on the CPU.

In a process of its own: kernels are compiled or interpreted, as Triton was told when imported.
Where there is a GPU, the same tests also run on it, compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convlm_kernels import backends
from convlm_kernels.geometry import Conv1dGeometry

TESTS = Path(__file__).resolve().parent / "triton_kernels"


def test_the_kernels_in_the_interpreter() -> None:
    reason, _ = backends._triton()
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_without_a_gpu_only_the_interpreter_runs_them() -> None:
    geometry = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)
    assert backends.can_run_triton(geometry, torch.float32, torch.device("cpu")) is not None
