"""Fair timing of callables that do the same work.

Providers take turns within one process, in a new order each round, so that a slow moment of the
machine meets all of them alike; ratios are taken within a round, and medians over the rounds.
"""

import json
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

Providers = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]  # for each provider the seconds of one call, once a round


class Quantiles(NamedTuple):
    low: float  # a quarter of the rounds lies below
    median: float
    high: float  # a quarter lies above

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def calibrate(call: Callable[[], object], seconds: float) -> int:
    """How many calls take about `seconds`; warms up on the way."""
    calls = 1
    while (elapsed := timed(call, calls) * calls) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / elapsed))


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call, as the mean of `calls` in a row."""
    begin = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - begin) / calls


def measure(providers: Providers, rounds: int = 30, seconds: float = 0.02) -> Times:
    """Times each provider for about `seconds` in each of `rounds` (2 or more)."""
    calls = {name: calibrate(call, seconds) for name, call in providers.items()}
    times: Times = {name: [] for name in providers}
    order, shuffler = list(providers), random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            times[name].append(timed(providers[name], calls[name]))
    return times


def speedup(times: Times, name: str, peer: str) -> Quantiles:
    """How many times faster `name` is than `peer`, round by round."""
    pairs = zip(times[name], times[peer], strict=True)
    return Quantiles.of([theirs / ours for ours, theirs in pairs])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells))


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write_json(path: str, results: Mapping[str, Any]) -> None:
    Path(path).write_text(json.dumps(results, indent=1) + "\n")
