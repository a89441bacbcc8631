"""Steps that run ahead of their losses, with the graphs of a GPU replaced by calls."""

import math
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest
import torch

from convlm_kernels.lm import CNN, DilatedCNN, Progress, Schedule, Split, make_data, train
from convlm_kernels.lm import steps as steps_module
from convlm_kernels.lm.steps import (
    Captured,
    CapturedSteps,
    JoinedSteps,
    are_short,
    reason_not_captured,
)
from convlm_kernels.lm.training import TrainingError

DATA = make_data([a + b + a for a in "abcde" for b in "abcde"], context=2)


class Replay(NamedTuple):
    steps: CapturedSteps
    lr: float
    loss: torch.Tensor

    def replay(self) -> None:
        s = self.steps
        self.loss.copy_(s.model.sgd_step(s.split.x, s.split.y, self.lr, s.rows))


class Replayed(CapturedSteps):
    """Counts what would be captured."""

    captured: list[float]

    def capture(self, lr: float) -> Captured:
        self.captured = [*getattr(self, "captured", []), lr]
        loss = torch.zeros(())
        return Captured(Replay(self, lr, loss), loss)


@pytest.fixture(autouse=True)
def everything_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "reason_not_captured", lambda *_: None)


def small_model() -> DilatedCNN:
    torch.manual_seed(0)
    return DilatedCNN(len(DATA.alphabet), context=2, embedding=4)


@pytest.mark.parametrize("steps", [50, 47])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("kind", ["replayed", "joined"])
def test_the_same_batches_losses_and_weights(kind: str, start: int, steps: int) -> None:
    schedule = Schedule(steps, batch_size=4, lr=0.3, final_lr=0.1, lr_drop=25)
    model, twin = small_model(), small_model()
    own, right = Progress.start(7), Progress.start(7)
    train(model, DATA.train, Schedule(start, batch_size=4, lr=0.3), own)
    replayed = Replayed(model, DATA.train, 4, ahead=10)
    joined = JoinedSteps(model, DATA.train, ahead=10)
    ahead = replayed if kind == "replayed" else joined
    seen: list[int] = []
    train(model, DATA.train, schedule, own, lambda progress: seen.append(progress.step), ahead)
    train(twin, DATA.train, schedule, right)
    assert own.losses == right.losses
    assert torch.equal(own.generator.get_state(), right.generator.get_state())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert kind == "joined" or replayed.captured == [0.3, 0.1]
    assert {10, 20, 30, 40, steps} <= set(seen)


def test_after_step_sees_the_weights_of_its_step() -> None:
    """Whenever steps are read as often as it has something to do."""
    model, twin = small_model(), small_model()
    states = []

    def keep(progress: Progress) -> None:
        if progress.step == 10:
            states.append({name: t.clone() for name, t in model.state_dict().items()})

    schedule = Schedule(25, batch_size=4)
    steps = Replayed(model, DATA.train, 4, ahead=5)
    train(model, DATA.train, schedule, Progress.start(7), keep, steps)
    train(twin, DATA.train, Schedule(10, batch_size=4), Progress.start(7))
    (kept,) = states
    assert all(torch.equal(kept[name], t) for name, t in twin.state_dict().items())


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    model, progress = small_model(), Progress.start(7)

    def break_down(progress: Progress) -> None:
        if progress.step == 10:
            with torch.no_grad():
                model.embedding.weight.fill_(math.inf)

    steps = Replayed(model, DATA.train, 4, ahead=10)
    with pytest.raises(TrainingError, match="loss became nan at step 10"):
        train(model, DATA.train, Schedule(50, batch_size=4), progress, break_down, steps)
    assert progress.step == 10


def test_joined_steps_end_where_a_loss_is_not_finite() -> None:
    model, progress = small_model(), Progress.start(7)
    weights = {}

    def break_down(progress: Progress) -> None:
        if progress.step == 10:
            with torch.no_grad():
                model.embedding.weight.fill_(math.inf)
            weights.update({name: t.clone() for name, t in model.state_dict().items()})

    steps = JoinedSteps(model, DATA.train, ahead=10)
    with pytest.raises(TrainingError, match="loss became nan at step 10"):
        train(model, DATA.train, Schedule(50, batch_size=4), progress, break_down, steps)
    assert progress.step == 10
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    for lr in (0.1, 0.2):  # a call each, and the second is not made
        steps.take(torch.zeros(1, dtype=torch.int64), lr)
    assert all(map(math.isnan, steps.losses()))
    assert steps.losses() == []


def test_steps_are_short_by_weights_rows_and_length() -> None:
    model = DilatedCNN()
    assert sum(p.numel() for p in model.parameters()) == 28_108
    tokens = torch.zeros(1, 23, dtype=torch.int64)
    assert are_short(model, Split(tokens, tokens), 32)
    assert not are_short(model, Split(tokens, tokens), 512)
    assert not are_short(model, Split(tokens.repeat(1, 40), tokens), 32)


class Silent(Replayed):
    """As a graph is: its replay changes memory, and nothing of torch's knows."""

    def capture(self, lr: float) -> Captured:
        super().capture(lr)
        graph = SimpleNamespace(replay=lambda: None)
        return Captured(cast(torch.cuda.CUDAGraph, graph), torch.zeros(()))


def test_a_change_by_replays_is_counted() -> None:
    model = small_model()
    steps = Silent(model, DATA.train, 4)
    before = [p._version for p in model.parameters()]
    steps.take(torch.zeros(4, dtype=torch.int64), 0.1)
    assert all(p._version > version for p, version in zip(model.parameters(), before, strict=True))
    assert steps.losses() == [0.0]
    assert steps.losses() == []


def test_what_is_no_longer_as_it_was_captured_is_captured_again() -> None:
    model = small_model()
    steps = Silent(model, DATA.train, 4)
    rows = torch.zeros(4, dtype=torch.int64)
    for lr in (0.1, 0.2, 0.1):
        steps.take(rows, lr)
    assert steps.captured == [0.1, 0.2]
    model.layers[0].weight.data = model.layers[0].weight.data.clone()
    steps.take(rows, 0.1)
    model.embedding.weight.requires_grad_(False)
    steps.take(rows, 0.1)
    steps.take(rows, 0.1)
    assert steps.captured == [0.1, 0.2, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"rows must have the shape \(4,\) .*, got \(1,\)"):
        steps.take(rows[:1], 0.1)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_what_is_not_captured(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind(len(DATA.alphabet), context=2, embedding=4)
    assert reason_not_captured(model, DATA.train) == "it runs on cpu"
    assert not model.steps_on_gpu(DATA.train.x)
    monkeypatch.setattr(steps_module, "reason_not_captured", reason_not_captured)
    with pytest.raises(ValueError, match="the training step cannot be captured: it runs on cpu"):
        CapturedSteps(model, DATA.train, 4)
