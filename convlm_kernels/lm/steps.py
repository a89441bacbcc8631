"""Steps of a training: a call each, some of them one call, or a CUDA graph that is replayed."""

import copy
import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..optim import mark_changed
from .char_model import CharModel
from .data import Split

READ_EVERY = 20  # steps; each time Python waits for the GPU, or for a call
LONG_STEP = 10**8  # products of a weight and a position: some milliseconds of a processor


class Trainable(Protocol):
    """What the loop needs of a model: that of `CharModel` and of `distributed.DataParallel`."""

    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor: ...
    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor) -> Tensor: ...


class Steps(Protocol):
    """Steps of gradient descent, on rows of a split that are given by number."""

    ahead: int  # how many steps are taken before their losses are asked for

    def take(self, rows: Tensor, lr: float) -> None:
        """One more step; `rows` (batch), int64, is on the CPU."""

    def losses(self) -> list[float]:
        """Of the steps since they were last asked for. One whose loss is not finite has changed no
        parameter.
        """


class PlainSteps:
    """Each is a call of `CharModel.sgd_step`, whose loss is waited for."""

    ahead = 1

    def __init__(self, model: Trainable, split: Split) -> None:
        self.model, self.split = model, split
        self._losses: list[float] = []

    def take(self, rows: Tensor, lr: float) -> None:
        x, y = self.split.x, self.split.y
        self._losses.append(self.model.sgd_step(x, y, lr, rows.to(x.device)).item())

    def losses(self) -> list[float]:
        losses, self._losses = self._losses, []
        return losses


class JoinedSteps:
    """Several are one call of `CharModel.sgd_step`: less Python, the same bits.

    A small model spends as much time in Python as in its steps.
    """

    def __init__(self, model: CharModel, split: Split, ahead: int = READ_EVERY) -> None:
        self.model, self.split, self.ahead = model, split, ahead
        self._taken: list[tuple[Tensor, float]] = []

    def take(self, rows: Tensor, lr: float) -> None:
        self._taken.append((rows, lr))

    def losses(self) -> list[float]:
        """Takes the steps. After a loss that is not finite no further step is taken: NaN."""
        taken, self._taken = self._taken, []
        x, y = self.split.x, self.split.y
        losses: list[float] = []
        for lr, steps in groupby(taken, key=itemgetter(1)):
            rows = torch.stack([rows for rows, _ in steps]).to(x.device)
            losses += self.model.sgd_step(x, y, lr, rows).tolist()
            if not math.isfinite(losses[-1]):
                break
        return losses + [math.nan] * (len(taken) - len(losses))


def are_short(model: CharModel, split: Split, batch_size: int) -> bool:
    """Whether some steps of `model` are soon over, so that nobody waits for what follows them."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights * batch_size * split.x.shape[1] <= LONG_STEP


class Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    loss: Tensor  # which a replay writes


class CapturedSteps:
    """The same steps as CUDA graphs: one launch each, and nobody waits for a loss.

    A graph reads the numbers of its rows from a buffer. The learning rate and the memory of the
    parameters are part of it: each rate has a graph of its own, captured when it first comes up,
    and all are captured again where a parameter lies elsewhere or is frozen.

    Raises:
        ValueError: the step cannot be captured; says why.
    """

    def __init__(
        self, model: CharModel, split: Split, batch_size: int, ahead: int = READ_EVERY
    ) -> None:
        reason = reason_not_captured(model, split)
        if reason is not None:
            raise ValueError(f"the training step cannot be captured: {reason}")
        self.model, self.split, self.ahead = model, split, ahead
        device = split.x.device
        self.rows = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._losses = torch.zeros(ahead, dtype=model.embedding.weight.dtype, device=device)
        self._taken = 0
        self._steps: dict[float, Captured] = {}
        self._parameters: list[tuple[int, bool]] = []  # those of the graphs

    def take(self, rows: Tensor, lr: float) -> None:
        if rows.shape != self.rows.shape:
            raise ValueError(
                f"rows must have the shape {tuple(self.rows.shape)} of the captured batch, "
                f"got {tuple(rows.shape)}"
            )
        self.rows.copy_(rows, non_blocking=True)
        parameters = list(self.model.parameters())
        captured = [(p.data_ptr(), p.requires_grad) for p in parameters]
        if captured != self._parameters:
            self._steps.clear()
            self._parameters = captured
        if lr not in self._steps:
            self._steps[lr] = self.capture(lr)
        step = self._steps[lr]
        step.graph.replay()
        mark_changed(parameters)  # a replay does not say so
        self._losses[self._taken].copy_(step.loss)
        self._taken += 1

    def losses(self) -> list[float]:
        losses: list[float] = self._losses[: self._taken].tolist()
        self._taken = 0
        return losses

    def capture(self, lr: float) -> Captured:
        x, y = self.split.x, self.split.y
        # A twin takes the first step: what loads kernels cannot be captured.
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            copy.deepcopy(self.model).sgd_step(x, y, lr, self.rows)
        torch.cuda.current_stream(x.device).wait_stream(side)
        with torch.cuda.device(x.device):
            graph = torch.cuda.CUDAGraph()
            # Torch's own stream for captures may be of another device; and other threads may do
            # what they like.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                loss = self.model.sgd_step(x, y, lr, self.rows)
        return Captured(graph, loss)


def reason_not_captured(model: CharModel, split: Split) -> str | None:
    """Why the step of `model` cannot be a CUDA graph, or None."""
    if not split.x.is_cuda:
        return f"it runs on {split.x.device.type}"
    if not model.steps_on_gpu(split.x):
        return "it is not one operator of the GPU; backend='cuda' makes it one where it fits"
    return None
