"""Sources of data rows: files, folders of shards, patterns, lists of these, and hub data sets.

A source is resolved to files before anything is read. What could mix splits, subsets or copies of
the same rows is refused with the names to choose from.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rpo_io.hub import missing_source, parse_hub_name
from rpo_io.locations import Location, parse_location
from rpo_io.staging import check_bucket, stage_objects

from .bucket_sources import objects_of
from .hub_datasets import repository_files
from .splits import is_data_file, listed, shards_of

_PATTERN = re.compile(r"[*?\[]")


class SourceFile(NamedTuple):
    """A local file of a source.

    Attributes:
        path: the file.
        shown: name of the file in error messages.
    """

    path: Path
    shown: str


Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | SourceFile]
"""Rows by name: a file, a folder of shards, a pattern such as ``shards/*.parquet``, a data set on
the hub as ``owner/name[@revision][/subset][:split]``, or a list of these or of their files."""


def source_files(source: Source) -> list[SourceFile]:
    """Return the local files of a source, in the order in which they are read.

    The files of a hub data set are downloaded.

    Args:
        source: see :data:`Source`. The default split of a hub data set is ``train``.

    Returns:
        The files, at least one, no file twice.

    Raises:
        ValueError: if there is no such source, it is ambiguous, or a file is named twice.
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise ValueError("a list of data files must name at least one, got none")
    files: list[SourceFile] = []
    for name in names:
        files += [name] if isinstance(name, SourceFile) else _files_of(os.fspath(name))
    check_once(files)
    return files


def check_once(files: Sequence[SourceFile]) -> None:
    """Raise an error if a file is named twice, under whatever name.

    Args:
        files: files of one or several sources.

    Raises:
        ValueError: if two of them are the same file.

    Examples:
        >>> check_once([SourceFile(Path("."), "here"), SourceFile(Path(".."), "above")])
    """
    seen: dict[tuple[int, int], str] = {}
    for path, shown in files:
        identity = _identity(path)
        if identity in seen:
            raise ValueError(f"{shown} is the same file as {seen[identity]}: name it once")
        seen[identity] = shown


def shown_source(source: Source) -> str:
    """Return the name of a source for error messages.

    Examples:
        >>> shown_source(["a.jsonl", "b.jsonl"])
        'a.jsonl, b.jsonl'
    """
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return listed(
        each.shown if isinstance(each, SourceFile) else os.fspath(each) for each in source
    )


def check_distinct(train: Sequence[SourceFile], evaluation: Sequence[SourceFile]) -> None:
    """Raise an error if training and evaluation rows have a file in common, under whatever name.

    Args:
        train: files of the training rows.
        evaluation: files of the evaluation rows.

    Raises:
        ValueError: if a file belongs to both.
    """
    trained = {_identity(path): shown for path, shown in train}
    for path, shown in evaluation:
        same = trained.get(_identity(path))
        if same is not None:
            name = shown if same == shown else f"{shown}, which is the file {same},"
            raise ValueError(
                f"`data.eval` must be other rows than `data.train`, got {name} in both: leave "
                "`data.eval` out and hold rows out with `data.eval_rows`"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _files_of(source: str) -> list[SourceFile]:
    if not source.strip() or "\0" in source:
        raise ValueError(f"a data file must have a name, got {source!r}")
    location = parse_location(source)
    if location.is_bucket:
        return _files_of_bucket(location)
    source = str(location)
    path = Path(source)
    if path.is_file():
        return [SourceFile(path, source)]
    if path.is_dir():
        return _files_of_folder(path)
    if path.exists():
        raise ValueError(
            f"{source} must be a regular file, because it is read twice: save it first"
        )
    if _PATTERN.search(source):
        return _files_of_pattern(source)
    name, split = _divide_split(source)
    repository = parse_hub_name(name, kind="dataset")
    if repository is None:
        raise missing_source(source, what="a file or folder of rows")
    return [SourceFile(*file) for file in repository_files(repository, split, source)]


def _files_of_pattern(pattern: str) -> list[SourceFile]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    _refuse_special(paths)
    folders = [str(path) for path in paths if path.is_dir() and _holds_data(path)]
    if folders and "**" not in pattern:
        raise ValueError(
            f"{pattern} matches folders of rows ({listed(folders)}): name their files, for example "
            f"{pattern}/*.jsonl"
        )
    files = [SourceFile(path, str(path)) for path in paths if path.is_file()]
    if not files:
        raise ValueError(f"{pattern} matches no file")
    return files


def _refuse_special(paths: Sequence[Path]) -> None:
    """Refuse broken links and special files, which would be left out of a source."""
    for path in paths:
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a broken link or a special file: remove or replace it")


def _files_of_folder(folder: Path) -> list[SourceFile]:
    """Return the shards of a folder; refuse one that holds splits, subsets or two formats."""
    entries = sorted(folder.iterdir())
    _refuse_special([path for path in entries if not path.name.startswith((".", "_"))])
    names = []
    for entry in entries:
        if entry.is_dir():
            names += [f"{entry.name}/{name}" for _, _, found in os.walk(entry) for name in found]
        else:
            names.append(entry.name)
    return [SourceFile(folder / name, str(folder / name)) for name in shards_of(names, str(folder))]


def _files_of_bucket(location: Location) -> list[SourceFile]:
    """Copy the files of a source in a bucket, which is a file, a folder or a pattern."""
    check_bucket(location)
    found = objects_of(location)
    if _PATTERN.search(location.key):
        if not found:
            raise ValueError(f"{location} matches no file")
    elif not found:
        raise missing_source(str(location), what="a file or folder of rows")
    elif found[0].location != location:
        objects = {item.location.path.removeprefix(f"{location.path}/"): item for item in found}
        found = [objects[name] for name in shards_of(objects, str(location))]
    paths = stage_objects(found, location)
    return [SourceFile(path, str(item.location)) for path, item in zip(paths, found, strict=True)]


def _holds_data(folder: Path) -> bool:
    return any(is_data_file(name) for _, _, names in os.walk(folder) for name in names)


def _divide_split(source: str) -> tuple[str, str | None]:
    """Divide a name of a hub data set from the split after it."""
    scheme, rest = ("hf://", source[5:]) if source.startswith("hf://") else ("", source)
    name, colon, split = rest.rpartition(":")
    if not colon or "/" in split:
        return source, None
    if not split:
        raise ValueError(f"{source}: a name of a split must follow the colon")
    return scheme + name, split
