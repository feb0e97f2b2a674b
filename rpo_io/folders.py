"""Output folders: checked before any work, locked, and named in errors of the operating system."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


def prepare_folder(folder: Path) -> None:
    """Create an output folder if it is missing, and check that it can be written to.

    Args:
        folder: the folder; missing parents are created.

    Raises:
        ValueError: if the path is not a folder, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"argument --out: {folder} is not a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"argument --out: {folder} is not writable")


@contextmanager
def name_os_errors(folder: Path) -> Iterator[None]:
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
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for the duration of the block.

    The operating system releases the lock when the process ends, however it ends, so that a killed
    process blocks nobody. The empty lock file stays in the folder.

    Args:
        folder: an existing folder that can be written to.

    Raises:
        ValueError: if another process holds the lock.
        OSError: if the file system does not support locks.
    """
    path = folder / LOCK_FILE
    with path.open("w") as lock:
        # Not the filelock package: it reports a file system without locks as a lock that is held.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait until it ends, or choose another --out"
            raise ValueError(f"{folder}: another process uses this folder: {remedy}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield
