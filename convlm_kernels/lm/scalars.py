"""The curves of a training for TensorBoard."""

from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from .errors import importing
from .training import Progress, Schedule, mean

EVERY = 10  # steps; one point is the mean loss of as many


class Scalars:
    """Writes loss, learning rate and speed of a training that is at `step` to `folder`.

    Points of an earlier training there, after that step, are no longer shown from the first new
    point on; before it nothing is written.

    Raises ValueError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with importing("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.make_writer = lambda: SummaryWriter(folder, purge_step=step + 1)
        self.begin = perf_counter()

    @cached_property
    def writer(self) -> Any:
        return self.make_writer()

    def after_step(self, progress: Progress, schedule: Schedule) -> None:
        """Call it after each step, and after the evaluation that may follow it."""
        step = progress.step
        if step % EVERY == 0:
            now = perf_counter()
            self.writer.add_scalar("loss/train", mean(progress.losses[-EVERY:]), step)
            self.writer.add_scalar("learning rate", schedule.lr_at(step - 1), step)
            self.writer.add_scalar("steps a second", EVERY / (now - self.begin), step)
            self.begin = now
        if progress.evaluations and progress.evaluations[-1][0] == step:
            self.writer.add_scalar("loss/val", progress.evaluations[-1][1], step)
