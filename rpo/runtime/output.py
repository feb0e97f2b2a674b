"""Text of the commands: results on stdout, log messages on stderr, safe for a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LOGGERS = ("rpo", "rpo_io", "bandits", "llm")
"""Loggers of the packages, whose messages the commands show."""
_is_muted: ContextVar[bool] = ContextVar("is_muted", default=False)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_result(document: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result to stdout: its text, or with ``--json`` its JSON, with the text on stderr.

    Args:
        document: the result as plain values; all numbers finite.
        text: human-readable summary, with its line breaks.
        as_json: whether ``--json`` was given.
    """
    if as_json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    stream = sys.stderr if as_json else sys.stdout
    stream.write(escape_control_characters(text))


@contextmanager
def messages_to_stderr() -> Iterator[None]:
    """Show the log messages of the packages on stderr for a block, each on a line of its own."""
    handler = _StderrHandler(logging.INFO)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # libraries may have given the root logger a handler
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def muted_messages(muted: bool) -> Iterator[None]:
    """Leave log messages out of stderr during a block, as in all processes but the first.

    Args:
        muted: whether to leave them out.
    """
    token = _is_muted.set(muted)
    try:
        yield
    finally:
        _is_muted.reset(token)


def are_messages_muted() -> bool:
    """Return whether log messages are left out of stderr, as in all processes but the first."""
    return _is_muted.get()


def escape_control_characters(text: str) -> str:
    r"""Return a text, such as a model's reply, in a form that no terminal acts on.

    Args:
        text: any text.

    Returns:
        The text with its line breaks and tabs; other control characters are written as escapes.

    Examples:
        >>> escape_control_characters("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Args:
        seconds: the duration, at least 0.

    Returns:
        The duration in hours from two hours on, in minutes from two minutes on, otherwise in
        seconds, at least 1.

    Examples:
        >>> format_duration(90.0), format_duration(600.0), format_duration(9000.0)
        ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_bytes(size: float) -> str:
    """Format a number of bytes with two or three digits, never as zero of a large unit.

    Args:
        size: number of bytes, at least 0.

    Returns:
        The number in bytes, KiB, MiB, GiB or TiB.

    Examples:
        >>> format_bytes(3.1 * 2**30), format_bytes(21 * 2**20), format_bytes(700)
        ('3.1 GiB', '21 MiB', '700 bytes')
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        scaled = size / 2 ** (10 * power)
        if scaled >= 0.95:
            return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:,.0f} {unit}"
    return f"{size:.0f} bytes"


def count_noun(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1.

    Args:
        number: a count.
        noun: the noun in the singular.

    Examples:
        >>> count_noun(1, "step"), count_noun(2000, "pair")
        ('1 step', '2,000 pairs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _StderrHandler(logging.Handler):
    """A log handler for the current ``sys.stderr``, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        # Not at the top: this module is imported for `rpo --help`.
        from rpo_io.staging import shown_text

        if not _is_muted.get():
            text = shown_text(self.format(record))
            sys.stderr.write(escape_control_characters(text) + "\n")
