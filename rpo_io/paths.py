"""Output folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def prepare_folder(folder: Path) -> None:
    """Make sure that results can be written to a folder, before any work is done.

    Args:
        folder: created with its parents if it is missing.

    Raises:
        ValueError: it is not a folder, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"argument --out: {folder} is not a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"argument --out: nothing can be written to {folder}")


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Have errors of the operating system name a folder, where they name no file.

    Those of a write do not: the file is open by then.

    Args:
        folder: that the block writes to.

    Raises:
        OSError: the same, named.

    Examples:
        >>> with naming(Path("out")):
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
