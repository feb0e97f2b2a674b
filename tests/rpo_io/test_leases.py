"""Leases: of several processes one wins, an owner that has ended is replaced, a loser stops."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rpo_io import leases
from rpo_io.bucket_paths import BucketPath, as_path
from rpo_io.leases import (
    LEASE_FILE,
    Lease,
    check_lease,
    describe_owner,
    hold_lease,
    is_owner_alive,
    owner_record,
)


@pytest.fixture(params=["gs", "s3"])
def folder(request: pytest.FixtureRequest) -> BucketPath:
    """A folder in each of the two fake stores."""
    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    path = as_path(f"{request.param}://bucket/run")
    assert isinstance(path, BucketPath)
    return path


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire after a second."""
    times = {"LEASE_SECONDS": 1.0, "RENEWAL_SECONDS": 0.2, "SAFE_SECONDS": 0.5, "POLL_SECONDS": 0.1}
    for name, seconds in times.items():
        monkeypatch.setattr(leases, name, seconds)


def foreign_owner(**changes: Any) -> bytes:
    return json.dumps(owner_record() | {"host": "tpu-7", "machine": "another"} | changes).encode()


def test_property_one_of_eight_wins(folder: BucketPath) -> None:
    start, end = threading.Barrier(8), threading.Barrier(8)

    def race(_: int) -> str:
        start.wait()
        try:
            with hold_lease(folder.location):
                end.wait()
                return "won"
        except ValueError as error:
            end.wait()
            return str(error)

    lease = Lease(folder.location)
    lease.acquire()
    with pytest.raises(ValueError, match="another process uses this folder"):
        Lease(folder.location).acquire()
    lease.release()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    assert results.count("won") == 1
    assert sum("another process uses this folder, process " in text for text in results) == 7
    assert list(folder.files()) == []


def test_property_an_owner_on_another_machine_is_watched(folder: BucketPath, fast: None) -> None:
    lease = folder / LEASE_FILE
    lease.write_bytes(foreign_owner())
    begun = time.monotonic()
    with hold_lease(folder.location):  # it is not renewed
        assert time.monotonic() - begun >= 1.0
        assert json.loads(lease.read_bytes())["machine"] == owner_record()["machine"]
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(0.15):
            lease.write_bytes(foreign_owner(renewals=(count := count + 1)))

    lease.write_bytes(foreign_owner())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ValueError, match="on tpu-7 since"), hold_lease(folder.location):
            pass
    finally:
        ended.set()
        thread.join()


def test_property_a_killed_owner_on_this_machine_is_replaced_at_once(folder: BucketPath) -> None:
    for record in (owner_record() | {"pid": 2**22 - 1}, owner_record() | {"process_start": "1"}):
        assert is_owner_alive(record) is False
        (folder / LEASE_FILE).write_bytes(json.dumps(record).encode())
        with hold_lease(folder.location):
            pass
    assert is_owner_alive(owner_record()) is True
    assert is_owner_alive({}) is None
    assert describe_owner({}) == "process ? on an unknown host since an unknown time"


def test_raises_writes_of_a_process_whose_lease_was_taken(folder: BucketPath, fast: None) -> None:
    with hold_lease(folder.location):
        check_lease(str(folder / "metrics.jsonl"))
        (folder / LEASE_FILE).write_bytes(foreign_owner())
        time.sleep(0.6)
        with pytest.raises(ValueError, match=r"has taken this folder over, process .* on tpu-7"):
            (folder / "metrics.jsonl").write_bytes(b"")
        check_lease("gs://bucket/running")  # of another folder
    assert [path.name for path in folder.files()] == [LEASE_FILE]  # that of the other process


def test_property_an_owner_whose_renewals_fail_goes_on_if_nobody_took_over(
    folder: BucketPath, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 60.0)
    with hold_lease(folder.location):
        time.sleep(0.6)
        (folder / "metrics.jsonl").write_bytes(b"1")
        assert json.loads((folder / LEASE_FILE).read_bytes())["renewals"] == 1
