"""A training step of the seed's dilated model: on our backends, captured in one graph, and torch's.

The whole step is what is timed: forward, loss, backward and the update of the parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from gpu_timing import measure
from suite import figures
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import Conv1d
from convlm_kernels.lm import DilatedCNN

BATCH, LENGTH, VOCAB = 32, 23, 28
EAGER, COMPILED = "torch, eager", "torch, compiled"


class Step:
    """One more step with each call, from the same start for every provider."""

    def __init__(self, backend: str, device: torch.device, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.model = DilatedCNN()
        for module in self.model.modules():
            if isinstance(module, Conv1d):
                module.backend = backend
        self.model.to(device)
        self.parameters = list(self.model.parameters())
        context = self.model.context
        self.x = torch.randint(VOCAB, (BATCH, LENGTH), device=device)
        self.y = torch.randint(VOCAB, (BATCH, LENGTH - context + 1), device=device)
        self.loss: Callable[[], Tensor] = self.plain_loss
        if compiled:
            self.loss = torch.compile(self.plain_loss, mode="reduce-overhead", fullgraph=True)

    def plain_loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def __call__(self) -> Tensor:
        with torch.enable_grad():
            loss = self.loss()
            gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_add_(self.parameters, list(gradients), alpha=-0.1)
        return loss.detach()


def same_losses(one: Step, other: Step, steps: int = 3) -> bool:
    return all(torch.allclose(one().double(), other().double(), rtol=1e-4) for _ in range(steps))


def training_step(
    backends: list[str], device: torch.device, budget: float, compiled: bool
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What each backend's step takes, and its ratios to torch's; whose losses are wrong; and what
    could not be timed."""
    wrong = [
        f"training step: losses on {backend} are not those of torch"
        for backend in backends
        if not same_losses(Step(backend, device), Step("torch", device))
    ]
    captured = {name: [Step(name, device)] for name in (*backends, "torch")}
    plain = {EAGER: [Step("torch", device)]}
    if compiled:
        plain[COMPILED] = [Step("torch", device, compiled=True)]
    times, failed = measure(captured, device, budget / 2)
    slower, failed_too = measure(plain, device, budget / 2, graphs=False)
    peers = {"torch, captured": times["torch"]} if "torch" in times else {}
    rows = [
        {
            "name": "dilated, batch 32",
            "function": "training step",
            "threads": 1,
            "backend": backend,
            **figures({backend: times[backend], **peers, **slower}),
        }
        for backend in backends
        if backend in times
    ]
    return rows, wrong, [f"training step: {text}" for text in (failed | failed_too).values()]
