"""Local copies: equal bytes or an error, nothing copied twice, nothing left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rpo_io import object_stores, staging
from rpo_io.locations import Location, parse_location
from rpo_io.object_stores import list_objects, stat_object
from rpo_io.staging import (
    check_bucket,
    check_sources,
    copy_object,
    local_file,
    origin_of,
    remove_staged_files,
    shown_text,
    stage_folder,
    stage_objects,
    staged_bytes,
    staged_files,
)
from tests.fake_gcs import FakeGcs, Fault
from tests.fake_s3 import FakeS3

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give temporary files a folder of their own."""
    remove_staged_files()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(object_stores, "CHUNK_BYTES", 1000)
    yield tmp_path
    remove_staged_files()


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest) -> tuple[str, FakeGcs | FakeS3]:
    """Each fake store in turn, with its scheme."""
    return request.param, request.getfixturevalue("gcs" if request.param == "gs" else "s3")


def test_property_a_copy_has_the_bytes_of_the_object_and_is_removed(
    store: Any, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheme, server = store
    server.write("bucket/a/rows.jsonl", CONTENT)
    location = parse_location(f"{scheme}://bucket/a/rows.jsonl")
    caplog.set_level("INFO", "rpo_io")
    with staged_files():
        path = stage_objects(list_objects(location.parent), location)[0]
        assert path.name == "rows.jsonl"
        assert path.read_bytes() == CONTENT
        assert shown_text(f"{path}:3: wrong") == f"{location}:3: wrong"
        assert staged_bytes() == len(CONTENT)
        n_requests = len(server.requests)
        assert stage_objects(list_objects(location.parent), location) == [path]
        assert len(server.requests) == n_requests + 1  # the listing: nothing is copied twice
        server.write("bucket/a/rows.jsonl", CONTENT[::-1])
        assert local_file(str(location)).read_bytes() == CONTENT[::-1]
    assert list(temporary.iterdir()) == []
    assert f"{location}: 1 file of 10.0 KiB copied to {temporary}/rpo-staged-" in caplog.text


@pytest.mark.parametrize("kind", ["truncated", "short", "flipped"])
def test_property_damaged_answers_are_repaired_or_refused(
    store: Any, temporary: Path, kind: Any
) -> None:
    scheme, server = store
    server.write("bucket/a.bin", CONTENT)
    source = stat_object(parse_location(f"{scheme}://bucket/a.bin"))
    numbers = count()
    server.faults = lambda *request: Fault(kind) if next(numbers) == 0 else None
    copy_object(source, temporary / "a.bin")
    assert (temporary / "a.bin").read_bytes() == CONTENT


def test_raises_for_content_with_another_checksum(gcs: FakeGcs, temporary: Path) -> None:
    for is_composed in (False, True):  # MD5, and CRC-32C where there is no MD5
        gcs.write("bucket/a.bin", CONTENT, is_composed=is_composed)
        source = stat_object(Location("gs", "bucket/a.bin"))
        copy_object(source, temporary / "a.bin")
        assert (temporary / "a.bin").read_bytes() == CONTENT
        gcs.faults = lambda request: Fault("flipped") if request.is_media else None
        with pytest.raises(ValueError, match=r"bucket/a\.bin: the content that arrives has"):
            copy_object(source, temporary / "a.bin")
        gcs.faults = None


def test_property_a_folder_has_copies_and_empty_files_that_name_their_object(
    store: Any, temporary: Path
) -> None:
    scheme, server = store
    for name in ("config.json", "model.safetensors", "more/a.jinja"):
        server.write(f"bucket/policy/{name}", name.encode())
    folder = parse_location(f"{scheme}://bucket/policy")
    small, weights, more = list_objects(folder)
    local = stage_folder(folder, [small, more], [weights])
    assert local.name == "policy"
    assert (local / "more" / "a.jinja").read_bytes() == b"more/a.jinja"
    assert (local / "model.safetensors").read_bytes() == b""
    assert origin_of(local / "model.safetensors") == weights
    assert origin_of(local / "config.json") is None
    assert shown_text(f"{local}/config.json is missing") == f"{folder}/config.json is missing"
    assert stage_folder(folder, [small, more], [weights]) == local


def test_property_the_copies_of_a_killed_process_are_removed_by_the_next(
    gcs: FakeGcs, temporary: Path
) -> None:
    gcs.write("bucket/a.bin", CONTENT)
    code = (
        "import os, signal; from rpo_io.staging import local_file; "
        "local_file('gs://bucket/a.bin'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, **gcs.environment(), "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    (left,) = temporary.iterdir()
    assert next(left.rglob("a.bin")).read_bytes() == CONTENT
    held = temporary / f"{staging.PREFIX}held"
    held.mkdir()
    with (held / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        local_file("gs://bucket/a.bin")
        assert not left.exists()
        assert held.exists()  # of a process that still runs


def test_raises_before_a_copy_that_the_disk_cannot_hold(
    gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcs.write("bucket/a.bin", CONTENT)
    source = stat_object(Location("gs", "bucket/a.bin"))._replace(size=2**60)
    with pytest.raises(ValueError, match=r"gs://bucket/a\.bin: .* GiB must be copied to .* TMPDIR"):
        stage_objects([source], source.location)


def test_raises_for_sources_with_unknown_schemes_and_missing_buckets(gcs: FakeGcs) -> None:
    check_sources(["rows.jsonl", None, "owner/name", "hf://owner/name", "gs://bucket/a"])
    with pytest.raises(ValueError, match="gs://absent: there is no such bucket"):
        check_sources(["gs://absent/a"])
    with pytest.raises(ValueError, match="the scheme must be one of"):
        check_sources(["ftp://host/a"])
    check_bucket(parse_location("gs://bucket/a"))
    with pytest.raises(ValueError, match="there is no such bucket"):
        check_bucket(parse_location("gs://absent/a"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_property_no_wrong_byte_in_a_hundred_requests_that_fail_at_random(
    store: Any, temporary: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, server = store
    draw = random.Random(seed)
    monkeypatch.setattr(object_stores, "CHUNK_BYTES", 2**16)
    contents = {f"f{i}": draw.randbytes(draw.randrange(1, 2**21)) for i in range(20)}
    for name, content in contents.items():
        server.write(f"bucket/a/{name}", content)
    kinds = [
        *(("status", status) for status in (408, 429, 500, 502, 503, 504)),
        *(("truncated", 0), ("short", 0), ("gone", 0), ("slow", 0.2)),
    ]
    injected: list[Any] = []

    def hook(*request: Any) -> Fault | None:
        if len(injected) < 100 and draw.random() < 0.4:
            injected.append(draw.choice(kinds))
            return Fault(*injected[-1])
        return None

    server.faults = hook
    for name, content in contents.items():
        path = local_file(f"{scheme}://bucket/a/{name}")
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert len(injected) == 100


@pytest.mark.slow
def test_property_a_store_that_is_gone_for_ten_seconds_is_waited_for(store: Any) -> None:
    scheme, server = store
    server.write("bucket/a.bin", CONTENT)
    source = stat_object(Location(scheme, "bucket/a.bin"))
    end = time.monotonic() + 10.0
    server.faults = lambda *request: Fault("gone") if time.monotonic() < end else None
    assert object_stores.read_range(source, 0, 500) == CONTENT[:500]
