"""Runs the benchmarks of this machine, writes their figures, draws them and puts them on one page.

    python benchmarks/bench.py                       # every suite, within 10 minutes
    python benchmarks/bench.py layers cost --minutes 4 --threads 1 2
    python benchmarks/bench.py layers --only "LM C64"

A suite replaces its earlier figures in the file of this machine. A run of a part (--only, --quick)
is written only with --output.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ceilings import Ceilings, measure_ceilings
from environment import enter
from report import update_documents, write_report
from results import add_runs, machine, results_path
from suite import FULL, QUICK, SUITES, Found, Row, Setting, Work, limits, run, suite_named
from tables import print_ceilings, print_rows


def arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"any of {', '.join(SUITES)} (default all)")
    add("--minutes", type=float, default=7.0, help="to be spent on timing, about (default 7)")
    add("--threads", type=int, nargs="+", default=[1], metavar="N", help="(default 1)")
    add("--only", nargs="+", default=[], metavar="PART", help="cases whose name has one of these")
    add("--all", action="store_true", help="the layers that are not part of every run as well")
    add("--quick", action="store_true", help="few rounds of small cases: does everything work?")
    add("--no-compile", action="store_true", help="leave out torch.compile, which needs a compiler")
    add("--words", metavar="FILE", help='for the models: one word a line, or "names"')
    add("--default-allocator", action="store_true", help="give freed memory back: environment.py")
    add("--output", type=Path, metavar="FILE.json", help="where the figures are written")
    add("--no-report", action="store_true", help="do not draw them")
    add("--list", action="store_true", help="the names of the cases, and nothing else")
    args = parser.parse_args(argv)
    for name in args.suites:
        if name not in SUITES:
            parser.error(f"no suite {name!r}: there are {', '.join(SUITES)}")
    if min(args.threads) < 1:
        parser.error(f"--threads must be positive, got {min(args.threads)}")
    return args


def setting_of(args: argparse.Namespace) -> Setting:
    compiled = not (args.no_compile or args.quick)
    return Setting(args.quick, compiled, args.only, args.all, args.words)


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of each suite, held to the best that was seen before and after all of them."""
    setting, effort = setting_of(args), QUICK if args.quick else FULL
    suites = [suite_named(name) for name in SUITES if not args.suites or name in args.suites]
    seconds = 0.0 if args.quick else 60 * args.minutes / sum(suite.share for suite in suites)
    ceilings = {threads: measure_ceilings(threads) for threads in args.threads}
    found: dict[str, list[Found]] = {}
    for suite in suites:
        counts = args.threads if suite.every_thread_count else args.threads[:1]
        share = seconds * suite.share / len(counts)
        found[suite.name] = [
            one for threads in counts for one in run(suite, setting, threads, effort, share)
        ]
    for threads, before in ceilings.items():
        ceilings[threads] = before.best(measure_ceilings(threads))
    kept = [ceiling.rounded() for ceiling in ceilings.values()]
    return {
        suite.name: {
            "machine": machine(),
            "ceilings": kept,
            "unit": suite.unit,
            "rows": [held_to(ceilings, *one) for one in found[suite.name]],
        }
        for suite in suites
        if found[suite.name]
    }


def held_to(ceilings: Mapping[int, Ceilings], row: Row, work: Work | None) -> Row:
    return row | limits(row, work, ceilings[row["threads"]]) if work else row


def say(runs: Mapping[str, Any]) -> None:
    for name in runs:
        print_rows(suite_named(name), runs[name])
    print_ceilings(next(iter(runs.values())))


def main(argv: Sequence[str] | None = None, program: str = "bench.py") -> None:
    args = arguments(argv, program)
    if args.list:
        setting = setting_of(args)
        for name in args.suites or SUITES:
            names = {case.name: None for case in suite_named(name).cases(setting)}
            print(f"{name}:", *names, sep="\n  ")
        return
    with torch.no_grad():
        runs = run_all(args)
    if not runs:
        raise SystemExit("no case of that name: --list --all shows them")
    say(runs)
    stored = results_path(machine())
    output = args.output or (None if args.quick or args.only else stored)
    if output is None:
        return
    add_runs(output, runs)
    print(f"written to {output}")
    if not args.no_report:
        print(*write_report(output), sep="\n")
        if output.resolve() == stored:
            update_documents()


def main_of(suite: str) -> None:
    """What `bench_<suite>.py` runs."""
    enter_and_run([suite, *sys.argv[1:]], f"bench_{suite}.py")


def enter_and_run(argv: Sequence[str], program: str) -> None:
    """In a process with the allocator and the processors that were asked for."""
    args = arguments(argv, program)
    if not args.list:
        enter(not args.default_allocator, max(args.threads))
    main(argv, program)


if __name__ == "__main__":
    enter_and_run(sys.argv[1:], "bench.py")
