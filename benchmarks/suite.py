"""A question that the benchmarks ask: its cases, who takes part in each, and the resulting rows.

A suite is one file, `bench_<name>.py`, with a `SUITE`. Its cases make the contestants, ours first,
and compare what they compute before anything is timed; `run` lets them take turns.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import Any, NamedTuple

import torch
from results import significant
from timing import Providers, Quantiles, Times, measure, speedup
from tqdm import tqdm

OURS = "ours"
UNITS = {"us": 1e6, "MB": 1e-6}  # of a second, of a byte

# In this order: the memory of a call is that of a process that has done little before.
SUITES = "memory", "layers", "lm", "generation", "cost", "overhead", "determinism"

Row = dict[str, Any]


class Effort(NamedTuple):
    """How much is asked; `small` are cases that only show that everything works."""

    rounds: int = 30  # at most
    seconds: float = 0.02  # of one provider in one round
    small: bool = False


FULL, QUICK = Effort(), Effort(rounds=3, seconds=0.002, small=True)


class Work(NamedTuple):
    """What a case cannot do without: the slower of both, at this machine's best, is its limit."""

    flops: float
    bytes: float
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Contest:
    """Calls that do the same work, all of them right; the first is ours."""

    calls: Providers
    first: Mapping[str, float] = field(default_factory=dict)  # seconds of those asked only once
    shown: Sequence[str] = ()  # those that are never the best peer
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the row


@dataclass(frozen=True)
class Case:
    name: str
    function: str
    make: Callable[[], Contest]  # raises where ours is wrong
    work: Work | None = None
    times: int = 1  # how often a call does what the row is about
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the row


class Setting(NamedTuple):
    """What the cases of a suite are made for."""

    small: bool = False
    compiled: bool = True  # torch.compile among the peers
    only: Sequence[str] = ()  # parts of names: cases of other names are left out
    everything: bool = False  # also the cases that are not part of every run
    words: str | None = None  # of the language models, instead of random letters
    device: torch.device = torch.device("cpu")
    backend: str = "cpp"  # of ours

    def wants(self, name: str) -> bool:
        return not self.only or any(part in name for part in self.only)


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    question: str  # what the figures answer, in a sentence or two
    cases: Callable[[Setting], Iterable[Case]]
    share: float  # of the time of a whole run
    unit: str = "us"  # or MB
    every_thread_count: bool = False  # otherwise the first one only
    measure: Callable[..., Times] = measure


def suite_named(name: str) -> Suite:
    return import_module(f"bench_{name}").SUITE


Found = tuple[Row, Work | None]


def run(
    suite: Suite, setting: Setting, threads: int, effort: Effort, seconds: float
) -> list[Found]:
    """The rows of a suite, in about `seconds`, as far as three rounds of everything fit into it."""
    torch.set_num_threads(threads)
    end = perf_counter() + seconds
    left = sum(1 for _ in suite.cases(setting))
    found: list[Found] = []
    with tqdm(
        total=left, unit="row", desc=f"{suite.name}, {threads} thread(s)", disable=None
    ) as bar:
        for case in suite.cases(setting):
            bar.set_postfix_str(f"{case.name}, {case.function}")
            # Small problems leave some of their share to large ones.
            budget = max(0.0, end - perf_counter()) / left
            row = {"name": case.name, "function": case.function, "threads": threads}
            found.append((row | case.notes | measured(suite, case, effort, budget), case.work))
            left -= 1
            bar.update()
    return found


def measured(suite: Suite, case: Case, effort: Effort, budget: float) -> Row:
    contest = case.make()
    times = dict(suite.measure(contest.calls, effort.rounds, effort.seconds, budget, slow=2.0))
    times |= {name: [took] for name, took in contest.first.items()}
    each = {name: [took / case.times for took in series] for name, series in times.items()}
    return figures(each, contest.shown, UNITS[suite.unit]) | contest.notes


def figures(times: Times, shown: Sequence[str] = (), scale: float = 1e6) -> Row:
    """What was measured: quartiles of ours, in microseconds or by another scale, and how many times
    as much the others took."""
    ours, *peers = times
    ratios = {peer: speedup(times, ours, peer) for peer in peers}
    eligible = [peer for peer in peers if peer not in shown]
    best = min(eligible, key=lambda peer: ratios[peer].median, default=None)
    return {
        "took": [significant(scale * value) for value in Quantiles.of(times[ours])],
        "ratios": {peer: significant(ratio.median, 3) for peer, ratio in ratios.items()},
        "best": best,
        "ratio": [significant(ratio, 3) for ratio in ratios[best]] if best else None,
    }


def limits(row: Row, work: Work, ceilings: Any) -> Row:
    """Rates, the time that this machine cannot go below without skipping work, and its share."""
    by_arithmetic = work.flops / ceilings.peak(work.dtype) / 1e3  # microseconds
    by_copying = work.bytes / ceilings.copy / 1e3
    limit, took = max(by_arithmetic, by_copying), row["took"][1]
    return {
        "gflops": significant(work.flops / took / 1e3),
        "gbytes": significant(work.bytes / took / 1e3),
        "bound": "FMA" if by_arithmetic >= by_copying else "copy",
        "limit": significant(limit),
        "share": significant(limit / took, 3),
    }
