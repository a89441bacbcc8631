"""How the processes of a training end: all or none, and without waiting for each other."""

import gc
from collections.abc import Callable

import torch.distributed as dist

from .processes import Result


def leave() -> None:
    """Takes the group down. To be called once nothing refers to a DistributedDataParallel.

    Such a module refers to the group, and if it is the last to do so, torch waits for gloo's
    threads and keeps Python's lock, while they may be waiting for that lock: a deadlock.
    """
    gc.collect()  # the module is part of cycles
    dist.destroy_process_group()


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns here; where it fails in any process, all end, and one says why.

    That one raises what the action did, OSError or ValueError, and the others SystemExit(2).
    """
    mine: OSError | ValueError | None = None
    try:
        result = action()
    except (OSError, ValueError) as error:
        mine = error
    failed: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(failed, mine is not None)
    if not any(failed):
        return result
    if mine is not None and failed.index(True) == dist.get_rank():
        raise mine
    raise SystemExit(2)
