"""Chooses a configuration: the table's, or, with CONVLM_TRITON_AUTOTUNE=1, the fastest of many.

What is explored is also written down, one JSON line for each configuration and problem, into the
file that CONVLM_TRITON_FINDINGS names; ``benchmarks/triton_table.py`` makes a table of it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import triton

from .configurations import Configuration, Key

Run = Callable[[Configuration], None]

_fastest: dict[tuple[Key, Any], Configuration] = {}


def enabled() -> bool:
    return os.environ.get("CONVLM_TRITON_AUTOTUNE") == "1"


def run(key: Key, problem: tuple[Any, ...], launch: Run) -> None:
    """Launches with the configuration for ``key``; ``problem`` tells findings for it apart."""
    if not enabled():
        launch(key.configuration)
        return
    if (key, problem) not in _fastest:
        _fastest[key, problem] = _explore(key, problem, launch)
    launch(_fastest[key, problem])


def candidates(key: Key) -> Iterator[Configuration]:
    """The table's own first, so that a tie leaves it where it is."""
    yield key.configuration
    rows = sorted({key.configuration.rows, min(128, 2 * key.configuration.rows)})
    axes = rows, (64, 128, 256), (16, 32, 64), (4, 8), (2, 3, 4)
    for axis in itertools.product(*axes):
        if (candidate := Configuration(*axis)) != key.configuration:
            yield candidate


def measure(function: Callable[[], None]) -> float:
    """Median milliseconds of a call."""
    return triton.testing.do_bench(function, return_mode="median")


def _explore(key: Key, problem: tuple[Any, ...], launch: Run) -> Configuration:
    times: dict[Configuration, float] = {}
    for candidate in candidates(key):
        try:
            times[candidate] = measure(lambda blocks=candidate: launch(blocks))
        except triton.runtime.errors.OutOfResources:
            continue
    if findings := os.environ.get("CONVLM_TRITON_FINDINGS"):
        with open(findings, "a") as file:
            for configuration, milliseconds in times.items():
                finding = dict(key=key, problem=problem, configuration=configuration)
                print(json.dumps(finding | dict(milliseconds=milliseconds)), file=file)
    return min(times, key=times.__getitem__)
