"""What commands leave behind: files that are whole or absent, figures, and what is said."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def prepare_folder(folder: Path) -> None:
    """Make sure that results can be written to a folder, before any work is done.

    Args:
        folder: created with its parents if it is missing.

    Raises:
        ValueError: it is not a folder, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"argument --out: {folder} is not a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"argument --out: nothing can be written to {folder}")


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Have errors of the operating system name a folder, where they name no file.

    Those of a write do not: the file is open by then.

    Args:
        folder: that the block writes to.

    Raises:
        OSError: the same, named.

    Examples:
        >>> with naming(Path("out")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'out'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: it is never seen half written.

    Args:
        path: where to.
        content: what.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def to_json(document: Any) -> bytes:
    """Strict JSON, indented by one level so that records stay on a line each.

    Args:
        document: a mapping of names to plain values or lists of records.

    Returns:
        The text, with a final line break.

    Raises:
        ValueError: a number is not finite.
    """
    parts = []
    for name, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n{rows}\n  ]" if rows else "[]"
        else:
            text = json.dumps(value, allow_nan=False)
        parts.append(f"  {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def tell(args: argparse.Namespace, document: Mapping[str, Any], text: str) -> None:
    """Tell what a command found: text on standard output, or JSON there and the text beside it.

    Args:
        args: of the command, ``--json`` among them.
        document: what a program should know.
        text: what a person should know, with its line breaks.
    """
    if args.json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    (sys.stderr if args.json else sys.stdout).write(inert(text))


def inert(text: str) -> str:
    r"""Text from elsewhere, as of a model, for a terminal.

    Args:
        text: any.

    Returns:
        The text with its line breaks and tabs; what else a terminal acts on is written out.

    Examples:
        >>> inert("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def duration(seconds: float) -> str:
    """A time for people.

    Args:
        seconds: how long.

    Returns:
        In the largest unit that it has two of.

    Examples:
        >>> duration(90.0), duration(600.0), duration(9000.0)
        ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def png(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes for the same figure."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rpo"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
