"""Checks of integers that are given, in words that name the argument."""

from operator import index
from typing import Any


def integer(argument: str, value: Any) -> int:
    """`value` as an int. TypeError, which names `argument`, where it is none."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer, got {value!r}") from None


def integers(argument: str, values: Any) -> list[int]:
    """The same of each."""
    try:
        return [index(value) for value in values]
    except TypeError:
        raise TypeError(f"{argument} must be integers, got {values!r}") from None


def positive(argument: str, value: Any) -> int:
    """As :func:`integer`, and ValueError below 1."""
    number = integer(argument, value)
    if number < 1:
        raise ValueError(f"{argument} must be at least 1, got {number}")
    return number


def check_positive(**sizes: int) -> None:
    """ValueError, which names it, for a size below 1, TypeError for one that is no integer."""
    for name, value in sizes.items():
        positive(name, value)
