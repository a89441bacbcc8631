"""What does it cost to be promised the same bits, ours against torch's deterministic algorithms?

    python benchmarks/bench_determinism.py

Ours makes no difference between the two, because its order of summation never changes: a result
must be the same bits twice, in another batch and with another number of threads, or nothing is
timed. Torch's switch also fills new tensors, which ours pays as well. Beside them, never as the
best peer, both without the switch.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from oracle import WrongResult
from peers import contest as checked_contest
from peers import own, work_of
from problem import FORWARD, GRAD_WEIGHT, STEP, Data, Problem
from problems import PROBLEMS
from providers import ChannelsLast, TorchConv1d
from suite import Case, Contest, Setting, Suite
from torch import Tensor

NAMES = (
    "seed 100->100 K2 d2 + tanh",
    "LM C64 K3 d4 L1024",
    "LM C256 K3 d4 L1024",
    "paper 15->15 K51 d8 L60000",
    "depthwise C512 K4 d4",
)
SMALL = Problem("small", 3, 4, 4, 40, 3)
FREE = ", free"  # the name of a provider without the switch


def promised(call: Callable[[], object]) -> Callable[[], object]:
    """`call` under torch's deterministic algorithms."""

    def run() -> object:
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(False)

    return run


def assert_determined(data: Data, setting: Setting, function: str) -> None:
    """Raises WrongResult where ours has other bits with more threads, or in another batch."""
    provider = own(data, setting)
    call = getattr(provider, function)
    first, threads = as_list(call()), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    again = as_list(call())
    torch.set_num_threads(threads)
    if not all(torch.equal(one, other) for one, other in zip(first, again, strict=True)):
        raise WrongResult(f"{provider.name}: {function} has other bits the second time")
    alone = own(data.first_sample(), setting).forward()
    if not torch.equal(provider.forward()[:1], alone):
        raise WrongResult(f"{provider.name}: a sample has other bits alone than in its batch")


def as_list(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def contest(data: Data, setting: Setting, function: str) -> Contest:
    assert_determined(data, setting, function)
    kinds = (TorchConv1d, ChannelsLast)
    providers = [own(data, setting), *(kind(data) for kind in kinds if kind.can_run(data.problem))]
    found = checked_contest(providers, function)
    free = {f"{name}{FREE}": call for name, call in found.calls.items()}
    bound = {name: promised(call) for name, call in found.calls.items()}
    return Contest(bound | free, found.first, shown=[*free], notes=found.notes)


def cases(setting: Setting) -> Iterator[Case]:
    problems = [SMALL] if setting.small else [p for p in PROBLEMS if p.name in NAMES]
    for problem in problems:
        if setting.wants(problem.name):
            yield from cases_of(problem, setting)


def cases_of(problem: Problem, setting: Setting) -> Iterator[Case]:
    data = cache(lambda: Data.random(problem, device=str(setting.device)))
    for function in FORWARD, GRAD_WEIGHT, STEP:
        yield Case(
            problem.name,
            function,
            lambda function=function: contest(data(), setting, function),
            work_of(problem, function),
        )


SUITE = Suite(
    "determinism",
    "Determinism",
    "Ours and torch's layers where the same bits are promised: torch with "
    "`use_deterministic_algorithms`, ours as always.",
    cases,
    share=0.05,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
