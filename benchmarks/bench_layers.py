"""How fast is one layer, forward and backward, against every way to compute it in torch?

    python benchmarks/bench_layers.py --threads 1 2
    python benchmarks/bench_layers.py --only "LM C64" --minutes 1

Every provider's result is compared with a float64 oracle before it is timed; one that is wrong is
not a peer. "share" is of the ceiling that binds the problem, multiply-adds or copying, whichever
takes longer on this machine. Work that is skipped counts as done: a share above 100 % is possible.
"""

from collections.abc import Iterator
from functools import cache, partial

import torch
from peers import contest, providers_of, work_of
from problem import Data, Problem
from problems import PROBLEMS
from suite import Case, Contest, Setting, Suite

SMALL_FLOPS = 1e7


def chosen(setting: Setting) -> list[Problem]:
    """Those whose name was asked for; without any the core ones, or all."""
    if setting.only:
        return [problem for problem in PROBLEMS if setting.wants(problem.name)]
    return [
        problem
        for problem in PROBLEMS
        if (problem.core or setting.everything)
        and not (setting.small and problem.flops(problem.functions[0]) > SMALL_FLOPS)
    ]


def cases(setting: Setting) -> Iterator[Case]:
    for problem in chosen(setting):
        yield from cases_of(problem)


def cases_of(problem: Problem) -> Iterator[Case]:
    """One for each function, on the same operands, which exist once they are asked for."""
    providers = cache(lambda: providers_of(Data.random(problem)))
    notes = {"family": problem.family, "dtype": problem.format}

    def measure(function: str) -> Contest:
        torch.backends.mkldnn.conv.fp32_precision = problem.fp32_precision  # for torch too
        return contest(providers(), function)

    for function in problem.functions:
        yield Case(
            problem.name,
            function,
            partial(measure, function),
            work_of(problem, function),
            notes=notes,
        )


SUITE = Suite(
    "layers",
    "Layers",
    "One layer at a time: forward, the gradients, and a whole step through autograd, against every "
    "way to compute the same with torch.",
    cases,
    share=0.5,
    every_thread_count=True,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
