"""Checkpoints: complete or absent, of this run or refused, restored bit by bit."""

from __future__ import annotations

import concurrent.futures.thread
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llm.train.checkpoint import Checkpoints
from llm.train.fingerprint import Fingerprint

# Files that Orbax writes beside the values and does not need for reading.
SPARE = {"_CHECKPOINT_METADATA", "commit_success.txt", "_sharding"}
DAMAGED = "the checkpoint is damaged: delete its folder 2, the one before it will be used"


def state(number: int) -> dict[str, Any]:
    """Return leaves of every dtype of a run, with a scalar, a NaN and a negative zero."""
    rng = np.random.default_rng(number)
    return {
        "weights": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "moments": [jnp.asarray(rng.normal(size=4), jnp.float32), jnp.asarray([np.nan, -0.0])],
        "count": jnp.asarray(number, jnp.int32),
        "key": jnp.asarray(rng.integers(2**32, size=2), jnp.uint32),
    }


def fingerprint(eta: float = 0.1) -> Fingerprint:
    return Fingerprint({"kernel": [2, 3]}, {"data": "d4"}, {"objective": {"eta": eta}}, "0.1.0")


FINGERPRINT = fingerprint()


def opened(folder: Path, *, run: Fingerprint | None = FINGERPRINT) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep=2, fingerprint=run)


def saved(folder: Path, *numbers: int) -> Path:
    with opened(folder) as checkpoints:
        for number in numbers:
            checkpoints.save(number, state(number), {"step": number})
    return folder / "checkpoints"


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def assert_restores(folder: Path, number: int) -> None:
    record, restored = opened(folder).restore(state(0))
    assert (record.step, record.data) == (number, {"step": number})
    assert record.fingerprint == fingerprint()._asdict()
    assert_same_bits(restored, state(number))


def damages(good: bytes) -> Iterator[bytes | None]:
    """Yield damaged contents of a file; None stands for a missing file."""
    middle = len(good) // 2
    yield from (None, b"", good[:middle])
    yield good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]


def refusals(folder: Path) -> dict[str, list[str]]:
    """Damage each file of the second step in turn; return the error messages by file."""
    step, messages = folder / "checkpoints" / "2", {}
    for path in [path for path in sorted(step.rglob("*")) if path.is_file()]:
        good, errors = path.read_bytes(), []
        for bad in damages(good):
            path.unlink() if bad is None else path.write_bytes(bad)
            try:
                assert_restores(folder, 2)
            except ValueError as error:
                errors.append(str(error))
            path.write_bytes(good)
        messages[str(path.relative_to(step))] = errors
    return messages


def test_roundtrip_every_bit_of_every_dtype_is_restored(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    assert opened(tmp_path).latest() == 7
    assert_restores(tmp_path, 7)


def test_roundtrip_the_last_checkpoints_are_kept_and_any_can_be_restored(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2, 5, 9)
    assert sorted(path.name for path in folder.iterdir()) == ["5", "9"]
    record, restored = opened(tmp_path).restore(state(0), 5)
    assert record.step == 5
    assert_same_bits(restored, state(5))


def test_roundtrip_leaves_are_stored_by_the_path_of_their_parameter(tmp_path: Path) -> None:
    nested = {"layers": {"q_proj": {"kernel": jnp.ones(2)}}, "moments": [jnp.zeros(3)]}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, nested, {})
    with ocp.StandardCheckpointer() as reader:
        stored = reader.restore(tmp_path / "checkpoints" / "1" / "state")
    assert stored["layers"]["q_proj"]["kernel"].tolist() == [1.0, 1.0]
    assert stored["moments"]["0"].tolist() == [0.0, 0.0, 0.0]


def test_property_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), {"step": 3})
        checkpoints.save(3, state(4), {"step": 4})
    assert_restores(tmp_path, 3)


def test_raises_without_a_checkpoint(tmp_path: Path) -> None:
    assert opened(tmp_path).latest() is None
    with pytest.raises(ValueError, match="no checkpoint to continue from: start without --resume"):
        opened(tmp_path).restore(state(0))


def test_raises_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    expected = r"another configuration \(`objective.eta` was 0.1 and is 0.2\): continue with the"
    with pytest.raises(ValueError, match=expected):
        opened(tmp_path, run=fingerprint(eta=0.2)).restore(state(0))
    assert opened(tmp_path, run=None).find().fingerprint == fingerprint()._asdict()


def test_raises_saving_needs_a_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`fingerprint` must be given to save"):
        opened(tmp_path, run=None).save(1, state(1), {})


def test_roundtrip_the_latest_checkpoint_is_the_last_that_was_saved(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpoints:
        assert checkpoints.describe_latest() == "no checkpoint yet"
        for step in (4, 9):
            checkpoints.save(step, {"x": jnp.ones(1)}, {})
        assert checkpoints.describe_latest() == "the last good checkpoint is step 9"


@pytest.mark.parametrize("wrong", ["dtype", "leaf"])
def test_raises_a_state_of_another_form_is_refused(tmp_path: Path, wrong: str) -> None:
    saved(tmp_path, 2)
    template = state(0)
    match wrong:
        case "dtype":
            template["weights"] = jnp.zeros((2, 3), jnp.float32)
        case _:
            template["new"] = jnp.zeros(1)
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(template)


def test_fuzz_whatever_file_is_damaged_the_state_is_right_or_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2)
    # If a read fails, Orbax leaves other reads behind that fail later, in another test.
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    messages: dict[str, list[str]] = json.loads(done.stdout)
    assert {text for texts in messages.values() for text in texts} == {f"{folder / '2'}: {DAMAGED}"}
    always = {name for name, texts in messages.items() if len(texts) == 4}
    assert {"state/manifest.ocdbt", "about/metadata"} <= always
    assert not {Path(name).name for name, texts in messages.items() if texts} & SPARE
    assert_restores(tmp_path, 2)


def test_raises_changed_values_are_detected_in_a_valid_format(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, 1, 2)
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(state(0))
    shutil.rmtree(folder / "2")  # as the message says
    assert_restores(tmp_path, 1)


def test_raises_the_record_of_a_step_was_changed_or_belongs_to_another(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2)
    about = folder / "2" / "about" / "metadata"
    good = json.loads(about.read_text())
    bad = {"data": {"step": 3}, "fingerprint": {}, "digest": "0" * 64, "step": 3}
    for name, value in bad.items():
        about.write_text(json.dumps(good | {name: value}))
        with pytest.raises(ValueError, match=DAMAGED):
            opened(tmp_path).restore(state(0))
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")  # a complete step with another number
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(state(0))


def test_roundtrip_a_state_that_is_overwritten_during_the_save_is_saved_as_it_was(
    tmp_path: Path,
) -> None:
    advance = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1.0, x), donate_argnums=0)
    current = {"large": jnp.zeros((512, 1024)), "small": jnp.zeros(3)}
    with opened(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            current = advance(current)
            checkpoints.save(step, current, {"step": step})
            for _ in range(20):
                current = advance(current)
    for step in (2, 3):
        _, restored = opened(tmp_path).restore(current, step)
        assert set(np.unique(restored["large"])) == {21.0 * (step - 1) + 1.0}


def test_property_writes_abandoned_after_a_failed_one_do_not_complain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(str(report.exc_value)))
    before = sys.unraisablehook
    with opened(tmp_path):
        for sentence in ("Event loop is closed", "something else"):
            error = RuntimeError(sentence)
            sys.unraisablehook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    assert reports == ["something else"]
    assert sys.unraisablehook is before


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_property_a_save_that_dies_on_the_way_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    saved(tmp_path, 1)
    done: list[str] = []
    rename = os.rename

    def dying(source: Any, target: Any, **options: Any) -> None:
        if len(done) == renames:
            raise OSError("the machine is gone")
        done.append(str(target))
        rename(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying)
        checkpoints = opened(tmp_path)
        with pytest.raises(ValueError, match="2: the checkpoint could not be written"), checkpoints:
            checkpoints.save(2, state(2), {"step": 2})
    assert len(done) == renames
    assert opened(tmp_path).latest() == 1
    assert_restores(tmp_path, 1)
    saved(tmp_path, 2)  # the step can be saved again
    assert_restores(tmp_path, 2)


@pytest.mark.parametrize(
    ("code", "folders"), [(errno.EACCES, 0), (errno.EDQUOT, 1), (errno.EROFS, 3)]
)
def test_raises_at_once_if_a_folder_cannot_be_created_and_no_thread_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, folders: int
) -> None:
    saved(tmp_path, 1)
    made: list[str] = []
    mkdir = os.mkdir

    def failing(path: Any, *args: Any, **options: Any) -> None:
        if "orbax" in str(path):
            if len(made) == folders:
                raise OSError(code, os.strerror(code), str(path))
            made.append(str(path))
        mkdir(path, *args, **options)

    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", failing)
        checkpoints = opened(tmp_path)
        with pytest.raises(ValueError, match=os.strerror(code)), checkpoints:
            checkpoints.save(2, state(2), {"step": 2})
    started = set(threading.enumerate()) - before
    # The interpreter waits for threads that are neither daemons nor idle workers of a pool.
    for thread in started - set(concurrent.futures.thread._threads_queues):
        thread.join(timeout=20)
        assert thread.daemon or not thread.is_alive(), thread.name
    assert_restores(tmp_path, 1)


def test_property_what_a_killed_save_left_is_removed_by_the_next_run_and_not_by_readers(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, 1)
    left = [folder / "7.orbax-checkpoint-tmp", folder / "8.orbax-checkpoint-tmp-123"]
    for path in left:
        (path / "state").mkdir(parents=True)
    assert opened(tmp_path, run=None).latest() == 1
    assert all(path.exists() for path in left)  # they may belong to a run that goes on
    saved(tmp_path, 2)
    assert not any(path.exists() for path in left)
    assert_restores(tmp_path, 2)


if __name__ == "__main__":
    with jax.enable_x64(True):
        sys.stdout.write(json.dumps(refusals(Path(sys.argv[1]))))
