"""`convlm bench`: runs the benchmarks of the checkout that the package or the user is in."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

SCRIPT = Path("benchmarks/bench.py")


def candidates() -> Iterator[Path]:
    """The folder that holds the package, then the current one and those above it."""
    yield Path(__file__).resolve().parents[2]
    here = Path.cwd()
    yield from (here, *here.parents)


def find_script() -> Path:
    """The benchmarks are part of a checkout, as the tests are: figures belong to a commit.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in candidates():
        if (folder / SCRIPT).is_file() and (folder / "convlm_kernels").is_dir():
            return folder / SCRIPT
    raise FileNotFoundError(
        f"the benchmarks are not installed with the package, and neither {Path.cwd()} nor a folder "
        "above it is a checkout of convlm_kernels: clone the repository and run this command there"
    )


def run_benchmarks(arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by benchmarks/bench.py, which says what the arguments are."""
    script = find_script()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(script), *arguments])
