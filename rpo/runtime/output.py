"""What commands leave behind: files that are whole or absent, figures, and what is said."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
