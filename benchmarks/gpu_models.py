"""The seed's dilated model: a training step, and the losses of many rows.

Rows are random letters, of which no context is shared; or padded words, whose contexts repeat.

The whole step is what is timed: forward, loss, backward and the update of the parameters. Ours and
torch's are timed twice, called from Python and captured in a graph.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from gpu_timing import measure
from suite import figures
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import Conv1d
from convlm_kernels.lm import DilatedCNN

BATCH, LENGTH, VOCAB = 32, 23, 28
MANY_ROWS = 1024
MANY_WORDS, BATCH_OF_WORDS = 16_384, 4096
LR = 0.1
EAGER, COMPILED = ", eager", "torch, compiled"


class Work(Protocol):
    function: str

    def __init__(self, backend: str, device: torch.device, compiled: bool = False) -> None: ...

    def __call__(self) -> Tensor: ...


def letters(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length))


def words(rows: int, length: int) -> Tensor:
    """As of a list of names: 8 starts, 3 to 9 letters, some of which are rare, and stops."""
    likelihoods = 1 / torch.arange(1.0, VOCAB - 1)
    tokens = likelihoods.multinomial(rows * length, replacement=True).view(rows, length)
    tokens[:, :8] = VOCAB - 2
    ends = 8 + torch.randint(3, 10, (rows, 1))
    return tokens.where(torch.arange(length) < ends, VOCAB - 1)


class OnModel:
    """A model and rows that are the same for every provider."""

    draw = staticmethod(letters)

    def __init__(self, backend: str, device: torch.device, rows: int, compiled: bool) -> None:
        torch.manual_seed(0)
        self.model = DilatedCNN()
        self.model.share_contexts = self.draw is words
        for module in self.model.modules():
            if isinstance(module, Conv1d):
                module.backend = backend
        self.model.to(device)
        self.parameters = list(self.model.parameters())
        context = self.model.context
        tokens = self.draw(rows, LENGTH + 1).to(device)
        self.x, self.y = tokens[:, :-1].contiguous(), tokens[:, context:].contiguous()
        self.loss: Callable[[str], Tensor] = self.plain_loss
        if compiled:
            self.loss = torch.compile(self.plain_loss, mode="reduce-overhead", fullgraph=True)

    def plain_loss(self, reduction: str) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y, reduction=reduction)


class Step(OnModel):
    """One more step with each call, from the same start for every provider."""

    function = "training step"

    def __init__(self, backend: str, device: torch.device, compiled: bool = False) -> None:
        super().__init__(backend, device, self.rows(), compiled)
        self.in_one_call = self.model.steps_on_gpu(self.x)

    def rows(self) -> int:
        return BATCH

    def __call__(self) -> Tensor:
        if self.in_one_call:
            return self.model.sgd_step(self.x, self.y, LR)
        with torch.enable_grad():
            loss = self.loss("mean")
            gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_add_(self.parameters, list(gradients), alpha=-LR)
        return loss.detach()


class Losses(OnModel):
    function = f"losses of {MANY_ROWS:,} rows"

    def __init__(self, backend: str, device: torch.device, compiled: bool = False) -> None:
        super().__init__(backend, device, self.rows(), compiled)
        self.fused = backend != "torch"

    def rows(self) -> int:
        return MANY_ROWS

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.model.loss(self.x, self.y, "none") if self.fused else self.loss("none")


class StepOfWords(Step):
    function = f"training step, {BATCH_OF_WORDS:,} words"
    draw = staticmethod(words)

    def rows(self) -> int:
        return BATCH_OF_WORDS


class LossesOfWords(Losses):
    function = f"losses of {MANY_WORDS:,} words"
    draw = staticmethod(words)

    def rows(self) -> int:
        return MANY_WORDS


def same_losses(one: Work, other: Work, steps: int = 3) -> bool:
    return all(torch.allclose(one().double(), other().double(), rtol=1e-4) for _ in range(steps))


def compare(
    work: type[Work], backends: list[str], device: torch.device, budget: float, compiled: bool
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What each backend takes for it, and its ratios to torch's; whose losses are wrong; and what
    could not be timed."""
    wrong = [
        f"{work.function}: losses on {backend} are not those of torch"
        for backend in backends
        if not same_losses(work(backend, device), work("torch", device))
    ]
    names = *backends, "torch"
    captured = {name: [work(name, device)] for name in names}
    plain = {f"{name}{EAGER}": [work(name, device)] for name in names}
    if compiled:
        plain[COMPILED] = [work("torch", device, compiled=True)]
    times, failed = measure(captured, device, budget / 2)
    slower, failed_too = measure(plain, device, budget / 2, graphs=False)
    peers = {"torch, captured": times["torch"]} if "torch" in times else {}
    peers |= {name: took for name, took in slower.items() if name.startswith("torch")}
    rows = [
        {
            "name": "dilated",
            "function": f"{work.function}{called}",
            "threads": 1,
            "backend": backend,
            **figures({backend: took[f"{backend}{how}"], **peers}),
        }
        for called, how, took in (("", "", times), (", called from Python", EAGER, slower))
        for backend in backends
        if f"{backend}{how}" in took
    ]
    return rows, wrong, [f"{work.function}: {text}" for text in (failed | failed_too).values()]
