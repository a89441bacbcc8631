"""Every emulated test runs its threads in an order of its own, and its kernels are counted."""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda_emulator"))

from build import emulated, kernel_names, library, take_launches
from convlm_kernels import network, step_ops

_tests: Counter[int] = Counter()  # by the kernel's offset in the library
_launches: Counter[int] = Counter()


@pytest.fixture
def steps_on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((step_ops, "step"), (network, "_step")):
        monkeypatch.setattr(module, name, emulated("step"))
    monkeypatch.setattr(step_ops, "generate", emulated("generate"))


@pytest.fixture(autouse=True)
def own_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """0 to 3: ascending, descending or shuffled, with late or early asynchronous copies."""
    library().set_order(zlib.crc32(request.node.name.encode()) % 4)
    yield
    library().set_order(0)
    launched = take_launches()
    _tests.update(launched.keys())
    _launches.update(launched)


@pytest.fixture
def however_small() -> Iterator[None]:
    """Contexts are shared in a stack of any size."""
    library().set_least_products_to_share(1)
    yield
    library().set_least_products_to_share(2**29)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _tests:
        return
    terminalreporter.section("emulated CUDA kernels")
    names = kernel_names()
    for offset in sorted(_tests, key=names.__getitem__):
        counts = f"{_tests[offset]:6} tests {_launches[offset]:8} launches"
        terminalreporter.line(f"{counts}  {names[offset]}")
