import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

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
