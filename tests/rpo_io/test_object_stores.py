"""Object stores: ranges, listings, probes, and failures that are retried or end in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from aiohttp import ClientResponseError

from rpo_io import object_stores
from rpo_io.locations import Location, parse_location
from rpo_io.object_stores import (
    check_readable,
    check_writable,
    list_objects,
    open_store,
    read_chunks,
    read_range,
    stat_object,
    with_retries,
)
from rpo_io.remote_errors import failure_of, location_errors, store_error
from rpo_io.store_requests import request_listing, request_object, request_range
from tests.fake_gcs import FakeGcs, Fault
from tests.fake_s3 import FakeS3

CONTENT = bytes(range(256)) * 20
FAULTS = [Fault("status", 500), Fault("status", 429), Fault("truncated"), Fault("short")]


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest) -> tuple[str, FakeGcs | FakeS3]:
    """Each fake store in turn, with its scheme."""
    return request.param, request.getfixturevalue("gcs" if request.param == "gs" else "s3")


def first(n: int, fault: Fault) -> Callable[..., Fault | None]:
    """Return a hook that injects a fault into the first requests."""
    numbers = count()
    return lambda *request: fault if next(numbers) < n else None


def test_closed_form_single_requests_look_up_read_and_list(store: Any) -> None:
    scheme, server = store
    server.write("bucket/a/0.bin", CONTENT)
    folder = parse_location(f"{scheme}://bucket/a")
    assert folder.is_bucket
    assert not parse_location("a/0.bin").is_bucket
    found = request_object(folder / "0.bin")
    assert found == stat_object(folder / "0.bin")
    assert request_range(found, 10, 20) == CONTENT[10:20]
    assert [item.location for item in request_listing(folder)] == [folder / "0.bin"]


def test_closed_form_ranges_and_listings_are_those_of_the_objects(store: Any) -> None:
    scheme, server = store
    for index in range(3):
        server.write(f"bucket/a/{index}.bin", CONTENT[index:])
    server.write("bucket/ab", b"")
    found = list_objects(parse_location(f"{scheme}://bucket/a"))
    assert [(item.location.name, item.size) for item in found] == [
        (f"{index}.bin", len(CONTENT) - index) for index in range(3)
    ]
    source = stat_object(found[1].location)
    assert read_range(source, 255, 300) == CONTENT[256:301]
    assert read_range(source, 7, 7) == b""
    server.write("bucket/a/3.bin", b"")  # by another process: listings are not cached
    assert len(list_objects(parse_location(f"{scheme}://bucket/a"))) == 4
    assert b"".join(read_chunks(source, 3, 4000)) == CONTENT[4:4001]
    with pytest.raises(ValueError, match="bytes 0 to 6000 are out of range"):
        read_range(source, 0, 6000)


def test_closed_form_long_listings_come_in_pages(gcs: FakeGcs) -> None:
    for index in range(1003):
        gcs.write(f"bucket/a/{index:04d}", b"x")
    found = list_objects(Location("gs", "bucket/a"))
    assert [item.location.name for item in found] == [f"{index:04d}" for index in range(1003)]


@pytest.mark.parametrize("fault", FAULTS, ids=["500", "429", "truncated", "short"])
def test_closed_form_failures_that_end_are_retried(store: Any, fault: Fault) -> None:
    scheme, server = store
    server.write("bucket/a.bin", CONTENT)
    server.faults = first(1, fault)
    source = stat_object(parse_location(f"{scheme}://bucket/a.bin"))
    server.faults = first(1, fault)
    assert read_range(source, 100, 200) == CONTENT[100:200]


def test_raises_for_an_object_that_is_replaced_while_it_is_read(store: Any) -> None:
    scheme, server = store
    server.write("bucket/a.bin", CONTENT)
    source = stat_object(parse_location(f"{scheme}://bucket/a.bin"))
    server.write("bucket/a.bin", CONTENT[::-1])
    with pytest.raises(ValueError, match=r"bucket/a\.bin (does not exist|was changed by another)"):
        read_range(source, 0, 10)


def test_raises_in_one_line_when_the_store_is_gone_for_good(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, server = store
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 0.5)
    server.faults = lambda *request: Fault("gone")
    with pytest.raises(ValueError, match=r"cannot be reached \(.*\): check the network$"):
        stat_object(parse_location(f"{scheme}://bucket/a.bin"))


def test_closed_form_a_probe_leaves_nothing_behind(store: Any) -> None:
    scheme, server = store
    check_writable(parse_location(f"{scheme}://bucket/run"))
    check_readable(parse_location(f"{scheme}://bucket/missing.jsonl"))
    assert server.names() == []


def test_raises_for_buckets_that_are_missing_or_closed(store: Any) -> None:
    scheme, server = store
    for check in (check_readable, check_writable):
        with pytest.raises(ValueError, match="://absent: there is no such bucket: check its name"):
            check(parse_location(f"{scheme}://absent/run"))
    server.faults = lambda *request: Fault("status", 401)
    with pytest.raises(ValueError, match="cannot be opened without valid credentials: run `"):
        check_readable(parse_location(f"{scheme}://bucket/run"))
    server.faults = lambda *request: Fault("status", 403)
    with pytest.raises(ValueError, match="bucket/run is not writable: the account must be allowed"):
        check_writable(parse_location(f"{scheme}://bucket/run"))


def test_raises_within_the_bound_when_nothing_answers(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, server = store
    monkeypatch.setattr(object_stores, "PROBE_SECONDS", 0.3)
    server.faults = lambda *request: Fault("slow", 1)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be reached \(no answer in 0\.3 seconds\)"):
        check_readable(parse_location(f"{scheme}://bucket/run"))
    assert time.monotonic() - start < 0.9


def test_raises_for_a_missing_extra_and_read_only_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"needs the extra `gcs`: pip install 'rpo-theory\[gcs\]'"):
        check_readable(parse_location("gs://bucket/a"))
    with pytest.raises(ValueError, match="hf://owner/name is read-only"):
        check_writable(parse_location("hf://owner/name"))
    with pytest.raises(ValueError, match="must be in a bucket"):
        open_store(parse_location("hf://owner/name"))


def test_raises_only_errors_of_stores_as_one_line() -> None:
    location = Location("gs", "bucket/a")
    with pytest.raises(KeyError), location_errors(location):
        raise KeyError("a")
    with pytest.raises(OSError, match="No space"), location_errors(location):
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError, match="bucket/a was changed by"), location_errors(location):
        raise ValueError("ABORTED: generation mismatch [tensorstore_spec='{}']")
    assert failure_of(ValueError("NOT_FOUND: a")) == "missing"
    request: Any = None
    assert failure_of(ClientResponseError(request, (), status=503)) == "busy"
    assert str(store_error("other", location, OSError("a\nb"))).endswith("cannot be used: a b")
    assert with_retries(lambda: 3, location) == 3


def test_raises_for_content_that_the_store_keeps_compressed(gcs: FakeGcs) -> None:
    gcs.write("bucket/a.bin", CONTENT)
    source = stat_object(Location("gs", "bucket/a.bin"))._replace(encoding="gzip")
    with pytest.raises(ValueError, match=r"a\.bin is stored with Content-Encoding gzip, which is"):
        read_range(source, 0, 10)
