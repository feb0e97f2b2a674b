"""Claims about records on disk: nothing half written, nothing foreign, no damage unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bandits.study.records import RecordStore, TableBuilder

CONFIG = {"name": "a", "seeds": 3}
TIMES = pa.table({"what": ["draw"], "seconds": [0.5]})


def part(number: int) -> pa.Table:
    columns = TableBuilder(3)
    columns.words("label", np.array([0, 1, -1]), ["rpo", "dpo"])
    columns.numbers("gap", number + np.array([0.1, np.nan, np.inf]))
    return columns.table()


def filled(folder: Path) -> RecordStore:
    folder.mkdir(exist_ok=True)
    store = RecordStore(folder, CONFIG)
    for number in range(2):
        store.write_part(number, part(number), TIMES)
    return store


def test_roundtrip_parts_become_one_table_in_order(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.has_part(1)
    assert not store.has_part(2)
    store.merge(2)
    store.drop_parts()
    assert store.is_finished()
    table = store.table()
    assert table["label"].to_pylist() == ["rpo", "dpo", None] * 2
    assert table["gap"].to_pylist() == [0.1, None, np.inf, 1.1, None, np.inf]
    left = sorted(path.name for path in tmp_path.iterdir())
    tables = ["records.parquet", "seconds.parquet"]
    assert left == sorted([*tables, *(f"{name}.sha256" for name in tables)])
    assert table.schema.metadata[b"rpo.config"] == b'{"name": "a", "seeds": 3}'
    assert b"jaxlib" in table.schema.metadata[b"rpo.versions"]


def test_raises_results_of_another_study_name_the_key_that_differs(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match=r"of another study \(`seeds` was 3, is 4\)"):
        RecordStore(tmp_path, {"name": "a", "seeds": 4}).check(resume=True)


def test_raises_results_that_are_there_are_not_overwritten_unasked(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(ValueError, match="continue with --resume"):
        store.check(resume=False)
    store.check(resume=True)


def damages(good: bytes) -> Iterator[bytes]:
    """Every bit that is wrong in one byte of nine, and every tenth of the file that is missing."""
    for place in range(0, len(good), 9):
        yield good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :]
    for tenths in range(10):
        yield good[: len(good) * tenths // 10]


@pytest.mark.parametrize("name", ["000001.parquet", "000001.seconds", "000001.parquet.sha256"])
def test_raises_a_damaged_part_is_named_and_nothing_is_lost(tmp_path: Path, name: str) -> None:
    store = filled(tmp_path)
    path = tmp_path / "parts" / name
    good = path.read_bytes()

    def finish() -> None:
        store.check(resume=True)
        store.merge(2)

    named = name.removesuffix(".sha256")
    for bad in damages(good):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{named} is damaged or missing: delete it"):
            finish()
        assert not store.is_finished()
    assert store.has_part(0)
    (tmp_path / "parts" / named).unlink()  # as the message says
    assert not store.has_part(1)
    store.write_part(1, part(1), TIMES)
    finish()
    assert store.table().num_rows == 6


def test_raises_wherever_a_finished_table_is_damaged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    path = tmp_path / "records.parquet"
    for bad in damages(path.read_bytes()):
        path.write_bytes(bad)
        for read in (lambda: store.check(resume=True), store.table):
            with pytest.raises(ValueError, match=r"records.parquet is damaged or missing"):
                read()


def test_property_a_study_killed_while_it_dropped_its_parts_is_finished(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    (tmp_path / "parts" / "000000.parquet.sha256").unlink()
    store.check(resume=True)
    assert store.is_finished()
    store.drop_parts()
    store.drop_parts()
    assert not (tmp_path / "parts").exists()


def test_raises_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = filled(tmp_path)
    monkeypatch.setattr("bandits.study.records._to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_part(2, part(2), TIMES)
    assert not store.has_part(2)
    assert not list((tmp_path / "parts").glob("*.unfinished"))


def test_roundtrip_the_table_comes_part_by_part_and_by_column(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    tables = list(store.tables(lambda name: name == "gap"))
    assert [table.column_names for table in tables] == [["gap"], ["gap"]]
    gaps = [table["gap"].to_pylist() for table in tables]
    assert gaps == [[0.1, None, np.inf], [1.1, None, np.inf]]
