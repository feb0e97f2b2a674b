"""Atomic writes: a file or folder appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it when the block ends without an error.

    Args:
        path: final path of the file; its folder must exist. An existing file is replaced.
        durable: flush the content to the disk before the rename, so that the file is complete
            even after a power failure.

    Yields:
        The temporary path, ``path`` with the suffix ``.part``. The block writes to it.

    Raises:
        OSError: if the file cannot be written or renamed. The temporary file is removed.

    Examples:
        >>> with atomic_file(Path("numbers.txt")) as part:  # doctest: +SKIP
        ...     part.write_text("1 2 3")
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if durable:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write bytes to a file that is never visible half written.

    Args:
        path: final path of the file; its folder must exist. An existing file is replaced.
        content: the bytes.
        durable: flush the content to the disk before the file appears.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_file(path, durable=durable) as part:
        part.write_bytes(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to ``folder`` when the block ends without an error.

    Args:
        folder: final path; it must be missing or an empty folder. Missing parents are created.

    Yields:
        The temporary folder, beside ``folder``. The block writes into it.

    Raises:
        OSError: if the folder cannot be written or renamed. The temporary folder is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        part.chmod(0o755)
        yield part
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
