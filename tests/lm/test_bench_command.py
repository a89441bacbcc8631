"""`convlm bench` finds the benchmarks of a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from convlm_kernels.lm import bench_command
from convlm_kernels.lm.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package is installed somewhere, and the current folder is no checkout."""
    installed = tmp_path / "site-packages/convlm_kernels/lm/bench_command.py"
    monkeypatch.setattr(bench_command, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_beside_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench_command.find_script() == ROOT / "benchmarks/bench.py"


def test_above_the_current_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs")
    assert bench_command.find_script() == ROOT / "benchmarks/bench.py"


def test_nowhere(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "layers", "--minutes", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("convlm: error: the benchmarks are not installed with the package")
    assert "clone the repository" in said


def test_arguments_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def replaces_the_process(program: str, command: list[str]) -> None:
        started.append([program, *command])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execv", replaces_the_process)
    assert main(["bench", "--quick", "cost"]) == 130
    script = str(ROOT / "benchmarks/bench.py")
    assert started == [[sys.executable, sys.executable, script, "--quick", "cost"]]
