"""Loads the native half of the package: ``torch.ops.convlm`` and the module ``host``."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ._host import BuildInfo

OLDEST_TORCH = (2, 10)

# What the dynamic loader says, and what it means for whoever reads it; the first match counts.
_LOADER_MESSAGES = {
    "undefined symbol": "it was built for another torch",
    "GLIBC": "it was built on a newer system than this one",
    "ELF": "it was built for another platform, or is damaged",
    "file too short": "it is damaged",
    "cannot open shared object": "a library that it needs is missing",
}


def check_torch(version: str) -> None:
    """Raises ImportError where torch ``version`` is older than the interface the binaries use."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise ImportError(
            f"convlm_kernels needs torch 2.10 or later, but this is torch {version}. "
            "Upgrade it: pip install --upgrade 'torch>=2.10'"
        )


def _remedy(directory: Path) -> str:
    source = directory.parent
    if (source / "setup.py").is_file():
        return (
            f"This is the source tree: build it in place with 'pip install --editable {source}', "
            "or, where convlm_kernels is installed already, start Python in another directory."
        )
    # No index has it: whoever took its name there would be installed.
    return (
        "Install it again, from the checkout or the wheel that it came from: pip install "
        "--force-reinstall --no-deps --no-cache-dir PATH"
    )


def _missing(directory: Path, name: str) -> ImportError:
    """The error for a binary that is not there."""
    what = f"{name} is missing from {directory}."
    if others := sorted(file.name for file in directory.glob(f"{name}.*.so")):
        what = f"{', '.join(others)} is for another Python than {platform.python_version()}."
    return ImportError(f"{what} {_remedy(directory)}")


def _refused(binary: str, directory: Path, error: Exception) -> ImportError:
    """The error for a binary that is there, but does not load."""
    said = str(error.__cause__ or error)  # torch's own message names only the file
    meaning = next((text for key, text in _LOADER_MESSAGES.items() if key in said), "it is broken")
    return ImportError(
        f"{binary} does not load with torch {torch.__version__} on {platform.machine()}: "
        f"{meaning} ({said}). {_remedy(directory)}"
    )


def load_operators(directory: Path) -> Path:
    """Registers ``torch.ops.convlm`` from the library in ``directory``, and returns its path.

    Raises ImportError, which says what is wrong and what to do about it.
    """
    library = directory / "libconvlm_ops.so"
    if not library.is_file():
        raise _missing(directory, library.stem)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise _refused(library.name, directory, error) from error
    return library


def mark_compiled_graphs(library: Path) -> None:
    """Makes ``torch.compile`` keep graphs of this build apart from those of others on its disk.

    In a graph stands how much the operators of this build keep for the gradients.
    """
    build = library.stat()
    torch.compiler.config.cache_key_tag += f";convlm_kernels-{build.st_mtime_ns}-{build.st_size}"


_DIRECTORY = Path(__file__).resolve().parent
check_torch(torch.__version__)
mark_compiled_graphs(load_operators(_DIRECTORY))
try:
    from . import _host as host
except ModuleNotFoundError:
    raise _missing(_DIRECTORY, "_host") from None
except ImportError as error:
    raise _refused("_host", _DIRECTORY, error) from error


def build_info() -> BuildInfo:
    """How the binaries were built.

    A dict of ``torch`` (the version whose headers were used; any from 2.10 on may run them),
    ``cuda`` (whether there is CUDA code in them), ``cuda_archs`` (for which GPUs, in the words of
    ``CONVLM_CUDA_ARCHS``; empty without CUDA) and ``compiler``.
    """
    return host.build_info()
