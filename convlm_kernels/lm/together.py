"""Failures that all processes of a training share."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def settle() -> None:
    """Waits for all processes; to be called before a group goes, be it at the end of the program.

    Without it gloo's threads may still wait for Python's lock, to drop the tensors of the last
    collective call, when the group goes; it holds that lock, waits for the threads, and never ends.
    A barrier lets go of the lock and has no tensors.
    """
    dist.barrier()


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
    settle()
    if mine is not None and failed.index(True) == dist.get_rank():
        raise mine
    raise SystemExit(2)
