r"""Records of a study on disk: parts that are whole or absent, and one table at the end.

Every part is written under a temporary name and renamed, so a study that was killed has lost only
the part it was at. Parts and the final table carry the resolved configuration and the versions that
made them; those of another study are refused. Beside every file lies its SHA-256, for ``sha256sum
--check`` as for the study itself: a damaged file is named, not read. The bytes of a table are a
function of configuration and versions alone; what is not, seconds, is in a table of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECORDS = "records.parquet"
SECONDS = "seconds.parquet"
PARTS = "parts"
VERSIONED = ("rpo", "jax", "jaxlib", "numpy", "scipy", "pyarrow")


class TableBuilder:
    """Columns of a table before they are one: names to arrays, words as dictionaries."""

    def __init__(self, length: int) -> None:
        """A table of so many rows and no column."""
        self._length = length
        self._columns: dict[str, pa.Array] = {}

    def words(self, name: str, code: np.ndarray, words: Sequence[str]) -> None:
        """Add a column of words, by their place in a list.

        Args:
            name: of the column.
            code: place of each row's word; null where it is negative.
            words: the list.
        """
        code = np.broadcast_to(code, self._length).astype(np.int32)
        indices = pa.array(code, mask=code < 0)
        self._columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(list(words)))

    def numbers(self, name: str, values: np.ndarray) -> None:
        """Add a column of numbers; what is not a number is null.

        Args:
            name: of the column.
            values: one a row, or one for all.
        """
        values = np.broadcast_to(np.asarray(values), self._length)
        self._columns[name] = pa.array(values, from_pandas=values.dtype.kind == "f")

    def table(self) -> pa.Table:
        """The table."""
        return pa.table(self._columns)


class RecordStore:
    """A study's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Of a folder and a resolved configuration, of plain values."""
        self.folder = folder
        versions = {name: version(name) for name in VERSIONED}
        versions["python"] = platform.python_version()
        self._metadata = {
            "rpo.config": json.dumps(config, sort_keys=True),
            "rpo.versions": json.dumps(versions, sort_keys=True),
        }
        said = "\n".join(self._metadata.values())
        self._metadata["rpo.fingerprint"] = hashlib.sha256(said.encode()).hexdigest()

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that holds something else, or something that was not asked for.

        Args:
            resume: whether a study that was begun is to be continued.

        Raises:
            ValueError: it holds another study, a damaged file, or a study that was begun.
        """
        found = [self.folder / RECORDS] if self.is_finished() else self._parts()
        for path in found:
            self._check_made_by_this(path)
        if found and not resume:
            rule = "results of this study are there already: continue with --resume"
            raise ValueError(f"{self.folder}: {rule}, or choose another --out")

    def is_finished(self) -> bool:
        """Whether the whole table is there."""
        return (self.folder / RECORDS).exists()

    def has_part(self, number: int) -> bool:
        """Whether a part is there, with its timings."""
        part = self._part(number)
        return part.exists() and part.with_suffix(".seconds").exists()

    def write_part(self, number: int, records: pa.Table, seconds: pa.Table) -> None:
        """Write a part; it is there when its records are.

        Args:
            number: from 0 on.
            records: its rows.
            seconds: its timings.
        """
        self._part(number).parent.mkdir(exist_ok=True)
        self._write(self._part(number).with_suffix(".seconds"), [seconds])
        self._write(self._part(number), [records])

    def merge(self, n_parts: int) -> None:
        """Make one table of all parts, a part at a time.

        Args:
            n_parts: how many there are.

        Raises:
            ValueError: a part is damaged.
        """
        parts = [self._part(number) for number in range(n_parts)]
        seconds = (self._read(part.with_suffix(".seconds")) for part in parts)
        self._write(self.folder / SECONDS, seconds)
        self._write(self.folder / RECORDS, (self._read(part) for part in parts))

    def drop_parts(self) -> None:
        """Remove the parts, once there is one table of all."""
        if (self.folder / PARTS).exists():
            shutil.rmtree(self.folder / PARTS)

    def tables(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[pa.Table]:
        """The whole table, some rows at a time.

        Args:
            wanted: which columns.

        Yields:
            Tables; one at a time is in memory.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / RECORDS
        with _damage_named(path):
            _check_digest(path)
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = list(filter(wanted, file.schema_arrow.names))
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=names)

    def table(self) -> pa.Table:
        """The whole table in memory, see :meth:`tables`."""
        return pa.concat_tables(self.tables())

    def _part(self, number: int) -> Path:
        return self.folder / PARTS / f"{number:06d}.parquet"

    def _parts(self) -> list[Path]:
        return sorted((self.folder / PARTS).glob("*.parquet"))

    def _check_made_by_this(self, path: Path) -> None:
        with _damage_named(path):
            _check_digest(path)
            metadata = pq.read_schema(path).metadata or {}
        theirs = {key.decode(): value.decode() for key, value in metadata.items()}
        for key, what in (
            ("rpo.config", "of another study"),
            ("rpo.versions", "of other versions"),
        ):
            if theirs.get(key) != self._metadata[key]:
                where = _first_difference(theirs.get(key), self._metadata[key])
                raise ValueError(f"{path}: results {what}{where}: choose another --out")

    def _write(self, path: Path, tables: Iterable[pa.Table]) -> None:
        unfinished = path.with_name(path.name + ".unfinished")
        rest = iter(tables)
        first = next(rest)
        schema = first.schema.with_metadata(self._metadata)
        try:
            with pq.ParquetWriter(
                unfinished, schema, write_page_checksum=True, compression="zstd"
            ) as writer:
                for table in itertools.chain([first], rest):
                    writer.write_table(table.cast(schema))
            _to_disk(unfinished)
            # Before the table: one that is there has its digest.
            _digest_of(path).write_text(f"{_sha256(unfinished)}  {path.name}\n", encoding="utf-8")
            _to_disk(_digest_of(path))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _read(self, path: Path) -> pa.Table:
        with _damage_named(path):
            _check_digest(path)
            return pq.read_table(path, page_checksum_verification=True)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError) and error.errno is not None and not missing:
            raise
        rule = "is damaged or missing: delete it and continue with --resume, it is computed again"
        raise ValueError(f"{path} {rule}") from error


def _first_difference(theirs: str | None, ours: str) -> str:
    """Which key of two JSON objects differs, for the error."""
    if theirs is None:
        return ""
    old, new = json.loads(theirs), json.loads(ours)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f" (`{key}` was {old.get(key)!r}, is {new.get(key)!r})"
    return ""


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_digest(path: Path) -> None:
    said = _digest_of(path).read_text(encoding="utf-8")
    if said != f"{_sha256(path)}  {path.name}\n":
        raise ValueError("it is not the file that was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
