"""What goes wrong outside of this package, in words that say what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

# As our operators say it, and torch, of the CPU; on a GPU it has an error of its own.
_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation over",
)


@contextmanager
def importing(package: str) -> Iterator[None]:
    """ImportError of what is imported inside becomes a ValueError that names the `package`."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"this needs the package {package}: pip install {package}; {error}"
        ) from None


# What can be made smaller, by command.
_LARGE = {
    "train": "--batch-size, --context, --embedding, --hidden or fewer words",
    "sample": "--count, --batch or --max-length",
}


def out_of_memory(error: BaseException, command: str) -> str | None:
    """What to say where `error` is of an allocation, by Python or by torch; None elsewhere."""
    if not is_out_of_memory(error):
        return None
    what = _LARGE.get(command)
    return "not enough memory" + (f"; a smaller {what} takes less" if what else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is of an allocation, by Python or by torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _MEMORY_MESSAGES)
