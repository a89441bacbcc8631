"""Functions run by several processes of one group."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from convlm_kernels.lm.together import leave


def run(target: Callable[..., None], processes: int, folder: Path, *arguments: Any) -> None:
    """Calls `target(rank, *arguments)` in so many processes, which meet in `folder`."""
    address = f"file://{folder / 'meeting'}"
    mp.spawn(_start, (target, processes, address, arguments), processes, join=True)


def _start(rank: int, target: Callable[..., None], processes: int, address: str, rest: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    target(rank, *rest)
    leave()
