"""What does training and evaluating a language model cost, against the same model in plain torch?

    python benchmarks/bench_lm.py --threads 1 --words names

A training step draws rows and does forward, loss, backward and SGD; ours is what `convlm train`
does, which takes 20 steps in a call where they are short. The peers are the loop that one writes
with torch's layers, the same under `torch.compile`, and the model by hand as matrix products,
channels last. Their losses over a few steps must be ours.

The seed's rows are random letters, or with --words those of a list. How much shared contexts save
is a matter of the words: random letters repeat the least.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from models import (
    CNN,
    AsMatrixProducts,
    CharModel,
    DilatedCNN,
    Split,
    byte_model,
    byte_rows,
    dense,
    names_like_rows,
    on_torch_layers,
    seeded,
)
from suite import OURS, Case, Contest, Setting, Suite
from torch import Tensor, nn

from convlm_kernels.lm import JoinedSteps, PlainSteps, load_words, make_data
from convlm_kernels.lm.char_model import loss_of
from convlm_kernels.lm.steps import READ_EVERY, Steps, are_short
from convlm_kernels.lm.training import draw_rows

PEER, BY_HAND, COMPILED = "torch.nn", "matrix products", "torch.compile"
LEARNING_RATE = 0.1
STEPS_COMPARED = 4


class Model(NamedTuple):
    name: str
    build: Callable[[], CharModel]
    batch: int  # of a training step
    rows: Callable[[], Split]
    together: int = 1  # the training steps of a call: some, where they are short


def seed_rows(setting: Setting) -> Split:
    if setting.words:
        return make_data(load_words(setting.words)).train
    return names_like_rows(*[100] * setting.small)


def models(setting: Setting) -> list[Model]:
    seed = cache(partial(seed_rows, setting))
    # Rows enough that a batch seldom has one twice, whose contexts would be shared.
    rows, batch, predictions = (1, 1, 8) if setting.small else (32, 4, 512)
    together = 2 if setting.small else READ_EVERY
    of_words = f" on {Path(setting.words).stem}" if setting.words else ""
    return [
        Model(f"CNN{of_words}", CNN, 32, seed, together),
        Model(f"dilated, dense{of_words}", dense, 32, seed, together),
        Model(f"dilated, shared contexts{of_words}", DilatedCNN, 32, seed, together),
        Model("10 layers of 128, bytes", byte_model, batch, partial(byte_rows, rows, predictions)),
    ]


def peers_of(model: CharModel, compiled: bool) -> dict[str, nn.Module]:
    peers = {PEER: on_torch_layers(model), BY_HAND: AsMatrixProducts(model)}  # type: ignore[arg-type]
    if compiled:
        torch.compiler.reset()
        peers[COMPILED] = torch.compile(on_torch_layers(model), dynamic=False)
    return peers


class TakeSteps:
    """Some more training steps with each call, from the same start and on the same rows for all."""

    def __init__(self, steps: Steps, split: Split, batch: int, count: int) -> None:
        self.steps, self.split, self.batch, self.count = steps, split, batch, count
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> list[float]:
        for rows in draw_rows(self.split, self.count, self.batch, self.generator):
            self.steps.take(rows, LEARNING_RATE)
        return self.steps.losses()


class TorchSteps:
    """The loop that one writes with torch."""

    def __init__(self, model: nn.Module, split: Split) -> None:
        self.model, self.split = model, split
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        self._losses: list[float] = []

    @torch.enable_grad()
    def take(self, rows: Tensor, lr: float) -> None:
        loss = loss_of(self.model(self.split.x[rows]), self.split.y[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._losses.append(loss.item())

    def losses(self) -> list[float]:
        losses, self._losses = self._losses, []
        return losses


def training_step(model: Model, setting: Setting) -> Contest:
    split, ours = model.rows(), seeded(model.build)
    joined = are_short(ours, split, model.batch)
    assert joined == (model.together > 1), f"{model.name} is not timed as it is trained"
    peers = peers_of(ours, setting.compiled)
    steps: dict[str, Any] = {OURS: JoinedSteps(ours, split) if joined else PlainSteps(ours, split)}
    steps |= {name: TorchSteps(peer, split) for name, peer in peers.items()}
    calls = {
        name: TakeSteps(taken, split, model.batch, model.together) for name, taken in steps.items()
    }
    for _ in range(max(1, STEPS_COMPARED // model.together)):
        assert_equal({name: call() for name, call in calls.items()})
    return Contest(calls)


def full_loss(model: Model, setting: Setting) -> Contest:
    """The loss of all rows, without gradients."""
    (x, y), ours = model.rows(), seeded(model.build)
    calls: dict[str, Callable[[], Any]] = {OURS: torch.no_grad()(lambda: ours.loss(x, y))}
    for name, peer in peers_of(ours, setting.compiled).items():
        calls[name] = torch.no_grad()(lambda peer=peer: loss_of(peer(x), y))
    assert_equal({name: [float(call())] for name, call in calls.items()})
    return Contest(calls)


def assert_equal(losses: dict[str, list[float]]) -> None:
    """Raises AssertionError where a loss is not that of ours."""
    for name, loss in losses.items():
        message = f"the losses of {name} are {loss}, and of ours {losses[OURS]}"
        torch.testing.assert_close(
            torch.tensor(loss), torch.tensor(losses[OURS]), rtol=1e-5, atol=1e-5, msg=message
        )


def cases(setting: Setting) -> Iterator[Case]:
    for model in models(setting):
        if setting.wants(model.name):
            step = partial(training_step, model, setting)
            yield Case(model.name, "training step", step, times=model.together)
            yield Case(model.name, "full loss", partial(full_loss, model, setting))


SUITE = Suite(
    "lm",
    "Language models",
    "A whole training step, and the loss over all rows: the seed's two models (batch 32) and ten "
    "layers of 128 channels over bytes (context 1,024, batch 4).",
    cases,
    share=0.15,
    every_thread_count=True,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
