"""Checkpoints in buckets: whole or absent, removed with their mark first, checked on reading."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llm.train.bucket_checkpoints import (
    COMMIT_FILES,
    download_step,
    local_handlers,
    remove_old_steps,
    remove_step,
    remove_unfinished_steps,
    upload_step,
    wait_while_reachable,
    whole_steps,
)
from llm.train.checkpoint import Checkpoints, kept_steps
from llm.train.fingerprint import Fingerprint
from rpo_io.bucket_paths import BucketPath, as_path
from tests.fake_gcs import Fault

FINGERPRINT = Fingerprint({"kernel": [2, 3]}, {"data": "d4"}, {"objective": {}}, "0.1.0")


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each of the two fake stores; files are staged in the test's own folder."""
    server = request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    server.scheme = request.param
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return server


def at(store: Any) -> BucketPath:
    path = as_path(f"{store.scheme}://bucket/run/checkpoints")
    assert isinstance(path, BucketPath)
    return path


def state(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "weights": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "moments": [jnp.asarray(rng.normal(size=4), jnp.float32), jnp.asarray([np.nan, -0.0])],
        "count": jnp.asarray(number, jnp.int32),
    }


def assert_restores(store: Any, step: int) -> None:
    record, restored = Checkpoints(at(store)).restore(state(0), step)
    assert (record.step, record.data) == (step, {"at": step})
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(state(step)), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_roundtrip_last_and_best_steps_are_kept_bit_by_bit(store: Any, tmp_path: Path) -> None:
    folder = at(store)
    (folder / "7" / "state" / "part").write_bytes(b"of a killed process")
    assert kept_steps(folder) == []
    with Checkpoints(folder, keep=1, keep_best=True, fingerprint=FINGERPRINT) as checkpoints:
        assert checkpoints.latest() is None
        for step, score in ((1, 0.5), (2, 2.0), (3, None), (4, 1.0), (5, None)):
            checkpoints.save(step, state(step), {"at": step}, score=score)
        checkpoints.save(5, state(9), {"at": 9})  # is there already
    assert kept_steps(folder) == whole_steps(folder) == [2, 5]
    assert {name.split("/")[2] for name in store.names()} == {"2", "5"}
    assert Checkpoints(folder).latest() == 5
    for step in (2, 5):
        assert_restores(store, step)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_property_a_save_is_waited_for_and_its_error_is_raised(store: Any) -> None:
    done, failed = Future[None](), Future[None]()
    done.set_result(None)
    failed.set_exception(ValueError("no space"))
    wait_while_reachable(done, at(store))
    with pytest.raises(ValueError, match="no space"):
        wait_while_reachable(failed, at(store))


def test_property_a_part_of_a_step_has_handlers_for_arrays_and_records() -> None:
    handlers = local_handlers()
    assert handlers.has("state", ocp.args.PyTreeSave)
    assert handlers.has("about", ocp.args.JsonRestore)


def test_property_a_step_is_whole_only_with_its_mark(store: Any) -> None:
    folder = at(store)
    for step in (1, 2, 3):
        (folder / str(step) / "state" / "part").write_bytes(b"")
        (folder / str(step) / COMMIT_FILES[store.scheme]).write_bytes(b"{}")
    store.requests.clear()
    remove_step(folder, 1)
    removed = [str(request) for request in store.requests if "DELETE" in str(request)]
    # Google Cloud Storage removes many objects in one request.
    assert COMMIT_FILES[store.scheme] in removed[0]
    assert whole_steps(folder) == [2, 3]
    (folder / "2" / COMMIT_FILES[store.scheme]).unlink()
    assert whole_steps(folder) == [3]
    remove_unfinished_steps(folder)
    remove_old_steps(folder, keep=None, keep_best=True)
    assert {name.split("/")[2] for name in store.names()} == {"3"}


# If one read fails, Orbax closes the event loop of the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_raises_a_step_with_any_damaged_object(store: Any) -> None:
    with Checkpoints(at(store), fingerprint=FINGERPRINT) as checkpoints:
        checkpoints.save(2, state(2), {"at": 2})
    spare = ("_CHECKPOINT_METADATA", "_sharding", "commit_success.txt", "process_0")
    names = [name for name in store.names() if not name.endswith(spare)]
    refused = {}
    for name in names if store.scheme == "gs" else names[:4]:
        good = store.read(f"bucket/{name}")
        store.write(f"bucket/{name}", good[: len(good) // 2])
        try:
            assert_restores(store, 2)
        except ValueError as error:
            refused[name] = str(error)
        store.write(f"bucket/{name}", good)
    # Orbax does not read all of the small files of a process, which it has merged.
    assert len(refused) >= 4, names
    assert all("damaged: delete its folder 2" in message for message in refused.values())
    assert_restores(store, 2)


def test_raises_an_upload_that_fails_and_keeps_the_step_before(s3: Any, tmp_path: Path) -> None:
    s3.scheme = "s3"
    folder, part = at(s3), tmp_path / "part"
    (part / "state").mkdir(parents=True)
    (part / "state" / "a").write_bytes(b"one")
    upload_step(part, folder, 1)
    listed = json.loads(s3.read("bucket/run/checkpoints/1/COMMIT"))["files"]
    assert listed["state/a"]["bytes"] == 3
    s3.faults = lambda method, path: Fault("status", 403) if "/2/" in path else None
    with pytest.raises(ValueError, match="access is denied"):
        upload_step(part, folder, 2)
    s3.faults = None
    assert whole_steps(folder) == [1]
    download_step(folder, 1, tmp_path / "copy")
    assert (tmp_path / "copy" / "state" / "a").read_bytes() == b"one"
    s3.write("bucket/run/checkpoints/1/state/a", b"two")
    with pytest.raises(ValueError, match="differs from what"):
        download_step(folder, 1, tmp_path / "other")


def test_raises_a_full_local_disk_before_anything_is_staged(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.scheme = "s3"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3))
    with (
        Checkpoints(at(s3), fingerprint=FINGERPRINT) as checkpoints,
        pytest.raises(ValueError, match="no space left for a checkpoint of 48 bytes, 3 are free"),
    ):
        checkpoints.save(1, state(1), {})
    assert s3.names() == []
