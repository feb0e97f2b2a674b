"""Files and folders in buckets, with those methods of :class:`pathlib.Path` that outputs need.

An object is written whole by one request, so that it is complete or absent. A folder is a prefix of
keys: it exists as long as it holds an object.
"""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from .leases import check_lease
from .locations import Location, parse_location
from .object_stores import list_objects, open_store, read_range, stat_object, with_retries
from .remote_errors import failure_of

CHUNK_BYTES = 64 * 2**20
"""Bytes of an object that are in memory at a time while it is copied to a local file."""


@dataclass(frozen=True, order=True)
class BucketPath:
    """A file or folder in a bucket.

    It is not ``os.PathLike``: a function for local files refuses it, instead of making a folder
    ``gs:`` in the working directory.

    Attributes:
        location: its location, with the scheme ``gs`` or ``s3``.
    """

    location: Location

    def __str__(self) -> str:
        """Return the URL."""
        return str(self.location)

    def __truediv__(self, name: str) -> BucketPath:
        """Return the path of a file or folder in this folder."""
        return BucketPath(self.location / name)

    @property
    def name(self) -> str:
        """The last component."""
        return self.location.name

    @property
    def parent(self) -> BucketPath:
        """The folder that holds the path."""
        return BucketPath(self.location.parent)

    def absolute(self) -> BucketPath:
        """Return the path itself."""
        return self

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Return whether there is an object below this folder."""
        return any(True for _ in self.files())

    def exists(self) -> bool:
        """Return whether there is an object of this name, or below it."""
        return self.is_file() or self.is_dir()

    def size(self) -> int | None:
        """Return the size of the object in bytes; None if there is none."""

        def look_up() -> int | None:
            try:
                return stat_object(self.location).size
            except ValueError as error:
                if failure_of(error) == "missing":
                    return None
                raise

        return look_up()

    def read_bytes(self) -> bytes:
        """Return the content of the object, all of one version.

        Raises:
            FileNotFoundError: if there is no such object.
            ValueError: if it cannot be read.
        """
        if self.size() is None:
            raise FileNotFoundError(2, "No such file or directory", str(self))
        found = stat_object(self.location)
        return read_range(found, 0, found.size)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the object for reading; its content is read at once."""
        if mode != "rb":
            raise ValueError(f"{self}: an object is written whole: `mode` must be 'rb'")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, content: bytes) -> None:
        """Write the object by one request; it is complete or absent.

        Args:
            content: the bytes.

        Raises:
            ValueError: if it cannot be written, or another process has taken the folder over.
        """
        check_lease(str(self))
        store = open_store(self.location)
        # `pipe_file` of S3 would split a large content into parts, which are also committed last.
        with_retries(lambda: store.pipe_file(self.location.path, content), self.location)

    def upload(self, file: Path) -> None:
        """Write the object from a local file; it is complete or absent.

        Args:
            file: the file.

        Raises:
            ValueError: if it cannot be written, or another process has taken the folder over.
            OSError: if the file cannot be read.
        """
        check_lease(str(self))
        store, size = open_store(self.location), file.stat().st_size

        def put() -> None:
            store.put_file(str(file), self.location.path)
            written = stat_object(self.location).size
            if written != size:
                raise ConnectionError(f"{written} of {size} bytes were stored")

        with_retries(put, self.location)

    def download(self, file: Path) -> None:
        """Write the content of the object, all of one version, to a local file.

        Args:
            file: the file; an existing one is replaced.

        Raises:
            ValueError: if the object cannot be read.
            OSError: if the file cannot be written.
        """
        found = stat_object(self.location)
        with file.open("wb") as target:
            for start in range(0, found.size, CHUNK_BYTES):
                target.write(read_range(found, start, min(start + CHUNK_BYTES, found.size)))

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object.

        Args:
            missing_ok: whether it may be absent already.

        Raises:
            FileNotFoundError: if there is no such object; S3 does not tell.
            ValueError: if it cannot be removed, or another process has taken the folder over.
        """
        check_lease(str(self))
        store = open_store(self.location)

        def remove() -> bool:
            try:
                store.rm_file(self.location.path)
            except FileNotFoundError:
                return False
            return True

        if not with_retries(remove, self.location) and not missing_ok:
            raise FileNotFoundError(2, "No such file or directory", str(self))

    def remove_files(self, paths: Sequence[BucketPath]) -> None:
        """Remove objects below the folder, many at a time; absent ones are passed over.

        Args:
            paths: the objects.

        Raises:
            ValueError: if one cannot be removed, or another process has taken the folder over.
        """
        check_lease(str(self))
        store, left = open_store(self.location), {path.location.path for path in paths}

        def remove() -> None:
            # An earlier try may have removed some of them.
            present = {found.location.path for found in list_objects(self.location)}
            try:
                if left & present:
                    store.rm(sorted(left & present))
            except FileNotFoundError:
                remove()  # a request was sent twice

        if left:
            with_retries(remove, self.location)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it holds an object."""

    def files(self) -> Iterator[BucketPath]:
        """Yield the objects below the folder, at any depth, sorted by their keys."""
        for found in list_objects(self.location):
            yield BucketPath(found.location)

    def iterdir(self) -> Iterator[BucketPath]:
        """Yield the files and folders in the folder."""
        names = {self.relative_name(path).partition("/")[0] for path in self.files()}
        yield from (self / name for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """Yield the files and folders in the folder that a pattern such as ``*/COMMIT`` matches.

        Args:
            pattern: components with ``*`` and ``?``, which match no slash.
        """
        depth = pattern.count("/") + 1
        names = {
            "/".join(parts[:depth])
            for path in self.files()
            if len(parts := self.relative_name(path).split("/")) >= depth
        }
        for name in sorted(names):
            pairs = zip(name.split("/"), pattern.split("/"), strict=True)
            if all(fnmatch.fnmatchcase(part, rule) for part, rule in pairs):
                yield self / name

    def relative_name(self, path: BucketPath) -> str:
        """Return the name of an object relative to this folder, with slashes."""
        return posixpath.relpath(path.location.path, self.location.path)


AnyPath: TypeAlias = Path | BucketPath
"""A local path, or a path in a bucket."""


def as_path(text: str | os.PathLike[str] | BucketPath) -> AnyPath:
    """Return the path of a text, local or in a bucket.

    Args:
        text: a local path, ``file://``, ``gs://`` or ``s3://``.

    Returns:
        A :class:`pathlib.Path`, or a :class:`BucketPath`.

    Raises:
        ValueError: if the scheme is unknown or cannot be written to.

    Examples:
        >>> print(as_path("gs://bucket/run") / "metrics.jsonl")
        gs://bucket/run/metrics.jsonl
    """
    if isinstance(text, BucketPath):
        return text
    location = parse_location(text)
    if location.is_local:
        return location.local
    if not location.is_bucket:
        raise ValueError(f"{location} is read-only: write to a local folder, gs:// or s3://")
    return BucketPath(location)
