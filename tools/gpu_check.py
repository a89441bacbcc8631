"""Everything that only a GPU can tell: builds there, tests, looks for wrong accesses, and times.

    make gpu-check                                    # all stages, within nine minutes
    make gpu-check ARGS='--stage build --stage tests'
    make gpu-bench                                    # timing alone, at more leisure

Uses the interpreter that it is run by and what that has installed: nothing is downloaded, and the
package is built into build/gpu-check/site. Logs, the tests' XML and the benchmark's JSON go to
$OUT, or build/gpu-check/results. Exit code: 0; 1 where something failed; 2 where this machine lacks
something, a GPU above all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from gpu_machine import ROOT, arch_of, describe, missing, sanitizer, version_of
from gpu_reports import Outcome, bench_outcome, junit_outcome, sanitizer_outcome, summary
from processes import Process

WORK = ROOT / "build/gpu-check"
SITE = WORK / "site"

# Seconds for each stage. One that needs less leaves the rest to those after it.
BUDGETS = {"build": 150, "tests": 180, "sanitizer": 90, "bench": 110}

SANITIZERS = ("memcheck", "racecheck", "initcheck")


class Check:
    """One run: where its results go, and until when each stage may go on."""

    def __init__(
        self, results: Path, stages: Sequence[str], seconds: float, full: bool = False
    ) -> None:
        self.results, self.full = results, full
        results.mkdir(parents=True, exist_ok=True)
        share = seconds / sum(BUDGETS[stage] for stage in stages)
        self.ends: dict[str, float] = {}
        end = monotonic()
        for stage in stages:
            end += share * BUDGETS[stage]
            self.ends[stage] = end

    def left(self, stage: str) -> float:
        return max(1.0, self.ends[stage] - monotonic())

    def start(self, name: str, command: Sequence[object], **environment: str) -> Process:
        """With the package that was built, and its output in a log among the results."""
        variables = os.environ | {"PYTHONPATH": str(SITE)} | environment
        return Process(name, list(map(str, command)), self.results / f"{name}.log", variables)

    def build(self) -> list[Outcome]:
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index"]
        options = ["--no-build-isolation", "--no-deps", "--upgrade", "--target", SITE, ROOT]
        archs = {"CONVLM_CUDA": "1", "CONVLM_CUDA_ARCHS": arch_of()}
        process = self.start("build", [*pip, *options], **archs)
        code = process.wait(self.left("build"))
        return [Outcome("build", int(code == 0), int(code != 0), 0, process.note())]

    def tests(self) -> list[Outcome]:
        report = self.results / "tests.xml"
        report.unlink(missing_ok=True)
        # -P: the checkout's own package, beside which nothing was built, stays out of the way.
        pytest = [sys.executable, "-P", "-m", "pytest", "-q", "--durations=10", "-p"]
        command = [*pytest, "no:cacheprovider", f"--junitxml={report}", ROOT / "tests/gpu"]
        if version_of("pytest-xdist"):  # what Triton compiles is most of the time, on one core each
            workers = max(1, min(8, (os.cpu_count() or 1) // 2))
            command += ["-n", workers, "--dist", "loadgroup"]
        seconds = self.left("tests")
        process = self.start(
            "tests",
            command,
            CONVLM_GPU_SECONDS=str(0.85 * seconds),
            CUBLAS_WORKSPACE_CONFIG=":4096:8",  # without which torch's own are not deterministic
            TORCHINDUCTOR_COMPILE_THREADS="2",  # for each worker
        )
        process.wait(seconds)
        return [junit_outcome("tests", report, process)]

    def sanitizer(self) -> list[Outcome]:
        """All three tools at once: they wait for the CPU more than for the GPU."""
        # Each tensor an allocation of its own, so that the next one is not what an overrun hits.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        script = [sys.executable, ROOT / "tools/small_calls.py"]
        processes = [
            self.start(tool, [sanitizer(), "--tool", tool, *script], **alone) for tool in SANITIZERS
        ]
        for process in processes:
            process.wait(self.left("sanitizer"))
        return [sanitizer_outcome(process) for process in processes]

    def bench(self) -> list[Outcome]:
        results = self.results / "bench.json"
        results.unlink(missing_ok=True)
        seconds = self.left("bench")
        script = [sys.executable, ROOT / "benchmarks/bench_gpu.py", "--output", results]
        more = ["--all", "--compile"] if self.full else []
        process = self.start("bench", [*script, *more, "--seconds", int(0.8 * seconds)])
        process.wait(seconds)
        return [bench_outcome("bench", results, process)]


def run(check: Check, stages: Sequence[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for stage in stages:
        if stage != "build" and not SITE.is_dir():
            outcomes.append(Outcome(stage, 0, 1, 0, "nothing was built: run --stage build first"))
            continue
        print(f"=== {stage}, up to {check.left(stage):.0f} s", flush=True)
        begin = monotonic()
        method: Callable[[], list[Outcome]] = getattr(check, stage)
        outcomes += [o._replace(seconds=monotonic() - begin) for o in method()]
        if stage == "build" and outcomes[-1].failed:
            break
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--stage", choices=BUDGETS, action="append", help="this one only; may be repeated"
    )
    parser.add_argument("--minutes", type=float, default=8.8, help="for all stages together")
    parser.add_argument("--full", action="store_true", help="every problem and peer in bench")
    default = Path(os.environ.get("OUT") or WORK / "results")
    parser.add_argument("--results", type=Path, default=default, metavar="FOLDER")
    args = parser.parse_args(argv)

    stages = [stage for stage in BUDGETS if not args.stage or stage in args.stage]
    if lacking := missing(stages):
        print("gpu-check cannot run on this machine:", *lacking, sep="\n  ", file=sys.stderr)
        return 2
    print(*describe(), sep="\n", flush=True)
    outcomes = run(Check(args.results, stages, 60 * args.minutes, args.full), stages)
    for outcome in outcomes:
        log = args.results / f"{outcome.stage}.log"
        if outcome.failed and log.is_file():
            print(f"\n=== the end of {log}", *log.read_text().splitlines()[-25:], sep="\n")
    print("", *summary(outcomes), f"logs and results: {args.results}", sep="\n")
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
