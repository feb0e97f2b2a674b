"""Records on disk: complete or absent, of one study only, and every damage is detected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bandits.study.record_table import TableBuilder
from bandits.study.records import RECORDS_FORMAT, RecordStore
from rpo_io.versions import release_version

CONFIG = {"name": "a", "seeds": 3}
TIMES = pa.table({"what": ["draw"], "seconds": [0.5]})


def part(number: int) -> pa.Table:
    columns = TableBuilder(3)
    columns.add_strings("label", np.array([0, 1, -1]), ["rpo", "dpo"])
    columns.add_numbers("gap", number + np.array([0.1, np.nan, np.inf]))
    return columns.build()


def filled(folder: Path) -> RecordStore:
    folder.mkdir(exist_ok=True)
    store = RecordStore(folder, CONFIG)
    for number in range(2):
        store.write_part(number, part(number), TIMES)
    return store


def test_roundtrip_parts_are_merged_into_one_table_in_order(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.has_part(1)
    assert not store.has_part(2)
    assert [table.num_rows for table in store.read_part(1)] == [3, TIMES.num_rows]
    store.merge(2)
    store.drop_parts()
    assert store.is_finished()
    table = store.read_table()
    assert table["label"].to_pylist() == ["rpo", "dpo", None] * 2
    assert table["gap"].to_pylist() == [0.1, None, np.inf, 1.1, None, np.inf]
    files = sorted(path.name for path in tmp_path.iterdir())
    tables = ["records.parquet", "seconds.parquet"]
    assert files == sorted([*tables, *(f"{name}.sha256" for name in tables)])
    assert table.schema.metadata[b"rpo.config"] == b'{"name": "a", "seeds": 3}'
    versions = json.loads(table.schema.metadata[b"rpo.versions"])
    assert "jaxlib" in versions
    assert versions["rpo-theory"] == release_version()
    assert versions["records_format"] == RECORDS_FORMAT


def test_raises_for_results_of_another_study_with_the_key_that_differs(tmp_path: Path) -> None:
    filled(tmp_path)
    for config, difference in (
        ({"name": "a", "seeds": 2}, "`seeds` was 3, is 2, and a study continues only for more"),
        ({"name": "b", "seeds": 3}, "`name` was 'a', is 'b'"),
        ({"name": "b", "seeds": 4}, "`name` was 'a', is 'b'"),
        ({"name": "a", "seeds": 3, "design": {"rare": 1}}, "`design` was None, is {'rare': 1}"),
    ):
        with pytest.raises(ValueError, match=rf"of another study \({re.escape(difference)}"):
            RecordStore(tmp_path, config).check(resume=True)
    nested = RecordStore(tmp_path / "nested", {"design": {"rare": 1, "actions": 3}})
    nested.folder.mkdir()
    nested.write_part(0, part(0), TIMES)
    with pytest.raises(ValueError, match=r"\(`design.rare` was 1, is 2\)"):
        RecordStore(nested.folder, {"design": {"rare": 2, "actions": 3}}).check(resume=True)
    listed = RecordStore(tmp_path / "listed", {"methods": [{"method": "rpo"}], "n": [5]})
    listed.folder.mkdir()
    listed.write_part(0, part(0), TIMES)
    for methods, n, difference in (
        (["dpo"], [5], "`methods[0].method` was 'rpo', is 'dpo'"),
        (["rpo", "dpo"], [5], "`methods[1]` was None, is {'method': 'dpo'}"),
        (["rpo"], [5, 6], "`n` was [5], is [5, 6]"),
    ):
        changed = {"methods": [{"method": name} for name in methods], "n": n}
        with pytest.raises(ValueError, match=re.escape(f"({difference})")):
            RecordStore(listed.folder, changed).check(resume=True)


def test_raises_for_another_content_of_an_input_file_also_of_a_finished_study(
    tmp_path: Path,
) -> None:
    name = "environments votes:v.csv"
    store = RecordStore(tmp_path, CONFIG, inputs={name: "ab" * 32})
    for number in range(2):
        store.write_part(number, part(number), TIMES)
    changed = RecordStore(tmp_path, CONFIG, inputs={name: "cd" * 32})
    for _ in range(2):
        store.check(resume=True)
        with pytest.raises(ValueError, match=rf"content of a file \(`{name}` was 'abab"):
            changed.check(resume=True)
        with pytest.raises(ValueError, match="content of a file"):
            RecordStore(tmp_path, CONFIG).check(resume=True)
        store.merge(2)


def test_raises_for_existing_results_unless_they_are_resumed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(ValueError, match="continue with --resume"):
        store.check(resume=False)
    store.check(resume=True)


def damages(good: bytes) -> Iterator[bytes]:
    """Yield the file with one wrong bit in every ninth byte, and cut off at every tenth."""
    for index in range(0, len(good), 9):
        yield good[:index] + bytes([good[index] ^ (1 << index % 8)]) + good[index + 1 :]
    for tenths in range(10):
        yield good[: len(good) * tenths // 10]


@pytest.mark.parametrize("name", ["000001.parquet", "000001.seconds", "000001.parquet.sha256"])
def test_raises_for_a_damaged_part_which_can_be_computed_again(tmp_path: Path, name: str) -> None:
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
    (tmp_path / "parts" / named).unlink()  # the remedy that the message gives
    assert not store.has_part(1)
    store.write_part(1, part(1), TIMES)
    finish()
    assert store.read_table().num_rows == 6


def test_raises_for_every_damage_of_the_final_table(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    path = tmp_path / "records.parquet"
    for bad in damages(path.read_bytes()):
        path.write_bytes(bad)
        for read in (lambda: store.check(resume=True), store.read_table):
            with pytest.raises(ValueError, match=r"records.parquet is damaged or missing"):
                read()


def test_property_a_study_killed_while_dropping_its_parts_is_finished(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    (tmp_path / "parts" / "000000.parquet.sha256").unlink()
    store.check(resume=True)
    assert store.is_finished()
    store.drop_parts()
    store.drop_parts()
    assert not (tmp_path / "parts").exists()


def test_raises_when_the_disk_is_full_and_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = filled(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_part(2, part(2), TIMES)
    assert not store.has_part(2)
    assert not list((tmp_path / "parts").glob("*.part"))


def test_roundtrip_the_table_is_read_in_pieces_with_the_columns_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.merge(2)
    tables = list(store.iter_tables(lambda name: name == "gap"))
    assert [table.column_names for table in tables] == [["gap"], ["gap"]]
    gaps = [table["gap"].to_pylist() for table in tables]
    assert gaps == [[0.1, None, np.inf], [1.1, None, np.inf]]
