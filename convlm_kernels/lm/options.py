"""Command-line values, each checked where it is read."""

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable

import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


MOST = 2**63 - 1  # what 64 bits hold


def whole(minimum: int) -> Callable[[str], int]:
    """Reads a whole number from `minimum` on; 20_000 and 20000 are the same."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise ArgumentTypeError(f"{text!r} is not a whole number from {minimum} on")
        if value > MOST:
            raise ArgumentTypeError(f"{text!r} is above {MOST}")
        return value

    return read


MOST_THREADS = max(256, os.cpu_count() or 1)


def threads(text: str) -> int:
    """Reads a number of threads that a machine can be expected to start."""
    value = whole(1)(text)
    if value > MOST_THREADS:
        raise ArgumentTypeError(f"{text!r} is above {MOST_THREADS}, the most threads here")
    return value


def number(text: str) -> float:
    """Reads a finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a finite number from 0 on")
    return value


def rate(text: str) -> float:
    """Reads a learning rate: finite and above 0."""
    value = number(text)
    if value == 0:
        raise ArgumentTypeError(f"{text!r} is not above 0")
    return value


def probability(text: str) -> float:
    """Reads a number above 0 and up to 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def step_or_fraction(text: str) -> int | float:
    """Reads a step ("15000") or, with a point, a fraction of the steps ("0.75")."""
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = -1
    if not (0 <= value <= 1 if "." in text else 0 <= value <= MOST):
        raise ArgumentTypeError(
            f"{text!r} is neither a step (15000) nor a fraction between 0.0 and 1.0 (0.75)"
        )
    return value


def device(text: str) -> torch.device:
    """Reads "cpu" or a CUDA device that is there."""
    try:
        value = torch.device(text)
    except RuntimeError:
        value = torch.device("meta")
    if value.type not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    available = torch.cuda.device_count() if value.type == "cuda" else 1
    if (value.index or 0) >= available:
        raise ArgumentTypeError(f"{text!r} is not available: torch sees {available} CUDA device(s)")
    return value
