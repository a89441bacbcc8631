"""Files that are replaced as a whole."""

import os
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


def sync_folder(path: Path) -> None:
    """Makes sure that the names in the folder at `path` outlive a crash of the machine."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
