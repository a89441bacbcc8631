"""Standard output that may lose its reader, as that of `convlm train | head` does."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any, TextIO


def write_to_nothing(stream: TextIO) -> None:
    """What is written to `stream` from now on, what it still holds included, goes nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


class _WithoutAReader:
    """`stream`, line by line; once nobody reads it, nothing, which is said on standard error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            if "\n" in text:
                self.stream.flush()
        except BrokenPipeError:
            self.give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.give_up()

    def give_up(self) -> None:
        write_to_nothing(self.stream)
        try:
            print("convlm: nobody reads the output; going on without it", file=sys.stderr)
        except BrokenPipeError:  # `2>&1 | head`
            with suppress(OSError):
                write_to_nothing(sys.stderr)


def print_what_can_be_printed() -> None:
    """Characters that standard output's encoding lacks become question marks, not errors."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def going_on_without_a_reader() -> Iterator[None]:
    """What is printed inside never raises BrokenPipeError."""
    output: Any = _WithoutAReader(sys.stdout)
    with redirect_stdout(output):
        try:
            yield
        finally:
            output.flush()
