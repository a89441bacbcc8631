"""What does training and evaluating a language model cost, against the same model in plain torch?

    python benchmarks/bench_lm.py --threads 1 --words names

A training step draws rows and does forward, loss, backward and SGD; ours is what `convlm train`
does. The peers are the loop that one writes with torch's layers, the same under `torch.compile`,
and the model by hand as matrix products, channels last. Their losses over a few steps must be ours.

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

from convlm_kernels.lm import load_words, make_data
from convlm_kernels.lm.char_model import loss_of

PEER, BY_HAND, COMPILED = "torch.nn", "matrix products", "torch.compile"
LEARNING_RATE = 0.1
STEPS_COMPARED = 4


class Model(NamedTuple):
    name: str
    build: Callable[[], CharModel]
    batch: int  # of a training step
    rows: Callable[[], Split]


def seed_rows(setting: Setting) -> Split:
    if setting.words:
        return make_data(load_words(setting.words)).train
    return names_like_rows(*[100] * setting.small)


def models(setting: Setting) -> list[Model]:
    seed = cache(partial(seed_rows, setting))
    # Rows enough that a batch seldom has one twice, whose contexts would be shared.
    rows, batch, predictions = (1, 1, 8) if setting.small else (32, 4, 512)
    of_words = f" on {Path(setting.words).stem}" if setting.words else ""
    return [
        Model(f"CNN{of_words}", CNN, 32, seed),
        Model(f"dilated, dense{of_words}", dense, 32, seed),
        Model(f"dilated, shared contexts{of_words}", DilatedCNN, 32, seed),
        Model("10 layers of 128, bytes", byte_model, batch, partial(byte_rows, rows, predictions)),
    ]


def peers_of(model: CharModel, compiled: bool) -> dict[str, nn.Module]:
    peers = {PEER: on_torch_layers(model), BY_HAND: AsMatrixProducts(model)}  # type: ignore[arg-type]
    if compiled:
        torch.compiler.reset()
        peers[COMPILED] = torch.compile(on_torch_layers(model), dynamic=False)
    return peers


class Step:
    """One more training step with each call, from the same start and on the same rows for all."""

    def __init__(self, split: Split, batch: int, step: Callable[[Tensor], float]) -> None:
        self.rows, self.batch, self.step = len(split.x), batch, step
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        return self.step(torch.randint(self.rows, (self.batch,), generator=self.generator))


def our_step(model: CharModel, split: Split) -> Callable[[Tensor], float]:
    def step(rows: Tensor) -> float:
        return model.sgd_step(split.x, split.y, LEARNING_RATE, rows).item()

    return step


def torch_step(model: nn.Module, split: Split) -> Callable[[Tensor], float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    @torch.enable_grad()
    def step(rows: Tensor) -> float:
        loss = loss_of(model(split.x[rows]), split.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def training_step(model: Model, setting: Setting) -> Contest:
    split, ours = model.rows(), seeded(model.build)
    peers = peers_of(ours, setting.compiled)
    steps = {OURS: our_step(ours, split)}
    steps |= {name: torch_step(peer, split) for name, peer in peers.items()}
    calls = {name: Step(split, model.batch, step) for name, step in steps.items()}
    for _ in range(STEPS_COMPARED):
        assert_equal({name: call() for name, call in calls.items()})
    return Contest(calls)


def full_loss(model: Model, setting: Setting) -> Contest:
    """The loss of all rows, without gradients."""
    (x, y), ours = model.rows(), seeded(model.build)
    calls: dict[str, Callable[[], Any]] = {OURS: torch.no_grad()(lambda: ours.loss(x, y))}
    for name, peer in peers_of(ours, setting.compiled).items():
        calls[name] = torch.no_grad()(lambda peer=peer: loss_of(peer(x), y))
    assert_equal({name: float(call()) for name, call in calls.items()})
    return Contest(calls)


def assert_equal(losses: dict[str, float]) -> None:
    """Raises AssertionError where a loss is not that of ours."""
    for name, loss in losses.items():
        message = f"the loss of {name} is {loss}, and of ours {losses[OURS]}"
        torch.testing.assert_close(
            torch.tensor(loss), torch.tensor(losses[OURS]), rtol=1e-5, atol=1e-5, msg=message
        )


def cases(setting: Setting) -> Iterator[Case]:
    for model in models(setting):
        if setting.wants(model.name):
            yield Case(model.name, "training step", partial(training_step, model, setting))
            yield Case(model.name, "full loss", partial(full_loss, model, setting))


SUITE = Suite(
    "lm",
    "Language models",
    "A whole training step, and the loss over all rows: the seed's two models (batch 32) and ten "
    "layers of 128 channels over bytes (context 1,024, batch 4).",
    cases,
    share=0.15,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
