"""Who computes a problem on a GPU: our backends, whichever can run it, and their peers."""

from collections.abc import Callable, Sequence

import torch
from peers import PEERS
from problem import FORWARD, Data, Problem
from providers import Compiled, OnBackend, Provider, TorchConv1d
from torch import Tensor

from convlm_kernels.backends import BACKENDS, PREDICATES


def own_backends(problem: Problem, device: torch.device) -> list[str]:
    return [
        name
        for name in BACKENDS
        if name != "torch" and PREDICATES[name](problem.geometry, problem.dtype, device) is None
    ]


class Deterministic(TorchConv1d):
    """`F.conv1d` held to algorithms that add up in one order, as ours always do."""

    name = "conv1d deterministic"
    counts = False

    def forward(self) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True):
            return super().forward()

    def gradients(self, function: str) -> tuple[Tensor, ...]:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True):
            return super().gradients(function)


def providers_of(
    sets: Sequence[Data], device: torch.device, function: str, compiled: bool
) -> dict[str, list[Provider]]:
    """For each name, ours first, a provider for each set of operands."""
    problem = sets[0].problem
    makers: list[Callable[[Data], Provider]] = [
        lambda data, name=name: OnBackend(data, name)  # type: ignore[misc]
        for name in own_backends(problem, device)
    ]
    makers += [kind for kind in (*PEERS, Deterministic) if kind.can_run(problem)]
    found: dict[str, list[Provider]] = {}
    for maker in makers:
        providers = [maker(data) for data in sets]
        if hasattr(providers[0], function):
            found[providers[0].name] = providers
    if compiled and function == FORWARD:
        one = Compiled(TorchConv1d(sets[0]))  # each set would be compiled anew
        found[one.name] = [one]
    return found
