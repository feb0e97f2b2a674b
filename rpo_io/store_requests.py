"""Single requests to Google Cloud Storage and S3: opening a store, lookups, ranges and listings.

Errors are those of gcsfs and s3fs; :mod:`rpo_io.object_stores` repeats requests and names failures.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .locations import Location
from .remote_errors import location_errors, store_error

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
        encoding: encoding in which Google Cloud Storage keeps the content and unpacks it for
            readers, such as ``gzip``; empty for none.
    """

    location: Location
    size: int
    version: str
    md5: bytes | None = None
    crc32c: bytes | None = None
    encoding: str = ""


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


@cache
def _store(scheme: str, endpoint: str, pid: int) -> Any:
    del pid
    # gcsfs would first wait 60 seconds for a service of zonal buckets, at every call.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    package, extra = _PACKAGES[scheme]
    try:
        module: Any = import_module(package)  # a slow import of an optional package
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


def request_object(location: Location) -> RemoteObject:
    """Look up an object.

    Args:
        location: an object in a bucket.

    Returns:
        The object as it is now.
    """
    store = open_store(location)
    if location.scheme == "gs":
        record = _record_of_gcs(store, "b/{}/o/{}", location.bucket, location.key)
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
    encoding = record.get("contentEncoding", "")
    return RemoteObject(
        location, int(record["size"]), str(record["generation"]), md5, crc, encoding
    )


def request_range(source: RemoteObject, start: int, stop: int) -> bytes:
    """Read a range of bytes of an object, in the version that was looked up.

    Args:
        source: the object.
        start: first byte.
        stop: byte after the last one, greater than ``start``.

    Returns:
        The bytes.

    Raises:
        StoreError: if the version is gone.
        ConnectionError: if fewer or more bytes come than were asked for.
    """
    store, location = open_store(source.location), source.location
    if source.encoding:
        # The store would unpack it and ignore ranges, so that no size or checksum holds.
        raise ValueError(
            f"{location} is stored with Content-Encoding {source.encoding}, which is not read: "
            "upload it without (gcloud storage cp without --gzip)"
        )
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


def _record_of_gcs(store: Any, path: str, *names: str, **options: Any) -> dict[str, Any]:
    try:
        return json.loads(_request_gcs(store, path, *names, **options))
    except json.JSONDecodeError as error:
        raise ConnectionError(f"the answer was cut: {error}") from error


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


def request_listing(folder: Location, *, limit: int | None = None) -> Iterator[RemoteObject]:
    """List the objects below a folder.

    Args:
        folder: a bucket or a folder in it.
        limit: number of objects of the only page that is asked for; None for all pages.

    Yields:
        The objects, without those whose keys end with a slash, which stand for folders.
    """
    store = open_store(folder)
    prefix = f"{folder.key}/" if folder.key else ""
    root = Location(folder.scheme, folder.bucket)
    token: str | None = None
    while True:
        if folder.scheme == "gs":
            query = {"prefix": prefix, "maxResults": limit, "pageToken": token}
            page = _record_of_gcs(store, "b/{}/o", folder.bucket, **query)
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
