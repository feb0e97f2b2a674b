"""One process at a time in an output folder, by a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder.

    The system lets go of the lock when its holder ends, in whatever way: one that was killed keeps
    nobody out. The empty file stays.

    Args:
        folder: exists, and can be written to.

    Raises:
        ValueError: another process works there.
        OSError: the file system has no locks.
    """
    path = folder / LOCK
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "another process works there: wait for it, or choose another --out"
            raise ValueError(f"{folder}: {rule}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield
