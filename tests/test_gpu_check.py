"""The script that checks a GPU, on a machine without one: what it says, parses and adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_reports  # noqa: E402
import small_calls  # noqa: E402
from gpu_reports import Outcome  # noqa: E402
from processes import Process  # noqa: E402


def process(folder: Path, script: str, seconds: float = 60) -> Process:
    """A shell script that ran, and what became of it."""
    started = Process("script", ["sh", "-c", script], folder / "script.log", os.environ)
    started.wait(seconds)
    return started


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_machine, "toolkit_reason", lambda: None)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--stage", "tests"]) == 2
    assert "there is no GPU that torch" in capsys.readouterr().err


@pytest.mark.usefixtures("no_gpu")
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "NEEDED", {"tests": {"no-such-module": "runs the tests"}})
    _, reason = gpu_machine.missing(["tests"])
    assert reason.startswith("no-such-module is not installed for ")
    assert "runs the tests" in reason
    monkeypatch.setattr(gpu_machine, "version_of", lambda name: "68.1.2")
    assert "setuptools 68.1.2 is too old" in str(gpu_machine.setuptools_reason())


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, refused, arch in ((7, 5), True, ""), ((8, 6), False, "8.6"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        reason = gpu_machine.gpu_reason()
        assert ("capability is 7.5" in str(reason)) if refused else reason is None
        assert refused or gpu_machine.arch_of() == arch
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert gpu_machine.arch_of() == "9.0a"


def test_processes_end_in_time_and_say_how(tmp_path: Path) -> None:
    good = process(tmp_path, "echo said; echo more >&2")
    assert (good.code, good.note(), good.output()) == (0, "", "said\nmore\n")
    assert process(tmp_path, "exit 3").note() == "exit code 3"
    slow = process(tmp_path, "sleep 60", seconds=0.1)
    assert slow.code is None
    assert "out of time" in slow.note()
    none = Process("none", ["/nowhere/program"], tmp_path / "none.log", os.environ)
    assert none.wait(1.0) is None
    assert "/nowhere/program does not start" in none.note()


SUITE = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="{errors}"
failures="{failures}" skipped="{skipped}" tests="{tests}" time="1.5"></testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("code", "counts", "expected"),
    [
        (0, dict(tests=10, failures=0, errors=0, skipped=3), (7, 0, 3)),
        (1, dict(tests=10, failures=2, errors=1, skipped=3), (4, 3, 3)),
        (0, dict(tests=5, failures=0, errors=0, skipped=5), (0, 1, 5)),
        (139, dict(tests=4, failures=0, errors=0, skipped=0), (4, 1, 0)),
    ],
    ids=["passed", "failed", "nothing_ran", "crashed"],
)
def test_tests_are_counted(tmp_path: Path, code: int, counts: dict, expected: tuple) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(SUITE.format(**counts))
    outcome = gpu_reports.junit_outcome("tests", report, process(tmp_path, f"exit {code}"))
    assert outcome[1:4] == expected


def test_tests_that_never_ended_have_failed(tmp_path: Path) -> None:
    ended = process(tmp_path, "sleep 60", seconds=0.1)
    outcome = gpu_reports.junit_outcome("tests", tmp_path / "none.xml", ended)
    assert outcome.failed == 1
    assert "out of time" in outcome.note


RACES = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)"
ERRORS = "========= ERROR SUMMARY: {} errors"
RIGHT = "88 calls, all of them right"


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        ([RIGHT, ERRORS.format(0)], 0, (88, 0, 0)),
        ([RIGHT, ERRORS.format(12)], 0, (88, 12, 0)),
        ([RIGHT, "========= ERROR SUMMARY: 1 error"], 0, (88, 1, 0)),
        ([RIGHT, RACES.format(0, 0)], 0, (88, 0, 0)),
        ([RIGHT, RACES.format(2, 1)], 0, (88, 2, 0)),
        ([ERRORS.format(0)], 1, (0, 1, 0)),
        ([RIGHT], 0, (0, 1, 0)),
        (["========= Error: Device not supported"], 1, (0, 0, 1)),
    ],
)
def test_the_sanitizer_is_understood(
    tmp_path: Path, lines: list[str], code: int, expected: tuple
) -> None:
    said = process(tmp_path, "\n".join([*(f"echo '{line}'" for line in lines), f"exit {code}"]))
    assert gpu_reports.sanitizer_outcome(said)[1:4] == expected


def test_a_benchmark_counts_its_rows(tmp_path: Path) -> None:
    results = tmp_path / "bench.json"
    ended = process(tmp_path, "exit 0")
    assert gpu_reports.bench_outcome("bench", results, ended)[1:4] == (0, 1, 0)
    layers, lm = {"rows": [{}], "skipped": ["another"]}, {"rows": [{}]}
    results.write_text(json.dumps({"layers": layers, "lm": lm}))
    assert gpu_reports.bench_outcome("bench", results, ended)[1:4] == (2, 0, 1)
    wrong = process(tmp_path, "exit 1")
    assert gpu_reports.bench_outcome("bench", results, wrong)[1:4] == (2, 1, 1)


def test_the_summary_adds_up() -> None:
    lines = gpu_reports.summary(
        [Outcome("build", 1, 0, 0, "", 61.4), Outcome("tests", 900, 2, 13, "exit code 1", 120.0)]
    )
    assert lines == [
        "stage  passed  failed  skipped  seconds",
        "build       1       0        0       61",
        "tests     900       2       13      120  exit code 1",
        "FAILED: 2",
    ]
    assert gpu_reports.summary([Outcome("build", 1, 0, 0)])[-1] == "all passed"


def test_stages_share_the_time_that_there_is(tmp_path: Path) -> None:
    check = gpu_check.Check(tmp_path, list(gpu_check.BUDGETS), 530)
    left = [check.left(stage) for stage in gpu_check.BUDGETS]
    assert left == sorted(left)
    assert left[-1] <= 530
    assert gpu_check.Check(tmp_path, ["bench"], 500).left("bench") > 499


def test_nothing_follows_a_build_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "SITE", tmp_path / "site")
    monkeypatch.setattr(gpu_check.Check, "build", lambda self: [Outcome("build", 0, 1, 0)])
    stages = ["build", "tests"]
    outcomes = gpu_check.run(gpu_check.Check(tmp_path, stages, 9), stages)
    assert [outcome.stage for outcome in outcomes] == ["build"]
    (outcome,) = gpu_check.run(gpu_check.Check(tmp_path, ["tests"], 9), ["tests"])
    assert "nothing was built" in outcome.note


def test_the_calls_under_the_sanitizer_are_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVLM_TEST_DEVICE", "cpu")
    monkeypatch.setattr(small_calls, "CASES", small_calls.CASES[:2])
    monkeypatch.setattr(small_calls, "backends_of", lambda device: ["cpp"])
    small_calls.main()
    assert capsys.readouterr().out == "26 calls, all of them right\n"
    monkeypatch.setattr(small_calls, "backends_of", lambda device: [])
    with pytest.raises(SystemExit, match="no backend of ours runs on cpu"):
        small_calls.main()


def test_the_tests_of_a_gpu_pass_on_the_cpu_kernels() -> None:
    """A rehearsal of some: what is about streams and graphs skips."""
    chosen = (
        "empty or autocast or penalty or swapped or capture or stay_in or (same_bits and float)"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    environment = os.environ | {"CONVLM_TEST_DEVICE": "cpu"}
    run = subprocess.run(
        [*command, str(ROOT / "tests/gpu")], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "torch finds no CUDA device" in run.stdout or "this run is about the CPU" in run.stdout
