"""What the stages of tools/gpu_check.py reported, as numbers in one table."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from processes import Process


class Outcome(NamedTuple):
    stage: str
    passed: int
    failed: int
    skipped: int
    note: str = ""
    seconds: float = 0.0


def junit_outcome(stage: str, report: Path, process: Process) -> Outcome:
    """From the XML that pytest writes when it ends."""
    if not report.is_file():
        return Outcome(stage, 0, 1, 0, process.note() or "no report was written")
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, "0")) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    crashed = int(process.code != 0 and not failed)  # for a reason that no test has
    note = process.note() if crashed else ""
    if not passed and not note:
        note, crashed = "no test passed", 1
    return Outcome(stage, passed, failed + crashed, counts["skipped"], note)


def sanitizer_errors(output: str) -> int | None:
    """How many errors or hazards compute-sanitizer found; None where it did not get to say."""
    if found := re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed", output):
        return int(found[1])
    if found := re.search(r"ERROR SUMMARY: (\d+) errors?", output):
        return int(found[1])
    return None


def sanitizer_outcome(process: Process) -> Outcome:
    output = process.output()
    if "Device not supported" in output:
        return Outcome(process.name, 0, 0, 1, "compute-sanitizer does not support this device")
    calls = re.search(r"^(\d+) calls, all of them right", output, re.MULTILINE)
    errors = sanitizer_errors(output)
    if process.problem or calls is None or errors is None:
        return Outcome(process.name, 0, 1, 0, process.note() or "no summary was printed")
    return Outcome(process.name, int(calls[1]), errors, 0)


def bench_outcome(stage: str, results: Path, process: Process) -> Outcome:
    """A row of the results is a problem that was computed right and timed."""
    runs = json.loads(results.read_text()).values() if results.is_file() else []
    rows = sum(len(run["rows"]) for run in runs)
    skipped = sum(len(run.get("skipped", [])) for run in runs)
    failed = int(process.code != 0 or not rows)
    return Outcome(stage, rows, failed, skipped, process.note())


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    header = ("stage", "passed", "failed", "skipped", "seconds", "")
    cells = [
        (o.stage, str(o.passed), str(o.failed), str(o.skipped), f"{o.seconds:.0f}", o.note)
        for o in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for first, *numbers, note in (header, *cells):
        padded = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([first.ljust(widths[0]), *padded, note]).rstrip())
    failed = sum(o.failed for o in outcomes)
    return [*lines, f"FAILED: {failed}" if failed else "all passed"]
