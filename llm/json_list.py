"""Objects of a file that is one JSON list, each with the line that it begins in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .row_files import Row

OPENING = re.compile(r"\s*\[\s*(?!\s|\])")
COMMA = re.compile(r"\s*,\s*")
CLOSING = re.compile(r"\s*\]\s*")
EMPTY = re.compile(r"\s*\[\s*\]\s*")
LARGEST = 100_000_000
"""Bytes of a list at most, for it is read as a whole; answers to AlpacaEval have 1 MB."""


def read_json_list(path: Path) -> Iterator[Row]:
    """Read a list of objects.

    Args:
        path: the file.

    Yields:
        The objects, each with the line that it begins in.

    Raises:
        ValueError: the file is not one JSON list of objects, in UTF-8.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path}: must have at most {LARGEST:,} bytes: give JSON lines instead")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8: {error}") from error
    gap, end, line = OPENING.match(text), 0, 1
    while gap is not None:
        line += text.count("\n", end, gap.end())
        where = f"{path}:{line}"
        try:
            fields, end = json.JSONDecoder().raw_decode(text, gap.end())
        except ValueError as error:
            raise ValueError(f"{where}: the element is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{where}: the element is not JSON: nested too deeply") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: every element must be an object")
        yield Row(fields, where)
        line += text.count("\n", gap.end(), end)
        gap = COMMA.match(text, end)
    if not (CLOSING if end else EMPTY).fullmatch(text, end):
        raise ValueError(f"{path}:{line}: must be one JSON list of objects")
