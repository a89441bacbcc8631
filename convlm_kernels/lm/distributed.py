"""Data-parallel training in the processes that `torchrun` starts.

Every process draws the same global batch and takes its share of the rows, and the gradients are
averaged over all: so the training is that of one process, but for the order of the sums.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..optim import sgd_step
from .char_model import CharModel
from .checkpoint import FILE, Checkpoint
from .models import build_model
from .processes import STRATEGIES, Result
from .sharded import write_sharded
from .together import leave, together
from .training import TrainingError


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the other processes, and gives the device of this one: a GPU for each, or the CPU.

    Only the first process is heard. Where training fails, the group is left as it is: to take it
    down, NCCL would wait for processes that may never come.
    """
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    with open(os.devnull, "w") as nowhere:
        if dist.get_rank() == 0:
            yield device
        else:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                try:
                    yield device
                except TrainingError:  # that of all processes, since the loss is
                    raise SystemExit(2) from None
    leave()


class DataParallel(nn.Module):
    """A language model that is trained by all processes: loss and steps as `CharModel` has them.

    "ddp" keeps the whole model in each process (`DistributedDataParallel`), "fsdp" a part of each
    parameter (FSDP2, `fully_shard`), which is gathered for each step. A fused operator takes all
    layers at once, so all are gathered at once.

    `stop_asked` in any process: `stop_agreed` in all, after the next step.
    """

    def __init__(self, model: CharModel, strategy: str) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}")
        self.model = model
        self.stop_asked = self.stop_agreed = False
        self.replica: nn.Module = _LossOf(model)
        if strategy == "ddp":
            self.replica = DistributedDataParallel(self.replica)
        else:
            fully_shard(self.replica, reshard_after_forward=True)

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """That of the model; every process must call it, with rows of its own or the same."""
        return self.replica(x, y, reduction)

    def training_step(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """The mean loss of those `rows` of `x` and `y`, the same in all processes as `rows` must
        be; leaves its gradients in `.grad`, in place of others.
        """
        own = rows.tensor_split(dist.get_world_size())[dist.get_rank()]
        share = len(own) / len(rows)
        self.zero_grad()
        with torch.enable_grad():
            loss = self.loss(x.index_select(0, own), y.index_select(0, own)) * share
            (loss * dist.get_world_size()).backward()  # gradients are averaged, not summed
        total = torch.tensor([0.0, self.stop_asked], dtype=torch.float64).to(loss.device)
        total[0] = loss.detach()
        dist.all_reduce(total)
        self.stop_agreed = total[1].item() > 0
        return total[0]

    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor) -> Tensor:
        """A step of gradient descent, on the loss that is returned, unless it is not finite."""
        loss = self.training_step(x, y, rows)
        if math.isfinite(loss.item()):
            sgd_step(self.parameters(), lr)
        return loss


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a model that may be sharded, whole; every process must call it."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


class ManyProcesses:
    """A training in all processes of the group. `OneProcess` has the same methods."""

    def __init__(self, strategy: str, device: torch.device) -> None:
        self.strategy = strategy
        self.device = device
        self.first = dist.get_rank() == 0
        self.model: DataParallel | None = None

    @property
    def stopping(self) -> bool:
        return self.model is not None and self.model.stop_agreed

    def ask_to_stop(self) -> None:
        if self.model is not None:
            self.model.stop_asked = True

    def together(self, action: Callable[[], Result]) -> Result:
        return together(action)

    def trainable(self, run: Checkpoint) -> DataParallel:
        together(lambda: _check_batch(run.settings["batch_size"], dist.get_world_size()))
        self.model = DataParallel(run.model, self.strategy)
        return self.model

    def save(self, run: Checkpoint, folder: Path) -> None:
        write_sharded(folder, run.header(), run.tensors())
        if self.first:
            (folder / FILE).unlink(missing_ok=True)

    def whole_model(self, run: Checkpoint, backend: str) -> CharModel:
        state = whole_state(run.model)
        model = build_model(run.kind, run.model.sizes(), backend)
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
        return model.to(self.device)


def _check_batch(size: int, processes: int) -> None:
    if size < processes:
        raise ValueError(
            f"--batch-size {size} is less than a row for each of {processes} processes"
        )


class _LossOf(nn.Module):
    """The loss as the forward of a module, which is what DDP and FSDP wait for."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor, reduction: str) -> Tensor:
        return self.model.loss(x, y, reduction)
