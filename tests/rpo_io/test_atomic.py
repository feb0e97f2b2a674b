"""Claims about atomic writes: complete or absent, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpo_io.atomic import atomic_file, atomic_folder, write_atomic


def test_roundtrip_bytes_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.bin", b"one")
    write_atomic(tmp_path / "a.bin", b"two", durable=True)
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_extreme_an_error_in_the_block_keeps_the_old_file_and_removes_the_new(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail_half_way() -> None:
        with atomic_file(tmp_path / "a.txt", durable=True) as part:
            part.write_text("ne")
            assert (tmp_path / "a.txt").read_text() == "old"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_roundtrip_a_folder_appears_complete_and_readable_by_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "model") as part:
        (part / "config.json").write_text("{}")
        assert not (tmp_path / "new" / "model").exists()
    assert (tmp_path / "new" / "model" / "config.json").read_text() == "{}"
    assert (tmp_path / "new" / "model").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_extreme_an_error_in_the_block_leaves_no_folder(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "model") as part:
            (part / "config.json").write_text("{}")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert not list(tmp_path.iterdir())
