"""What a machine must have for tools/gpu_check.py, and what it is."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Distribution -> what for, by stage. Without Triton, or compute-sanitizer, the others go on.
NEEDED = {
    "build": {"pip": "builds", "setuptools": "builds", "ninja": "builds", "pybind11": "builds"},
    "tests": {"pytest": "runs the tests", "hypothesis": "draws random problems"},
}
OLDEST_SETUPTOOLS = 77


def missing(stages: Sequence[str]) -> list[str]:
    """Why the stages cannot run here, a line each; empty where they can."""
    found: list[str | None] = []
    for stage in stages:
        found += [
            f"{name} is not installed for {platform.python_implementation()} "
            f"{platform.python_version()} ({purpose}); use another interpreter: make PYTHON=..."
            for name, purpose in NEEDED.get(stage, {}).items()
            if version_of(name) is None
        ]
    if "build" in stages:
        found += [setuptools_reason(), toolkit_reason()]  # before torch, whose distutils is another
    return [reason for reason in (gpu_reason(), *found) if reason is not None]


def version_of(distribution: str) -> str | None:
    """Without looking for the module: where pip is looked for, setuptools hides its distutils."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def gpu_reason() -> str | None:
    if version_of("torch") is None:
        return (
            "torch is not installed for this interpreter, and there may be no GPU: make PYTHON=..."
        )
    import torch

    if not torch.cuda.is_available():
        return f"there is no GPU that torch {torch.__version__} can use"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU's compute capability is {major}.{minor}; the kernels need 8.0"
    return None


def setuptools_reason() -> str | None:
    version = version_of("setuptools")
    if version is None:
        return None  # said already
    if int(version.partition(".")[0]) >= OLDEST_SETUPTOOLS:
        return None
    return f"setuptools {version} is too old for pyproject.toml: {OLDEST_SETUPTOOLS} is needed"


def toolkit_reason() -> str | None:
    if version_of("setuptools") is None:
        return None
    spec = importlib.util.spec_from_file_location("convlm_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    if setup.find_toolkit() is not None:
        return None
    return "no CUDA toolkit was found: put its nvcc on PATH, or set CUDA_HOME"


def sanitizer() -> str:
    """The program, on PATH or in the toolkit's usual place."""
    return shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def arch_of() -> str:
    """The GPU's own architecture, as CONVLM_CUDA_ARCHS names it."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


def driver() -> str:
    """Its version; "" where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.splitlines()[0].strip()


def describe() -> list[str]:
    import torch

    triton = version_of("triton") or "not installed"
    properties = torch.cuda.get_device_properties(0)
    return [
        f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 1e9:.0f} GB, "
        f"capability {properties.major}.{properties.minor}, driver {driver() or 'unknown'}",
        f"torch {torch.__version__}, triton {triton}, Python {platform.python_version()}, "
        f"compute-sanitizer {'found' if Path(sanitizer()).is_file() else 'NOT FOUND'}",
    ]
