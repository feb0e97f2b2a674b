"""The S3 server of moto on loopback, with injected faults."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from .fake_gcs import Fault

Hook = Callable[[str, str], Fault | None]


class FakeS3:
    """A fake S3 in this process, for this process and its children.

    Args:
        buckets: names of the buckets that exist.

    Attributes:
        faults: hook that is asked with method and path, ``/bucket/key``, before every answer; None
            for no faults.
        requests: method and path of all requests so far.
    """

    def __init__(self, buckets: Iterable[str] = ("bucket",)) -> None:
        """Start to listen on a free port of loopback."""
        self.faults: Hook | None = None
        self.requests: list[tuple[str, str]] = []
        self._swap = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        # Neither requests nor connections that are ended on purpose are logged.
        vars(self._server)["log"] = lambda *message: None
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.reset(buckets)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._server.port}"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that lead botocore to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def reset(self, buckets: Iterable[str] = ("bucket",)) -> None:
        """Remove all objects and faults, and create buckets."""
        from moto.s3.models import s3_backends

        self.faults = None
        self.requests.clear()
        self._backend = s3_backends["123456789012"]["aws"]
        self._backend.reset()
        for name in buckets:
            self._backend.create_bucket(name, "us-east-1")

    def stop(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()

    def read(self, path: str) -> bytes:
        """Return the content of ``bucket/key``."""
        bucket, _, key = path.partition("/")
        found: Any = self._backend.get_object(bucket, key)
        return found.value

    def names(self, bucket: str = "bucket", prefix: str = "") -> list[str]:
        """Return the keys of the objects of a bucket, sorted."""
        return sorted(key for key in self._backend.buckets[bucket].keys if key.startswith(prefix))

    def write(self, path: str, content: bytes) -> None:
        """Store ``bucket/key``."""
        bucket, _, key = path.partition("/")
        self._backend.put_object(bucket, key, content)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        kind, value = (self.faults(method, path) if self.faults is not None else None) or ("", 0)
        if kind == "status":
            body = b"<Error><Code>Injected</Code><Message>injected</Message></Error>"
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(f"{int(value)} Injected", headers)
            return [] if method == "HEAD" else [body]
        if kind == "gone":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if kind == "slow":
            time.sleep(value)
        conditional = "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ
        # A condition and its write are one operation in S3, but not in moto's threads.
        with self._swap if conditional else nullcontext():
            answer = self._app(environ, start_response)
        if kind not in ("truncated", "short", "flipped"):
            return answer
        content = b"".join(answer)
        if kind == "flipped":
            return [bytes([content[0] ^ 1]) + content[1:]]
        # The stated size is that of the whole body.
        return [content[: len(content) // 2]]
