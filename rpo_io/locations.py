"""Locations of files and folders: local paths, and objects in buckets and on the Hugging Face hub.

A location is text. ``gs://bucket/key`` and ``s3://bucket/key`` name objects, ``hf://owner/name``
names a repository, and ``file:///folder/file`` or a path without a scheme is local. An object store
has no folders: a folder is a prefix of keys that ends with a slash.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

BUCKET_SCHEMES = ("gs", "s3")
"""Schemes of object stores."""
SCHEMES = (*BUCKET_SCHEMES, "hf", "file")
"""All schemes; a text without one is a local path."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//?)(.*)", re.DOTALL)
_ALIASES = {"gcs": "gs", "s3a": "s3", "s3n": "s3", "huggingface": "hf"}
_FORMS = {
    "gs": "gs://BUCKET/PATH",
    "s3": "s3://BUCKET/PATH",
    "hf": "hf://OWNER/NAME",
    "file": "file:///FOLDER/FILE",
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{1,220}[A-Za-z0-9]")


class Location(NamedTuple):
    """The place of a file or folder.

    Attributes:
        scheme: ``gs``, ``s3`` or ``hf``; empty for a local path.
        path: ``bucket/key`` or ``owner/name`` without slashes at the ends; a local path as it was
            given.
    """

    scheme: str
    path: str

    def __str__(self) -> str:
        """Return the text from which the location was parsed, without slashes at the end."""
        return f"{self.scheme}://{self.path}" if self.scheme else self.path

    def __truediv__(self, name: str) -> Location:
        """Return the location of a file or folder in this folder."""
        return self._replace(path=posixpath.join(self.path, name))

    @property
    def is_local(self) -> bool:
        """Whether the location is a path of this machine."""
        return not self.scheme

    @property
    def is_bucket(self) -> bool:
        """Whether the location lies in an object store."""
        return self.scheme in BUCKET_SCHEMES

    @property
    def local(self) -> Path:
        """The local path.

        Raises:
            ValueError: if the location is not local.
        """
        if not self.is_local:
            raise ValueError(f"{self} must be a local path")
        return Path(self.path)

    @property
    def name(self) -> str:
        """The last component; the bucket, for its root."""
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def parent(self) -> Location:
        """The folder that holds the location; a bucket is its own parent."""
        path = self.path.rstrip("/") or self.path
        above = posixpath.dirname(path)
        if self.scheme:
            return self._replace(path=above or path)
        return self._replace(path=str(Path(self.path).parent))

    @property
    def bucket(self) -> str:
        """The bucket; empty for a local path."""
        return self.path.partition("/")[0] if self.is_bucket else ""

    @property
    def key(self) -> str:
        """The key inside the bucket; empty for the bucket itself and for a local path."""
        return self.path.partition("/")[2] if self.is_bucket else ""


def has_scheme(text: str | os.PathLike[str]) -> bool:
    """Return whether a text begins like a URL, with a known scheme or another.

    Args:
        text: a path or a location.

    Examples:
        >>> has_scheme("gs://bucket/data.jsonl"), has_scheme("data/gs.jsonl")
        (True, False)
    """
    match = _SCHEME.match(os.fspath(text))
    return match is not None and (match[2] == "//" or match[1].lower() in (*SCHEMES, *_ALIASES))


def parse_location(text: str | os.PathLike[str]) -> Location:
    """Parse a location; nothing is asked of the network.

    Args:
        text: a local path, or a URL with one of :data:`SCHEMES`.

    Returns:
        The location; ``file://`` becomes a local path.

    Raises:
        ValueError: if the scheme is unknown, or the text after it has not the form of the scheme.

    Examples:
        >>> location = parse_location("gs://bucket/runs/a/")
        >>> location.bucket, location.key, str(location / "metrics.jsonl")
        ('bucket', 'runs/a', 'gs://bucket/runs/a/metrics.jsonl')
    """
    text = os.fspath(text)
    match = _SCHEME.match(text)
    if match is None or not has_scheme(text):
        return Location("", text)
    scheme, slashes, path = match[1].lower(), match[2], match[3]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        hint = f": write {_ALIASES[scheme]}://{path}" if scheme in _ALIASES else ""
        raise ValueError(
            f"{text}: the scheme must be one of {known} or absent, got {scheme}://{hint}"
        )
    wrong = ValueError(f"{text} must have the form {_FORMS[scheme]}")
    if slashes != "//":  # pathlib.Path makes one slash of two
        raise wrong
    if scheme == "file":
        local = path.removeprefix("localhost")
        if not local.startswith("/"):
            raise wrong
        return Location("", local)
    path = path.strip("/")
    bucket, _, key = path.partition("/")
    if scheme in BUCKET_SCHEMES:
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(
                f"{text}: a bucket is named by 3 to 222 letters, digits, dots, dashes and "
                f"underscores, got {bucket!r}"
            )
        if key and any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"{text}: a component of a key must not be empty, `.` or `..`")
    elif not path:
        raise wrong
    return Location(scheme, path)
