"""Mistakes of the user: one line on stderr, exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A mistake in what a person gave: told in one line, exit code 2."""


@contextmanager
def user_input() -> Iterator[None]:
    """What is read and checked in this block is a person's: its errors are usage errors.

    Raises:
        UsageError: in place of a ``ValueError`` or ``OSError`` of the block.

    Examples:
        >>> with user_input():
        ...     raise ValueError("`beta` must be greater than 0, got 0")
        Traceback (most recent call last):
        rpo.runtime.errors.UsageError: `beta` must be greater than 0, got 0
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(sentence(error)) from error


def number(lower: float, *, inclusive: bool) -> Callable[[str], float]:
    """Type of a command-line option: a finite number above a bound.

    Args:
        lower: the bound.
        inclusive: whether the bound itself will do.

    Returns:
        A converter for ``add_argument(type=...)``.

    Examples:
        >>> number(0.0, inclusive=False)("0.5")
        0.5
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (lower < value < float("inf") or (inclusive and value == lower)):
            relation = "at least" if inclusive else "greater than"
            rule = f"must be a number {relation} {lower:g}, got {text!r}"
            raise argparse.ArgumentTypeError(rule)
        return value

    return convert


def whole_number(lower: int) -> Callable[[str], int]:
    """Type of a command-line option: a whole number that is not too small.

    Args:
        lower: the least that will do.

    Returns:
        A converter for ``add_argument(type=...)``.

    Examples:
        >>> whole_number(1)("20")
        20
    """

    def convert(text: str) -> int:
        # Python's int would take underscores, spaces and digits of other scripts.
        if not (text.isascii() and text.isdigit() and lower <= int(text) < 2**31):
            rule = f"must be a whole number of at least {lower}, got {text!r}"
            raise argparse.ArgumentTypeError(rule)
        return int(text)

    return convert


def sentence(error: Exception) -> str:
    """The message of an error; of the operating system's, the file and what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror
    return str(error)
