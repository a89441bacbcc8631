"""Our backends on a GPU against every way in which a user of torch computes the same there.

    make gpu-bench
    python benchmarks/bench_gpu.py --only "LM C512" --seconds 60

Every provider's result is compared with a float64 oracle before it is timed. Then they take turns,
each turn a replay of a CUDA graph over operands that together are larger than the cache. "share" is
of the ceiling that binds: a large matrix product of the same kind of numbers, or a large copy. A
run ends when its time is over; what it did not come to is listed. Exit code 1: a result of ours is
wrong.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import gpu_suites
import torch
from gpu_ceilings import GpuCeilings, measure_ceilings
from gpu_generation import generation
from gpu_models import Losses, LossesOfWords, Step, StepOfWords, Work, compare
from gpu_problems import PROBLEMS, SEED
from gpu_providers import own_backends, providers_of
from gpu_timing import measure
from oracle import Oracle, WrongResult
from peers import work_of
from problem import Data, Problem
from providers import Provider
from results import machine, significant, write_json
from suite import Row, Setting, figures, limits, suite_named
from tables import cells, header, print_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from gpu_machine import driver

ROTATED_BYTES = 2**28  # several times the caches of the largest GPUs
MOST_SETS = 8
SUITES_SHARE = 0.4  # of the time of a run of everything


def set_precision(fp32_precision: str) -> None:
    """For our kernels and for every peer's convolutions and matrix products."""
    torch.backends.cudnn.allow_tf32 = fp32_precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = fp32_precision == "tf32"


def sets_of(problem: Problem, device: torch.device) -> list[Data]:
    count = ROTATED_BYTES // max(1, problem.bytes(problem.functions[0])) + 1
    return [Data.random(problem, seed, str(device)) for seed in range(int(min(count, MOST_SETS)))]


def right_ones(
    found: dict[str, list[Provider]], function: str, own: Sequence[str]
) -> tuple[dict[str, list[Provider]], dict[str, str], dict[str, float]]:
    """Those that compute what they should; why the others do not; the errors of all."""
    some = next(iter(found.values()))[0]
    oracle = Oracle(function, some.data)
    right: dict[str, list[Provider]] = {}
    wrong: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name, providers in found.items():
        try:
            errors[name] = oracle.error(name, getattr(providers[0], function)())
            right[name] = providers
        except WrongResult as error:
            wrong[name] = str(error)
        except torch.cuda.OutOfMemoryError:
            if name in own:
                raise  # the problem is too large for this GPU, which is nobody's fault
            wrong[name] = f"{name}: out of memory"
        except Exception as error:  # a peer that cannot do it is no peer; one of ours is wrong
            wrong[name] = f"{name}: {type(error).__name__}: {str(error)[:200]}"
    return right, wrong, errors


def rows_of(
    sets: Sequence[Data], function: str, device: torch.device, budget: float, compiled: bool
) -> tuple[list[Row], dict[str, str]]:
    """A row for each backend of ours, and what was wrong with whom."""
    problem = sets[0].problem
    own = own_backends(problem, device)
    found = providers_of(sets, device, function, compiled)
    right, wrong, errors = right_ones(found, function, own)
    calls = {
        name: [getattr(provider, function) for provider in providers]
        for name, providers in right.items()
    }
    times, failed = measure(calls, device, budget)
    shown = [name for name in times if not right[name][0].counts]
    peers = {name: took for name, took in times.items() if name not in own}
    rows = []
    for backend in own:
        if backend in times:
            row = {"name": problem.name, "function": function, "threads": 1, "backend": backend}
            row |= {"family": "layers", "dtype": problem.format}
            row |= figures({backend: times[backend], **peers}, shown)
            rows.append(row | {"error": significant(errors[backend], 2)})
    return rows, wrong | failed


Measured = tuple[list[Row], list[str], list[str]]  # rows, what is wrong, left out


class Run:
    """Rows as long as there is time."""

    def __init__(self, device: torch.device, seconds: float, compiled: bool) -> None:
        self.device, self.compiled = device, compiled
        self.end = perf_counter() + seconds
        self.rows: dict[str, list[Row]] = {"layers": [], "lm": []}  # of each suite
        self.skipped: list[str] = []
        self.wrong: list[str] = []  # results of ours
        self.left_out: list[str] = []  # peers

    def problem(self, problem: Problem, ceilings: GpuCeilings, budget: float) -> None:
        set_precision(problem.fp32_precision)
        sets = sets_of(problem, self.device)
        own = own_backends(problem, self.device)
        for function in problem.functions:
            share = budget / len(problem.functions)
            rows, wrong = rows_of(sets, function, self.device, share, self.compiled)
            work = work_of(problem, function)
            yardstick = ceilings.of(problem.dtype, problem.fp32_precision)
            self.rows["layers"] += [row | limits(row, work, yardstick) for row in rows]
            for name, message in wrong.items():
                kept = self.wrong if name in own else self.left_out
                kept.append(f"{problem.name}, {function}: {message}")

    def model(self, suite: str, name: str, measured: Callable[[float], Measured]) -> None:
        """The rows of a suite of whole models, from a function of the seconds it may spend."""
        set_precision("ieee")
        seconds = min(10.0, (self.end - perf_counter()) / 4)
        try:
            found = measured(seconds)
        except Exception as error:  # the other figures are still worth having
            self.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            rows, wrong, left_out = found
            if rows:
                self.rows.setdefault(suite, []).extend(rows)
            self.wrong += wrong
            self.left_out += left_out

    def work(self, work: type[Work]) -> None:
        own = own_backends(SEED, self.device)
        self.model("lm", work.function, lambda s: compare(work, own, self.device, s, self.compiled))

    def generation(self) -> None:
        self.model("generation", "generation", lambda s: generation(self.device, s))

    def suite(self, name: str, ceilings: GpuCeilings, seconds: float) -> None:
        """One of gpu_suites on each of our backends, in exact float32."""
        set_precision("ieee")
        self.rows[name] = []
        own = own_backends(SEED, self.device)
        for backend in own:
            setting = Setting(compiled=self.compiled, device=self.device, backend=backend)
            for found in gpu_suites.rows_of(name, setting, seconds / len(own)):
                if isinstance(found, gpu_suites.Skipped):
                    self.skipped.append(str(found))
                elif isinstance(found, WrongResult):
                    self.wrong.append(str(found))
                else:
                    row, work = found
                    of_row = limits(row, work, ceilings.of(work.dtype)) if work else {}
                    self.rows[name].append(row | of_row)

    def all(self, problems: Sequence[Problem], ceilings: GpuCeilings) -> Iterator[None]:
        """Yields after each problem: what there is then is worth keeping."""
        for done, problem in enumerate(problems):
            left = self.end - perf_counter()
            if left <= 0:
                self.skipped += [f"{problem.name}: out of time" for problem in problems[done:]]
                return
            print(f"{problem.name} ...", flush=True)
            try:
                # Half of a fair share: the other half goes into checks, captures and compilers.
                self.problem(problem, ceilings, left / (len(problems) - done) / 2)
            except torch.cuda.OutOfMemoryError:
                self.skipped.append(f"{problem.name}: out of memory")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            yield


def machine_of(device: torch.device) -> dict[str, Any]:
    described = {k: v for k, v in machine().items() if k not in ("isa", "allocator")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return described


def write(path: str | None, described: dict[str, Any], run: Run) -> None:
    """In the shape of a CPU's results; what was skipped is said with the layers."""
    if path is None:
        return
    runs = {
        name: described | {"unit": suite_named(name).unit, "rows": rows}
        for name, rows in run.rows.items()
    }
    runs["layers"]["skipped"] = run.skipped
    write_json(path, runs)


def say(run: Run, ceilings: GpuCeilings) -> None:
    for name, rows in run.rows.items():
        if rows:
            title, *others = header(suite_named(name).unit)
            table = [[row["name"], row["backend"], *cells(row)[1:]] for row in rows]
            print(f"\n{suite_named(name).title}\n")
            print_table([title, "backend", *others], table)
    for line in (*run.left_out, *run.skipped):
        print(f"left out: {line}")
    for line in run.wrong:
        print(f"WRONG: {line}")
    print(ceilings)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="SUBSTRING", help="of the problems' names")
    add("--all", action="store_true", help="more problems, and the suites of gpu_suites.py")
    add("--compile", action="store_true", help="torch.compile among the peers of forward")
    add("--seconds", type=float, default=500.0, help="to be spent, about")
    add("--output", metavar="FILE.json", help="where the results are written")
    add("--device", default="cuda", help="cpu: a rehearsal, whose figures mean nothing")
    args = parser.parse_args(argv)

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench_gpu.py: torch finds no CUDA device", file=sys.stderr)
        return 2
    problems = [
        problem
        for problem in PROBLEMS
        if any(part in problem.name for part in args.only)
        or (not args.only and (problem.core or args.all))
    ]
    torch.backends.cudnn.benchmark = True
    run = Run(device, args.seconds, args.compile)
    # Graphs are not captured on the default stream, and backward runs on the stream of forward.
    stream = torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext()
    with stream:
        ceilings = measure_ceilings(device)
        described = {"machine": machine_of(device), "ceilings": [ceilings.rounded()]}
        if not args.only:
            for work in (Step, Losses, StepOfWords, LossesOfWords):
                run.work(work)
            run.generation()
        if args.all:
            for name in gpu_suites.NAMES:
                run.suite(name, ceilings, args.seconds * SUITES_SHARE / len(gpu_suites.NAMES))
                write(args.output, described, run)
        for _ in run.all(problems, ceilings):
            write(args.output, described, run)
    write(args.output, described, run)
    say(run, ceilings)
    return int(bool(run.wrong))


if __name__ == "__main__":
    sys.exit(main())
