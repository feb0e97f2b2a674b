r"""Records of a study on disk: parts that are complete or absent, and one table at the end.

A killed study loses only the part it was computing. Every file carries the resolved configuration,
the digests of the files that the study reads and the versions that made it; a file of another study
is refused. Beside every file lies its SHA-256, in the format of ``sha256sum --check``, so that a
damaged file is reported and never used. The bytes of the records follow from configuration, input
files and versions alone; timings have their own table. A study continues for more seeds, see
:mod:`bandits.study.continuation`.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpo_io.atomic import atomic_file, is_temporary, write_atomic
from rpo_io.digests import sha256_hex, sha256_of_file
from rpo_io.versions import release_version

from .config import StudyConfig
from .continuation import SeedBlock, join_blocks, split_records
from .parts import plan_parts

RECORDS_FILE = "records.parquet"
TIMINGS_FILE = "seconds.parquet"
PARTS_FOLDER = "parts"
PIECES_SUFFIX = "_pieces"
"""Ending of the name of the folder of the pieces of parts."""
PART_NAME = re.compile(r"\d{6,}\.(parquet|seconds)(\.sha256)?")
RECORDS_FORMAT = 4
"""Version of the columns; results in another format are not continued."""
_MAX_SHOWN = 80
VERSIONED = ("jax", "jaxlib", "numpy", "scipy", "pyarrow")
"""Packages whose installed version is part of the fingerprint of the records."""


def record_versions() -> dict[str, Any]:
    """Return the versions that are part of the fingerprint of the records.

    Returns:
        Versions of Python, of the packages and of the format of the records, by name.

    Examples:
        >>> record_versions()["records_format"] == RECORDS_FORMAT
        True
    """
    versions: dict[str, Any] = {name: version(name) for name in VERSIONED}
    versions |= {"python": platform.python_version(), "records_format": RECORDS_FORMAT}
    versions["rpo-theory"] = release_version()
    return versions


class RecordStore:
    """Folder of a study that holds its parts and, at the end, one table of all records."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        inputs: Mapping[str, str] | None = None,
        parts_folder: str = PARTS_FOLDER,
    ) -> None:
        """Describe a folder without touching the disk.

        Args:
            folder: output folder of the study; it must exist before the first write.
            config: resolved configuration, as plain values.
            inputs: digests of the files that the study reads, see
                :func:`bandits.study.inputs.input_digests`.
            parts_folder: name of the folder of the parts.
        """
        self.folder: Path = folder
        self.parts_folder: str = parts_folder
        self._metadata = {
            "rpo.config": json.dumps(config, sort_keys=True),
            "rpo.inputs": json.dumps(dict(inputs or {}), sort_keys=True),
            "rpo.versions": json.dumps(record_versions(), sort_keys=True),
        }
        self._metadata["rpo.fingerprint"] = sha256_hex("\n".join(self._metadata.values()))

    def check(self, *, resume: bool, more_seeds: bool = True) -> None:
        """Raise an error if the folder holds results that must not be continued.

        Args:
            resume: whether the user asked to continue a study.
            more_seeds: whether the results may be those of a study with fewer seeds.

        Raises:
            ValueError: if the folder holds results of another study or other versions, a damaged
                file, or results that ``resume`` does not allow to continue.
        """
        blocks = sorted(self.folder.glob("parts_of_seeds_*/*.parquet"))
        parts = [*self._part_paths(), *blocks]
        existing = [self.folder / RECORDS_FILE] if self.is_finished() else parts
        for path in existing:
            self._check_origin(path, more_seeds=more_seeds)
        if existing and not resume:
            rule = "results of this study are there already: continue with --resume"
            raise ValueError(f"{self.folder}: {rule}, or choose another --out")

    def earlier_seeds(self) -> int | None:
        """Return the number of seeds of the results, if the study is to have more; else None."""
        existing = [self.folder / RECORDS_FILE] if self.is_finished() else self._part_paths()[:1]
        current = json.loads(self._metadata["rpo.config"]).get("seeds")
        for path in existing:
            stored = json.loads(_read_metadata(path)["rpo.config"]).get("seeds")
            if stored != current:
                return stored
        return None

    def keep_as_block(self, study: StudyConfig, seeds: int) -> None:
        """Turn the results of an earlier run into a block of seeds of the present study.

        Args:
            study: configuration of the present study.
            seeds: number of seeds of the earlier run.

        Raises:
            ValueError: if a file is damaged.
        """
        block = SeedBlock(0, seeds)
        if not self.is_finished():
            (self.folder / self.parts_folder).rename(self.folder / block.folder())
            return
        self.drop_parts()
        store = self.block(block)
        timings, path = self._read(self.folder / TIMINGS_FILE), self.folder / RECORDS_FILE
        for number, table in split_records(block.study(study), self.iter_tables()):
            store.write_part(number, table, timings if number == 0 else timings.slice(0, 0))
        # Now the parts are complete, and the table is no longer needed.
        for file in (path, self.folder / TIMINGS_FILE):
            file.unlink()
            _digest_path(file).unlink()

    def block(self, block: SeedBlock) -> RecordStore:
        """Return the store of the parts of a block of seeds.

        Args:
            block: some of the seeds of the study.
        """
        config, inputs = (json.loads(self._metadata[key]) for key in ("rpo.config", "rpo.inputs"))
        return RecordStore(self.folder, config, inputs=inputs, parts_folder=block.folder())

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

    def move_part(self, number: int, target: RecordStore) -> None:
        """Move a part and its timings to another folder of the same file system.

        Args:
            number: index of the part, from 0.
            target: store of the other folder.
        """
        path, moved = self._part_path(number), target._part_path(number)
        moved.parent.mkdir(exist_ok=True)
        for suffix in (".seconds.sha256", ".seconds", ".parquet.sha256", ".parquet"):
            path.with_suffix(suffix).replace(moved.with_suffix(suffix))

    def read_part(self, number: int) -> tuple[pa.Table, pa.Table]:
        """Return the records and the timings of a part.

        Args:
            number: index of the part, from 0.

        Raises:
            ValueError: if a file is damaged or missing.
        """
        path = self._part_path(number)
        return self._read(path), self._read(path.with_suffix(".seconds"))

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

    def merge_blocks(self, study: StudyConfig, blocks: Sequence[SeedBlock]) -> None:
        """Write the tables of a study that was continued, as of one run from the start.

        Args:
            study: configuration of the study of all seeds.
            blocks: blocks that together hold all seeds once.

        Raises:
            ValueError: if a part is damaged or missing.
        """

        def read_part(block: SeedBlock, number: int) -> pa.Table:
            return self._read(self.folder / block.folder() / _part_name(number))

        seconds = (
            self._read((self.folder / block.folder() / _part_name(number)).with_suffix(".seconds"))
            for block in blocks
            for number in range(len(plan_parts(block.study(study))))
        )
        self._write(self.folder / TIMINGS_FILE, seconds)
        self._write(self.folder / RECORDS_FILE, join_blocks(study, blocks, read_part))

    def drop_parts(self) -> None:
        """Remove the parts, which are needed only until the study is merged."""
        for parts in (
            self.folder / PARTS_FOLDER,
            self.folder / (PARTS_FOLDER + PIECES_SUFFIX),
            *self.folder.glob("parts_of_seeds_*"),
        ):
            if not parts.is_dir():
                continue
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
        return self.folder / self.parts_folder / _part_name(number)

    def _part_paths(self) -> list[Path]:
        return sorted((self.folder / self.parts_folder).glob("*.parquet"))

    def _check_origin(self, path: Path, *, more_seeds: bool) -> None:
        with _report_damage(path):
            _check_digest(path)
            stored = _read_metadata(path)
        for key, what in (
            ("rpo.versions", "of other versions"),
            ("rpo.config", "of another study"),
            ("rpo.inputs", "of another content of a file"),
        ):
            old, new = (json.loads(value.get(key) or "{}") for value in (stored, self._metadata))
            if key == "rpo.config" and more_seeds and _has_fewer_seeds(old, new):
                old["seeds"] = new["seeds"]
            if old != new:
                difference = _first_difference(old, new)
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
                    # One chunk per column: pages then depend on the rows alone.
                    writer.write_table(table.cast(schema).combine_chunks())
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


def _read_metadata(path: Path) -> dict[str, str]:
    metadata = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _has_fewer_seeds(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether results are those of a study with fewer seeds, which can be continued."""
    earlier, later = old.get("seeds"), new.get("seeds")
    return isinstance(earlier, int) and isinstance(later, int) and earlier < later


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    """Describe the first key in which two JSON values differ, for an error message."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    lists = isinstance(old, list) and isinstance(new, list)
    if lists and any(isinstance(item, dict) for item in [*old, *new]):
        for index, (before, after) in enumerate(itertools.zip_longest(old, new)):
            if before != after:
                return _first_difference(before, after, f"{path}[{index}]")
    is_shorter = path == "seeds" and isinstance(old, int) and isinstance(new, int) and new < old
    more = ", and a study continues only for more seeds" if is_shorter else ""
    if path == "kernel":
        more = f"; to continue, write `kernel: {old}` into the configuration"
    return f" (`{path}` was {_shown(old)}, is {_shown(new)}{more})" if path else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _part_name(number: int) -> str:
    return f"{number:06d}.parquet"


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_digest(path: Path) -> None:
    stored = _digest_path(path).read_text(encoding="utf-8")
    if stored != f"{sha256_of_file(path)}  {path.name}\n":
        raise ValueError("the SHA-256 of the file is not the stored one")
