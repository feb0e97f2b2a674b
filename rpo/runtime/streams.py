"""Standard input, output and error of a process of the command line, also where they are closed.

A write to standard output that fails is reported once, by name, and what is still buffered is
dropped, so that Python adds no message of its own at exit. A write to standard error never fails:
work does not stop because its messages cannot be shown.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

NAMES = ("standard input", "standard output", "standard error")


def open_standard_streams() -> None:
    """Replace the three streams by ones that are always open and name their errors.

    A closed descriptor is opened on ``/dev/null`` in the wrong direction, so that no file of the
    program takes its number and its use fails as before.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The smallest free number is this one, because the smaller ones are open by now.
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(0, "r", closefd=False)))
    # A stream that was replaced, as notebooks do, stays.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_LossyOutput(2, "w", closefd=False), sys.stderr)


def output_error() -> OSError | None:
    """Flush standard output and return the error of the first write to it that failed, if any."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Output) else None


class _Input(io.FileIO):
    """A file that names itself in its errors."""

    def readinto(self, buffer: Any) -> int | None:
        """Read bytes into a buffer."""
        return _named(0, lambda: super(_Input, self).readinto(buffer))

    def readall(self) -> Any:
        """Read all bytes."""
        return _named(0, super().readall)


class _Output(io.FileIO):
    """A file that raises its first error, by name, and drops what is written later."""

    error: OSError | None = None

    def write(self, data: Any) -> int | None:
        """Write bytes."""
        if self.error is not None:
            return memoryview(data).nbytes
        try:
            return _named(1, lambda: super(_Output, self).write(data))
        except OSError as error:
            self.error = error
            raise


class _LossyOutput(io.FileIO):
    """A file that drops what cannot be written."""

    def write(self, data: Any) -> int | None:
        """Write bytes, or drop them."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _named(descriptor: int, call: Callable[[], Any]) -> Any:
    """Return the result of a call; give an error of the system the name of the stream."""
    try:
        return call()
    except OSError as error:
        raise OSError(error.errno, error.strerror, NAMES[descriptor]) from error


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """Return a text stream in the encoding of the stream before it; nothing is unprintable."""
    encoding = before.encoding if before is not None else "utf-8"
    lines = raw.isatty() or isinstance(raw, _LossyOutput)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=lines
    )
