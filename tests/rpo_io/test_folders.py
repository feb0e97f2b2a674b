"""Claims about output folders: they are created, or refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpo_io.folders import name_os_errors, prepare_folder


def test_property_a_missing_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    prepare_folder(tmp_path / "new" / "folder")


def test_raises_for_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"argument --out: .* is not a folder"):
            prepare_folder(folder)
    assert (tmp_path / "file").read_text() == "kept"


def test_raises_errors_of_the_system_with_the_name_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, name_os_errors(tmp_path):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as kept, name_os_errors(tmp_path):
        (tmp_path / "absent").read_text()
    assert kept.value.filename == str(tmp_path / "absent")


@pytest.mark.parametrize("scheme", ["gs", "s3", "hf", "http"])
def test_raises_for_a_location_that_would_become_a_local_folder(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--out: {scheme}://bucket/run is not written by this"):
        prepare_folder(Path(f"{scheme}://bucket/run"))
    assert list(tmp_path.iterdir()) == []
