"""Paths in buckets: objects are complete or absent, and outputs replace nothing of the user."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rpo_io.atomic import atomic_folder, write_atomic
from rpo_io.bucket_paths import BucketPath, as_path
from rpo_io.compare_and_swap import Versioned, read_versioned, remove_version, swap
from rpo_io.leases import LEASE_FILE
from rpo_io.line_logs import FileLog, PartsLog, open_log
from rpo_io.outputs import local_folder, output_folder, prepare_file, prepare_new_folder
from tests.fake_gcs import FakeGcs, Fault


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest) -> Any:
    """Each of the two fake stores, whose address is in the environment."""
    server = request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    server.scheme = request.param
    return server


def at(store: Any, name: str = "run") -> BucketPath:
    path = as_path(f"{store.scheme}://bucket/{name}")
    assert isinstance(path, BucketPath)
    return path


def test_roundtrip_objects_of_a_folder(store: Any, tmp_path: Path) -> None:
    run = at(store)
    assert (run.exists(), run.is_dir(), list(run.iterdir())) == (False, False, [])
    with pytest.raises(FileNotFoundError):
        (run / "a.txt").read_bytes()
    write_atomic(run / "a.txt", b"one")
    write_atomic(run / "a.txt", b"two")
    (run / "steps" / "1").write_bytes(b"")
    (run / "steps" / "20").write_bytes(b"x" * 1000)
    assert (run / "a.txt").read_text() == "two"
    assert (run / "a.txt").open().read(2) == b"tw"
    assert [path.name for path in run.iterdir()] == ["a.txt", "steps"]
    assert [str(path) for path in run.glob("*/2?")] == [str(run / "steps" / "20")]
    assert [run.relative_name(path) for path in run.files()] == ["a.txt", "steps/1", "steps/20"]
    assert ((run / "steps").is_file(), (run / "steps").is_dir()) == (False, True)
    assert ((run / "steps" / "1").size(), (run / "steps" / "2").size()) == (0, None)
    (run / "steps" / "20").download(tmp_path / "copy")
    (run / "again").upload(tmp_path / "copy")
    assert store.read("bucket/run/again") == b"x" * 1000
    run.remove_files([run / "again", run / "steps" / "1", run / "absent"])
    (run / "a.txt").unlink()
    (run / "a.txt").unlink(missing_ok=True)
    if store.scheme == "gs":
        with pytest.raises(FileNotFoundError):
            (run / "a.txt").unlink()
    assert store.names() == ["run/steps/20"]


def test_property_a_bucket_path_never_becomes_a_local_one() -> None:
    path: Any = as_path("gs://bucket/run")
    assert path.absolute() is path
    for function in (os.fspath, Path, open):
        with pytest.raises(TypeError):
            function(path)
    assert as_path("file:///tmp/a") == as_path("/tmp/a") == Path("/tmp/a")
    with pytest.raises(ValueError, match="hf://a/b is read-only"):
        as_path("hf://a/b")
    with pytest.raises(ValueError, match="rpo study writes local folders only"):
        local_folder("s3://bucket/a", "study")


def test_property_one_of_the_writers_of_a_version_wins(store: Any) -> None:
    location = at(store, "lease").location
    assert read_versioned(location) == Versioned(b"", "")
    first = swap(location, "", b"a")
    assert first is not None
    assert swap(location, "", b"b") is None
    second = swap(location, first, b"c")
    assert second is not None
    assert swap(location, first, b"d") is None
    assert read_versioned(location) == Versioned(b"c", second)
    remove_version(location, first)
    assert store.read("bucket/lease") == b"c" or store.scheme == "s3"  # moto ignores the condition
    remove_version(location, second)
    assert swap(location, second, b"e") is None
    assert store.names() == []


def test_property_a_lost_answer_is_not_a_lost_swap(gcs: FakeGcs) -> None:
    gcs.scheme = "gs"  # type: ignore[attr-defined]
    lost = [Fault("lost")]
    gcs.faults = lambda request: lost.pop() if request.is_upload and lost else None
    assert swap(at(gcs, "lease").location, "", b"mine") is None
    assert read_versioned(at(gcs, "lease").location).content == b"mine"


def test_property_lines_of_a_log_survive_a_kill_at_any_request(store: Any) -> None:
    path = at(store) / "metrics.jsonl"
    log = open_log(path)
    assert isinstance(log, PartsLog)
    assert isinstance(open_log(Path("a")), FileLog)
    assert log.read() == []
    for line in ("a", "b"):
        log.append(line)
    assert open_log(path).read() == ["a", "b"]
    log = open_log(path)
    log.append("c")
    # A process is killed after it has merged the lines, before it removes the parts.
    path.write_bytes(b"a\nb\nc\n")
    assert open_log(path).read() == ["a", "b", "c"]
    log = open_log(path)
    log.replace(["a", "b"])
    log.append("d")
    assert open_log(path).read() == ["a", "b", "d"]
    log.finish("end")
    assert store.read("bucket/run/metrics.jsonl") == b"a\nb\nd\nend\n"
    assert store.names() == ["run/metrics.jsonl"]


def test_raises_outputs_that_would_replace_something(store: Any) -> None:
    def is_ours(record: Any) -> bool:
        return "logp" in record

    for name, content in (("mine.txt", b"x"), ("scores", b'{"logp": 1}\n'), ("folder/a", b"")):
        at(store, name).write_bytes(content)
    prepare_file(at(store, "scores"), is_earlier_result=is_ours)
    prepare_file(at(store, "new"), is_earlier_result=is_ours)
    with pytest.raises(ValueError, match="not an earlier result"):
        prepare_file(at(store, "mine.txt"), is_earlier_result=is_ours)
    with pytest.raises(ValueError, match="is a folder"):
        prepare_file(at(store, "folder"))
    with pytest.raises(ValueError, match="is an input"):
        prepare_file(at(store, "scores"), inputs=[str(at(store, "scores"))])
    with pytest.raises(ValueError, match="lies in the input folder"):
        prepare_file(at(store, "folder/b"), inputs=[str(at(store, "folder"))])
    with pytest.raises(ValueError, match="not empty"):
        prepare_new_folder(at(store, "folder"))
    prepare_new_folder(at(store, "policy"))
    with pytest.raises(ValueError, match="did not write"), output_folder(at(store, "folder"), "a"):
        pass
    with pytest.raises(ValueError, match="no such bucket"):
        prepare_new_folder(as_path(f"{store.scheme}://absent/policy"))
    assert store.names() == ["folder/a", "mine.txt", "scores"]


def test_property_an_output_folder_is_taken_by_one_process(store: Any) -> None:
    run, entered, ended = at(store), threading.Event(), threading.Event()

    def first() -> None:
        with output_folder(run, "train"):
            (run / "metrics.jsonl").write_bytes(b"")
            entered.set()
            ended.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    rule = f"another process uses this folder, process {os.getpid()} on "
    with pytest.raises(ValueError, match=rule), output_folder(run, "train"):
        pass
    ended.set()
    thread.join()
    with output_folder(run, "train"):
        assert f"run/{LEASE_FILE}" in store.names()
    with pytest.raises(ValueError, match="holds a run of rpo train"), output_folder(run, "study"):
        pass
    assert store.names() == ["run/.rpo.json", "run/metrics.jsonl"]


def test_property_a_run_that_fails_before_it_writes_leaves_an_empty_bucket(store: Any) -> None:
    with pytest.raises(ValueError, match="bad data"), output_folder(at(store), "train"):
        raise ValueError("bad data")
    assert store.names() == []


def test_property_a_folder_is_uploaded_whole_or_not(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(folder: BucketPath, *, fails: bool = False) -> None:
        with atomic_folder(folder, last=("config.json",)) as part:
            (part / "config.json").write_text("{}")
            (part / "more").mkdir()
            (part / "more" / "weights").write_bytes(bytes(9))
            if fails:
                (part / "zz").symlink_to(part / "more" / "absent")
                (part / "zz.unreadable").mkdir()
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(at(store, "policy"), fails=True)
    assert store.names() == []
    store.requests.clear()
    write(at(store, "policy"))
    assert store.names() == ["policy/config.json", "policy/more/weights"]
    assert list(tmp_path.iterdir()) == []
    if store.scheme == "s3":
        puts = [path for method, path in store.requests if method == "PUT"]
        assert puts == ["/bucket/policy/more/weights", "/bucket/policy/config.json"]


def test_extreme_a_failing_server_loses_no_write(gcs: FakeGcs) -> None:
    gcs.scheme = "gs"  # type: ignore[attr-defined]
    faults = [Fault("status", 503)]
    gcs.faults = lambda request: faults.pop() if faults else None
    (at(gcs) / "a").write_bytes(b"content")
    assert (gcs.read("bucket/run/a"), faults) == (b"content", [])
