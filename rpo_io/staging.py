"""Local copies of remote files, in one temporary folder that is removed when the work ends.

Every copy has the size, and the MD5 digest where the store gives one, of the object at one moment.
The folder is ``rpo-staged-*`` in the folder for temporary files. A process that is killed leaves it
behind; the next process that copies a file removes it.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .hub import download_hub_file
from .locations import Location, parse_location
from .object_stores import RemoteObject, check_readable, read_chunks, stat_object

PREFIX = "rpo-staged-"
"""Beginning of the name of the temporary folder."""
MIN_LOGGED_BYTES = 2**20
"""Smallest size of a single file that is logged, such as a configuration."""
_LOCK_FILE = ".lock"
_logger = logging.getLogger(__name__)


@dataclass
class _Staged:
    """The temporary folder of this process and what it holds."""

    folder: Path
    lock: BinaryIO
    process: int
    copies: dict[tuple[tuple[Location, str], ...], Path] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    origins: dict[Path, RemoteObject] = field(default_factory=dict)
    readable: set[Location] = field(default_factory=set)
    n_bytes: int = 0


_staged: _Staged | None = None
_mutex = threading.RLock()


def local_file(source: str | os.PathLike[str]) -> Path:
    """Return the local path of a file, after copying it here if it is remote.

    Args:
        source: a local path, or the location of an object or of a file on the hub.

    Returns:
        The path; a local one as it was given.

    Raises:
        ValueError: if the location is invalid, there is no such object, or it cannot be read.

    Examples:
        >>> local_file("file:///data/rows.jsonl"), local_file("rows.jsonl")
        (PosixPath('/data/rows.jsonl'), PosixPath('rows.jsonl'))
    """
    location = parse_location(source)
    if location.is_local:
        return location.local
    if location.scheme == "hf":
        return download_hub_file(str(location))
    check_bucket(location)
    return stage_objects([stat_object(location)], location, logged_bytes=MIN_LOGGED_BYTES)[0]


def shown_text(text: str) -> str:
    """Replace every path of a local copy in a text by the location from which it was copied.

    Args:
        text: a message.

    Returns:
        The text as the user should read it.

    Examples:
        >>> shown_text("rows.jsonl:1: the line is not JSON")
        'rows.jsonl:1: the line is not JSON'
    """
    staged = _staged
    if staged is not None and str(staged.folder) in text:
        for local, location in staged.shown.items():
            text = text.replace(local, location)
    return text


def check_bucket(location: Location) -> None:
    """Check once in this process that a bucket exists and can be read.

    Args:
        location: a location in the bucket.

    Raises:
        ValueError: see :func:`rpo_io.object_stores.check_readable`.
    """
    staged = _open_staging()
    bucket = Location(location.scheme, location.bucket)
    if bucket not in staged.readable:
        check_readable(bucket)
        staged.readable.add(bucket)


def check_sources(sources: Iterable[str | os.PathLike[str] | None]) -> None:
    """Check the sources of a command before it reads any: their schemes, and their buckets.

    Args:
        sources: paths, locations and names on the hub; None is passed over.

    Raises:
        ValueError: if a location is invalid, or its bucket cannot be read.

    Examples:
        >>> check_sources(["rows.jsonl", None])
    """
    for source in sources:
        location = None if source is None else parse_location(source)
        if location is not None and location.is_bucket:
            check_bucket(location)


def stage_objects(
    objects: Sequence[RemoteObject], source: Location, *, logged_bytes: int = 0
) -> list[Path]:
    """Copy objects into the temporary folder, each under its own name; log their size before.

    Args:
        objects: the objects, of which none is copied twice.
        source: what the user named, for the log.
        logged_bytes: smallest size that is logged.

    Returns:
        Their local paths.

    Raises:
        ValueError: if the disk has too little space, an object changes meanwhile, or its copy has
            another digest than the store states.
    """
    with _mutex:
        staged = _open_staging()
        # Only a lookup, not a listing, of S3 states a digest: location and version identify.
        distinct = {_identities([item]): item for item in objects}
        missing = [item for key, item in distinct.items() if key not in staged.copies]
        _announce(missing, source, staged, logged_bytes=logged_bytes)
        for item in missing:
            target = _new_folder(staged) / item.location.name
            copy_object(item, target)
            _record(staged, item, target)
            staged.copies[_identities([item])] = target
        return [staged.copies[_identities([item])] for item in objects]


def stage_folder(
    folder: Location, copied: Sequence[RemoteObject], streamed: Sequence[RemoteObject]
) -> Path:
    """Copy objects of a folder, under their names in it; others get a file without content.

    Args:
        folder: the folder, whose last component the copy has too.
        copied: objects to copy.
        streamed: objects of which only an empty file is created; :func:`origin_of` says which
            object such a file stands for.

    Returns:
        The local folder; the same one if nothing has changed since an earlier call.

    Raises:
        ValueError: see :func:`stage_objects`.
    """
    with _mutex:
        staged = _open_staging()
        key = _identities([*copied, *streamed])
        if key not in staged.copies:
            _announce(copied, folder, staged, streamed)
            local = _new_folder(staged) / folder.name
            staged.shown[str(local)] = str(folder)
            for index, item in enumerate([*copied, *streamed]):
                target = local / item.location.path.removeprefix(f"{folder.path}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                if index < len(copied):
                    copy_object(item, target)
                    staged.n_bytes += item.size
                else:
                    target.touch()
                    staged.origins[target] = item
            staged.copies[key] = local
        return staged.copies[key]


def origin_of(path: Path) -> RemoteObject | None:
    """Return the object that an empty file stands for.

    Args:
        path: a file in a folder of :func:`stage_folder`, or any other.

    Returns:
        The object; None if the file has its own content.

    Examples:
        >>> origin_of(Path("model.safetensors")) is None
        True
    """
    return None if _staged is None else _staged.origins.get(path)


def staged_bytes() -> int:
    """Return the number of bytes of all local copies of this process; it never falls.

    Examples:
        >>> staged_bytes() >= 0
        True
    """
    return 0 if _staged is None else _staged.n_bytes


def remove_staged_files() -> None:
    """Remove the temporary folder of this process, if there is one."""
    global _staged
    with _mutex:
        if _staged is not None and _staged.process == os.getpid():
            shutil.rmtree(_staged.folder, ignore_errors=True)
            _staged.lock.close()
        _staged = None


@contextmanager
def staged_files() -> Iterator[None]:
    """Remove the local copies of this process when the block ends, also after an error.

    Examples:
        >>> with staged_files():
        ...     path = local_file("rows.jsonl")
    """
    try:
        yield
    finally:
        remove_staged_files()


def copy_object(source: RemoteObject, target: Path) -> None:
    """Copy an object to a local file, and compare size and digest with those of the store.

    Args:
        source: the object.
        target: the file.

    Raises:
        ValueError: if the object changes meanwhile, cannot be read, or arrives damaged twice.
    """
    if source.location.scheme == "s3" and source.md5 is None:  # listings of S3 state none
        listed, source = source, stat_object(source.location)
        if listed.version != source.version:
            raise ValueError(f"{source.location} was changed meanwhile: run the command again")
    for _ in range(2):
        with target.open("wb") as file:
            is_equal = _write_checked(source, file)
        if is_equal:
            return
    raise ValueError(
        f"{source.location}: the content that arrives has another checksum than the store states: "
        "upload the object again"
    )


def _write_checked(source: RemoteObject, file: BinaryIO) -> bool:
    """Write the content of an object; return whether it has the checksum of the store."""
    md5, crc = hashlib.md5(usedforsecurity=False), None
    if source.md5 is None and source.crc32c is not None:
        import google_crc32c  # gcsfs depends on it

        crc = google_crc32c.Checksum()
    for content in read_chunks(source, 0, source.size):
        file.write(content)
        md5.update(content)
        if crc is not None:
            crc.update(content)
    if crc is not None:
        return crc.digest() == source.crc32c
    return source.md5 in (None, md5.digest())


def format_size(n_bytes: int) -> str:
    """Format a number of bytes in a unit of at most four digits.

    Examples:
        >>> format_size(700), format_size(3 * 2**20)
        ('700 bytes', '3.0 MiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n_bytes >= 1024**power:
            return f"{n_bytes / 1024**power:.1f} {unit}"
    return f"{n_bytes} bytes"


def _open_staging() -> _Staged:
    """Return the temporary folder of this process, which is created on the first call."""
    global _staged
    with _mutex:
        if _staged is None or _staged.process != os.getpid():
            _remove_abandoned()
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = (folder / _LOCK_FILE).open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            _staged = _Staged(folder, lock, os.getpid())
            atexit.register(remove_staged_files)
        return _staged


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK_FILE).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _identities(objects: Iterable[RemoteObject]) -> tuple[tuple[Location, str], ...]:
    return tuple((item.location, item.version) for item in objects)


def _new_folder(staged: _Staged) -> Path:
    return Path(tempfile.mkdtemp(dir=staged.folder))


def _record(staged: _Staged, item: RemoteObject, target: Path) -> None:
    staged.shown[str(target)] = str(item.location)
    staged.n_bytes += item.size


def _announce(
    copied: Iterable[RemoteObject],
    source: Location,
    staged: _Staged,
    streamed: Sequence[RemoteObject] = (),
    *,
    logged_bytes: int = 0,
) -> None:
    """Log what is copied and what is read in place; refuse more than the disk has space for."""
    sizes = [item.size for item in copied]
    needed, free = sum(sizes), shutil.disk_usage(staged.folder).free
    if needed > free:
        raise ValueError(
            f"{source}: {format_size(needed)} must be copied to {staged.folder.parent}, which has "
            f"{format_size(free)} free: set TMPDIR to a folder with more space"
        )
    if not sizes or needed < logged_bytes:
        return
    files = f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}"
    n_streamed = sum(item.size for item in streamed)
    rest = f"; {format_size(n_streamed)} are read in place, by range" if streamed else ""
    _logger.info(
        "%s: %s of %s copied to %s until the command ends%s",
        source,
        files,
        format_size(needed),
        staged.folder,
        rest,
    )
