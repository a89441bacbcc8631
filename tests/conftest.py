"""What all tests share. Nothing skips because the native library is missing: that is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import convlm_kernels
from convlm_kernels import _host


def pytest_report_header() -> str:
    return f"convlm_kernels: {convlm_kernels.build_info()}, running on {_host.cpu_isa()}"


@pytest.fixture
def nan_in_empty() -> Iterator[None]:
    """Memory that is allocated and not written shows as NaN, in the kernels' results too."""
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory is on by default
    assert torch.ones(1).new_empty(100).isnan().all(), "what the operators allocate with"
    yield
    torch.use_deterministic_algorithms(enabled)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small problems are quickest on one thread; tests of threading set their own number."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
