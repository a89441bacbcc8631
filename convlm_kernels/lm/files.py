"""Files that are replaced as a whole."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file at `path` so that a crash at any time leaves the old or the new one.

    Raises OSError, naming the file, where it cannot be written; what was there is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
