"""Failures that all processes of a training share."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


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
    if mine is not None and failed.index(True) == dist.get_rank():
        raise mine
    if any(failed):
        raise SystemExit(2)
    return result
