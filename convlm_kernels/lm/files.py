"""Files that are replaced as a whole, and folders that one process writes at a time."""

import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file at `path` so that a crash at any time leaves the old or the new one.

    Whoever writes the same file at the same time does so before or after.

    Raises OSError, naming the file, where it cannot be written; what was there is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _locked(partial, wait=True) as file:
            try:
                file.truncate(0)  # what a crash has left
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync_folder(path.parent)


@contextmanager
def only_one_trains(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none, and keeps other trainings out of it.

    Raises ValueError, naming the process, where one is in it; OSError as :func:`make_writable`.
    """
    made = not folder.exists()
    make_writable(folder)
    path = folder / LOCK
    try:
        file = _locked(path, wait=False)
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            holder = path.read_text()
        raise ValueError(
            f"{folder} is being written by another training, {holder or 'which has just begun'}"
        ) from None
    with file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # it has files now
                    folder.rmdir()


def _locked(path: Path, wait: bool) -> BinaryIO:
    """The file at `path`, made where there is none, locked until it is closed or its process ends.

    Raises BlockingIOError where another has it, unless it is to `wait`.
    """
    while True:
        file = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks: no worse than none
            return file
        with suppress(FileNotFoundError):  # it may have been renamed or removed meanwhile
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def make_writable(folder: Path) -> None:
    """Makes the folder where there is none, and sees that files can be written to it.

    Raises OSError, naming the folder, where they cannot; nothing that is there is changed.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, where a folder is to be written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"is there room?")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def sync_folder(path: Path) -> None:
    """Makes sure that the names in the folder at `path` outlive a crash of the machine."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
