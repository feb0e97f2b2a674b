"""Claims about records on disk: nothing half written, nothing foreign, no damage unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bandits.records import Columns, Store

CONFIG = {"name": "a", "seeds": 3}
TIMES = pa.table({"what": ["draw"], "seconds": [0.5]})


def part(number: int) -> pa.Table:
    columns = Columns(3)
    columns.words("label", np.array([0, 1, -1]), ["rpo", "dpo"])
    columns.numbers("gap", number + np.array([0.1, np.nan, np.inf]))
    return columns.table()


def filled(folder: Path) -> Store:
    folder.mkdir(exist_ok=True)
    store = Store(folder, CONFIG)
    for number in range(2):
        store.write_part(number, part(number), TIMES)
    return store


def test_roundtrip_parts_become_one_table_in_order(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.has_part(1)
    assert not store.has_part(2)
    store.merge(2)
    assert store.is_finished()
    table = store.table()
    assert table["label"].to_pylist() == ["rpo", "dpo", None] * 2
    assert table["gap"].to_pylist() == [0.1, None, np.inf, 1.1, None, np.inf]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["records.parquet", "seconds.parquet"]
    assert table.schema.metadata[b"rpo.config"] == b'{"name": "a", "seeds": 3}'
    assert b"jaxlib" in table.schema.metadata[b"rpo.versions"]


def test_raises_results_of_another_study_name_the_key_that_differs(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match=r"of another study \(`seeds` was 3, is 4\)"):
        Store(tmp_path, {"name": "a", "seeds": 4}).check(resume=True)


def test_raises_results_that_are_there_are_not_overwritten_unasked(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(ValueError, match="continue with --resume"):
        store.check(resume=False)
    store.check(resume=True)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_raises_a_damaged_part_is_named_and_nothing_is_lost(tmp_path: Path, damage: str) -> None:
    store = filled(tmp_path)
    path = tmp_path / "parts" / "000001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[60] ^= 0xFF  # inside the first page
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])

    def finish() -> None:
        store.check(resume=True)
        store.merge(2)

    with pytest.raises(ValueError, match=r"000001.parquet is damaged or missing: delete it"):
        finish()
    assert store.has_part(0)
    assert not store.is_finished()
    path.unlink()
    store.write_part(1, part(1), TIMES)
    store.merge(2)
    assert store.table().num_rows == 6


def test_raises_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = filled(tmp_path)
    monkeypatch.setattr("bandits.records._to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_part(2, part(2), TIMES)
    assert not store.has_part(2)
    assert not list((tmp_path / "parts").glob("*.unfinished"))
