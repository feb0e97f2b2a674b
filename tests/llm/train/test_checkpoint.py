"""Claims about checkpoints: whole or absent, of this run or refused, restored bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.train.checkpoint import Checkpoints

# What Orbax writes beside the values and does not need to read them.
SPARE = {"_CHECKPOINT_METADATA", "commit_success.txt", "_sharding"}
DAMAGED = "the checkpoint is damaged: delete its folder 2, the one before it will be used"


def state(number: int) -> dict[str, Any]:
    """Leaves of every dtype that a run keeps, a scalar and what is not finite among them."""
    rng = np.random.default_rng(number)
    return {
        "weights": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "moments": [jnp.asarray(rng.normal(size=4), jnp.float32), jnp.asarray([np.nan, -0.0])],
        "count": jnp.asarray(number, jnp.int32),
        "key": jnp.asarray(rng.integers(2**32, size=2), jnp.uint32),
    }


def opened(folder: Path, *, keep: int = 2, fingerprint: str = "this run") -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep, fingerprint)


def saved(folder: Path, *numbers: int) -> Path:
    with opened(folder) as checkpoints:
        for number in numbers:
            checkpoints.save(number, state(number), {"step": number})
    return folder / "checkpoints"


def assert_same_bits(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def assert_restores(folder: Path, number: int) -> None:
    step, found, data_state = opened(folder).restore(state(0))
    assert (step, data_state) == (number, {"step": number})
    assert_same_bits(found, state(number))


def damages(good: bytes) -> Iterator[bytes | None]:
    """What may become of a file; None where it is gone."""
    middle = len(good) // 2
    yield from (None, b"", good[:middle])
    yield good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]


def refusals(folder: Path) -> dict[str, list[str]]:
    """What is said of the second step, by the file of it that is damaged."""
    step, said = folder / "checkpoints" / "2", {}
    for path in [path for path in sorted(step.rglob("*")) if path.is_file()]:
        good, told = path.read_bytes(), []
        for bad in damages(good):
            path.unlink() if bad is None else path.write_bytes(bad)
            try:
                assert_restores(folder, 2)
            except ValueError as error:
                told.append(str(error))
            path.write_bytes(good)
        said[str(path.relative_to(step))] = told
    return said


def test_roundtrip_every_bit_of_every_dtype_comes_back(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    assert opened(tmp_path).latest() == 7
    assert_restores(tmp_path, 7)


def test_roundtrip_the_last_so_many_are_kept_and_any_can_be_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2, 5, 9)
    assert sorted(path.name for path in folder.iterdir()) == ["5", "9"]
    step, found, _ = opened(tmp_path).restore(state(0), 5)
    assert step == 5
    assert_same_bits(found, state(5))


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
    with pytest.raises(ValueError, match="a checkpoint of another model, data set or config"):
        opened(tmp_path, fingerprint="another run").restore(state(0))


@pytest.mark.parametrize("wrong", ["dtype", "leaf"])
def test_raises_a_state_of_another_form_is_refused(tmp_path: Path, wrong: str) -> None:
    saved(tmp_path, 2)
    other = state(0)
    match wrong:
        case "dtype":
            other["weights"] = jnp.zeros((2, 3), jnp.float32)
        case _:
            other["one more"] = jnp.zeros(1)
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(other)


def test_fuzz_whatever_file_is_damaged_the_state_is_right_or_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2)
    # Where a read fails Orbax leaves others behind, which complain later, in whatever test runs.
    apart = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    done = subprocess.run(apart, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, list[str]] = json.loads(done.stdout)
    assert {message for told in said.values() for message in told} == {f"{folder / '2'}: {DAMAGED}"}
    always = {name for name, told in said.items() if len(told) == 4}
    assert {"state/manifest.ocdbt", "about/metadata"} <= always
    assert not {Path(name).name for name, told in said.items() if told} & SPARE
    assert_restores(tmp_path, 2)


def test_raises_values_that_were_changed_are_caught_though_the_format_is_whole(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, 1, 2)
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(state(0))
    shutil.rmtree(folder / "2")  # as the message says
    assert_restores(tmp_path, 1)


def test_raises_what_is_said_of_a_step_belongs_to_it_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2)
    about = folder / "2" / "about" / "metadata"
    told = json.loads(about.read_text())
    for name, other in (("data", {"step": 3}), ("fingerprint", "that run"), ("digest", "0" * 64)):
        about.write_text(json.dumps(told | {name: other}))
        with pytest.raises(ValueError, match=DAMAGED):
            opened(tmp_path).restore(state(0))
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")  # a whole step, of another number
    with pytest.raises(ValueError, match=DAMAGED):
        opened(tmp_path).restore(state(0))


def test_roundtrip_a_state_that_is_overwritten_while_it_is_saved_is_saved_as_it_was(
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
        _, found, _ = opened(tmp_path).restore(current, step)
        assert set(np.unique(found["large"])) == {21.0 * (step - 1) + 1.0}


def test_property_writes_given_up_after_one_that_failed_do_not_complain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: told.append(str(report.exc_value)))
    before = sys.unraisablehook
    with opened(tmp_path):
        for sentence in ("Event loop is closed", "something else"):
            error = RuntimeError(sentence)
            sys.unraisablehook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    assert told == ["something else"]
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
    saved(tmp_path, 2)  # the step is made again
    assert_restores(tmp_path, 2)


if __name__ == "__main__":
    with jax.enable_x64(True):
        sys.stdout.write(json.dumps(refusals(Path(sys.argv[1]))))
