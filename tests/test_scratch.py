"""No kernel multiplies what memory happened to hold, in lanes that nobody reads.

That shows in the time alone: pointers and integers, read as floats, are denormal numbers, and some
processors take a hundred times as long for a product of one. Flags in the register MXCSR tell.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import lookups
import pytest
import stacks
import torch
from cases import CASES, problem, random

from convlm_kernels import _host, lookup_ops, ops

# What malloc fills memory with, in every byte of a float: its products with 1000 overflow.
FILLED = {"GLIBC_TUNABLES": "glibc.malloc.perturb=128"}
LARGE = 1000

# Bits of MXCSR, and where fegetenv writes it.
FLAGS = {1: "invalid", 2: "denormal", 8: "overflow"}
MXCSR, FENV_SIZE = 28, 32

Call = Callable[[], object]


def convolutions(scale: int) -> Iterator[tuple[str, Call]]:
    for case in CASES:
        x, weight, bias, grad_output = (scale * tensor for tensor in problem(case, torch.float32))
        for precision in ("ieee", "tf32"):
            window, what = (*case.window[:-1], precision), f"{precision} {case}"
            yield f"forward {what}", partial(ops.forward, x, weight, bias, *window, "none")
            yield (
                f"grad_input {what}",
                partial(ops.grad_input, grad_output, weight, case.length, *window),
            )
            operands = grad_output, x, case.kernel_size
            yield f"grad_weight {what}", partial(ops.grad_weight, *operands, *window, True)


def look_ups(scale: int) -> Iterator[tuple[str, Call]]:
    for case in lookups.CASES:
        tokens, window = lookups.tokens_of(case), case.window[:4]
        sizes = case.kernel_size, case.in_channels
        table = scale * random(*sizes, case.out_channels)
        grad_output = scale * random(*case.y_shape)
        yield f"lookup {case}", partial(lookup_ops.lookup, tokens, table, None, *window, "none")
        operands = grad_output, tokens, *sizes
        yield f"grad_table {case}", partial(lookup_ops.grad_table, *operands, *window, True)


def fused_stacks() -> Iterator[tuple[str, Call]]:
    for stack in stacks.STACKS + stacks.FILTERED:
        inputs = stacks.inputs_of(stack, torch.float32)
        yield f"stack {stack}", partial(stacks.run, stack, inputs)
        if inputs.tokens is not None:
            yield f"shared stack {stack}", partial(stacks.run, stack, inputs, True)
            target = stacks.target_of(stack, inputs)
            operands = *inputs[:2], target, *inputs[2:], stack.settings, True
            yield f"loss of stack {stack}", partial(stacks.NATIVE.cross_entropy, *operands)


def flags_raised_by(call: Call) -> list[str]:
    libm = ctypes.CDLL("libm.so.6")
    environment = ctypes.create_string_buffer(FENV_SIZE)
    mxcsr = ctypes.c_uint32.from_buffer(environment, MXCSR)
    libm.fegetenv(environment)
    mxcsr.value &= ~sum(FLAGS)
    libm.fesetenv(environment)
    call()
    libm.fegetenv(environment)
    return [name for bit, name in FLAGS.items() if mxcsr.value & bit]


def say(name: str, call: Call, flags: set[str]) -> None:
    print(name, *flags.intersection(flags_raised_by(call)), sep=": ")


def in_new_memory() -> None:
    """Each thread has scratch memory of its own."""
    for name, call in chain(convolutions(LARGE), look_ups(LARGE), fused_stacks()):
        thread = threading.Thread(target=say, args=(name, call, {"invalid", "overflow"}))
        thread.start()
        thread.join()


def one_after_another() -> None:
    """With what others have left there."""
    # New tensors, which are no scratch memory, are filled then.
    torch.use_deterministic_algorithms(True)
    for name, call in chain(convolutions(1), look_ups(1), fused_stacks()):
        say(name, call, {"denormal"})


MODES = {"in new memory": in_new_memory, "one after another": one_after_another}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="a register of x86, and glibc"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("isa", _host.cpu_isas())
def test_what_memory_held_before_is_not_multiplied(isa: str, mode: str) -> None:
    environment = os.environ | {"CONVLM_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    if mode == "in new memory":
        environment |= FILLED
    run = subprocess.run(
        [sys.executable, __file__, mode], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) > 6 * len(CASES)
    assert [line for line in lines if ": " in line] == []


if __name__ == "__main__":
    MODES[sys.argv[1]]()
