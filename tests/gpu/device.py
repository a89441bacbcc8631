"""Where these tests run: on a GPU, with every backend that has kernels for it.

``CONVLM_TEST_DEVICE=cpu`` lets them run on the CPU kernels instead, which tests the tests.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from cases import Case, Problem
from torch import Tensor

from convlm_kernels import _host, conv1d
from convlm_kernels.backends import BACKENDS, PREDICATES
from convlm_kernels.geometry import Conv1dGeometry

DEVICE = torch.device(os.environ.get("CONVLM_TEST_DEVICE", "cuda"))
OWN_BACKENDS = [
    name for name in BACKENDS if name != "torch" and (name == "cpp") == (DEVICE.type == "cpu")
]
GEOMETRY = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)

kernels_run: Counter[str] = Counter()  # what the summary of a run says


def skip_unless(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)


def skip_unless_can_run(backend: str, case: Case, dtype: torch.dtype) -> None:
    stride, pad_left, pad_right, dilation, groups, _ = case.window
    geometry = Conv1dGeometry(
        batch=case.batch,
        in_channels=case.in_channels,
        out_channels=case.out_channels,
        groups=groups,
        length=case.length,
        kernel_size=case.kernel_size,
        stride=stride,
        dilation=dilation,
        pad_left=pad_left,
        pad_right=pad_right,
    )
    skip_unless(PREDICATES[backend](geometry, dtype, DEVICE))


def needs_gpu() -> None:
    """Skips what is about streams and graphs, which a CPU has none of."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    if DEVICE.type != "cuda":
        pytest.skip("this run is about the CPU")


def settings_of(case: Case) -> dict:
    return dict(stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups)


def to_device(p: Problem) -> Problem:
    return Problem(*(t.to(DEVICE) for t in p))


def convolve(backend: str, case: Case, p: Problem, activation: str | None = None) -> list[Tensor]:
    """y and the gradients of x, weight and bias, for operands that are on the device."""
    leaves = [t.detach().requires_grad_() for t in p[:3]]
    y = conv1d(*leaves, **settings_of(case), activation=activation, backend=backend)
    _count(backend, case, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, p.grad_output)]


def _count(backend: str, case: Case, dtype: torch.dtype) -> None:
    if backend != "cuda" or DEVICE.type != "cuda":
        kernels_run[backend] += 1
        return
    stride, pad_left, pad_right, dilation, groups, precision = case.window
    kernel = _host.cuda_kernel(
        str(dtype).removeprefix("torch."),
        max(1, case.batch),
        case.in_channels,
        case.out_channels,
        case.length,
        case.kernel_size,
        stride,
        pad_left,
        pad_right,
        dilation,
        groups,
        precision,
    )
    kernels_run[f"{backend} {kernel}"] += 1
