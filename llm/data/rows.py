"""Readers of data rows with their sources: JSON, CSV, Parquet and Arrow, one file or many."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .files import MAX_ROW_BYTES, Row, open_text, read_lines, read_whole
from .messages import JSON_WITH_NAN, STRICT_JSON
from .sources import Source, source_files
from .splits import ARROW_SUFFIXES, CSV_SUFFIXES, JSON_SUFFIXES, PARQUET_SUFFIX, SUFFIXES
from .tables import arrow_rows, csv_rows, parquet_rows

__all__ = ["MAX_LIST_BYTES", "MAX_ROW_BYTES", "Row", "read_json_list", "read_rows", "source_files"]

MAX_LIST_BYTES = 100_000_000
"""Largest size of a JSON list, which is read as a whole; AlpacaEval outputs have 1 MB."""

_LIST_START = re.compile(r"\s*\[\s*(?!\s|\])")
_LIST_COMMA = re.compile(r"\s*,\s*")
_LIST_END = re.compile(r"\s*\]\s*")
_EMPTY_LIST = re.compile(r"\s*\[\s*\]\s*")


def read_rows(source: Source) -> Iterator[Row]:
    """Read the rows of files or of a hub data set one at a time.

    Args:
        source: a file of JSON lines, one JSON list, CSV, TSV, Parquet or Arrow, each text also as
            gzip; a folder of such files; a pattern such as ``shards/*.parquet``; a data set on
            the Hugging Face hub as ``owner/name[@revision][/subset][:split]``, whose default
            split is ``train``; or a list of these.

    Yields:
        The rows; blank lines are skipped.

    Raises:
        ValueError: if there is no such source, a suffix is unknown, or a row or a file is
            damaged.
    """
    for path, shown in source_files(source):
        name = path.name.lower()
        if name.endswith(PARQUET_SUFFIX):
            yield from parquet_rows(path, shown)
        elif name.endswith(JSON_SUFFIXES):
            yield from _json_rows(path, shown)
        elif name.endswith(CSV_SUFFIXES):
            delimiter = "\t" if ".tsv" in name[-7:] else ","
            yield from csv_rows(path, shown, delimiter=delimiter)
        elif name.endswith(ARROW_SUFFIXES):
            yield from arrow_rows(path, shown)
        else:
            open_text(path, shown)[0].close()  # names formats that must be converted first
            raise ValueError(f"{shown}: the file name must end with one of {', '.join(SUFFIXES)}")


def read_json_list(path: Path, *, allow_nan: bool = False) -> Iterator[Row]:
    """Read the objects of a file that is one JSON list.

    Args:
        path: a JSON file in UTF-8 of at most :data:`MAX_LIST_BYTES`.
        allow_nan: read ``NaN``, which is not JSON, instead of refusing it.

    Yields:
        The objects as rows, each with the line where it begins.

    Raises:
        ValueError: if the file is not a JSON list of objects.
        OSError: if the file cannot be read.
    """
    return _list_rows(path, str(path), JSON_WITH_NAN if allow_nan else STRICT_JSON)


def _json_rows(path: Path, shown: str) -> Iterator[Row]:
    decode = STRICT_JSON.raw_decode
    is_first = True
    for number, line in read_lines(path, shown):
        if is_first and line.lstrip().startswith(b"["):
            yield from _list_rows(path, shown)
            return
        is_first = False
        try:
            text = line.decode().strip()
            fields, end = decode(text)
            if end < len(text):
                raise ValueError(f"a second value begins at column {end + 1}")
        # ValueError: invalid JSON or UTF-8, equal keys, or a number with thousands of digits.
        except ValueError as error:
            hint = _document_hint(path, number, line)
            raise ValueError(f"{shown}:{number}: the line is not JSON: {error}{hint}") from error
        except RecursionError as error:
            raise ValueError(
                f"{shown}:{number}: the line is not JSON: nested too deeply"
            ) from error
        if type(fields) is not dict:
            raise ValueError(
                f"{shown}:{number}: the line must be an object, got {type(fields).__name__}"
            )
        yield Row(fields, f"{shown}:{number}")


def _document_hint(path: Path, number: int, line: bytes) -> str:
    if number == 1 and line.strip() in (b"{", b'{"data": [', b'{"rows": ['):
        return ": a file must have one object a line, or be one list of objects"
    return ""


def _list_rows(path: Path, shown: str, decoder: json.JSONDecoder = STRICT_JSON) -> Iterator[Row]:
    content = read_whole(path, shown, MAX_LIST_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown}: must be UTF-8: {error}") from error
    separator, end, line = _LIST_START.match(text), 0, 1
    while separator is not None:
        line += text.count("\n", end, separator.end())
        where = f"{shown}:{line}"
        try:
            fields, end = decoder.raw_decode(text, separator.end())
        except ValueError as error:
            raise ValueError(f"{where}: the element is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{where}: the element is not JSON: nested too deeply") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: every element must be an object")
        yield Row(fields, where)
        line += text.count("\n", separator.end(), end)
        separator = _LIST_COMMA.match(text, end)
    if not (_LIST_END if end else _EMPTY_LIST).fullmatch(text, end):
        raise ValueError(f"{shown}:{line}: must be one JSON list of objects")
