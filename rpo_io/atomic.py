"""Atomic writes: a file or folder appears under its name only when it is complete.

The temporary name is ``.rpo-`` with a digest of the final name and a number, so that it fits
wherever the final name fits. It is created exclusively and locked: a file of another program is
never opened, and what a killed process left behind is removed by the next write of the same name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .bucket_paths import AnyPath, BucketPath

TEMPORARY_PREFIX = ".rpo-"
TEMPORARY_SUFFIX = ".part"


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it when the block ends without an error.

    Args:
        path: final path of the file; missing folders are created. An existing file is replaced; a
            link, a folder, a pipe or a device is not.
        durable: flush the content to the disk before the rename, so that the file is complete
            even after a power failure.

    Yields:
        The temporary path of an empty file. The block writes to it. Permissions follow the umask.

    Raises:
        OSError: if the file cannot be written or renamed, or something other than a file has the
            name; the error names the final path. The temporary file is removed.

    Examples:
        >>> with atomic_file(Path("numbers.txt")) as part:  # doctest: +SKIP
        ...     part.write_text("1 2 3")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_special_file(path)
    part, lock = _claim(path, _create_file)
    try:
        yield part
        if durable:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        refuse_special_file(path)
        part.replace(path)
    except OSError as error:
        # The user knows the final name; a write to a full disk names no file at all.
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


def write_atomic(path: AnyPath, content: bytes, *, durable: bool = False) -> None:
    """Write bytes to a file that is never visible half written.

    Args:
        path: final path of the file, local or in a bucket; missing folders are created. An
            existing file is replaced; a link, a folder, a pipe or a device is not.
        content: the bytes.
        durable: flush the content to the disk before the file appears.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the object in a bucket cannot be written.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(content)
        return
    with atomic_file(path, durable=durable) as part:
        part.write_bytes(content)


@contextmanager
def atomic_folder(folder: AnyPath, *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder and rename it to ``folder`` when the block ends without an error.

    A folder in a bucket cannot be renamed: its files are uploaded.

    Args:
        folder: final path; it must be missing, an empty folder, or a link to an empty folder.
            Missing parents are created.
        last: names of files without which the folder is not read; in a bucket they appear last.

    Yields:
        The temporary folder, beside ``folder``, or for a bucket in the system's folder for
        temporary files. The block writes into it. Permissions follow the umask.

    Raises:
        OSError: if the folder cannot be written or renamed. The temporary folder is removed.
    """
    if isinstance(folder, BucketPath):
        with staging_folder(str(folder)) as part:
            yield part
            _upload_folder(part, folder, last)
        return
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, lock = _claim(folder, _create_folder)
    try:
        yield part
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


@contextmanager
def staging_folder(name: str) -> Iterator[Path]:
    """Yield an empty local folder for files on their way to a bucket, removed after the block.

    It lies in the system's folder for temporary files, which ``TMPDIR`` chooses. What a killed
    process left behind is removed by the next one that stages files for the same target.

    Args:
        name: URL of the target.

    Yields:
        The folder; two processes never get the same one.

    Raises:
        OSError: if the folder cannot be created.

    Examples:
        >>> with staging_folder("gs://bucket/policy") as folder:
        ...     list(folder.iterdir())
        []
    """
    # Only the digest of the last component is used.
    target = Path(tempfile.gettempdir()) / name.replace("/", "\\")
    part, lock = _claim(target, _create_folder)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _upload_folder(part: Path, folder: BucketPath, last: Sequence[str]) -> None:
    """Upload the files of a folder; if one fails, remove those that were uploaded."""
    files = sorted(path for path in part.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name in last)
    uploaded: list[BucketPath] = []
    try:
        for file in files:
            uploaded.append(folder / file.relative_to(part).as_posix())
            uploaded[-1].upload(file)
    except BaseException:
        for path in reversed(uploaded):
            with suppress(Exception):
                path.unlink(missing_ok=True)
        raise


def refuse_special_file(path: Path) -> None:
    """Raise an error if a path is taken by anything but a regular file.

    Args:
        path: path of a file to write.

    Raises:
        FileExistsError: if the path is a link, a folder, a pipe, a socket or a device.
    """
    kind = special_kind(path)
    if kind is not None:
        raise FileExistsError(errno.EEXIST, f"is {kind}, which is never replaced", str(path))


def special_kind(path: Path) -> str | None:
    """Return what a path is, if it is neither missing nor a regular file.

    Args:
        path: any path; a link is not followed.

    Returns:
        A noun phrase such as ``"a symbolic link"``; None for a file or a path that is free.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return None
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a temporary file or folder of this module.

    Args:
        name: name of a file, without its folder.
    """
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _claim(path: Path, create: Callable[[Path], int | None]) -> tuple[Path, int]:
    """Create and lock a temporary file or folder for a target; remove those of killed processes.

    Args:
        path: the target.
        create: creates a path exclusively and locks it; returns None if the path is taken.

    Returns:
        The temporary path, and the descriptor that holds its lock.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    claimed = None
    number = 0
    while True:
        part = path.with_name(f"{TEMPORARY_PREFIX}{digest}-{number}{TEMPORARY_SUFFIX}")
        _remove_if_abandoned(part)
        if claimed is None:
            lock = create(part)
            claimed = None if lock is None else (part, lock)
        elif not os.path.lexists(part):
            return claimed
        number += 1


def _create_file(part: Path) -> int | None:
    """Create and lock a file; return its descriptor, or None if the path is taken."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        return _lock(part, os.open(part, flags, 0o666))
    except FileExistsError:
        return None


def _create_folder(part: Path) -> int | None:
    """Create and lock a folder; return its descriptor, or None if the path is taken."""
    try:
        part.mkdir()
        return _lock(part, os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY))
    except (FileExistsError, FileNotFoundError):
        return None


def _lock(part: Path, descriptor: int) -> int | None:
    """Lock a new file or folder; return None if another process removed it before."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor  # without locks, nothing is ever taken for abandoned
    if _is_open_as(part, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _remove_if_abandoned(part: Path) -> None:
    """Remove a temporary file or folder whose lock nobody holds: its process has ended."""
    try:
        mode = os.lstat(part).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return
        # A network file system grants an exclusive lock only on a file that is open for writing.
        access = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
        descriptor = os.open(part, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_open_as(part, descriptor):
            if stat.S_ISDIR(mode):
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()
    except OSError:
        return
    finally:
        os.close(descriptor)


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Return whether a path still names the file or folder of a descriptor."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    return False
