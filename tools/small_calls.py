"""Every backend's functions on small problems, and fused stacks: what compute-sanitizer watches.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tools/small_calls.py

Operands are made on the CPU and results compared there, so the device runs little but our kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import stacks  # noqa: E402
from cases import BY_HAND, DTYPES, FAST, FEW, GROUPS, LENGTHS, SETTINGS, Case, problem  # noqa: E402
from tolerances import exact_forward, exact_gradients  # noqa: E402

from convlm_kernels import conv1d  # noqa: E402
from convlm_kernels.backends import BACKENDS, PREDICATES  # noqa: E402
from convlm_kernels.geometry import Conv1dGeometry  # noqa: E402

CASES = [*FEW, *GROUPS, *LENGTHS[:4], SETTINGS[0], SETTINGS[7], FAST[4]]
STACKS = [stacks.SIGNALS[1], stacks.TOKENS[2]]
GEOMETRY = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)


def backends_of(device: torch.device) -> list[str]:
    return [
        name
        for name in BACKENDS
        if name != "torch" and PREDICATES[name](GEOMETRY, torch.float32, device) is None
    ]


def unaligned(tensor: Tensor, device: torch.device) -> Tensor:
    """One element past what it should be aligned to, without a kernel that moves it there."""
    room = torch.cat([torch.zeros(1, dtype=tensor.dtype), tensor.flatten()]).to(device)
    return room[1:].view(tensor.shape)


def check(case: Case, dtype: torch.dtype, backend: str, device: torch.device, odd: bool) -> None:
    p = problem(case, dtype)
    moved = [unaligned(t, device) if odd else t.to(device) for t in p]
    leaves, grad_output = [t.requires_grad_() for t in moved[:3]], moved[3]
    settings = dict(
        stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups
    )
    y = conv1d(*leaves, **settings, backend=backend)
    gradients = torch.autograd.grad(y, leaves, grad_output)
    exact_forward(p.x, p.weight, p.bias, case.window).allows(y.detach().cpu())
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for own, right in zip(gradients, exact, strict=True):
        right.allows(own.cpu())


def check_stacks(device: torch.device) -> int:
    """Of the native kernels; returns how many."""
    operators = stacks.NATIVE._replace(device=str(device), roundings=4)
    for stack, dtype in product(STACKS, DTYPES):
        stacks.check(stack, dtype, operators=operators)
    for check_shared in (stacks.check, stacks.check_loss):
        check_shared(stacks.REPEATED, torch.float32, True, operators)
    return len(STACKS) * len(DTYPES) + 2


def problems() -> Iterator[tuple[Case, torch.dtype, bool]]:
    for case in CASES:
        for dtype in DTYPES:
            yield case, dtype, False
    for dtype in DTYPES:
        yield BY_HAND, dtype, True
        yield FAST[4], dtype, True


def main(argv: Sequence[str] | None = None) -> None:
    device = torch.device(os.environ.get("CONVLM_TEST_DEVICE", "cuda"))
    # torch allows TF32 by default, which is not what the oracle's bounds are for.
    torch.backends.cudnn.allow_tf32 = False
    calls = 0
    backends = backends_of(device)
    if {"cpp", "cuda"} & set(backends):
        calls += check_stacks(device)
    for backend in backends:
        for case, dtype, odd in problems():
            check(case, dtype, backend, device, odd)
            calls += 1
    if not calls:
        sys.exit(f"no backend of ours runs on {device}")
    print(f"{calls} calls, all of them right")


if __name__ == "__main__":
    main()
