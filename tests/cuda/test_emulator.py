"""The emulator sees the faults that it is there for."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from build import forced, kernel_names, library, operators, take_launches


def run(what: str, x: Tensor, order: int = 0) -> tuple[Tensor, str]:
    out = torch.full_like(x, torch.nan)
    function = library().run_faulty
    function.restype = ctypes.c_char_p
    complaint = function(
        what.encode(), ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr()), order
    )
    return out, complaint.decode()


X = torch.arange(64.0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_sound_kernels_are_right_in_any_order(order: int) -> None:
    reversed_x, complaint = run("reverse", X, order)
    assert (reversed_x.tolist(), complaint) == (X.flip(0).tolist(), "")
    sums, complaint = run("sum", X, order)
    assert (sums.view(2, 32)[:, 0].tolist(), complaint) == (X.view(2, 32).sum(1).tolist(), "")


@pytest.mark.parametrize("order", [0, 1])
def test_a_missing_barrier_gives_nan(order: int) -> None:
    out, _ = run("missing barrier", X, order)
    assert out.isnan().any()


def test_wrong_lanes_give_wrong_numbers() -> None:
    out, _ = run("wrong lanes", X)
    assert out[0] != X[:32].sum()


def test_a_copy_has_not_happened_before_it_is_waited_for() -> None:
    out, complaint = run("copy not waited for", X)
    assert out[0].isnan()
    assert "never waited for" in complaint


def test_a_copy_may_come_before_others_have_read_what_it_overwrites() -> None:
    assert torch.equal(run("copy over what others read", X)[0], X.flip(0))  # as late as it may
    out, _ = run("copy over what others read", X, order=1)  # as early
    assert (out == X[0]).sum() > 1


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("write outside a buffer", "something was written after out"),
        ("write outside shared memory", "something was written after shared memory"),
        ("output left out", "element 5 of out was never written"),
        ("input written to", "the input in was written to"),
        ("barrier for some", "ended while others wait at a barrier"),
        ("instruction of a warp for some", "waits for its warp at exchange"),
        ("misaligned", "no multiple of 16"),
    ],
)
def test_what_the_emulator_complains_of(what: str, expected: str) -> None:
    _, complaint = run(what, X)
    assert expected in complaint
    assert run("reverse", X)[1] == ""  # it goes on after a complaint


def test_a_read_outside_a_buffer_gives_nan() -> None:
    assert run("read outside a buffer", X)[0][-1].isnan()


@pytest.mark.parametrize(
    "what", ["read outside a buffer", "write outside a buffer", "write outside shared memory"]
)
def test_accesses_outside_end_the_process_under_the_sanitizer(what: str) -> None:
    preload = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = os.environ | {
        "CONVLM_EMULATOR_SANITIZE": "address,undefined",
        "LD_PRELOAD": preload.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    here = Path(__file__).resolve().parent
    script = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent / 'cuda_emulator')!r}]\n"
        f"import test_emulator; test_emulator.run({what!r}, test_emulator.X)"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "use-after-poison" in ended.stderr


def test_launches_are_counted_by_kernel() -> None:
    take_launches()
    one = torch.ones(1, 1, 1)
    with forced("direct"):
        operators()[0](one, one, None, 1, 0, 0, 1, 1, "ieee", "none")
    names = kernel_names()
    counts = {names[offset]: count for offset, count in take_launches().items()}
    assert counts == {"correlate_kernel<float>": 1}
