"""Who computes a problem: ours first, then every peer that can, each compared with the oracle."""

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from matmul_peers import MatmulPerTap, ShiftedMultiplyAdds, UnfoldMatmul
from oracle import Oracle, WrongResult
from problem import Data, Problem
from providers import (
    ChannelsLast,
    ChannelsLastThroughout,
    Compiled,
    FlippedConv1d,
    OnBackend,
    Ours,
    PaddedConv1d,
    Provider,
    TorchConv1d,
)
from results import significant
from suite import Contest, Setting, Work
from timing import Providers

PEERS: tuple[type[Provider], ...] = (
    TorchConv1d,
    PaddedConv1d,
    FlippedConv1d,
    ChannelsLast,
    ChannelsLastThroughout,
    UnfoldMatmul,
    MatmulPerTap,
    ShiftedMultiplyAdds,
)
COMPILED = (TorchConv1d, MatmulPerTap, ShiftedMultiplyAdds)


def own(data: Data, setting: Setting) -> Provider:
    """On a CPU the operators themselves, elsewhere the backend as a user calls it."""
    return Ours(data) if setting.backend == "cpp" else OnBackend(data, setting.backend)


def providers_of(data: Data, compiled: bool = False) -> list[Provider]:
    peers = [kind(data) for kind in PEERS if kind.can_run(data.problem)]
    if compiled:
        peers += [Compiled(kind(data)) for kind in COMPILED if kind.can_run(data.problem)]
    return [Ours(data), *peers]


class Checked(NamedTuple):
    calls: Providers  # of those that can do it and are right
    first: dict[str, float]  # seconds of the call that was checked
    errors: dict[str, float]
    wrong: dict[str, str]  # what is wrong with the others


def checked(providers: Sequence[Provider], function: str, oracle: Oracle) -> Checked:
    """Raises WrongResult where the first provider, ours, is wrong."""
    calls, first, errors, wrong = {}, {}, {}, {}
    for provider in providers:
        call = getattr(provider, function, None)
        if call is None:
            continue
        begin = perf_counter()
        result = call()
        seconds = perf_counter() - begin
        try:
            errors[provider.name] = oracle.error(provider.name, result)
        except WrongResult as error:
            if provider is providers[0]:
                raise
            wrong[provider.name] = str(error)
            continue
        calls[provider.name], first[provider.name] = call, seconds
    return Checked(calls, first, errors, wrong)


def hopeless(first: dict[str, float]) -> list[str]:
    """Peers whose first call took so long that more of them would only cost time."""
    _, *peers = first
    limit = max(0.25, 4 * min((first[peer] for peer in peers), default=0.0))
    return [peer for peer in peers if first[peer] > limit]


def contest(providers: Sequence[Provider], function: str) -> Contest:
    """The providers on one function, those that are wrong left out and named."""
    found = checked(providers, function, Oracle(function, providers[0].data))
    once = hopeless(found.first)
    notes: dict[str, object] = {"error": significant(found.errors[providers[0].name], 2)}
    if TorchConv1d.name in found.errors:
        notes["error_conv1d"] = significant(found.errors[TorchConv1d.name], 2)
    if found.wrong:
        notes["wrong"] = found.wrong
    return Contest(
        calls={name: call for name, call in found.calls.items() if name not in once},
        first={name: found.first[name] for name in once},
        shown=[provider.name for provider in providers if not provider.counts],
        notes=notes,
    )


def work_of(problem: Problem, function: str) -> Work:
    return Work(problem.flops(function), problem.bytes(function), problem.dtype)
