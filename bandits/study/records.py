r"""Records of a study on disk: parts that are complete or absent, and one table at the end.

A killed study loses only the part it was computing. Every file carries the resolved configuration
and the versions that made it; a file of another study is refused. Beside every file lies its
SHA-256, in the format of ``sha256sum --check``, so that a damaged file is reported and never used.
The bytes of the records follow from configuration and versions alone; timings have their own table.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpo_io.atomic import atomic_file, is_temporary, write_atomic
from rpo_io.digests import sha256_hex, sha256_of_file
from rpo_io.versions import release_version

RECORDS_FILE = "records.parquet"
TIMINGS_FILE = "seconds.parquet"
PARTS_FOLDER = "parts"
PART_NAME = re.compile(r"\d{6,}\.(parquet|seconds)(\.sha256)?")
RECORDS_FORMAT = 1
"""Version of the columns; results in another format are not continued."""
VERSIONED = ("jax", "jaxlib", "numpy", "scipy", "pyarrow")
"""Packages whose installed version is part of the fingerprint of the records."""


class RecordStore:
    """Folder of a study that holds its parts and, at the end, one table of all records."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Describe a folder without touching the disk.

        Args:
            folder: output folder of the study; it must exist before the first write.
            config: resolved configuration, as plain values.
        """
        self.folder = folder
        versions: dict[str, Any] = {name: version(name) for name in VERSIONED}
        versions |= {"python": platform.python_version(), "records_format": RECORDS_FORMAT}
        versions["rpo-theory"] = release_version()
        self._metadata = {
            "rpo.config": json.dumps(config, sort_keys=True),
            "rpo.versions": json.dumps(versions, sort_keys=True),
        }
        self._metadata["rpo.fingerprint"] = sha256_hex("\n".join(self._metadata.values()))

    def check(self, *, resume: bool) -> None:
        """Raise an error if the folder holds results that must not be continued.

        Args:
            resume: whether the user asked to continue a study.

        Raises:
            ValueError: if the folder holds results of another study or other versions, a damaged
                file, or results that ``resume`` does not allow to continue.
        """
        existing = [self.folder / RECORDS_FILE] if self.is_finished() else self._part_paths()
        for path in existing:
            self._check_origin(path)
        if existing and not resume:
            rule = "results of this study are there already: continue with --resume"
            raise ValueError(f"{self.folder}: {rule}, or choose another --out")

    def is_finished(self) -> bool:
        """Return whether the folder holds the table of all records."""
        return (self.folder / RECORDS_FILE).exists()

    def has_part(self, number: int) -> bool:
        """Return whether a part and its timings are stored.

        Args:
            number: index of the part, from 0.
        """
        path = self._part_path(number)
        return path.exists() and path.with_suffix(".seconds").exists()

    def write_part(self, number: int, records: pa.Table, timings: pa.Table) -> None:
        """Store a part; the timings come first, so that stored records always have timings.

        Args:
            number: index of the part, from 0.
            records: its records.
            timings: its timings.
        """
        self._part_path(number).parent.mkdir(exist_ok=True)
        self._write(self._part_path(number).with_suffix(".seconds"), [timings])
        self._write(self._part_path(number), [records])

    def merge(self, n_parts: int) -> None:
        """Write one table of all records and one of all timings, holding one part in memory.

        Args:
            n_parts: number of parts of the study.

        Raises:
            ValueError: if a part is damaged or missing.
        """
        paths = [self._part_path(number) for number in range(n_parts)]
        timings = (self._read(path.with_suffix(".seconds")) for path in paths)
        self._write(self.folder / TIMINGS_FILE, timings)
        self._write(self.folder / RECORDS_FILE, (self._read(path) for path in paths))

    def drop_parts(self) -> None:
        """Remove the parts, which are needed only until the study is merged."""
        parts = self.folder / PARTS_FOLDER
        if not parts.is_dir():
            return
        for path in list(parts.iterdir()):
            if is_temporary(path.name) or PART_NAME.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # a file of the user stays, with its folder
            parts.rmdir()

    def iter_tables(
        self, keep_column: Callable[[str], bool] = lambda name: True
    ) -> Iterator[pa.Table]:
        """Read the records of a finished study in tables of limited size.

        Args:
            keep_column: returns whether to read the column of a given name; by default all are.

        Yields:
            Consecutive rows of the table; one piece at a time is in memory.

        Raises:
            ValueError: if the file is damaged or missing.
        """
        path = self.folder / RECORDS_FILE
        with _report_damage(path):
            _check_digest(path)
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = list(filter(keep_column, file.schema_arrow.names))
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=names)

    def read_table(self) -> pa.Table:
        """Read all records of a finished study into memory.

        Returns:
            One row per fit.

        Raises:
            ValueError: if the file is damaged or missing.
        """
        return pa.concat_tables(self.iter_tables())

    def _part_path(self, number: int) -> Path:
        return self.folder / PARTS_FOLDER / f"{number:06d}.parquet"

    def _part_paths(self) -> list[Path]:
        return sorted((self.folder / PARTS_FOLDER).glob("*.parquet"))

    def _check_origin(self, path: Path) -> None:
        with _report_damage(path):
            _check_digest(path)
            metadata = pq.read_schema(path).metadata or {}
        stored = {key.decode(): value.decode() for key, value in metadata.items()}
        for key, what in (
            ("rpo.config", "of another study"),
            ("rpo.versions", "of other versions"),
        ):
            if stored.get(key) != self._metadata[key]:
                difference = _first_difference(stored.get(key), self._metadata[key])
                raise ValueError(f"{path}: results {what}{difference}: choose another --out")

    def _write(self, path: Path, tables: Iterable[pa.Table]) -> None:
        remaining = iter(tables)
        first = next(remaining)
        schema = first.schema.with_metadata(self._metadata)
        with atomic_file(path, durable=True) as part:
            with pq.ParquetWriter(
                part, schema, write_page_checksum=True, compression="zstd"
            ) as writer:
                for table in itertools.chain([first], remaining):
                    writer.write_table(table.cast(schema))
            # The digest is written first, so that every table under its final name has one.
            digest = f"{sha256_of_file(part)}  {path.name}\n"
            write_atomic(_digest_path(path), digest.encode(), durable=True)

    def _read(self, path: Path) -> pa.Table:
        with _report_damage(path):
            _check_digest(path)
            return pq.read_table(path, page_checksum_verification=True)


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Replace errors of reading a damaged file by one that names the file and the remedy."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError) and error.errno is not None and not missing:
            raise
        rule = "is damaged or missing: delete it and continue with --resume to compute it again"
        raise ValueError(f"{path} {rule}") from error


def _first_difference(stored: str | None, current: str) -> str:
    """Describe the first key in which two JSON objects differ, for an error message."""
    if stored is None:
        return ""
    old, new = json.loads(stored), json.loads(current)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f" (`{key}` was {old.get(key)!r}, is {new.get(key)!r})"
    return ""


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_digest(path: Path) -> None:
    stored = _digest_path(path).read_text(encoding="utf-8")
    if stored != f"{sha256_of_file(path)}  {path.name}\n":
        raise ValueError("the SHA-256 of the file is not the stored one")
