"""Logs of lines that survive a killed process: local files, and numbered parts in buckets.

Object stores cannot append. There, each line is an object of its own, until the lines are merged
into the log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .atomic import write_atomic
from .bucket_paths import AnyPath, BucketPath
from .object_stores import list_objects, open_store, with_retries


class LineLog(Protocol):
    """A log of lines."""

    def read(self) -> list[str]:
        """Return the lines without their ends; the last one may be incomplete."""
        ...

    def append(self, line: str) -> None:
        """Append a line; it is stored when this method returns."""
        ...

    def finish(self, line: str) -> None:
        """Append the last line of the log."""
        ...

    def replace(self, lines: Sequence[str]) -> None:
        """Replace all lines."""
        ...


def open_log(path: AnyPath) -> LineLog:
    """Return the log of a path; nothing is read or written.

    Args:
        path: path of the log, local or in a bucket.

    Returns:
        The log; a missing one has no lines.

    Examples:
        >>> open_log(Path("no_such_run/metrics.jsonl")).read()
        []
    """
    return PartsLog(path) if isinstance(path, BucketPath) else FileLog(path)


class FileLog:
    """A local file to which lines are appended."""

    def __init__(self, path: Path) -> None:
        """Write to a file, which is created or continued."""
        self._path = path

    def read(self) -> list[str]:
        """Return the lines of the file; none if there is no file."""
        if not self._path.exists():
            return []
        return self._path.read_text(encoding="utf-8").splitlines()

    def append(self, line: str) -> None:
        """Append a line and flush it to the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    finish = append

    def replace(self, lines: Sequence[str]) -> None:
        """Replace the file."""
        write_atomic(self._path, _joined(lines))


class PartsLog:
    """An object of merged lines, and a folder ``NAME.parts`` of one object for each later line."""

    def __init__(self, path: BucketPath) -> None:
        """Write to an object and the folder beside it."""
        self._path, self._parts = path, path.parent / f"{path.name}.parts"
        self._next: int | None = None

    def read(self) -> list[str]:
        """Return the merged lines and those of the parts.

        A process that was killed after it had merged the lines left parts behind; their lines are
        among the merged ones.
        """
        merged = self._path.read_text().splitlines() if self._path.is_file() else []
        found = list_objects(self._parts.location)
        self._next = 1 + max((_number(part.location.name) for part in found), default=0)
        known = set(merged)
        contents = self._contents({part.location.path: part.size for part in found})
        later = [line for text in contents for line in text.decode().splitlines()]
        return [*merged, *(line for line in later if line not in known)]

    def append(self, line: str) -> None:
        """Write a line as the next part."""
        if self._next is None:
            self.read()
        assert self._next is not None
        (self._parts / f"{self._next:08d}.jsonl").write_bytes(_joined([line]))
        self._next += 1

    def finish(self, line: str) -> None:
        """Merge all lines with the last one."""
        self.replace([*self.read(), line])

    def replace(self, lines: Sequence[str]) -> None:
        """Write all lines as merged ones, and remove the parts."""
        self._path.write_bytes(_joined(lines))
        self._parts.remove_files(list(self._parts.files()))
        self._next = 1

    def _contents(self, sizes: dict[str, int]) -> list[bytes]:
        if not sizes:
            return []
        store = open_store(self._path.location)

        def read() -> list[bytes]:
            contents = store.cat(list(sizes))  # of several at a time
            for path, size in sizes.items():
                if len(contents[path]) != size:
                    raise ConnectionError(f"{len(contents[path])} of {size} bytes were received")
            return [contents[path] for path in sizes]

        return with_retries(read, self._parts.location)


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _number(name: str) -> int:
    stem = name.partition(".")[0]
    return int(stem) if stem.isdecimal() else 0
