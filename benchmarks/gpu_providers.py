"""Who computes a problem on a GPU: our backends, whichever can run it, and their peers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from problem import FORWARD, Data, Problem
from providers import Compiled, Provider, TorchConv1d
from rows import PEERS
from torch import Tensor

from convlm_kernels import conv1d
from convlm_kernels.backends import BACKENDS, PREDICATES


def own_backends(problem: Problem, device: torch.device) -> list[str]:
    return [
        name
        for name in BACKENDS
        if name != "torch" and PREDICATES[name](problem.geometry, problem.dtype, device) is None
    ]


class OnBackend(Provider):
    """Ours, as a user calls it: gradients by autograd, whose forward is not timed."""

    def __init__(self, data: Data, backend: str) -> None:
        super().__init__(data)
        self.name = backend
        self.graphs: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor, activation: str | None) -> Tensor:
        p = self.problem
        settings: Any = dict(stride=p.stride, padding=p.pads, dilation=p.dilation, groups=p.groups)
        return conv1d(x, weight, bias, **settings, activation=activation, backend=self.name)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.convolve(self.x, self.weight, self.bias, self.problem.activation)

    def gradients(self, wanted: str) -> tuple[Tensor, ...]:
        """Of those of "x", "weight" and "bias" that are wanted; nothing else is computed."""
        if wanted not in self.graphs:
            operands = {"x": self.x, "weight": self.weight, "bias": self.bias}
            leaves = {
                name: tensor.detach().requires_grad_(name in wanted.split())
                for name, tensor in operands.items()
            }
            with torch.enable_grad():
                y = self.convolve(*leaves.values(), None)
            self.graphs[wanted] = y, [leaf for leaf in leaves.values() if leaf.requires_grad]
        y, wanted_leaves = self.graphs[wanted]
        return torch.autograd.grad(y, wanted_leaves, self.grad_output, retain_graph=True)

    def grad_input(self) -> Tensor:
        return self.gradients("x")[0]

    def grad_weight(self) -> tuple[Tensor, ...]:
        return self.gradients("weight bias")

    def backward(self) -> tuple[Tensor, ...]:
        return self.gradients("x weight bias")


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
