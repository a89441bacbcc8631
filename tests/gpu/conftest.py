from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
import torch
from device import DEVICE, GEOMETRY, OWN_BACKENDS, kernels_run, skip_unless

from convlm_kernels.backends import PREDICATES


@pytest.fixture(params=OWN_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each that has kernels for the device; skips with its own reason where it cannot run there."""
    skip_unless(PREDICATES[request.param](GEOMETRY, torch.float32, DEVICE))
    return request.param


@pytest.fixture(params=["ieee"], autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """How exact float32 is on a GPU, where torch's own default allows TF32.

    By the older of torch's two switches: parts of torch still read it, and fail where the newer one
    says what it cannot say.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = request.param == "tf32"
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


# A lent machine has an end: what begins after it is skipped, and says so.
_END = monotonic() + float(os.environ.get("CONVLM_GPU_SECONDS", "inf"))


def pytest_runtest_setup() -> None:
    skip_unless(None if monotonic() < _END else "the seconds of CONVLM_GPU_SECONDS are over")


# With pytest-xdist each worker counts for itself, and hands its counts over when it ends.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kernels_run"] = dict(kernels_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    kernels_run.update(getattr(node, "workeroutput", {}).get("kernels_run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if kernels_run:
        terminalreporter.section(f"problems on {DEVICE}, by kernel")
        for name, count in sorted(kernels_run.items()):
            terminalreporter.line(f"{count:6}  {name}")
