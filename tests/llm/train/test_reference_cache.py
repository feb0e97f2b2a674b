"""Cached log-probabilities of the reference: exact round trips, damage, and stale caches."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.data.preferences import PairTokens
from llm.train.reference_cache import (
    Provenance,
    ReferenceCache,
    attach_reference,
    cache_from_rows,
    compute_reference,
    load_cache,
    save_cache,
)
from llm.types import Batch

CACHE = ReferenceCache(np.array([2, 5, 9]), np.array([[-1.5, -2.5], [-0.1, -7.0], [-3.0, -4.0]]))
PROVENANCE = Provenance(
    weights="a1",
    tokenizer="b2",
    template="c3",
    data="d4",
    max_length=64,
    max_prompt_length=None,
    truncation_mode="keep_end",
    dtype="float64",
)


def batch_of(rows: Any, k: int = 2) -> Batch:
    rows, nothing = np.asarray(rows), None
    lengths = np.ones((*rows.shape, k), int)
    return Batch(nothing, nothing, lengths, rows >= 0, rows)  # type: ignore[arg-type]


def test_roundtrip_is_exact_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "reference.safetensors"
    save_cache(path, CACHE, PROVENANCE)
    result = load_cache(path, PROVENANCE)
    np.testing.assert_array_equal(result.row_ids, CACHE.row_ids)
    np.testing.assert_array_equal(result.log_probs, CACHE.log_probs)
    assert result.log_probs.dtype == CACHE.log_probs.dtype
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


CHANGES: dict[str, Any] = {field.name: "other" for field in dataclasses.fields(Provenance)} | {
    "max_length": 65,
    "max_prompt_length": 32,
}


def test_property_the_partial_file_of_a_killed_run_is_removed_by_the_next_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "reference.safetensors"
    dying = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from rpo_io.atomic import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as part:\n"
        "    part.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for _ in range(2):  # killed twice
        killed = subprocess.run([sys.executable, "-c", dying, str(path)], check=False)
        assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left != path
    foreign = tmp_path / "reference.safetensors.part"
    foreign.write_bytes(b"a file of the user")
    save_cache(path, CACHE, PROVENANCE)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, foreign.name]
    np.testing.assert_array_equal(load_cache(path, PROVENANCE).row_ids, CACHE.row_ids)


@pytest.mark.parametrize("name", CHANGES)
def test_raises_for_a_stale_cache_and_names_what_changed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "reference.safetensors"
    save_cache(path, CACHE, PROVENANCE)
    changed = dataclasses.replace(PROVENANCE, **{name: CHANGES[name]})
    expected = rf"stale .*\(`{name}` was {getattr(PROVENANCE, name)!r} and is {CHANGES[name]!r}\)"
    with pytest.raises(ValueError, match=expected):
        load_cache(path, changed)


@pytest.mark.parametrize("kept", [0, 7, 40, 200])
def test_raises_for_a_file_cut_short(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "reference.safetensors"
    save_cache(path, CACHE, PROVENANCE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path.name}: not a complete cache"):
        load_cache(path, PROVENANCE)


def test_raises_wherever_a_bit_of_the_file_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    save_cache(path, CACHE, PROVENANCE)
    good = path.read_bytes()
    for index in range(len(good)):
        bad = bytes([good[index] ^ (1 << index % 8)])
        path.write_bytes(good[:index] + bad + good[index + 1 :])
        with pytest.raises(ValueError, match=f"{path.name}: not a complete cache"):
            load_cache(path, PROVENANCE)


def test_raises_if_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_cache(tmp_path / "absent.safetensors", PROVENANCE)


def test_extreme_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reference.safetensors"
    save_cache(path, CACHE, PROVENANCE)
    before = path.read_bytes()

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            save_cache(path, CACHE._replace(log_probs=2 * CACHE.log_probs), PROVENANCE)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_closed_form_reference_of_a_batch_by_row_with_zeros_for_absent_pairs() -> None:
    result = attach_reference(batch_of([9, -1, 2]), CACHE)
    assert result.reference is not None
    np.testing.assert_array_equal(result.reference, [[-3.0, -4.0], [0.0, 0.0], [-1.5, -2.5]])


def test_property_an_accumulation_axis_is_kept() -> None:
    rows = np.array([[9, 2], [5, -1]])
    result = attach_reference(batch_of(rows), CACHE)
    parts = [attach_reference(batch_of(part), CACHE).reference for part in rows]
    np.testing.assert_array_equal(result.reference, np.stack(parts))  # type: ignore[arg-type]


def test_raises_for_a_row_that_is_not_in_the_cache() -> None:
    for row in (0, 3, 10):
        with pytest.raises(ValueError, match=f"row {row} must be in the cache"):
            attach_reference(batch_of([2, row]), CACHE)


def test_raises_for_another_number_of_responses() -> None:
    with pytest.raises(ValueError, match="must have 3 responses per pair, got 2"):
        attach_reference(batch_of([2], k=3), CACHE)


def test_closed_form_computed_rows_are_sorted_and_absent_pairs_left_out() -> None:
    def log_probs(batch: Batch) -> np.ndarray:
        return -np.stack([np.asarray(batch.row_ids), np.asarray(batch.row_ids)], 1).astype(float)

    result = compute_reference(log_probs, [batch_of([9, -1]), batch_of([2, 5])])
    np.testing.assert_array_equal(result.row_ids, [2, 5, 9])
    np.testing.assert_array_equal(result.log_probs, -np.array([[2, 2], [5, 5], [9, 9]], float))


def test_raises_for_a_log_probability_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="row 4 must be finite"):
        compute_reference(lambda batch: np.full(batch.lengths.shape, np.nan), [batch_of([4])])


def test_raises_without_rows() -> None:
    with pytest.raises(ValueError, match="`batches` must hold at least one pair"):
        compute_reference(lambda batch: np.zeros(batch.lengths.shape), [batch_of([-1])])


def test_roundtrip_log_probabilities_of_the_data_are_sorted_by_row() -> None:
    pair = PairTokens((1,), (2,), (3,), None, 7, (-1.5, -2.5))
    without = pair._replace(row=3, reference=None)
    earlier = pair._replace(row=5, reference=(-3.0, -4.0))
    cache = cache_from_rows([pair, without, earlier], 2)
    assert cache is not None
    assert cache.row_ids.tolist() == [5, 7]
    assert cache.log_probs.tolist() == [[-3.0, -4.0], [-1.5, -2.5]]
    assert cache_from_rows([without], 2) is None


def test_raises_for_a_row_with_too_few_log_probabilities() -> None:
    pair = PairTokens((1,), (2,), (3,), (4,), 7, (-1.5, -2.5))
    with pytest.raises(ValueError, match=r"^row 7 must have .* of its 3 responses, got 2: add "):
        cache_from_rows([pair._replace(row=1, reference=(-1.0, -2.0, -3.0)), pair], 3)
