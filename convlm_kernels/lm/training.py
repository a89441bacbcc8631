"""The training loop of the language models, and their losses."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch
from tqdm import tqdm

from .data import Split, real_predictions
from .integers import integer, positive
from .steps import PlainSteps, Steps, Trainable

PRINT_EVERY = 1_000  # steps
BAR_EVERY = 20  # steps; formatting the loss costs more than some models' step does


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite."""


@dataclass(frozen=True)
class Schedule:
    """SGD with batches drawn with replacement; `final_lr` from step `lr_drop` on.

    Raises ValueError for fewer than 0 `steps`, a `batch_size` below 1, and a learning rate that is
    negative or not finite; TypeError for `steps` or a `batch_size` that is no integer.
    """

    steps: int = 20_000
    batch_size: int = 32
    lr: float = 0.1
    final_lr: float = 0.01
    lr_drop: int = 15_000

    def __post_init__(self) -> None:
        if integer("steps", self.steps) < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        positive("batch_size", self.batch_size)
        for argument, rate in (("lr", self.lr), ("final_lr", self.final_lr)):
            if not 0 <= rate < math.inf:
                raise ValueError(f"{argument} must be finite and at least 0, got {rate}")

    def lr_at(self, step: int) -> float:
        return self.lr if step < self.lr_drop else self.final_lr


@dataclass
class Progress:
    """How far a training has come; with the weights, all that is needed to continue it."""

    generator: torch.Generator  # draws the batches; on the CPU, so they are the same everywhere
    losses: list[float] = field(default_factory=list)  # one a step done
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step, val loss
    stop: bool = False  # set from outside to end after the current step

    @classmethod
    def start(cls, seed: int) -> "Progress":
        return cls(torch.Generator().manual_seed(seed))

    @property
    def step(self) -> int:
        return len(self.losses)


def train(
    model: Trainable,
    split: Split,
    schedule: Schedule,
    progress: Progress,
    after_step: Callable[[Progress], None] | None = None,
    steps: Steps | None = None,
) -> None:
    """Trains `model` on `split` (on the model's device) until `schedule.steps` or `progress.stop`.

    `steps` are taken by default one by one; where they run ahead, `after_step` is called and
    `progress` grows only when losses are read, at multiples of `steps.ahead`.

    Raises TrainingError at the first loss that is not finite. That step has changed no weight, but
    steps that ran ahead have.
    """
    model.train()
    steps = steps or PlainSteps(model, split)
    first, begin = progress.step, perf_counter()
    with tqdm(total=schedule.steps, initial=first, disable=None) as bar:
        while progress.step < schedule.steps and not progress.stop:
            ahead = steps.ahead - progress.step % steps.ahead
            count = min(ahead, schedule.steps - progress.step)
            drawn = draw_rows(split, count, schedule.batch_size, progress.generator)
            for step, rows in enumerate(drawn, progress.step):
                steps.take(rows, schedule.lr_at(step))
            for loss in steps.losses():
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss became {loss} at step {progress.step}; "
                        "a lower learning rate or another dtype may help"
                    )
                progress.losses.append(loss)
                bar.update()
            if progress.step % BAR_EVERY == 0:
                bar.set_postfix(loss=f"{mean(progress.losses[-BAR_EVERY:]):.4f}", refresh=False)
            if after_step:
                after_step(progress)
            if progress.step % PRINT_EVERY == 0:
                speed = (progress.step - first) / (perf_counter() - begin)
                recent = mean(progress.losses[-PRINT_EVERY:])
                bar.write(f"step {progress.step:>6,}  loss {recent:.4f}  {speed:,.0f} it/s")


def draw_rows(
    split: Split, steps: int, batch_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Those of each step: the same, however many steps are drawn for at once."""
    size = steps, batch_size
    return torch.randint(len(split.x), size, generator=generator, device="cpu").unbind()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy in nats a prediction."""

    all_positions: float
    real_predictions: float  # each letter and the first stop


@torch.no_grad()
def evaluate(model: Trainable, split: Split, stop: int, chunk: int = 1024) -> Losses:
    """The losses over all rows of `split`, `chunk` rows at a time; `stop` is the stop token.

    Raises ValueError for a `split` or a `chunk` without rows.
    """
    positive("chunk", chunk)
    if not split.y.numel():
        raise ValueError(f"split must have a prediction, got shape {tuple(split.y.shape)}")
    was_training = model.training
    model.eval()
    total = real_total = real_count = 0.0
    for x, y in zip(split.x.split(chunk), split.y.split(chunk), strict=True):
        losses = model.loss(x, y, reduction="none").double()
        real = real_predictions(y, stop)
        total += losses.sum().item()
        real_total += losses[real].sum().item()
        real_count += real.sum().item()
    model.train(was_training)
    return Losses(total / split.y.numel(), real_total / real_count)
