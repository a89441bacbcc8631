"""How does the time of a layer grow with its length, channels, kernel size, dilation and batch?

    python benchmarks/bench_cost.py --only dilation

One size varies, the others are those of BASE. A kernel without cliffs follows its limit.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from matmul_peers import MatmulPerTap
from peers import contest, own, work_of
from problem import FORWARD, STEP, Data, Problem
from providers import ChannelsLast, PaddedConv1d, Provider, TorchConv1d
from suite import Case, Setting, Suite

BASE = Problem("", 2, 64, 64, 2_048, 3, padding="causal")
PEERS: tuple[type[Provider], ...] = (TorchConv1d, PaddedConv1d, ChannelsLast, MatmulPerTap)

SWEEPS = {
    "length": (32, 128, 512, 2_048, 8_192, 32_768),
    "channels": (8, 16, 32, 64, 128, 256, 512),
    "kernel_size": (1, 2, 3, 5, 9, 17, 33),
    "dilation": (1, 4, 16, 64, 256, 512),
    "batch": (1, 2, 4, 8, 16, 32),
}


def at(size: str, value: int) -> Problem:
    sizes = {"in_channels": value, "out_channels": value} if size == "channels" else {size: value}
    return replace(BASE, name=f"{size.replace('_', ' ')} {value:,}", **sizes)


def cases(setting: Setting) -> Iterator[Case]:
    for size, values in SWEEPS.items():
        for value in values[:2] if setting.small else values:
            problem = at(size, value)
            if setting.wants(problem.name):
                yield from cases_of(problem, setting, {"size": size, "at": value})


def cases_of(problem: Problem, setting: Setting, notes: dict[str, object]) -> Iterator[Case]:
    @cache
    def providers() -> list[Provider]:
        data = Data.random(problem, device=str(setting.device))
        return [own(data, setting), *(kind(data) for kind in PEERS if kind.can_run(problem))]

    for function in FORWARD, STEP:
        yield Case(
            problem.name,
            function,
            lambda function=function: contest(providers(), function),
            work_of(problem, function),
            notes=notes,
        )


SUITE = Suite(
    "cost",
    "Cost curves",
    "Time against one size of a layer while the others stay (batch 2, 64 channels, length 2,048, "
    "kernel 3, causal), with the line that this machine cannot go below without skipping work.",
    cases,
    share=0.12,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
