"""Rows of tables: Parquet, Arrow, and texts separated by commas or tabs.

Files may come from strangers: their sizes are limited before they are unpacked into memory.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import FREE_BYTES, MAX_EXPANSION, MAX_ROW_BYTES, SIZE_ERROR, Row, read_lines

FREE_ROWS = 10**5
"""Number of rows that is always allowed, for small files of equal rows."""
BATCH_BYTES, BATCH_ROWS = 2**28, 1024
"""Limits of Parquet rows read together; one row may take all bytes of its row group."""


def csv_rows(path: Path, shown: str, *, delimiter: str) -> Iterator[Row]:
    """Read the rows of a table of texts whose first line names the columns.

    Args:
        path: file in UTF-8, plain or gzip.
        shown: name of the file in errors.
        delimiter: character between two cells.

    Yields:
        Texts by column; None for an empty cell. ``where`` names the line where a row begins.

    Raises:
        ValueError: if the file is damaged, or a row has another number of cells than the header.
    """
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in read_lines(path, shown, keep_blank=True):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{shown}:{number}: the line must be UTF-8: {error}") from error

    header: list[str] | None = None
    start = 1
    limit = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        for cells in csv.reader(lines(), delimiter=delimiter, strict=True):
            where, start = f"{shown}:{start}", number + 1
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, where, delimiter)
            elif len(cells) != len(header):
                raise ValueError(
                    f"{where}: the row must have {len(header)} cells like the first line, got "
                    f"{len(cells)}: put cells with a separator or line break into double quotes"
                )
            else:
                yield Row(dict(zip(header, (cell or None for cell in cells), strict=True)), where)
    except csv.Error as error:
        raise ValueError(f"{shown}:{start}: the row is not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _header(names: list[str], where: str, delimiter: str) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: the column {twice[0]!r:.60} stands twice: rename one of them")
    others = [other for other in (",", ";", "\t", "|") if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{where}: the columns must be separated by {delimiter!r}, got {others[0]!r}: convert "
            "the file, or name it .tsv if it has tabs"
        )
    return names


def parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    """Read the rows of a Parquet file.

    Args:
        path: the file.
        shown: name of the file in errors.

    Yields:
        The rows. Absent keys of nested objects are left out: Parquet stores them as nulls.

    Raises:
        ValueError: if the file is damaged or unpacks to an unusual size.
    """
    # A slow import that JSON lines do not need.
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            yield from _parquet_batches(file, path.stat().st_size, shown)

    yield from _rows_of_batches(batches(), path, shown, "Parquet")


def arrow_rows(path: Path, shown: str) -> Iterator[Row]:
    """Read the rows of an Arrow IPC file or stream; Feather files have this format too.

    Args:
        path: the file.
        shown: name of the file in errors.

    Yields:
        The rows. Absent keys of nested objects are left out: Arrow stores them as nulls.

    Raises:
        ValueError: if the file is damaged or unpacks to an unusual size.
    """
    from pyarrow import ipc

    def batches() -> Iterator[Any]:
        with open(path, "rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if not is_file:
                with ipc.open_stream(file) as stream:
                    yield from stream
                return
            with ipc.open_file(file) as reader:
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)

    yield from _rows_of_batches(batches(), path, shown, "Arrow")


def _rows_of_batches(batches: Iterator[Any], path: Path, shown: str, kind: str) -> Iterator[Row]:
    import pyarrow

    number = 0
    budget = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
    try:
        for batch in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{shown}: the column {twice!r:.60} stands twice: rename one")
            for rows in (batch.slice(i, BATCH_ROWS) for i in range(0, len(batch), BATCH_ROWS)):
                for fields in rows.to_pylist():
                    number += 1
                    budget -= _n_bytes(fields)
                    if budget < 0:
                        raise ValueError(f"{shown}:{number}: {SIZE_ERROR}")
                    yield Row(_without_nulls(fields), f"{shown}:{number}")
    # pyarrow also raises an OSError for damaged files; unlike one of the system it has no errno.
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{shown}:{number + 1}: the {kind} file is broken: {reason}") from error


def _parquet_batches(file: Any, size: int, shown: str) -> Iterator[Any]:
    """Yield record batches that fit into memory, even if the file's metadata are hostile."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    unpacked = [group.total_byte_size for group in groups]
    if sum(unpacked) > max(FREE_BYTES, MAX_EXPANSION * size):
        raise ValueError(f"{shown}: {SIZE_ERROR}")
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


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Remove nulls from nested objects."""
    return {
        name: _prune(value) if isinstance(value, list | dict) else value
        for name, value in fields.items()
    }


def _prune(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _prune(item) for name, item in value.items() if item is not None}
    return [_prune(item) for item in value] if isinstance(value, list) else value
