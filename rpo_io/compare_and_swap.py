"""Objects that are written only if nobody else has written them: compare-and-swap on both stores.

Google Cloud Storage compares generations, S3 compares entity tags. Both do it with the write, in
one step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .locations import Location
from .object_stores import open_store, read_range, stat_object, with_retries
from .remote_errors import failure_of


class Versioned(NamedTuple):
    """The content of an object and its version.

    Attributes:
        content: the bytes; empty if there is no object.
        version: generation or entity tag; empty if there is no object.
    """

    content: bytes
    version: str


def read_versioned(location: Location) -> Versioned:
    """Return the content and the version of an object, both of one moment.

    Args:
        location: an object in a bucket, which need not exist.

    Returns:
        Content and version; both are empty if there is no object.

    Raises:
        ValueError: if it cannot be read.
    """
    while True:
        try:
            found = stat_object(location)
            return Versioned(read_range(found, 0, found.size), found.version)
        except ValueError as error:
            failure = failure_of(error)
            if failure == "missing" and not _exists(location):
                return Versioned(b"", "")
            if failure not in ("missing", "changed"):
                raise


def swap(location: Location, expected: str, content: bytes) -> str | None:
    """Write an object if its version is still the expected one.

    A request that was sent twice can lose to itself: after None, read the object.

    Args:
        location: the object.
        expected: version of the object; empty if there must be none.
        content: the new bytes.

    Returns:
        The new version; None if the object has another version.

    Raises:
        ValueError: if it cannot be written.
    """
    put = _put_gcs if location.scheme == "gs" else _put_s3
    return with_retries(lambda: _unless_changed(put, location, expected, content), location)


def remove_version(location: Location, expected: str) -> None:
    """Remove an object if its version is still the expected one.

    Args:
        location: the object.
        expected: version of the object.

    Raises:
        ValueError: if it cannot be removed.
    """
    remove = _remove_gcs if location.scheme == "gs" else _remove_s3
    with_retries(lambda: _unless_changed(remove, location, expected), location)


def _exists(location: Location) -> bool:
    try:
        stat_object(location)
    except ValueError as error:
        if failure_of(error) == "missing":
            return False
        raise
    return True


def _unless_changed(request: Any, *args: Any) -> str | None:
    """Return the answer of a request; None if its condition does not hold."""
    try:
        return request(*args)
    except Exception as error:
        if failure_of(error) in ("changed", "missing"):
            return None
        raise


def _put_gcs(location: Location, expected: str, content: bytes) -> str:
    store = open_store(location)
    url = f"{store._location}/upload/storage/v1/b/{{}}/o"
    options = {"uploadType": "media", "name": location.key, "ifGenerationMatch": expected or "0"}
    record = store.call("POST", url, location.bucket, data=content, json_out=True, **options)
    return str(record["generation"])


def _put_s3(location: Location, expected: str, content: bytes) -> str:
    condition = {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
    record = open_store(location).call_s3(
        "put_object", Bucket=location.bucket, Key=location.key, Body=content, **condition
    )
    return record["ETag"]


def _remove_gcs(location: Location, expected: str) -> str:
    store = open_store(location)
    path = (location.bucket, location.key)
    store.call("DELETE", "b/{}/o/{}", *path, ifGenerationMatch=expected)
    return expected


def _remove_s3(location: Location, expected: str) -> str:
    open_store(location).call_s3(
        "delete_object", Bucket=location.bucket, Key=location.key, IfMatch=expected
    )
    return expected
