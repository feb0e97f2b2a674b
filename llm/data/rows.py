"""Readers of data rows with their sources: JSON lines (plain or gzip), Parquet and JSON lists.

Files may come from strangers: their sizes are limited before they are unpacked into memory.
"""

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

JSON_LINES_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
PARQUET_SUFFIX = ".parquet"
SUFFIXES = (*JSON_LINES_SUFFIXES, PARQUET_SUFFIX)
MAX_ROW_BYTES = 16 * 2**20
"""Largest size of a row; it holds millions of tokens."""
MAX_EXPANSION = 200
"""Largest ratio of unpacked to packed size; text compresses by less than 20."""
FREE_BYTES, FREE_ROWS = 4 * 2**20, 10**5
"""Unpacked bytes and rows that are always allowed, for small files of equal rows."""
BATCH_BYTES, BATCH_ROWS = 2**28, 1024
"""Limits of Parquet rows read together; one row may take all bytes of its row group."""
MAX_LIST_BYTES = 100_000_000
"""Largest size of a JSON list, which is read as a whole; AlpacaEval outputs have 1 MB."""

_BOMB = (
    f"the file unpacks to more than {MAX_EXPANSION} times its size, which is unusual for data: if "
    "the file is yours, convert it to uncompressed JSON lines"
)
_LIST_START = re.compile(r"\s*\[\s*(?!\s|\])")
_LIST_COMMA = re.compile(r"\s*,\s*")
_LIST_END = re.compile(r"\s*\]\s*")
_EMPTY_LIST = re.compile(r"\s*\[\s*\]\s*")


class Row(NamedTuple):
    """A data row and its source.

    Attributes:
        fields: values by column name.
        where: ``file:line`` with lines counted from 1; for Parquet, the row counted from 1.
    """

    fields: dict[str, Any]
    where: str


def read_rows(source: str | os.PathLike[str]) -> Iterator[Row]:
    """Read the rows of a file or a hub data set one at a time.

    Args:
        source: a file, or a data set on the Hugging Face hub as ``owner/name`` or
            ``owner/name:split``; the default split is ``train``.

    Yields:
        The rows; blank lines are skipped.

    Raises:
        ValueError: if there is no such file, its suffix is unknown, or a row or the file is
            damaged.
    """
    for path, shown in source_files(os.fspath(source)):
        name = path.name.lower()
        if name.endswith(PARQUET_SUFFIX):
            yield from _parquet_rows(path, shown)
        elif name.endswith(JSON_LINES_SUFFIXES):
            yield from _json_rows(path, shown)
        else:
            raise ValueError(f"{shown}: the file name must end with one of {', '.join(SUFFIXES)}")


def source_files(source: str) -> list[tuple[Path, str]]:
    """Return the local files of a source; a hub data set is downloaded.

    Args:
        source: see :func:`read_rows`.

    Returns:
        Paths, each with the name that error messages use for it.

    Raises:
        ValueError: if there is no such file or data set.
    """
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{source} must be a file of preference rows, got a folder")
    if path.exists():
        return [(path, source)]
    # A hub name has one slash and no file suffix.
    if source.count("/") == 1 and not source.lower().endswith(SUFFIXES):
        return _hub_files(source)
    raise ValueError(f"{source} does not exist")


def _hub_files(source: str) -> list[tuple[Path, str]]:
    # A slow import that local files do not need.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, split = source.partition(":")
    split = split or "train"
    try:
        files = HfApi().list_repo_files(repository, repo_type="dataset")
        names = sorted(name for name in files if _is_of_split(name.lower(), split))
        paths = [Path(hf_hub_download(repository, name, repo_type="dataset")) for name in names]
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{source} is neither a file nor an available Hugging Face data set: {reason}"
        ) from error
    if not names:
        raise ValueError(
            f"{source} has no file of split `{split}` that ends with one of {', '.join(SUFFIXES)}"
        )
    return [(path, f"{repository}/{name}") for path, name in zip(paths, names, strict=True)]


def _is_of_split(name: str, split: str) -> bool:
    """Return whether a file belongs to a split, as ``train.jsonl`` or ``data/train-0.parquet``."""
    components = name.replace(".", "/").replace("-", "/").split("/")
    return name.endswith(SUFFIXES) and split in components


def _json_rows(path: Path, shown: str) -> Iterator[Row]:
    for number, line in _lines(path, shown):
        where = f"{shown}:{number}"
        try:
            fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        # ValueError: invalid JSON or UTF-8, or a number with thousands of digits.
        except ValueError as error:
            raise ValueError(f"{where}: the line is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{where}: the line is not JSON: nested too deeply") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: the line must be an object, got {type(fields).__name__}")
        yield Row(fields, where)


def _lines(path: Path, shown: str) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and content of every line that is not blank."""
    packed = path.name.lower().endswith(".gz")
    budget = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size) if packed else math.inf
    number = 0
    try:
        # Reading lines from GzipFile directly is many times slower than through a buffer.
        with io.BufferedReader(gzip.open(path)) if packed else open(path, "rb") as file:
            # At most one byte over the limit is read, however long the line is.
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                budget -= len(line)
                if len(line) > MAX_ROW_BYTES:
                    raise ValueError(
                        f"{shown}:{number}: a row must have at most {MAX_ROW_BYTES:,} bytes"
                    )
                if budget < 0:
                    raise ValueError(f"{shown}:{number}: {_BOMB}")
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}:{number + 1}: the gzip file is broken: {error}") from error


def _parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    # A slow import that JSON lines do not need.
    import pyarrow
    from pyarrow import parquet

    number, size = 0, path.stat().st_size
    budget = max(FREE_BYTES, MAX_EXPANSION * size)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in _batches(file, size, shown):
                for fields in batch.to_pylist():
                    number += 1
                    budget -= _n_bytes(fields)
                    if budget < 0:
                        raise ValueError(f"{shown}:{number}: {_BOMB}")
                    yield Row(fields, f"{shown}:{number}")
    # pyarrow also raises an OSError for damaged files; unlike one of the system it has no errno.
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown}:{number + 1}: the Parquet file is broken: {reason}") from error


def _batches(file: Any, size: int, shown: str) -> Iterator[Any]:
    """Yield record batches that fit into memory, even if the file's metadata are hostile."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    unpacked = [group.total_byte_size for group in groups]
    if sum(unpacked) > max(FREE_BYTES, MAX_EXPANSION * size):
        raise ValueError(f"{shown}: {_BOMB}")
    if file.metadata.num_rows > max(FREE_ROWS, size):
        raise ValueError(
            f"{shown}: the file has more rows than bytes, which is unusual for data: if it is "
            "yours, convert it to JSON lines"
        )
    for i, largest in enumerate(unpacked):
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, largest)))
        yield from file.iter_batches(batch_size=rows, row_groups=[i])


def _n_bytes(value: Any) -> int:
    """Return a lower bound of the bytes that a value takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_n_bytes, value.values()))
    return sum(map(_n_bytes, value)) if isinstance(value, list) else 8


def read_json_list(path: Path) -> Iterator[Row]:
    """Read the objects of a file that is one JSON list.

    Args:
        path: a JSON file in UTF-8 of at most :data:`MAX_LIST_BYTES`.

    Yields:
        The objects as rows, each with the line where it begins.

    Raises:
        ValueError: if the file is not a JSON list of objects.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(
            f"{path}: must have at most {MAX_LIST_BYTES:,} bytes: convert it to JSON lines"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8: {error}") from error
    separator, end, line = _LIST_START.match(text), 0, 1
    while separator is not None:
        line += text.count("\n", end, separator.end())
        where = f"{path}:{line}"
        try:
            fields, end = json.JSONDecoder().raw_decode(text, separator.end())
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
        raise ValueError(f"{path}:{line}: must be one JSON list of objects")
