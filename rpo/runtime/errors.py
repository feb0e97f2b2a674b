"""Errors in what the user provides, and checks of the numbers that commands and functions take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpo_io.bucket_paths import AnyPath

MAX_SHOWN = 80
"""Characters of a value that a message shows."""
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class UsageError(ValueError):
    """An error in the user's input. The command line prints its one line and exits with code 2."""


@contextmanager
def user_input() -> Iterator[None]:
    """Convert the ``ValueError`` and ``OSError`` of a block into a :class:`UsageError`.

    The block reads and checks the user's input, so that its errors are the user's to correct.
    Errors outside such blocks are bugs and keep their traceback.

    Raises:
        UsageError: if the block raises a ``ValueError`` or an ``OSError``.

    Examples:
        >>> with user_input():
        ...     raise ValueError("`beta` must be greater than 0, got 0")
        Traceback (most recent call last):
        rpo.runtime.errors.UsageError: `beta` must be greater than 0, got 0
    """
    try:
        yield
    except UsageError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(error_message(error)) from error


def check_number(name: str, value: float | None, lower: float, *, inclusive: bool) -> None:
    """Refuse an argument that is not a finite number above a bound.

    Args:
        name: name of the argument, for the message.
        value: value of the argument; None, for an argument that is not given, is accepted.
        lower: lower bound.
        inclusive: whether the bound itself is allowed.

    Raises:
        UsageError: if the value is out of range.

    Examples:
        >>> check_number("eta", -1.0, 0.0, inclusive=True)
        Traceback (most recent call last):
        rpo.runtime.errors.UsageError: `eta` must be a number at least 0, got -1.0
    """
    if value is not None and not _is_in_range(value, lower, inclusive=inclusive):
        rule = _number_rule(lower, inclusive=inclusive)
        raise UsageError(f"`{name}` {rule}, got {_shown(value)}")


def check_whole_number(name: str, value: int | None, lower: int) -> None:
    """Refuse an argument that is not a whole number of at least a bound, and below 2^31.

    Args:
        name: name of the argument, for the message.
        value: value of the argument; None, for an argument that is not given, is accepted.
        lower: lower bound, which is allowed itself.

    Raises:
        UsageError: if the value is out of range.

    Examples:
        >>> check_whole_number("instances", 0, 1)
        Traceback (most recent call last):
        rpo.runtime.errors.UsageError: `instances` must be a whole number of at least 1, got 0
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and is_whole and value >= 2**31:
        raise UsageError(f"`{name}` must be less than 2^31, got {_shown(value)}")
    if value is not None and not (is_whole and lower <= value):
        rule = f"must be a whole number of at least {lower}"
        raise UsageError(f"`{name}` {rule}, got {_shown(value)}")


def any_path(text: str) -> AnyPath:
    """Convert the text of an option to a path, local or in a bucket.

    Args:
        text: a local path, ``file://``, ``gs://`` or ``s3://``.

    Returns:
        The path.

    Raises:
        argparse.ArgumentTypeError: if the scheme is unknown or read-only.

    Examples:
        >>> print(any_path("s3://bucket/run"))
        s3://bucket/run
    """
    from rpo_io.bucket_paths import as_path  # which imports NumPy; --help needs none

    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(lower: float, *, inclusive: bool) -> Callable[[str], float]:
    """Return the type of a command-line option that takes a finite number above a bound.

    Args:
        lower: lower bound.
        inclusive: whether the bound itself is allowed.

    Returns:
        A converter for ``add_argument(type=...)``.

    Examples:
        >>> number(0.0, inclusive=False)("0.5")
        0.5
    """

    def convert(text: str) -> float:
        # Python's float would accept underscores, spaces and digits of other scripts.
        value = float(text) if _NUMBER.fullmatch(text) else float("nan")
        if not _is_in_range(value, lower, inclusive=inclusive):
            rule = f"{_number_rule(lower, inclusive=inclusive)}, got {_cut(text)!r}"
            raise argparse.ArgumentTypeError(rule)
        return value + 0.0  # -0 becomes 0

    return convert


def whole_number(lower: int) -> Callable[[str], int]:
    """Return the type of a command-line option that takes a whole number of at least a bound.

    Args:
        lower: lower bound, which is allowed itself.

    Returns:
        A converter for ``add_argument(type=...)``.

    Examples:
        >>> whole_number(1)("20")
        20
    """

    def convert(text: str) -> int:
        # Python's int would accept underscores, spaces and digits of other scripts.
        is_whole = text.isascii() and text.isdigit()
        if (is_whole and len(text.lstrip("0")) > 10) or (is_whole and int(text) >= 2**31):
            raise argparse.ArgumentTypeError(f"must be less than 2^31, got {_cut(text)!r}")
        if not (is_whole and lower <= int(text)):
            rule = f"must be a whole number of at least {lower}, got {_cut(text)!r}"
            raise argparse.ArgumentTypeError(rule)
        return int(text)

    return convert


def error_message(error: Exception) -> str:
    """Return the message of an error; for an error of the operating system, file and cause.

    Args:
        error: the error.

    Returns:
        The message, without the error number of the operating system.

    Examples:
        >>> error_message(FileNotFoundError(2, "No such file or directory", "votes.csv"))
        'votes.csv: No such file or directory'
    """
    # Not at the top: this module is imported for `rpo --help`.
    from rpo_io.staging import shown_text

    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename is not None else ""
        return shown_text(file + error.strerror)
    return shown_text(str(error))


def _is_in_range(value: float, lower: float, *, inclusive: bool) -> bool:
    """Return whether a value is a number above a bound that a float can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return lower < number < float("inf") or (inclusive and number == lower)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:
        return "a number of too many digits"
    return _cut(repr(value))


def _number_rule(lower: float, *, inclusive: bool) -> str:
    return f"must be a number {'at least' if inclusive else 'greater than'} {lower:g}"
