"""Output folders: checked before any work, locked, and named in errors of the operating system."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .bucket_paths import AnyPath, BucketPath
from .leases import hold_lease
from .object_stores import check_writable as check_bucket_writable

LOCK_FILE = ".lock"


def prepare_folder(folder: AnyPath) -> None:
    """Create an output folder if it is missing, and check that it can be written to.

    Args:
        folder: the folder, local or in a bucket; missing parents are created.

    Raises:
        ValueError: if the path is not a folder, or cannot be written to.
    """
    refuse_unexpanded(folder)
    check_writable(folder)
    if isinstance(folder, BucketPath):
        return  # it exists as soon as it holds an object
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"argument --out: {folder}: {error.strerror}") from error


def check_writable(folder: AnyPath, *, names: Sequence[str] = ()) -> None:
    """Check that files can be created in a folder, without creating the folder.

    A temporary file is created and removed, because only the file system knows its own limits.

    Args:
        folder: the folder; if it is missing, the nearest parent that exists is tried.
        names: names of files that will be created in it.

    Raises:
        ValueError: if the path is not a folder, or cannot be written to.
    """
    if isinstance(folder, BucketPath):
        check_bucket_writable(folder.location)
        return
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"argument --out: {existing} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        longest = os.pathconf(existing, "PC_NAME_MAX")
    except PermissionError as error:
        raise ValueError(f"argument --out: {existing} is not writable") from error
    except OSError as error:
        raise ValueError(f"argument --out: {existing} is not writable: {error.strerror}") from error
    for name in (*folder.parts, *names):
        if len(os.fsencode(name)) > longest:
            raise ValueError(
                f"argument --out: a name may have at most {longest} bytes, got {name!r}"
            )


def refuse_unexpanded(path: AnyPath) -> None:
    """Refuse a path that is none: with a scheme, or with ``~``, ``$NAME`` or ``${NAME}``.

    Args:
        path: the path of an output.

    Raises:
        ValueError: if the path begins with a scheme such as ``gs:`` or with ``~``, or names a
            variable; a path that exists under exactly this name is accepted.

    Examples:
        >>> refuse_unexpanded(Path("~/out"))
        Traceback (most recent call last):
        ValueError: argument --out: ~/out is not expanded: write the folder itself instead of ~
    """
    if isinstance(path, BucketPath):
        return
    # pathlib makes one slash of the two after a scheme.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+):/", str(path))
    if scheme and not os.path.lexists(path):
        shown = str(path).replace(":/", "://", 1)
        raise ValueError(
            f"argument --out: {shown} is not written by this command: name a local path without "
            f"{scheme[1]}://"
        )
    for part in path.parts:
        found = re.match(r"~[\w.-]*$", part) if part == path.parts[0] else None
        found = found or re.search(r"\$(\w+|\{\w+\})", part)
        if found and not os.path.lexists(path):
            raise ValueError(
                f"argument --out: {path} is not expanded: write the folder itself instead of "
                f"{found[0]}"
            )


@contextmanager
def name_os_errors(folder: AnyPath) -> Iterator[None]:
    """Add the name of a folder to errors of the operating system that name no file.

    If a write to an open file fails, for example on a full disk, the error names no file.

    Args:
        folder: the folder that the block writes to.

    Raises:
        OSError: the error of the block, with the folder as its file name.

    Examples:
        >>> with name_os_errors(Path("out")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'out'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error


@contextmanager
def folder_lock(folder: AnyPath) -> Iterator[None]:
    """Hold the lock of a folder for the duration of the block.

    The operating system releases the lock when the process ends, however it ends, so that a killed
    process blocks nobody. The empty lock file stays in the folder. The lock of a folder in a
    bucket is a lease, which a killed process on another machine holds for a minute.

    Args:
        folder: an existing folder that can be written to.

    Raises:
        ValueError: if another process holds the lock.
        OSError: if the file system does not support locks, or the name of the lock is taken by a
            link, a pipe or a device.
    """
    if isinstance(folder, BucketPath):
        with hold_lease(folder.location):
            yield
        return
    path = folder / LOCK_FILE
    while True:
        with _open_lock(path) as lock:
            # Not the filelock package: it reports a file system without locks as a held lock.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                remedy = "wait until it ends, or choose another --out"
                raise ValueError(f"{folder}: another process uses this folder: {remedy}") from error
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            # The process that held the lock may have removed a folder that it had only begun.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                continue
            yield
            return


def _open_lock(path: Path) -> BinaryIO:
    """Open a lock file, which is created but never follows a link or changes a file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return open(os.open(path, flags, 0o666), "r+b", buffering=0)
