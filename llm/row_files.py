"""Rows of a file, each with the place that it stands at: JSON lines, plain or gzip, and Parquet."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
PARQUET = ".parquet"
SUFFIXES = (*JSON_LINES, PARQUET)


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
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: the line is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: the line must be an object, got {type(fields).__name__}")
        yield Row(fields, where)


def _lines(path: Path, shown: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1."""
    number = 0
    try:
        open_file = gzip.open if path.name.lower().endswith(".gz") else open
        with open_file(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}:{number + 1}: the gzip file is broken: {error}") from error


def _parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    # Loaded only here: JSON lines need no tables.
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, f"{shown}:{number}")
    # Of a damaged file pyarrow also raises an OSError, which no operating system has numbered.
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown}:{number + 1}: the Parquet file is broken: {reason}") from error
