"""A server on loopback that answers like Google Cloud Storage, with conditions and injected faults.

It speaks the part of the JSON API that gcsfs, tensorstore and Orbax use: media, multipart and
resumable uploads, reads by range, listings in pages, copies, compositions, deletions, generations
and preconditions. A hook decides which requests fail, and how.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_PAGE = 1000
_ROUTE = re.compile(
    r"(?:/(?P<prefix>upload|download))?/storage/v1/b(?:/(?P<bucket>[^/]+))?"
    r"(?P<objects>/o)?(?:/(?P<name>.+?))?"
    r"(?:/(?P<action>rewriteTo|copyTo|moveTo)(?:/b/(?P<to_bucket>[^/]+))?/o/(?P<to_name>.+)"
    r"|/(?P<compose>compose))?"
)


class Request(NamedTuple):
    """A request, as the hook for faults sees it.

    Attributes:
        method: ``GET``, ``POST``, ``PUT``, ``DELETE`` or ``PATCH``.
        bucket: name of the bucket; empty for requests without one.
        name: name of the object, or the prefix of a listing; empty if there is none.
        is_media: whether the content of an object is read.
        is_upload: whether content is written.
    """

    method: str
    bucket: str
    name: str
    is_media: bool
    is_upload: bool


class Fault(NamedTuple):
    """What goes wrong with an answer.

    Attributes:
        kind: ``status`` answers with an error status; ``slow`` waits first; ``truncated`` ends the
            connection in the middle of the body; ``short`` cuts the body and states the smaller
            size; ``flipped`` changes a byte; ``gone`` ends the connection without an answer;
            ``lost`` does what was asked and ends the connection without an answer.
        value: status, or seconds to wait.
    """

    kind: Literal["status", "slow", "truncated", "short", "flipped", "gone", "lost"]
    value: float = 0


Hook = Callable[[Request], Fault | None]


class StoredObject(NamedTuple):
    """The content of an object and its generation."""

    content: bytes
    generation: int
    created: str
    is_composed: bool = False


class FakeGcs:
    """A fake Google Cloud Storage in this process, for this process and its children.

    Args:
        buckets: names of the buckets that exist.

    Attributes:
        faults: hook that is asked before every answer; None for no faults.
        requests: all requests so far, also those that failed.
    """

    def __init__(self, buckets: Iterable[str] = ("bucket",)) -> None:
        """Start to listen on a free port of loopback."""
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self.faults: Hook | None = None
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.uploads: dict[str, dict[str, Any]] = {}
        self._generations = itertools.count(time.time_ns() // 1000)
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that lead gcsfs and tensorstore to this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def start(self) -> None:
        """Listen; after :meth:`stop`, on the same port."""
        handler = type("Handler", (_Handler,), {"fake": self})
        server = _Server(("127.0.0.1", self._port), handler)
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections; objects are kept."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reset(self, buckets: Iterable[str] = ("bucket",)) -> None:
        """Remove all objects and faults, create buckets, and listen."""
        with self.lock:
            self.buckets = {name: {} for name in buckets}
            self.faults = None
            self.requests.clear()
            self.uploads.clear()
        if self._server is None:
            self.start()

    def stop_for(self, seconds: float) -> None:
        """Answer nothing for some seconds, without waiting for them to pass."""
        end = time.monotonic() + seconds
        self.faults = lambda request: Fault("gone") if time.monotonic() < end else None

    def read(self, path: str) -> bytes:
        """Return the content of ``bucket/name``."""
        bucket, _, name = path.partition("/")
        return self.buckets[bucket][name].content

    def names(self, bucket: str = "bucket", prefix: str = "") -> list[str]:
        """Return the names of the objects of a bucket, sorted."""
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def write(self, path: str, content: bytes, *, is_composed: bool = False) -> StoredObject:
        """Store ``bucket/name`` without conditions."""
        bucket, _, name = path.partition("/")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self.lock:
            stored = StoredObject(content, next(self._generations), now, is_composed)
            self.buckets[bucket][name] = stored
        return stored


class _Server(ThreadingHTTPServer):
    """A server of many connections that never blocks the end of the process."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that went away."""


class _FailedError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, reason: str = "") -> None:
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    """Answers of the server, one handler per connection."""

    fake: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        body = self._read_body()
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        match = _ROUTE.fullmatch(url.path)
        parts = {} if match is None else {k: unquote(v or "") for k, v in match.groupdict().items()}
        is_media = self.command == "GET" and self.query.get("alt") == "media"
        is_upload = parts.get("prefix") == "upload"
        name = parts.get("name") or self.query.get("name") or self.query.get("prefix", "")
        request = Request(self.command, parts.get("bucket", ""), name, is_media, is_upload)
        with self.fake.lock:
            self.fake.requests.append(request)
            fault = self.fake.faults(request) if self.fake.faults is not None else None
        kind, value = fault or ("", 0)
        if kind == "gone":
            self.close_connection = True
            return
        if kind == "slow":
            time.sleep(value)
        try:
            if kind == "status":
                raise _FailedError(int(value), "injected")
            if match is None:
                raise _FailedError(404, "no such route")
            with self.fake.lock:
                status, headers, content = self._route(parts, body)
        except _FailedError as failed:
            error = {"error": {"code": failed.status, "message": failed.reason}}
            status, headers, content = failed.status, {}, json.dumps(error).encode()
        if kind == "lost":
            self.close_connection = True
            return
        self._send(status, headers, content, kind if status < 300 else "")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, headers: dict[str, str], content: bytes, kind: str) -> None:
        if kind == "short":
            content = content[: len(content) // 2]
        if kind == "flipped" and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        if status in (204, 304):
            content = b""  # the client takes a body for the next answer
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind == "truncated":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def _route(self, parts: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        bucket, name, method = parts["bucket"], parts["name"], self.command
        if not bucket:
            if method == "POST":
                self.fake.buckets.setdefault(json.loads(body)["name"], {})
            items = [_bucket_record(each) for each in self.fake.buckets]
            return self._json({"kind": "storage#buckets", "items": items})
        if parts["prefix"] == "upload":
            return self._upload(bucket, body)
        if bucket not in self.fake.buckets:
            raise _FailedError(404, "The specified bucket does not exist.")
        if not parts["objects"]:
            return self._json(_bucket_record(bucket))
        if not name:
            return self._list(bucket)
        if parts["compose"]:
            sources = [source["name"] for source in json.loads(body)["sourceObjects"]]
            content = b"".join(self._find(bucket, source).content for source in sources)
            return self._store(bucket, name, content, is_composed=True)
        if parts["action"]:
            return self._copy(bucket, name, parts)
        if method == "DELETE":
            self._find(bucket, name)
            self._check_conditions(bucket, name)
            del self.fake.buckets[bucket][name]
            return 204, {}, b""
        stored = self._find(bucket, name)
        self._check_conditions(bucket, name)
        if self.query.get("alt") == "media":
            return self._media(stored)
        return self._json(_object_record(bucket, name, stored))

    def _json(self, record: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(record).encode()

    def _find(self, bucket: str, name: str) -> StoredObject:
        stored = self.fake.buckets[bucket].get(name)
        wanted = self.query.get("generation")
        if stored is None or wanted not in (None, str(stored.generation)):
            raise _FailedError(404, f"No such object: {bucket}/{name}")
        return stored

    def _check_conditions(self, bucket: str, name: str, query: Any = None) -> None:
        query = self.query if query is None else query
        stored = self.fake.buckets[bucket].get(name)
        current = str(stored.generation) if stored is not None else "0"
        if query.get("ifGenerationMatch", current) != current:
            raise _FailedError(412, "At least one of the pre-conditions did not hold.")
        if query.get("ifGenerationNotMatch") == current:
            raise _FailedError(304 if self.command == "GET" else 412, "not modified")

    def _store(
        self,
        bucket: str,
        name: str,
        content: bytes,
        *,
        query: Any = None,
        is_composed: bool = False,
    ) -> tuple[int, dict[str, str], bytes]:
        if bucket not in self.fake.buckets:
            raise _FailedError(404, "The specified bucket does not exist.")
        self._check_conditions(bucket, name, query)
        stored = self.fake.write(f"{bucket}/{name}", content, is_composed=is_composed)
        return self._json(_object_record(bucket, name, stored))

    def _media(self, stored: StoredObject) -> tuple[int, dict[str, str], bytes]:
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(stored.generation),
            "x-goog-hash": f"md5={_md5(stored.content)}",
        }
        size = len(stored.content)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return 200, headers, stored.content
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            raise _FailedError(416, "range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, headers, stored.content[start:stop]

    def _list(self, bucket: str) -> tuple[int, dict[str, str], bytes]:
        query = self.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("maxResults") or MAX_PAGE), MAX_PAGE)
        after = unquote(query.get("pageToken", ""))
        low, high = query.get("startOffset", ""), query.get("endOffset", "")
        entries: dict[str, dict[str, Any] | None] = {}
        for name in self.fake.names(bucket, prefix):
            if name < low or (high and name >= high):
                continue
            head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            if found and delimiter:
                entries[prefix + head + delimiter] = None
            else:
                entries[name] = _object_record(bucket, name, self.fake.buckets[bucket][name])
        names = [name for name in sorted(entries) if name > after]
        record: dict[str, Any] = {"kind": "storage#objects"}
        page = {name: entries[name] for name in names[:limit]}
        record["items"] = [item for item in page.values() if item is not None]
        record["prefixes"] = [name for name, item in page.items() if item is None]
        if len(names) > limit:
            record["nextPageToken"] = names[limit - 1]
        return self._json(record)

    def _copy(
        self, bucket: str, name: str, parts: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        stored, target = self._find(bucket, name), parts["to_bucket"] or bucket
        answer = self._store(target, parts["to_name"], stored.content)
        if parts["action"] == "moveTo":
            del self.fake.buckets[bucket][name]
        if parts["action"] != "rewriteTo":
            return answer
        size = str(len(stored.content))
        record = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size}
        record |= {"totalBytesRewritten": size, "resource": json.loads(answer[2])}
        return self._json(record)

    def _upload(self, bucket: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        query = self.query
        if "upload_id" in query:
            return self._continue_upload(query["upload_id"], body)
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "media":
            return self._store(bucket, name, body)
        if kind == "multipart":
            content_type = self.headers["Content-Type"]
            boundary = re.search(r"boundary=[\"']?([^\"';]+)", content_type)
            if boundary is None:
                raise _FailedError(400, "no boundary")
            marker = b"--" + boundary[1].encode()
            first, rest = body.split(marker, 2)[1:]
            metadata = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])
            content = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
            content = re.sub(rb"\r?\n\Z", b"", content[: content.rindex(marker)])
            return self._store(bucket, metadata.get("name", name), content)
        if bucket not in self.fake.buckets:
            raise _FailedError(404, "The specified bucket does not exist.")
        metadata = json.loads(body) if body else {}
        identity = f"u{len(self.fake.uploads)}"
        upload = {"bucket": bucket, "name": metadata.get("name", name), "query": query}
        self.fake.uploads[identity] = upload | {"content": bytearray(), "answer": None}
        location = f"{self.fake.url}/upload/storage/v1/b/{bucket}/o?upload_id={identity}"
        return 200, {"Location": location}, b""

    def _continue_upload(self, identity: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upload = self.fake.uploads.get(identity)
        if upload is None:
            raise _FailedError(404, "no such upload")
        if self.command == "DELETE":
            del self.fake.uploads[identity]
            return 499, {}, b""
        if upload["answer"] is not None:
            return upload["answer"]
        held = upload["content"]
        given = self.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", given)
        if match is not None and match[1] is not None:
            start = int(match[1])
            if start > len(held):
                raise _FailedError(400, "a gap in the upload")
            held[start:] = body
        elif match is None:
            held[:] = body
        if match is None or (match[2] != "*" and len(held) == int(match[2])):
            answer = self._store(
                upload["bucket"], upload["name"], bytes(held), query=upload["query"]
            )
            upload["answer"] = answer
            return answer
        return 308, {"Range": f"bytes=0-{len(held) - 1}"} if held else {}, b""


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _bucket_record(name: str) -> dict[str, Any]:
    return {"kind": "storage#bucket", "id": name, "name": name, "location": "US"}


def _object_record(bucket: str, name: str, stored: StoredObject) -> dict[str, Any]:
    record = {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "size": str(len(stored.content)),
        "timeCreated": stored.created,
        "updated": stored.created,
        "etag": str(stored.generation),
    }
    if not stored.is_composed:
        return record | {"md5Hash": _md5(stored.content)}
    # Composed objects have no MD5 digest.
    import google_crc32c

    digest = google_crc32c.Checksum(stored.content).digest()
    return record | {"crc32c": base64.b64encode(digest).decode()}
