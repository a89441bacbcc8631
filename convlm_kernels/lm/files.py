"""Files that are replaced as a whole."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file at `path` so that a crash at any time leaves the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
