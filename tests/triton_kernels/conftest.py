"""These tests run on a GPU, or, started by ``test_triton.py``, in Triton's interpreter."""

import torch

from convlm_kernels import backends
from convlm_kernels.geometry import Conv1dGeometry

GEOMETRY = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)


def can_run(kind: str) -> bool:
    return backends.can_run_triton(GEOMETRY, torch.float32, torch.device(kind)) is None


# Without either, they would only be skipped, one by one, each for the same reason.
if not (can_run("cpu") or can_run("cuda")):
    collect_ignore_glob = ["test_*.py"]
