"""The examples run, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(("steps", "least"), [(1, 200), (40, 20)], ids=["at once", "one by one"])
def test_serve_many(steps: int, least: int) -> None:
    command = [sys.executable, EXAMPLES / "serve_many.py", f"--steps={steps}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "200 requests" in run.stdout
    assert run.stdout.endswith("each as it is alone\n")
    at_once = int(run.stdout.partition("up to ")[2].split()[0])
    assert least <= at_once <= 200
