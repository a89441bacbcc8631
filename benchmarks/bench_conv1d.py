"""Our convolution kernels against every way in which a user of torch computes the same on a CPU.

    python benchmarks/bench_conv1d.py --tuned-allocator --threads 1 2
    python benchmarks/bench_conv1d.py --only "LM C64" --minutes 1

Every provider's result is compared with a float64 oracle before it is timed; one that is wrong is
not a peer. Then they take turns. "share" is of the ceiling that binds the problem, multiply-adds
or copying, whichever takes longer on this machine, measured before and after the problems. Work
that is skipped counts as done: a share above 100 % is possible.

A whole run replaces the results of this machine and allocator in `results/`; one of a part of the
problems is written only with `--output`.
"""

import argparse
from collections.abc import Sequence
from time import perf_counter

import torch
from ceilings import Ceilings, measure_ceilings
from environment import enter
from problem import Data, Problem
from problems import PROBLEMS
from report import add_run, machine, print_table, results_path
from rows import FULL, HEADER, QUICK, Effort, Row, cells, judge, measure_row, providers_of
from tqdm import tqdm

QUICK_FLOPS = 2e9  # a larger problem has no place in a quick look


def choose(only: Sequence[str], everything: bool, quick: bool) -> list[Problem]:
    """Those whose name contains one of `only`; without it the core ones, or all."""
    if only:
        return [problem for problem in PROBLEMS if any(part in problem.name for part in only)]
    return [
        problem
        for problem in PROBLEMS
        if (problem.core or everything)
        and not (quick and problem.flops(problem.functions[0]) > QUICK_FLOPS)
    ]


def run(
    problems: Sequence[Problem], threads: int, effort: Effort, seconds: float
) -> tuple[list[Row], Ceilings]:
    """Rows of all problems with one number of threads, in about `seconds`."""
    end = perf_counter() + seconds
    ceilings = measure_ceilings(threads)
    work = [(problem, function) for problem in problems for function in problem.functions]
    rows: list[Row] = []
    left = len(work)
    with tqdm(total=left, unit="row", desc=f"{threads} thread(s)", disable=None) as bar:
        for problem in problems:
            providers = providers_of(Data.random(problem), effort.compiled)
            for function in problem.functions:
                bar.set_postfix_str(f"{problem.name}, {function}")
                # Small problems leave some of their share to large ones.
                budget = max(0.0, end - perf_counter()) / left
                rows.append(measure_row(providers, function, threads, effort, budget))
                left -= 1
                bar.update()
    ceilings = ceilings.best(measure_ceilings(threads))
    by_name = {problem.name: problem for problem in problems}
    return [judge(row, by_name[row["problem"]], ceilings) for row in rows], ceilings


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--threads", type=int, nargs="+", default=[1], metavar="N")
    add("--only", nargs="+", default=[], metavar="SUBSTRING", help="of the problems' names")
    add("--all", action="store_true", help="the problems that are not part of every run as well")
    add("--quick", action="store_true", help="few rounds of the smaller problems: a rough look")
    add("--compile", action="store_true", help="torch.compile among the peers (needs a compiler)")
    add("--minutes", type=float, default=9.0, help="to be spent, about")
    add("--tuned-allocator", action="store_true", help="keep freed memory: see environment.py")
    add("--output", metavar="FILE.json", help="where the results are written")
    add("--list", action="store_true", help="the problems' names, and nothing else")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    problems = choose(args.only, args.all, args.quick)
    if args.list:
        return print(*(problem.name for problem in problems), sep="\n")
    if not problems:
        raise SystemExit("no problem of that name: --list --all shows them")
    if argv is None:
        enter(args.tuned_allocator, max(args.threads))
    effort = (QUICK if args.quick else FULL)._replace(compiled=args.compile)
    seconds = (0.0 if args.quick else 60 * args.minutes) / len(args.threads)
    rows: list[Row] = []
    ceilings: list[Ceilings] = []
    with torch.no_grad():
        for threads in args.threads:
            more, ceiling = run(problems, threads, effort, seconds)
            rows += more
            ceilings.append(ceiling)
    say(rows, ceilings)
    output = args.output
    if not (output or args.quick or args.only or args.compile):
        output = results_path(machine()["cpu"])
    if output:
        kept = [ceiling.rounded() for ceiling in ceilings]
        add_run(output, {"machine": machine(), "ceilings": kept, "rows": rows})
        print(f"written to {output}")


def say(rows: Sequence[Row], ceilings: Sequence[Ceilings]) -> None:
    print_table(["problem", *HEADER, "targets"], [cells(row) for row in rows])
    for row in rows:
        for message in row.get("wrong", {}).values():
            print(f"left out of {row['problem']}: {message}")
    for ceiling in ceilings:
        fma = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in ceiling.fma.items())
        print(
            f"ceilings, {ceiling.threads} thread(s): multiply-adds {fma} GFLOP/s, "
            f"sgemm {ceiling.sgemm:,.0f} GFLOP/s, copy {ceiling.copy:.1f} GB/s"
        )
        if not ceiling.trusted:
            print(
                f"  not to be trusted: {ceiling.threads} threads reached {ceiling.scaling:.2f} "
                "times the rate of one, so they shared a core or it was busy"
            )
    print(f"allocator: {machine()['allocator']}")


if __name__ == "__main__":
    main()
