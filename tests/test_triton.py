"""Runs the tests of the Triton kernels in Triton's interpreter, on the CPU.

In a process of its own: kernels are compiled or interpreted, as Triton was told when imported.
Where there is a GPU, the same tests also run on it, compiled.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from convlm_kernels import backends
from convlm_kernels.geometry import Conv1dGeometry

TESTS = Path(__file__).resolve().parent / "triton_kernels"
BENCHMARKS = TESTS.parent.parent / "benchmarks"


def test_the_kernels_in_the_interpreter() -> None:
    reason, _ = backends._triton()
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_without_a_gpu_only_the_interpreter_runs_them() -> None:
    geometry = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)
    assert backends.can_run_triton(geometry, torch.float32, torch.device("cpu")) is not None


@pytest.fixture(scope="module")
def resources() -> ModuleType:
    """benchmarks/triton_resources.py; it compiles without a GPU, but does need Triton."""
    reason, interpreted = backends._triton()
    if reason is not None or interpreted:
        pytest.skip(reason or "kernels of the interpreter cannot be compiled")
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("triton_resources")


def hold_to_limits(resources: ModuleType, target: tuple) -> None:
    for used in resources.compiled(target):
        assert used.spills == 0
        assert used.shared <= resources.SHARED_MEMORY[target.architecture]
        if used.kernel in ("correlation_kernel", "weight_gradient_kernel"):
            assert (used.wgmma > 0) == target.meets_wgmma
        if used.kernel == "correlation_kernel":
            assert used.tma == (target.channels_last and target.architecture >= 90)


# (function, kind, rows, architecture, activation, channels_last, depthwise): one of each kind.
SOME_TARGETS = [
    ("forward", "half", 128, 90),
    ("forward", "tf32", 64, 90),
    ("forward", "half", 64, 90, "none", True),
    ("grad_input", "tf32", 128, 90, "tanh", True),
    ("grad_input", "half", 128, 90, "tanh"),
    ("grad_weight", "half", 128, 90, "tanh"),
    ("grad_weight", "float64", 16, 80),
    ("forward", "half", 512, 80, "none", False, True),
    ("lookup", "ieee", 64, 90, "tanh"),
    ("lookup_grad_table", "float64", 64, 80),
    ("stack_forward", "ieee", 64, 90, "gate"),
    ("stack_backward", "half", 64, 90, "gate"),
]


@pytest.mark.parametrize("target", SOME_TARGETS, ids=lambda target: "-".join(map(str, target)))
def test_compiled_without_a_gpu(resources: ModuleType, target: tuple) -> None:
    hold_to_limits(resources, resources.Target(*target))


# Sizes of one become constants, and only the compiler is strict about the types of numbers.
AWKWARD = {
    "ones": Conv1dGeometry(1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    "ones, depthwise": Conv1dGeometry(1, 2, 2, 2, 1, 1, 1, 1, 0, 0),
    "strided, one output": Conv1dGeometry(1, 1, 3, 1, 3, 2, 5, 1, 1, 0),
}


@pytest.mark.parametrize(
    ("name", "wide"), [("ones", False), ("ones, depthwise", True), ("strided, one output", True)]
)
def test_awkward_sizes_compile(
    resources: ModuleType, name: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = AWKWARD[name]
    if wide:
        monkeypatch.setattr(resources.launch, "LARGEST_IN_TILE", 0)
    x, y, bias = (
        torch.empty(shape, device="meta")
        for shape in (
            (1, geometry.in_channels, geometry.length),
            (1, geometry.out_channels, geometry.out_length),
            (geometry.out_channels,),
        )
    )
    taps = geometry.in_channels // geometry.groups, geometry.kernel_size
    weight = torch.empty((geometry.out_channels, *taps), device="meta")

    def call() -> None:
        functions = resources.functions
        functions.forward(y, x, weight, bias, geometry, "ieee", "tanh")
        functions.grad_input(x, y, weight, geometry, "ieee", y, "relu")
        functions.grad_weight(weight, bias, y, x, geometry, "ieee", None, "none")
        words = geometry._replace(groups=1, batch=1)
        tokens = torch.empty((1, geometry.length), dtype=torch.int32, device="meta")
        table = torch.empty(geometry.kernel_size, *weight.shape[1::-1], device="meta")
        resources.lookup.forward(y, tokens, table, bias, words, "gelu")
        resources.lookup.grad_table(table, y, tokens, words)

    assert len(resources.compile_launches(call, 80)) == 6


def test_a_stack_of_ones_compiles(resources: ModuleType) -> None:
    layers = (resources.Layer(1, 1, 1, 1, 0, 1, 1, "none", False, False),)
    x, nothing = torch.empty((1, 1, 1), device="meta"), torch.empty(0, device="meta")

    def call() -> None:
        resources.stack.forward(x, None, x, None, [x], [nothing], layers)
        resources.stack.backward(x, x, [x], [nothing], layers, True)

    assert len(resources.compile_launches(call, 80)) == 3


@pytest.mark.skipif(
    os.environ.get("CONVLM_TRITON_EVERY_CASE") != "1",
    reason="some minutes: CONVLM_TRITON_EVERY_CASE=1, or make test-triton",
)
def test_every_configuration_compiled_without_a_gpu(resources: ModuleType) -> None:
    for target in resources.every_target():
        hold_to_limits(resources, target)


def test_what_was_explored_becomes_a_table() -> None:
    reason, _ = backends._triton()
    if reason is not None:
        pytest.skip(reason)
    sys.path.insert(0, str(BENCHMARKS))
    triton_table = importlib.import_module("triton_table")
    even, mixed, partial = (64, 64, 32, 4, 3), (64, 128, 32, 4, 3), (16, 64, 32, 4, 3)
    key = ("correlation", "half", 64)
    times = [("a", even, 2.0), ("a", mixed, 1.0), ("b", even, 1.1), ("b", mixed, 4.0)]
    times += [("a", partial, 0.1)]  # did not run for b
    lines = [
        json.dumps(dict(key=key, problem=problem, configuration=blocks, milliseconds=time))
        for problem, blocks, time in times
    ]
    ((read_key, of_key),) = triton_table.read(lines).items()
    assert read_key == key
    best, behind = triton_table.least_behind(of_key)
    assert best == even
    assert behind == pytest.approx((20.0 * 1.0) ** 0.5)
