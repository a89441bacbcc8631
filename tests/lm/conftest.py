import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import SMALL

import convlm_kernels
from convlm_kernels.lm.cli import main

NAMES = Path(
    os.environ.get("CONVLM_NAMES", Path(__file__).parents[3] / "shared" / "data" / "names.txt")
)


@pytest.fixture(scope="session")
def names_path() -> Path:
    """The public names list, which the repository does not contain."""
    if not NAMES.is_file():
        pytest.skip(f"no names list at {NAMES}; $CONVLM_NAMES may say where it is")
    return NAMES


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """A list small enough to train on within a second."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(f"{a}{b}{a}" for a in "abcde" for b in "abcde") + "\n")
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is quickest on one thread, and others may be running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def _limited(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk():
    """`with full_disk(size)`: writing fails, as on a full disk, where a file would be larger."""
    return _limited


@pytest.fixture
def convlm(words_file, tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder and returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def endless(words_file, tmp_path):
    """A training in another process, in mid-course, and its folder."""
    folder = tmp_path / "run"
    options = ["--steps=1000000", "--lr-drop=750000", "--save-every=10", "--threads=1", *SMALL]
    command = [sys.executable, "-m", "convlm_kernels", "train"]
    process = subprocess.Popen(
        [*command, f"--words={words_file}", f"--out={folder}", *options],
        cwd=Path(convlm_kernels.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint, saved = folder / "checkpoint.safetensors", set()
    while process.poll() is None and len(saved) < 3:
        time.sleep(0.01)
        if checkpoint.exists():
            saved.add(checkpoint.stat().st_mtime_ns)
    yield process, folder
    process.kill()
    process.communicate()
