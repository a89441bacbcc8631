"""Builds the CUDA kernels for the CPU: the same sources, compiled by g++ against the emulator."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from convlm_kernels import lookup_ops, ops, stack_ops, step_ops

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# Set by the test that runs the others again under the sanitizers.
SANITIZE = os.environ.get("CONVLM_EMULATOR_SANITIZE", "")


def module(path: str) -> ModuleType:
    """A script of the repository, for its functions."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def library() -> ctypes.CDLL:
    """The emulated kernels: operators ``convlm_emulated::forward`` and so on, for CPU tensors."""
    setup = module("setup.py")
    found = setup.find_torch()
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags += ["-Wno-unknown-pragmas"]  # unroll
    flags += ["-DCONVLM_CUDA_EMULATOR", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    flags += [f"-isystem{found.path / 'include'}"]
    flags += [f"-DTORCH_TARGET_VERSION={setup.TORCH_TARGET_VERSION}"]
    sanitize = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
    ninja = setup.NinjaFile(setup.find_compiler(), [])
    objects = [
        ninja.build("cxx", f"{source.name}.o", [source], [*flags, *sanitize, "-x", "c++"])
        for source in [*sorted((ROOT / "csrc/cuda").glob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    ]
    link = [*sanitize, f"-L{found.path / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    name = ninja.build("link", "libconvlm_emulated.so", objects, link)

    directory = ROOT / "build" / f"emulator{SANITIZE and '-sanitized'}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "build.ninja").write_text(ninja.text)
    subprocess.run([setup.find_ninja()], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return ctypes.CDLL(str(directory / name))


def take_launches() -> dict[int, int]:
    """How often each kernel ran since the last call, by its offset in the library."""
    function = library().take_launches
    function.restype = ctypes.c_char_p
    lines = function().decode().splitlines()
    return {int(offset): int(count) for offset, count in map(str.split, lines) if int(offset)}


def kernel_names() -> dict[int, str]:
    """Offset in the library -> name without namespaces and arguments, for all its functions."""
    command = ["nm", "--demangle", library()._name]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = (line.split(maxsplit=2) for line in lines if line[0] != " ")
    readable = module("tools/kernel_names.py").readable
    return {int(address, 16): readable(name) for address, _, name in symbols}


@contextlib.contextmanager
def forced(kernel: str) -> Iterator[None]:
    """Every function runs this kernel, whatever would be chosen."""
    force = library().force_kernel
    force.restype = ctypes.c_bool
    assert force(kernel.encode()), f"no kernel is called {kernel}"
    try:
        yield
    finally:
        force(None)


@contextlib.contextmanager
def shared_bytes(count: int) -> Iterator[None]:
    """On a GPU whose blocks have so much shared memory."""
    library().set_shared_bytes(ctypes.c_int64(count))
    try:
        yield
    finally:
        library().set_shared_bytes(ctypes.c_int64(227 * 1024))


@functools.cache
def operators() -> tuple[object, object, object]:
    """forward, grad_input and grad_weight on the emulator, called like those of ``ops``."""
    native = (
        *(ops.forward, ops.grad_input, ops.grad_weight),
        *(step_ops.step, step_ops.generate),
        *(stack_ops.stack_forward, stack_ops.stack_backward, stack_ops.stack_losses),
        *(stack_ops.stack_cross_entropy, stack_ops.stack_sgd_, stack_ops.stack_rows),
        *(lookup_ops.lookup, lookup_ops.grad_table),
    )
    definitions = torch.library.Library("convlm_emulated", "DEF")
    for operator in native:
        definitions.define(str(operator._schema).removeprefix("convlm::"))
    _keep.append(definitions)
    library()
    return tuple(
        getattr(torch.ops.convlm_emulated, operator._schema.name.removeprefix("convlm::")).default
        for operator in native[:3]
    )


def emulated(name: str) -> object:
    """An operator on the emulator, called like the native one of that name."""
    operators()
    return getattr(torch.ops.convlm_emulated, name).default


def run_sanitized(test_file: str, names: str) -> None:
    """Runs the tests of that file which ``-k names`` selects, on a build with the sanitizers."""
    preload = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = os.environ | {
        "CONVLM_EMULATOR_SANITIZE": "address,undefined",
        "LD_PRELOAD": preload.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test_file]
    run = subprocess.run([*command, "-k", names], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


_keep: list[torch.library.Library] = []  # a definition goes with the object that made it
