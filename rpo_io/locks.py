"""A lock that keeps a second process out of an output folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


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
