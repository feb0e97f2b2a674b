"""Google Cloud Storage and S3 through fsspec: objects, ranges, listings and probes.

Listings are never cached, since other processes write to the same folder. A failure becomes a
:class:`~rpo_io.remote_errors.StoreError` of one line; one that may end by itself is retried first.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

from .locations import Location
from .remote_errors import TRANSIENT, StoreError, failure_of, location_errors, store_error

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
GCS_ENDPOINT, S3_ENDPOINT = "STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL"
"""Environment variables that replace the address of a store."""
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


class RemoteObject(NamedTuple):
    """An object of a store at one moment.

    Attributes:
        location: its location.
        size: its size in bytes.
        version: generation on Google Cloud Storage, entity tag on S3; it changes with the content.
        md5: MD5 digest of the content; None if the store gives none.
        crc32c: CRC-32C of the content, 4 bytes, big-endian; None if the store gives none.
    """

    location: Location
    size: int
    version: str
    md5: bytes | None = None
    crc32c: bytes | None = None


def open_store(location: Location) -> Any:
    """Return the fsspec file system of a bucket, without caches of listings.

    Args:
        location: a location in a bucket.

    Returns:
        The file system; one per scheme, process and endpoint.

    Raises:
        ValueError: if the extra that the scheme needs is not installed, or there are no
            credentials.
    """
    if not location.is_bucket:
        raise ValueError(f"{location} must be in a bucket: gs://BUCKET/PATH or s3://BUCKET/PATH")
    endpoint = os.environ.get(GCS_ENDPOINT if location.scheme == "gs" else S3_ENDPOINT, "")
    with location_errors(location):
        # Connections and threads of a file system do not survive a fork.
        return _store(location.scheme, endpoint, os.getpid())


def stat_object(location: Location) -> RemoteObject:
    """Return size, version and checksums of an object.

    Args:
        location: an object in a bucket.

    Returns:
        The object as it is now.

    Raises:
        ValueError: if there is no such object, or it cannot be read.
    """
    return with_retries(lambda: _stat(location), location)


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
    return with_retries(lambda: _read_range(source, start, stop), source.location)


def read_chunks(source: RemoteObject, start: int, stop: int) -> Iterator[bytes]:
    """Yield a range of bytes of an object in order, with several requests at a time.

    Args:
        source: the object.
        start: first byte.
        stop: byte after the last one.

    Yields:
        At most :data:`CHUNK_BYTES` bytes.
    """
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
    return with_retries(lambda: sorted(_list(folder, limit=None)), bucket)


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


@cache
def _store(scheme: str, endpoint: str, pid: int) -> Any:
    del pid
    # gcsfs would first wait 60 seconds for a service of zonal buckets, at every call.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    package, extra = _PACKAGES[scheme]
    try:
        module = __import__(package)  # a slow import of an optional package
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs the extra `{extra}`: pip install 'rpo-theory[{extra}]'"
        ) from error
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    # These libraries log the traceback of every error that is reported in one line here.
    for name in ("gcsfs", "s3fs", "aiobotocore", "botocore", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheme == "s3":
        retries = {"mode": "standard", "max_attempts": 2}
        config = {"connect_timeout": 10, "read_timeout": 30, "retries": retries}
        store = module.S3FileSystem(**options, config_kwargs=config)
        store.retries = 1  # with_retries repeats a request, for a stated time
        return store
    import aiohttp

    # Without this, a request waits for ever.
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)
    # An emulator knows no credentials, and looking for some takes seconds.
    token = "anon" if endpoint else None
    return module.GCSFileSystem(**options, token=token, requests_timeout=timeout)


def _stat(location: Location) -> RemoteObject:
    store = open_store(location)
    if location.scheme == "gs":
        content = _request_gcs(store, "b/{}/o/{}", location.bucket, location.key)
        record = json.loads(content)
        if record.get("contentEncoding"):
            # The store would unpack it and ignore ranges, so that no size or checksum holds.
            raise ValueError(
                f"{location} is stored with Content-Encoding {record['contentEncoding']}, which is "
                "not read: upload it without (gcloud storage cp without --gzip)"
            )
        return _gcs_object(location, record)
    record = store.call_s3("head_object", Bucket=location.bucket, Key=location.key)
    tag = record["ETag"]
    # The tag is the MD5 digest only of objects of one part that no other key encrypts.
    encryption = record.get("ServerSideEncryption", "")
    is_md5 = "-" not in tag and "kms" not in encryption and "SSECustomerAlgorithm" not in record
    md5 = bytes.fromhex(tag.strip('"')) if is_md5 and len(tag.strip('"')) == 32 else None
    return RemoteObject(location, int(record["ContentLength"]), tag, md5)


def _gcs_object(location: Location, record: dict[str, Any]) -> RemoteObject:
    md5, crc = (
        base64.b64decode(record[name]) if name in record else None for name in ("md5Hash", "crc32c")
    )
    return RemoteObject(location, int(record["size"]), str(record["generation"]), md5, crc)


def _read_range(source: RemoteObject, start: int, stop: int) -> bytes:
    store, location = open_store(source.location), source.location
    limits = f"bytes={start}-{stop - 1}"
    if location.scheme == "gs":
        url = store.url(location.path, generation=source.version)
        try:
            content = _request_gcs(store, url, headers={"Range": limits})
        except FileNotFoundError as error:
            # The generation is gone, be the object removed or replaced.
            raise store_error("changed", location, error) from error
    else:
        content = _read_s3(store, location, Range=limits, IfMatch=source.version)
    if len(content) != stop - start:
        raise ConnectionError(f"{len(content)} of {stop - start} bytes were received")
    return content


def _request_gcs(store: Any, path: str, *names: str, **options: Any) -> bytes:
    """Return the body of the answer to one request, which gcsfs would repeat for a minute."""
    from fsspec.asyn import sync

    once = type(store)._request.__wrapped__
    answer: Any = sync(store.loop, once, store, "GET", path, *names, **options)
    return answer[-1]


def _read_s3(store: Any, location: Location, **options: str) -> bytes:
    from fsspec.asyn import sync

    async def read() -> bytes:
        answer = await store._call_s3(
            "get_object", Bucket=location.bucket, Key=location.key, **options
        )
        async with answer["Body"] as body:
            return await body.read()

    content: Any = sync(store.loop, read)
    return content


def _list(folder: Location, *, limit: int | None) -> Iterator[RemoteObject]:
    """Yield the objects below a folder; with a limit, those of one page of this size."""
    store = open_store(folder)
    prefix = f"{folder.key}/" if folder.key else ""
    root = Location(folder.scheme, folder.bucket)
    token: str | None = None
    while True:
        if folder.scheme == "gs":
            query = {"prefix": prefix, "maxResults": limit, "pageToken": token}
            page = json.loads(_request_gcs(store, "b/{}/o", folder.bucket, **query))
            found = [_gcs_object(root / item["name"], item) for item in page.get("items", ())]
            token = page.get("nextPageToken")
        else:
            options = {"MaxKeys": limit} if limit else {}
            options |= {"ContinuationToken": token} if token else {}
            page = store.call_s3("list_objects_v2", Bucket=folder.bucket, Prefix=prefix, **options)
            found = [
                RemoteObject(root / item["Key"], int(item["Size"]), item["ETag"])
                for item in page.get("Contents", ())
            ]
            token = page.get("NextContinuationToken")
        yield from (item for item in found if not item.location.path.endswith("/"))
        if token is None or limit:
            return


def _probe_bucket(location: Location) -> None:
    """List one object, which needs fewer permissions than looking up the bucket."""
    bucket = Location(location.scheme, location.bucket)

    def probe() -> None:
        try:
            list(_list(location, limit=1))
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
