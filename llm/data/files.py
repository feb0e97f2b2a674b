"""Lines of files of rows, plain or gzip, with limits on what they unpack to."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_ROW_BYTES = 16 * 2**20
"""Largest size of a row; it holds millions of tokens."""
MAX_EXPANSION = 200
"""Largest ratio of unpacked to packed size; text compresses by less than 20."""
FREE_BYTES = 4 * 2**20
"""Unpacked bytes that are always allowed, for small files of equal rows."""
SIZE_ERROR = (
    f"the file unpacks to more than {MAX_EXPANSION} times its size, which is unusual for data: if "
    "the file is yours, convert it to uncompressed JSON lines"
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with `zstd -d`",
    b"\xfd7zXZ": "compressed with xz: unpack it with `xz -d`",
    b"BZh": "compressed with bzip2: unpack it with `bzip2 -d`",
    b"PK\x03\x04": "a zip archive: unpack it with `unzip`",
    b"\x04\x22\x4d\x18": "compressed with lz4: unpack it with `lz4 -d`",
    b"PAR1": "Parquet: name it .parquet",
    b"ARROW1": "Arrow: name it .arrow",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file with `git lfs pull`",
}
"""What a file of text rows is instead, by its first bytes."""


class Row(NamedTuple):
    """A data row and its source.

    Attributes:
        fields: values by column name.
        where: ``file:line`` with lines counted from 1; for Parquet and Arrow, the row counted
            from 1.
    """

    fields: dict[str, Any]
    where: str


def open_text(path: Path, shown: str) -> tuple[io.BufferedIOBase, bool]:
    """Open a file of text rows; one that begins like gzip is unpacked, whatever its name.

    Args:
        path: the file.
        shown: name of the file in errors.

    Returns:
        The open file, and whether it is packed.

    Raises:
        ValueError: if the file has another format.
    """
    with open(path, "rb") as file:
        start = file.read(32)
    for magic, description in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ValueError(f"{shown}: the file is {description}")
    if start.startswith(_GZIP) or path.name.lower().endswith(".gz"):
        # Reading lines from GzipFile directly is many times slower than through a buffer.
        return io.BufferedReader(gzip.open(path)), True
    return open(path, "rb"), False


def read_lines(path: Path, shown: str, *, keep_blank: bool = False) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file.

    Args:
        path: the file, plain or gzip.
        shown: name of the file in errors.
        keep_blank: whether blank lines are yielded.

    Yields:
        Number, from 1, and content of every line; without a byte order mark.

    Raises:
        ValueError: if the file is damaged, or a line or the unpacked file is too large.
    """
    number = 0
    try:
        file, is_packed = open_text(path, shown)
        budget = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size) if is_packed else math.inf
        with file:
            # At most one byte over the limit is read, however long the line is.
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                budget -= len(line)
                if len(line) > MAX_ROW_BYTES:
                    raise ValueError(
                        f"{shown}:{number}: a row must have at most {MAX_ROW_BYTES:,} bytes"
                    )
                if budget < 0:
                    raise ValueError(f"{shown}:{number}: {SIZE_ERROR}")
                if keep_blank or line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}:{number + 1}: the gzip file is broken: {error}") from error


def read_whole(path: Path, shown: str, limit: int) -> bytes:
    """Read a file of text rows as a whole.

    Args:
        path: the file, plain or gzip.
        shown: name of the file in errors.
        limit: largest size, unpacked.

    Returns:
        The content, without a byte order mark.

    Raises:
        ValueError: if the file is damaged or too large.
    """
    try:
        with open_text(path, shown)[0] as file:
            content = file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}:1: the gzip file is broken: {error}") from error
    if len(content) > limit:
        raise ValueError(f"{shown}: must have at most {limit:,} bytes: convert it to JSON lines")
    return content.removeprefix(BYTE_ORDER_MARK)
