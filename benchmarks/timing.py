"""Fair timing of callables that do the same work.

Providers take turns within one process, in a new order each round, so that a slow moment of the
machine meets all of them alike; ratios are taken within a round, and medians over the rounds.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

Providers = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]  # for each provider the seconds of one call, once a round


class Quantiles(NamedTuple):
    low: float  # a quarter of the rounds lies below
    median: float
    high: float  # a quarter lies above

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        # One value, of a provider too slow to be asked again, stands for itself.
        several = values if len(values) > 1 else [*values, *values]
        return cls(*statistics.quantiles(several, n=4, method="inclusive"))


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


def measure(
    providers: Providers,
    rounds: int = 30,
    seconds: float = 0.02,
    budget: float = float("inf"),
    least: int = 3,
    slow: float = float("inf"),
) -> Times:
    """Times each provider for about `seconds` in each of up to `rounds` (2 or more).

    No round begins when `budget` seconds have passed, except the first `least`. A provider that
    was `slow` times slower in these than the quickest of those after the first then rests: its
    ratio is known well enough. The first one is never left out.
    """
    begin = perf_counter()
    calls = {name: calibrate(call, seconds) for name, call in providers.items()}
    times: Times = {name: [] for name in providers}
    order, shuffler = list(providers), random.Random(0)
    first, *peers = providers
    for round_ in range(rounds):
        if round_ >= least and perf_counter() - begin > budget:
            break
        if round_ == least and peers:
            medians = {name: statistics.median(times[name]) for name in peers}
            limit = slow * min(medians.values())
            order = [name for name in order if name == first or medians[name] <= limit]
        shuffler.shuffle(order)
        for name in order:
            times[name].append(timed(providers[name], calls[name]))
    return times


def speedup(times: Times, name: str, peer: str) -> Quantiles:
    """How many times faster `name` is than `peer`, over the rounds that both took part in."""
    pairs = zip(times[name], times[peer], strict=False)
    return Quantiles.of([theirs / ours for ours, theirs in pairs])
