"""Commands that run in the background, into a log, and no longer than they may."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic


class Process:
    """Started at once. ``code`` is None while it runs, and after it had to be ended."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.log = name, log
        self.code: int | None = None
        self.problem = ""
        self._begin = monotonic()
        try:
            with log.open("w") as output:
                self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # so that its children can be ended with it
                )
        except OSError as error:
            self._process = None
            self.problem = f"{command[0]} does not start: {error.strerror}"

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None where it did not start or was ended after ``seconds``."""
        if self._process is None:
            return None
        try:
            self.code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.problem = f"ended after {monotonic() - self._begin:.0f} s: out of time"
        return self.code

    def note(self) -> str:
        """What went wrong, or nothing."""
        if self.problem or self.code == 0:
            return self.problem
        return f"exit code {self.code}"

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""
