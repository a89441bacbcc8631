"""The process that trains, alone or one of those that `torchrun` starts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from .char_model import CharModel
from .checkpoint import FILE, INDEX, Checkpoint, remove_shards

if TYPE_CHECKING:
    from .distributed import ManyProcesses

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
STRATEGIES = ("ddp", "fsdp")

Result = TypeVar("Result")


class OneProcess:
    """A training in this process alone. `ManyProcesses` has the same methods."""

    first = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stopping = False  # whether to end after the current step

    def ask_to_stop(self) -> None:
        self.stopping = True

    def together(self, action: Callable[[], Result]) -> Result:
        """What `action` returns."""
        return action()

    def trainable(self, run: Checkpoint) -> CharModel:
        """What takes the steps."""
        return run.model

    def save(self, run: Checkpoint, folder: Path) -> None:
        """Replaces the checkpoint in `folder`."""
        run.save(folder / FILE)
        (folder / INDEX).unlink(missing_ok=True)
        remove_shards(folder)

    def whole_model(self, run: Checkpoint, backend: str) -> CharModel:
        """The trained model; its convolutions are to run on `backend`."""
        return run.model


@contextmanager
def join(strategy: str | None, device: torch.device) -> Iterator["OneProcess | ManyProcesses"]:
    """This process, and under torchrun the others; `strategy` is "ddp", which is the default there,
    or "fsdp".

    Raises ValueError where there is a strategy, and no other process.
    """
    if all(name in os.environ for name in LAUNCHED):
        from . import distributed  # takes as long to import as half of torch

        with distributed.process_group(device) as own:
            processes = distributed.ManyProcesses(strategy or "ddp", own)
            yield processes
            processes.model = None  # before the group goes, as `leave` says
    elif strategy:
        raise ValueError(
            f"--distributed {strategy} needs processes: start with torchrun "
            "--nproc-per-node=2 -m convlm_kernels train ..."
        )
    else:
        yield OneProcess(device)
