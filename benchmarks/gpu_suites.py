"""The suites that ask of a GPU what they ask of a CPU, on one of our backends at a time."""

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

import gpu_timing
import torch
from oracle import WrongResult
from suite import FULL, Case, Effort, Found, Setting, Suite, measured, suite_named
from timing import Providers, Times

NAMES = "overhead", "cost", "memory", "determinism"
BY_EVENTS = (
    "cost",
    "determinism",
)  # what overhead asks is a matter of the CPU, and memory takes no time


def suite_for(name: str, device: torch.device) -> Suite:
    """The suite of that name with the right way to measure on a GPU."""

    def measure(
        providers: Providers, rounds: int, seconds: float, budget: float, **_: object
    ) -> Times:
        calls = {name: [call] for name, call in providers.items()}
        times, failed = gpu_timing.measure(calls, device, budget, rounds)
        ours = next(iter(providers))
        if ours in failed:
            raise RuntimeError(failed[ours])
        return times

    suite = suite_named(name)
    return replace(suite, measure=measure) if name in BY_EVENTS else suite


class Skipped(Exception):
    """A case that could not be had here, and why; nothing is wrong."""


def rows_of(
    name: str, setting: Setting, seconds: float, effort: Effort = FULL
) -> Iterator[Found | Skipped | WrongResult]:
    """What becomes of each case within about `seconds`; of those left then, nothing."""
    suite = suite_for(name, setting.device)
    end, left = perf_counter() + seconds, sum(1 for _ in suite.cases(setting))
    for case in suite.cases(setting):
        budget = (end - perf_counter()) / left
        left -= 1
        try:
            yield found(suite, case, setting, effort, budget)
        except (Skipped, WrongResult) as error:
            yield error


def found(suite: Suite, case: Case, setting: Setting, effort: Effort, budget: float) -> Found:
    title = f"{suite.name}: {case.name}, {case.function} on {setting.backend}"
    if budget <= 0:
        raise Skipped(f"{title}: out of time")
    try:
        figures = measured(
            suite, case, effort, budget / 2
        )  # the rest goes into checks and captures
    except torch.cuda.OutOfMemoryError:
        raise Skipped(f"{title}: out of memory") from None
    except Exception as error:  # of any kind: ours could not do what its peers can
        raise WrongResult(f"{title}: {type(error).__name__}: {str(error)[:200]}") from error
    row = {"name": case.name, "function": case.function, "threads": 1, "backend": setting.backend}
    return row | case.notes | figures, case.work
