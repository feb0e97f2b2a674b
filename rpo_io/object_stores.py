"""Google Cloud Storage and S3 through fsspec: objects, ranges, listings and probes.

Listings are never cached, since other processes write to the same folder. A failure becomes a
:class:`~rpo_io.remote_errors.StoreError` of one line; one that may end by itself is retried first.
"""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .locations import Location
from .remote_errors import TRANSIENT, StoreError, failure_of, location_errors, store_error
from .store_requests import (
    RemoteObject,
    open_store,
    request_listing,
    request_object,
    request_range,
)

__all__ = [
    "RemoteObject",
    "check_readable",
    "check_writable",
    "list_objects",
    "open_store",
    "read_chunks",
    "read_range",
    "stat_object",
    "with_retries",
]

T = TypeVar("T")
PROBE_SECONDS = 10.0
"""Time in which a store must answer before a command begins its work."""
RETRY_SECONDS = 30.0
"""Time after which a failure that may end by itself is no longer retried."""
CHUNK_BYTES = 8 * 2**20
"""Bytes of one request; this number times :data:`PARALLEL_CHUNKS` is in memory."""
PARALLEL_CHUNKS = 8
"""Number of requests at a time."""
PROBE_NAME = ".rpo-probe-"
"""Beginning of the name of the object that is written, and removed, to try a folder."""


def stat_object(location: Location) -> RemoteObject:
    """Return size, version and checksums of an object.

    Args:
        location: an object in a bucket.

    Returns:
        The object as it is now.

    Raises:
        ValueError: if there is no such object, or it cannot be read.
    """
    return with_retries(lambda: request_object(location), location)


def read_range(source: RemoteObject, start: int, stop: int) -> bytes:
    """Read a range of bytes of an object that has not changed since it was looked up.

    Args:
        source: the object.
        start: first byte.
        stop: byte after the last one.

    Returns:
        The bytes.

    Raises:
        ValueError: if the object was changed or removed, or cannot be read.
    """
    if not 0 <= start <= stop <= source.size:
        raise ValueError(
            f"{source.location}: bytes {start} to {stop} are out of range, it has {source.size}"
        )
    if start == stop:
        return b""
    return with_retries(lambda: request_range(source, start, stop), source.location)


def read_chunks(source: RemoteObject, start: int, stop: int) -> Iterator[bytes]:
    """Yield a range of bytes of an object in order, with several requests at a time.

    Args:
        source: the object.
        start: first byte.
        stop: byte after the last one.

    Yields:
        At most :data:`CHUNK_BYTES` bytes.
    """
    # The import is refused once the main thread has ended, as in a script that works in a thread.
    from concurrent.futures import ThreadPoolExecutor

    window = PARALLEL_CHUNKS * CHUNK_BYTES
    with ThreadPoolExecutor(PARALLEL_CHUNKS) as pool:
        # Of a longer map, all chunks could be in memory together.
        for first in range(start, stop, window):
            starts = range(first, min(first + window, stop), CHUNK_BYTES)
            stops = (min(each + CHUNK_BYTES, stop) for each in starts)
            yield from pool.map(lambda a, b: read_range(source, a, b), starts, stops)


def list_objects(folder: Location) -> list[RemoteObject]:
    """Return all objects below a folder of a bucket.

    Args:
        folder: a bucket or a folder in it.

    Returns:
        The objects, sorted by location; an empty list if there are none. Objects whose keys end
        with a slash stand for folders and are left out.

    Raises:
        ValueError: if there is no such bucket, or it cannot be listed.
    """
    # Only a bucket can be missing: a folder without objects is empty.
    bucket = Location(folder.scheme, folder.bucket)
    return with_retries(lambda: sorted(request_listing(folder)), bucket)


def check_readable(location: Location) -> None:
    """Check, in at most about ten seconds, that a bucket exists and can be read.

    Args:
        location: a file or folder in a bucket, which need not exist.

    Raises:
        ValueError: if the scheme needs a missing extra, there are no credentials, or the bucket is
            missing, closed or out of reach.
    """
    _within(PROBE_SECONDS, lambda: _probe_bucket(location), location)


def check_writable(folder: Location) -> None:
    """Check, in at most about ten seconds, that objects can be written to a folder and removed.

    Args:
        folder: a folder in a bucket, which need not exist.

    Raises:
        ValueError: if the scheme is read-only or needs a missing extra, there are no credentials,
            or the bucket is missing, out of reach or not writable.

    Examples:
        >>> check_writable(Location("hf", "owner/name"))
        Traceback (most recent call last):
        ValueError: hf://owner/name is read-only: write to a local folder, gs:// or s3://
    """
    if not folder.is_bucket:
        raise ValueError(f"{folder} is read-only: write to a local folder, gs:// or s3://")
    _within(PROBE_SECONDS, lambda: _probe_writing(folder), folder)


def with_retries(action: Callable[[], T], location: Location, *, seconds: float | None = None) -> T:
    """Run an action on a store again as long as it fails for reasons that may end by themselves.

    Args:
        action: reads or writes; it must be safe to run twice.
        location: what is read or written, for messages.
        seconds: time after which it is not run again; None for :data:`RETRY_SECONDS`.

    Returns:
        The result of the action.

    Raises:
        ValueError: if it fails for another reason, or for too long.

    Examples:
        >>> with_retries(lambda: 1, Location("gs", "bucket"))
        1
    """
    end = time.monotonic() + (RETRY_SECONDS if seconds is None else seconds)
    wait = 0.25
    while True:
        try:
            return action()
        except StoreError:
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            if failure not in TRANSIENT or time.monotonic() + wait > end:
                raise store_error(failure, location, error) from error
        time.sleep(wait * random.uniform(0.5, 1.5))
        wait = min(2 * wait, 5.0)


def _probe_bucket(location: Location) -> None:
    """List one object, which needs fewer permissions than looking up the bucket."""
    bucket = Location(location.scheme, location.bucket)

    def probe() -> None:
        try:
            list(request_listing(location, limit=1))
        except Exception as error:
            # Some accounts may read objects, but not list them.
            if failure_of(error) != "forbidden":
                raise

    with_retries(probe, bucket, seconds=0.6 * PROBE_SECONDS)


def _probe_writing(folder: Location) -> None:
    _probe_bucket(folder)
    store = open_store(folder)
    probe = folder / f"{PROBE_NAME}{secrets.token_hex(8)}"
    try:
        store.pipe_file(probe.path, b"")
        store.rm_file(probe.path)
    except Exception as error:
        if failure_of(error) == "forbidden":
            raise ValueError(
                f"{folder} is not writable: the account must be allowed to create and delete "
                "objects in this bucket"
            ) from error
        with location_errors(folder):
            raise


def _within(seconds: float, action: Callable[[], None], location: Location) -> None:
    """Run an action in a thread and refuse the location if it takes longer."""
    results: queue.Queue[Exception | None] = queue.Queue()

    def run() -> None:
        try:
            results.put(action())
        except Exception as error:
            results.put(error)

    # Looking up credentials blocks, so that a timeout of one request does not bound it.
    threading.Thread(target=run, daemon=True).start()
    try:
        error = results.get(timeout=seconds)
    except queue.Empty:
        error = TimeoutError(f"no answer in {seconds:g} seconds")
        raise store_error("unreachable", location, error) from error
    if error is not None:
        raise error
