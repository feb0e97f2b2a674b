"""Leases: the locks of folders in buckets, which end with their owners.

A lease is an object that names its owner. It is created, renewed and taken over by
compare-and-swap, so that of several processes one wins. The owner renews it every few seconds. A
process that finds a lease watches it: an owner that renews it is alive; one that does not for
:data:`LEASE_SECONDS` has lost it. No clock is compared with that of another machine.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .compare_and_swap import Versioned, read_versioned, remove_version, swap
from .locations import Location

LEASE_FILE = ".lease"
"""Name of the object in the folder that it locks."""
LEASE_SECONDS = 60.0
"""Time without a renewal after which another process may take a lease over."""
RENEWAL_SECONDS = 10.0
"""Time between two renewals."""
SAFE_SECONDS = 40.0
"""Age of the last renewal from which the owner renews its lease before it writes anything."""
RELEASE_SECONDS = 5.0
"""Longest time that a process that ends waits until its lease is removed."""
POLL_SECONDS = 1.0
"""Time between two looks at the lease of a process that may have ended."""
SETTLE_SECONDS = 0.5
"""Time after which a new lease is read again: some servers of S3 compare and write in two steps."""
_logger = logging.getLogger(__name__)
_held: dict[str, Lease] = {}


class Lease:
    """The lease of one folder, held by this process."""

    def __init__(self, folder: Location) -> None:
        """Prepare the record of the owner; nothing is written.

        Args:
            folder: folder in a bucket.
        """
        self._folder, self._object = folder, folder / LEASE_FILE
        self._record = owner_record()
        self._version, self._renewed = "", 0.0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, daemon=True)

    def acquire(self) -> None:
        """Take the lease, or refuse it if its owner is alive.

        Raises:
            ValueError: if another process holds the lease, or the bucket cannot be used.
        """
        watched, since = None, _now()
        while not self._is_ours(current := read_versioned(self._object)):
            owner = _parse(current.content)
            is_alive = is_owner_alive(owner) if current.version else False
            if is_alive is None and watched not in (None, current.version):
                is_alive = True  # it has renewed its lease
            if is_alive:
                raise ValueError(
                    f"{self._folder}: another process uses this folder, {describe_owner(owner)}: "
                    "wait until it ends, or choose another --out"
                )
            if is_alive is False or _now() - since > LEASE_SECONDS:
                # A request that was sent twice can lose to itself, so that the record is read back.
                is_written = swap(self._object, current.version, self._content())
                if is_written and self._folder.scheme == "s3":
                    time.sleep(SETTLE_SECONDS)
                continue
            if watched is None:
                watched, since = current.version, _now()
                _logger.info(
                    "%s: waiting for up to %.0f s to see whether %s still runs",
                    *(self._folder, LEASE_SECONDS, describe_owner(owner)),
                )
            time.sleep(POLL_SECONDS)
        self._version, self._renewed = current.version, _now()
        self._thread.start()

    def release(self) -> None:
        """End the renewals and remove the lease; if the store is gone, it expires."""
        self._ended.set()
        removal = threading.Thread(target=self._remove, daemon=True)
        removal.start()
        removal.join(RELEASE_SECONDS)

    def _remove(self) -> None:
        with self._lock, suppress(Exception):
            if self._version:
                remove_version(self._object, self._version)

    def check(self) -> None:
        """Refuse to go on if another process may have taken the lease over.

        Raises:
            ValueError: if it has, or the lease could not be renewed in time.
        """
        if _now() - self._renewed > SAFE_SECONDS:
            self._renew()

    def _renew_regularly(self) -> None:
        while not self._ended.wait(RENEWAL_SECONDS):
            with suppress(Exception):  # the next write finds out
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            before = _now()
            self._record["renewals"] += 1
            version = swap(self._object, self._version, self._content())
            if version is None:
                current = read_versioned(self._object)
                if not self._is_ours(current):
                    self._renewed = float("-inf")
                    owner = _parse(current.content)
                    raise ValueError(
                        f"{self._folder}: another process has taken this folder over, "
                        f"{describe_owner(owner)}, because the lease could not be renewed in time"
                    )
                version = current.version
            self._version, self._renewed = version, before

    def _is_ours(self, current: Versioned) -> bool:
        return _parse(current.content).get("id") == self._record["id"]

    def _content(self) -> bytes:
        return json.dumps(self._record).encode()


@contextmanager
def hold_lease(folder: Location) -> Iterator[None]:
    """Hold the lease of a folder in a bucket for the duration of the block.

    Args:
        folder: folder in a bucket that can be written to.

    Raises:
        ValueError: if another process holds the lease.
    """
    lease = Lease(folder)
    try:
        lease.acquire()
        _held[f"{folder}/"] = lease
        yield
    finally:
        _held.pop(f"{folder}/", None)
        lease.release()


def check_lease(path: str) -> None:
    """Refuse to write below a folder whose lease this process held and has lost.

    Args:
        path: URL of an object or a folder.

    Raises:
        ValueError: if another process has taken the folder over, or may have.
    """
    for folder, lease in list(_held.items()):
        if f"{path}/".startswith(folder):
            lease.check()


def owner_record() -> dict[str, Any]:
    """Return what a lease records of its owner, this process."""
    return {
        "id": secrets.token_hex(16),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "process_start": _process_start(os.getpid()),
        "renewals": 0,
    }


def describe_owner(owner: dict[str, Any]) -> str:
    """Return a phrase for messages that names the owner of a lease.

    Args:
        owner: record of the lease.

    Examples:
        >>> describe_owner({"pid": 7, "host": "tpu-0", "since": "2026-01-01T00:00:00+00:00"})
        'process 7 on tpu-0 since 2026-01-01T00:00:00+00:00'
    """
    return (
        f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')} "
        f"since {owner.get('since', 'an unknown time')}"
    )


def is_owner_alive(owner: dict[str, Any]) -> bool | None:
    """Return whether the owner of a lease runs on this machine.

    Args:
        owner: record of the lease.

    Returns:
        Whether it runs; None if it is a process of another machine, of which nothing is known.
    """
    if owner.get("machine") is None or owner.get("machine") != _machine():
        return None
    start = _process_start(owner.get("pid", 0))
    return start is not None and start == owner.get("process_start")


def _machine() -> str | None:
    """Return what identifies this boot of the machine and its process numbers; None if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _process_start(pid: int) -> str | None:
    """Return when a process of this machine started, in clock ticks; None if it has ended."""
    with suppress(OSError, IndexError):
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def _now() -> float:
    """Return a time that goes on while the machine is suspended, in seconds."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parse(value: bytes) -> dict[str, Any]:
    try:
        record = json.loads(value or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
