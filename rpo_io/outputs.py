"""Output files and folders, checked before any work: nothing of the user is ever replaced.

One rule holds for every output. It may be new. A file may replace an earlier result of the same
command, and a folder may hold an earlier run of the same command. Everything else that is there
stays as it is: inputs, files and folders of others, links, pipes and devices.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .atomic import is_temporary, special_kind, write_atomic
from .bucket_paths import AnyPath, BucketPath, as_path
from .folders import LOCK_FILE, check_writable, folder_lock, prepare_folder, refuse_unexpanded
from .leases import LEASE_FILE
from .object_stores import PROBE_NAME
from .remote_errors import TRANSIENT, StoreError, failure_of

MARKER_FILE = ".rpo.json"
"""File in an output folder that says which command wrote it."""
HARMLESS = (LOCK_FILE, LEASE_FILE, MARKER_FILE, "lost+found", ".DS_Store")
"""Names in a folder that counts as empty."""
MAX_RECORD_BYTES = 2**20
"""Bytes of an existing file that are read to recognize it."""
MAX_NAMES = 3
"""Names of foreign files that a message lists."""


def prepare_file(
    path: AnyPath,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    is_earlier_result: Callable[[Mapping[str, Any]], bool] = lambda record: False,
) -> None:
    """Check that an output file can be written and replaces nothing of the user.

    Nothing is created. Missing folders are created when the file is written.

    Args:
        path: path of the file.
        inputs: files, folders and patterns of files that the command reads; those that do not exist
            are passed over.
        is_earlier_result: whether a record is one that the same command writes. It gets the first
            JSON object of an existing file that is not empty; such a file is replaced only if the
            answer is true.

    Raises:
        ValueError: if the path is an input or lies in an input folder, is a link, a folder, a pipe
            or a device, holds something else, or cannot be written.

    Examples:
        >>> prepare_file(Path("scores.jsonl"), inputs=["rows.jsonl"])  # doctest: +SKIP
    """
    refuse_unexpanded(path)
    if isinstance(path, BucketPath):
        check_writable(path.parent)
        _refuse_bucket_inputs(path, inputs)
        if path.is_file():
            _refuse_foreign_file(path, is_earlier_result)
        elif path.is_dir():
            raise ValueError(f"argument --out: {path} is a folder, but must be a file")
        return
    with _named(path):
        kind = special_kind(path)
        _refuse_inputs(path, inputs)
        if path.is_dir():
            raise ValueError(f"argument --out: {path} is a folder, but must be a file")
        if kind is not None:
            raise ValueError(
                f"argument --out: {path} is {kind}, which is never replaced: give the path of a "
                "file, which may be new"
            )
        if path.exists():
            _refuse_foreign_file(path, is_earlier_result)
        check_writable(path.parent, names=[path.name])


def local_folder(out: str | os.PathLike[str] | BucketPath, command: str) -> Path:
    """Return the output folder of a command that writes to local disks only.

    Args:
        out: the folder.
        command: name of the command, such as ``"study"``.

    Returns:
        The folder.

    Raises:
        ValueError: if it is in a bucket, or the scheme is unknown.

    Examples:
        >>> local_folder("out/study", "study").name
        'study'
    """
    folder = as_path(out)
    if isinstance(folder, BucketPath):
        raise ValueError(
            f"argument --out: rpo {command} writes local folders only, got {folder}: copy the "
            "folder to the bucket afterwards"
        )
    return folder


@contextmanager
def output_folder(
    folder: AnyPath,
    kind: str,
    *,
    is_earlier_run: Callable[[Any], bool] = lambda folder: False,
    locked: bool = True,
) -> Iterator[None]:
    """Take an output folder for a run, and hold its lock for the duration of the block.

    A folder is taken if it is missing, empty, or marked as one that the same command wrote. If the
    block raises an error before it has written anything, a folder that was new is removed.

    Args:
        folder: the folder, local or in a bucket; missing parents are created.
        kind: name of the command, such as ``"train"``.
        is_earlier_run: whether a folder without a mark holds a run of this command that an earlier
            version wrote.
        locked: whether to hold the lock of the folder.

    Raises:
        ValueError: if the folder holds other files or a run of another command, cannot be written
            to, or is in use by another process.
    """
    missing = _missing_folders(folder)
    prepare_folder(folder)
    try:
        is_marked = _is_marked(folder, kind)
        if not is_marked:
            _refuse_foreign_folder(folder, kind, is_earlier_run)
        with ExitStack() as stack:
            if locked:
                stack.enter_context(folder_lock(folder))
            if not is_marked:
                marker = json.dumps({"written_by": f"rpo {kind}"}) + "\n"
                write_atomic(folder / MARKER_FILE, marker.encode())
            try:
                yield
            except BaseException as error:
                # Cleaning up a bucket that is out of reach would only delay the message.
                is_gone = isinstance(folder, BucketPath) and failure_of(error) in TRANSIENT
                if missing and not is_gone and _is_left_empty(folder):
                    for name in (MARKER_FILE, LOCK_FILE):
                        (folder / name).unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):
            for path in missing:
                if isinstance(path, Path):
                    path.rmdir()
        raise


def _missing_folders(folder: AnyPath) -> list[AnyPath]:
    """Return the folder and its parents that do not exist yet, the innermost first."""
    if isinstance(folder, BucketPath):
        return [] if folder.is_dir() else [folder]
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def prepare_new_folder(folder: AnyPath) -> None:
    """Check that a folder can be written as a whole: it is missing or empty. Nothing is created.

    Args:
        folder: the folder, or a link to an empty one.

    Raises:
        ValueError: if it holds anything, is not a folder, or cannot be written.
    """
    refuse_unexpanded(folder)
    if isinstance(folder, BucketPath):
        check_writable(folder)
        if folder.exists():
            raise ValueError(
                f"argument --out: {folder} exists already and is not empty: choose another --out, "
                "or remove the folder"
            )
        return
    with _named(folder):
        # A folder is renamed to its name, so that a link is followed first.
        real = Path(os.path.realpath(folder))
        if real.is_symlink():
            raise ValueError(f"argument --out: {folder} is a link to itself: name another folder")
        if real.exists():
            if not real.is_dir():
                raise ValueError(f"argument --out: {folder} exists already and is not a folder")
            if any(real.iterdir()):
                raise ValueError(
                    f"argument --out: {folder} exists already and is not empty: choose another "
                    "--out, or move the folder away"
                )
            if os.path.ismount(real):
                raise ValueError(
                    f"argument --out: {folder} is the root of a file system: name a folder in it"
                )
        check_writable(real.parent, names=[real.name])


def _refuse_inputs(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise an error if a path is an input, under any name, or lies in an input folder."""
    real = Path(os.path.realpath(path))
    status = real.stat() if real.is_file() else None
    for source in _expanded(inputs):
        try:
            is_folder = source.is_dir()
            if not is_folder and not source.exists():
                continue  # the name of something on the hub
        except OSError:
            continue
        if is_folder and Path(os.path.realpath(source)) in real.parents:
            raise ValueError(
                f"argument --out: {path} lies in the input folder {source}: choose another folder"
            )
        if status is None:
            continue
        for file in _files_of(source):
            with suppress(OSError):
                if os.path.samestat(status, file.stat()):
                    raise ValueError(
                        f"argument --out: {path} is the input {file}, which is never replaced: "
                        "choose another name"
                    )


def _refuse_bucket_inputs(path: BucketPath, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise an error if an object is an input, or lies in an input folder."""
    for source in inputs:
        name = os.fspath(source).rstrip("/")
        if str(path) == name:
            raise ValueError(
                f"argument --out: {path} is an input, which is never replaced: choose another name"
            )
        if str(path).startswith(f"{name}/") and not path.is_file():
            raise ValueError(
                f"argument --out: {path} lies in the input folder {name}: choose another folder"
            )


def _expanded(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield the inputs; a pattern such as ``shards/*.parquet`` is replaced by its files."""
    for name in inputs:
        found = glob.glob(os.fspath(name), recursive=True)
        yield from map(Path, found or [name])


def _files_of(source: Path) -> Iterator[Path]:
    """Yield a file, or every file below a folder."""
    if not source.is_dir():
        yield source
        return
    for folder, _, names in os.walk(source):
        yield from (Path(folder) / name for name in names)


def _refuse_foreign_file(path: AnyPath, is_earlier: Callable[[Mapping[str, Any]], bool]) -> None:
    """Raise an error if an existing file is neither empty nor an earlier result."""
    if not _is_blank(path):
        record = _first_record(path)
        if record is None or not is_earlier(record):
            raise ValueError(
                f"argument --out: {path} exists and is not an earlier result of this command: "
                "move it away, or choose another name"
            )
    if isinstance(path, Path) and not os.access(path, os.W_OK):
        raise ValueError(f"argument --out: {path} is write-protected")


def _is_blank(path: AnyPath) -> bool:
    return (path.size() if isinstance(path, BucketPath) else path.stat().st_size) == 0


def _first_record(path: AnyPath) -> Mapping[str, Any] | None:
    """Return the first JSON object of a file: the whole, a line, or the first of a list."""
    with path.open("rb") as file:
        text = file.read(MAX_RECORD_BYTES).decode(errors="replace")
    start = re.match(r"\s*\[?\s*", text)
    try:
        record, _ = json.JSONDecoder().raw_decode(text, start.end() if start else 0)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_marked(folder: AnyPath, kind: str) -> bool:
    """Return whether a command of this kind wrote the folder.

    Raises:
        ValueError: if another command wrote it and it holds anything.
    """
    marker = folder / MARKER_FILE
    if isinstance(marker, Path) and special_kind(marker) is not None:
        return False
    if not marker.exists():
        return False
    record = _first_record(marker)
    written_by = record.get("written_by") if record else None
    if written_by == f"rpo {kind}":
        return True
    if isinstance(written_by, str) and not _is_empty(folder):
        raise ValueError(
            f"argument --out: {folder} holds a run of {written_by}, which is kept: choose another "
            "folder"
        )
    return False


def _refuse_foreign_folder(folder: AnyPath, kind: str, is_earlier: Callable[[Any], bool]) -> None:
    """Raise an error if a folder without a mark is neither empty nor an earlier run."""
    foreign = _foreign_names(folder)
    if foreign and not is_earlier(folder):
        names = ", ".join(foreign[:MAX_NAMES]) + (", ..." if len(foreign) > MAX_NAMES else "")
        raise ValueError(
            f"argument --out: {folder} holds files that rpo {kind} did not write ({names}): choose "
            "a new or empty folder"
        )


def _foreign_names(folder: AnyPath) -> list[str]:
    names = (path.name for path in folder.iterdir())
    return sorted(
        name
        for name in names
        if name not in HARMLESS and not is_temporary(name) and not name.startswith(PROBE_NAME)
    )


def _is_left_empty(folder: AnyPath) -> bool:
    """Return whether a folder is empty; not of a bucket that fails, whose error comes first."""
    try:
        return _is_empty(folder)
    except StoreError:
        return False


def _is_empty(folder: AnyPath) -> bool:
    return not _foreign_names(folder)


@contextmanager
def _named(path: AnyPath) -> Iterator[None]:
    """Turn an error of the operating system into one that names the argument."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"argument --out: {path}: {error.strerror or error}") from error
