"""Rows of a file, each with the place that it stands at: JSON lines, plain or gzip, and Parquet."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
PARQUET = ".parquet"
SUFFIXES = (*JSON_LINES, PARQUET)
MAX_ROW_BYTES = 16 * 2**20
"""Bytes of a row at most: millions of tokens."""
MAX_EXPANSION = 200
"""A packed file may unpack to so many times its size; text does to less than 20 times."""
FREE_BYTES, FREE_ROWS = 4 * 2**20, 10**5
"""Small files of equal rows may unpack to more than that, and have more rows than bytes."""
BATCH_BYTES, BATCH_ROWS = 2**28, 1024
"""Of Parquet read together: any row may be all of its group, which holds equal texts once."""

_BOMB = (
    f"the file unpacks to more than {MAX_EXPANSION} times its size, as hardly any data does: if it "
    "is yours, make JSON lines of it that are not packed"
)


class Row(NamedTuple):
    """A row as it was read.

    Attributes:
        fields: values by column.
        where: ``file:line``, lines from 1; of Parquet the row, from 1.
    """

    fields: dict[str, Any]
    where: str


def read_rows(source: str | os.PathLike[str]) -> Iterator[Row]:
    """Read rows one after another.

    Args:
        source: a file, or a data set on the Hugging Face hub as ``owner/name`` or
            ``owner/name:split``; its split is ``train`` if none is named.

    Yields:
        The rows; blank lines are none.

    Raises:
        ValueError: no such file, a kind that cannot be read, or a broken row or file.
    """
    for path, shown in source_files(os.fspath(source)):
        name = path.name.lower()
        if name.endswith(PARQUET):
            yield from _parquet_rows(path, shown)
        elif name.endswith(JSON_LINES):
            yield from _json_rows(path, shown)
        else:
            raise ValueError(f"{shown} must be one of {', '.join(SUFFIXES)} by its name")


def source_files(source: str) -> list[tuple[Path, str]]:
    """Files of a source, fetched from the hub if that is where it is.

    Args:
        source: as of :func:`read_rows`.

    Returns:
        The files, each with what it is called in messages.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{source} must be a file of preference rows, got a folder")
    if path.exists():
        return [(path, source)]
    # A hub name has one slash and no ending of a file.
    if source.count("/") == 1 and not source.lower().endswith(SUFFIXES):
        return _hub_files(source)
    raise ValueError(f"{source} does not exist")


def _hub_files(source: str) -> list[tuple[Path, str]]:
    # Loaded only here: it takes long, and a file needs no hub.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, split = source.partition(":")
    split = split or "train"
    try:
        every = HfApi().list_repo_files(repository, repo_type="dataset")
        names = sorted(name for name in every if _is_of_split(name.lower(), split))
        paths = [Path(hf_hub_download(repository, name, repo_type="dataset")) for name in names]
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{source} is neither a file nor a data set that the Hugging Face hub gives: {reason}"
        ) from error
    if not names:
        raise ValueError(f"{source} has no file of split `{split}` as {', '.join(SUFFIXES)}")
    return [(path, f"{repository}/{name}") for path, name in zip(paths, names, strict=True)]


def _is_of_split(name: str, split: str) -> bool:
    """Whether a file is of a split: ``train.jsonl``, ``data/train-0.parquet``, ``train/0.json``."""
    words = name.replace(".", "/").replace("-", "/").split("/")
    return name.endswith(SUFFIXES) and split in words


def _json_rows(path: Path, shown: str) -> Iterator[Row]:
    for number, line in _lines(path, shown):
        where = f"{shown}:{number}"
        try:
            fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        # ValueError: broken JSON or text, numbers of thousands of digits.
        except ValueError as error:
            raise ValueError(f"{where}: the line is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{where}: the line is not JSON: nested too deeply") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: the line must be an object, got {type(fields).__name__}")
        yield Row(fields, where)


def _lines(path: Path, shown: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1."""
    packed = path.name.lower().endswith(".gz")
    room = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size) if packed else math.inf
    number = 0
    try:
        # A buffer of gzip's own lines is many times slower.
        with io.BufferedReader(gzip.open(path)) if packed else open(path, "rb") as file:
            # Not all of a line is read before it is known to be short enough.
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                room -= len(line)
                if len(line) > MAX_ROW_BYTES:
                    raise ValueError(f"{shown}:{number}: a row has at most {MAX_ROW_BYTES:,} bytes")
                if room < 0:
                    raise ValueError(f"{shown}:{number}: {_BOMB}")
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}:{number + 1}: the gzip file is broken: {error}") from error


def _parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    # Loaded only here: JSON lines need no tables.
    import pyarrow
    from pyarrow import parquet

    number, size = 0, path.stat().st_size
    room = max(FREE_BYTES, MAX_EXPANSION * size)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in _batches(file, size, shown):
                for fields in batch.to_pylist():
                    number += 1
                    room -= _size(fields)
                    if room < 0:
                        raise ValueError(f"{shown}:{number}: {_BOMB}")
                    yield Row(fields, f"{shown}:{number}")
    # Of a damaged file pyarrow also raises an OSError, which no operating system has numbered.
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown}:{number + 1}: the Parquet file is broken: {reason}") from error


def _batches(file: Any, size: int, shown: str) -> Iterator[Any]:
    """Rows that fit into memory, whatever the file says of itself."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    unpacked = [group.total_byte_size for group in groups]
    if sum(unpacked) > max(FREE_BYTES, MAX_EXPANSION * size):
        raise ValueError(f"{shown}: {_BOMB}")
    if file.metadata.num_rows > max(FREE_ROWS, size):
        raise ValueError(
            f"{shown}: the file has more rows than bytes, as hardly any data has: if it is yours, "
            "make JSON lines of it"
        )
    for i, largest in enumerate(unpacked):
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, largest)))
        yield from file.iter_batches(batch_size=rows, row_groups=[i])


def _size(value: Any) -> int:
    """Bytes that a value takes at least."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


OPENING = re.compile(r"\s*\[\s*(?!\s|\])")
COMMA = re.compile(r"\s*,\s*")
CLOSING = re.compile(r"\s*\]\s*")
EMPTY = re.compile(r"\s*\[\s*\]\s*")
MAX_LIST_BYTES = 100_000_000
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
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(
            f"{path}: must have at most {MAX_LIST_BYTES:,} bytes: give JSON lines instead"
        )
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
