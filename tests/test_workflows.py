"""The workflows call nothing but make targets, and only such as there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_they_call_make_targets_that_exist(workflow: Path) -> None:
    called = re.findall(r"\brun: make ([a-z-]+)", workflow.read_text())
    assert called
    assert set(called) <= TARGETS
