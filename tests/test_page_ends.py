"""No kernel reads or writes past its operands: the pages before and after them are out of bounds.

A process that touches such a page dies, so another one goes through the cases and names them.
"""

import ctypes
import math
import mmap
import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, Case, problem
from torch import Tensor

from convlm_kernels import _host, ops

PROT_NONE = 0


class Fenced:
    """Memory between two pages that nobody may touch."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._areas: list[mmap.mmap] = []

    def copy(self, tensor: Tensor, *, at_end: bool) -> Tensor:
        """The tensor up against the page after it, or the one before."""
        page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
        room = math.ceil(size / page) * page
        area = mmap.mmap(-1, room + 2 * page)
        self._areas.append(area)  # as long as anybody has the tensor
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for fence in (start, start + page + room):
            if self._libc.mprotect(ctypes.c_void_p(fence), page, PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        first = page + (room - size if at_end else 0)
        flat = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=first)
        return flat.view(tensor.shape).copy_(tensor)


def go_through(cases: list[Case], dtype: torch.dtype) -> None:
    for case in cases:
        for at_end in (True, False):
            fenced = Fenced()
            x, weight, bias, grad_output = (
                fenced.copy(tensor, at_end=at_end) for tensor in problem(case, dtype)
            )
            for precision in ("ieee", "tf32"):
                print(case.why, "at the end" if at_end else "at the start", precision, flush=True)
                window = *case.window[:-1], precision
                ops.forward(x, weight, bias, *window, "none")
                ops.grad_input(grad_output, weight, case.length, *window)
                ops.grad_weight(grad_output, x, case.kernel_size, *window, True)


@pytest.mark.parametrize("isa", _host.cpu_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
def test_operands_end_where_memory_ends(isa: str, dtype: str) -> None:
    environment = os.environ | {"CONVLM_CPU_ISA": isa}
    run = subprocess.run(
        [sys.executable, __file__, dtype], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, (run.stdout.splitlines()[-1:], run.stderr[-2000:])
    assert run.stdout.count("tf32") == 2 * len(CASES)


if __name__ == "__main__":
    go_through(list(CASES), getattr(torch, sys.argv[1]))
