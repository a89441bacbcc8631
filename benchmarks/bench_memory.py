"""How much memory does a call need beyond its inputs: results, what backward keeps, and scratch?

    python benchmarks/bench_memory.py

On a CPU each call runs in a fork of its own, so that nothing is left from an earlier one, and every
block is asked of the system: what the process grows by at its peak is all that was allocated and
written to, by torch's allocator or a library's. On a GPU torch's allocator says.
"""

import ctypes
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_cost import PEERS
from matmul_peers import UnfoldMatmul
from oracle import Oracle
from peers import checked, own
from problem import FORWARD, STEP, Data, Problem
from problems import PROBLEMS
from providers import Provider
from suite import Case, Contest, Setting, Suite
from timing import Times

NAMES = (
    "LM C64 K3 d64 L1024",
    "LM C64 K7 d512 L16384",
    "paper 15->15 K51 d8 L60000",
    "KernelBench 76 N1",
    "depthwise C512 K4 d4",
)
SMALL = Problem("small", 1, 8, 8, 40_000, 3)

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
LEAST_BLOCK = 2**16


class Call(NamedTuple):
    call: Callable[[], object]
    small: Callable[[], object]  # the same on next to nothing

    def __call__(self) -> object:
        return self.call()


def in_fork(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises, in a process of its own that knows what this one does."""
    ctypes.CDLL(None).malloc_trim(0)  # or the child would find memory that this process kept
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            said = True, function()
        except BaseException as error:  # of any kind: it is for the parent to raise
            said = False, error
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(said, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        received = pipe.read()
    _, status = os.waitpid(child, 0)
    if not received:
        raise RuntimeError(f"the process that ran the call ended with status {status}")
    good, value = pickle.loads(received)
    if not good:
        raise value
    return value


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def growth(call: Call) -> int:
    """Bytes at the peak beyond what there was before. In a fork: the peak counts from its start."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LEAST_BLOCK)
    call.small()  # loads the code, which is no memory of the call
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def allocated(call: Callable[[], object]) -> int:
    """The same, by torch's allocator on a GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(calls: Mapping[str, Call], *_: object, **__: object) -> Times:
    """Once each: it is the same every time."""
    if torch.cuda.is_initialized():
        return {name: [allocated(call)] for name, call in calls.items()}
    return {name: [in_fork(partial(growth, call))] for name, call in calls.items()}


def providers_of(problem: Problem, setting: Setting) -> list[Provider]:
    data = Data.random(problem, device=str(setting.device))
    kinds = (*PEERS, UnfoldMatmul)
    return [own(data, setting), *(kind(data) for kind in kinds if kind.can_run(problem))]


def contest(providers: list[Provider], small: list[Provider], function: str) -> Contest:
    """Compared in a fork, too: what a first call leaves behind would be missing from the second."""

    def right() -> list[str]:
        return list(checked(providers, function, Oracle(function, providers[0].data)).calls)

    names = right() if torch.cuda.is_initialized() else in_fork(right)
    by_name = {provider.name: provider for provider in small}
    return Contest(
        {
            provider.name: Call(
                getattr(provider, function), getattr(by_name[provider.name], function)
            )
            for provider in providers
            if provider.name in names
        }
    )


def cases(setting: Setting) -> Iterator[Case]:
    problems = [SMALL] if setting.small else [p for p in PROBLEMS if p.name in NAMES]
    for problem in problems:
        if setting.wants(problem.name):
            yield from cases_of(problem, setting)


def cases_of(problem: Problem, setting: Setting) -> Iterator[Case]:
    shortest = problem.dilation * (problem.kernel_size - 1) + 9
    small = replace(problem, batch=1, length=shortest)
    providers = cache(lambda: [providers_of(each, setting) for each in (problem, small)])
    for function in FORWARD, STEP:
        yield Case(
            problem.name, function, lambda function=function: contest(*providers(), function)
        )


SUITE = Suite(
    "memory",
    "Memory",
    "Megabytes that a call needs at its peak beyond its inputs: results, what backward keeps, and "
    "scratch.",
    cases,
    share=0.04,
    unit="MB",
    measure=measure,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
