"""Claims about outputs: checked before any work, and nothing of the user is ever replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rpo_io.folders import LOCK_FILE, check_writable, refuse_unexpanded
from rpo_io.outputs import MARKER_FILE, output_folder, prepare_file, prepare_new_folder
from rpo_io.remote_errors import StoreError

ROW = '{"prompt": "q"}\n'
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a data file under several names, and a model folder."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(ROW)
    os.link("rows.jsonl", "hard.jsonl")
    Path("soft.jsonl").symlink_to("rows.jsonl")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    os.link("model/config.json", "config.json")
    Path("same").symlink_to("model")
    Path("notes.txt").write_text("my notes")
    Path("notes.json").write_text('[{"title": "mine"}]')
    Path("scores.jsonl").write_text('{"row": 0, "logp": -1}\n')
    Path("empty.jsonl").touch()
    os.mkfifo("pipe")
    Path("nowhere").symlink_to("absent")
    return tmp_path


def is_scores(record: Mapping[str, Any]) -> bool:
    return {"row", "logp"} <= record.keys()


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("rows.jsonl", "is the input rows.jsonl"),
        ("./model/../rows.jsonl", "is the input rows.jsonl"),
        ("hard.jsonl", "is the input rows.jsonl"),
        ("soft.jsonl", "is the input rows.jsonl"),
        ("config.json", r"is the input model/config.json"),
        ("model/config.json", "lies in the input folder model"),
        ("same/new.json", "lies in the input folder model"),
        ("model/deep/new.json", "lies in the input folder model"),
        ("notes.txt", "exists and is not an earlier result"),
        ("notes.json", "exists and is not an earlier result"),
        ("pipe", "is a pipe"),
        ("nowhere", "is a symbolic link"),
        ("/dev/null", "is a device"),
        ("/dev/full", "is a device"),
        ("/dev/stdout", "is a symbolic link|is a pipe|is a device"),
        ("model", "is a folder"),
        (".", "is a folder"),
        ("notes.txt/scores.jsonl", "is not a folder"),
        ("~/scores.jsonl", "~/scores.jsonl is not expanded"),
        ("$HOME/scores.jsonl", "HOME"),
        ("a/${USER}.jsonl", "USER"),
        ("x" * 300, "File name too long"),
        ("x" * 300 + "/scores.jsonl", "File name too long|at most 255 bytes"),
        ("x/" * 3000 + "scores.jsonl", "File name too long"),
    ],
)
def test_raises_for_an_output_that_would_replace_anything(
    name: str, rule: str, folder: Path
) -> None:
    before = content(folder)
    inputs = ["rows.json*", "model", "owner/name", Path("absent")]
    with pytest.raises(ValueError, match=rf"^argument --out: .*({rule})") as caught:
        prepare_file(Path(name), inputs=inputs, is_earlier_result=is_scores)
    assert "\n" not in str(caught.value)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["new.jsonl", "new/deep/a.jsonl", "scores.jsonl", "empty.jsonl"])
def test_property_a_new_file_or_an_earlier_result_is_accepted_and_nothing_is_created(
    name: str, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    prepare_file(Path(name), inputs=["rows.jsonl", "model"], is_earlier_result=is_scores)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_raises_without_permission(folder: Path) -> None:
    Path("locked").mkdir(mode=0o555)
    for check in (prepare_file, prepare_new_folder):
        with pytest.raises(ValueError, match="argument --out: locked is not writable"):
            check(Path("locked/new"))


def test_raises_where_the_file_system_refuses_a_file(folder: Path) -> None:
    # Files cannot be created in /proc, by root neither.
    for path in (Path("/proc/new"), Path("/proc/new/deep")):
        with pytest.raises(ValueError, match="argument --out: /proc is not writable"):
            prepare_file(path)
        with pytest.raises(ValueError, match="argument --out: /proc is not writable"):
            prepare_new_folder(path)
        with (
            pytest.raises(ValueError, match="argument --out: /proc is not writable"),
            output_folder(path, "train"),
        ):
            pass
    check_writable(Path("new/folder"), names=["a"])
    with pytest.raises(ValueError, match="at most 255 bytes"):
        check_writable(Path("new"), names=["ä" * 128])


def test_property_a_path_that_exists_under_its_literal_name_is_taken(folder: Path) -> None:
    Path("~").mkdir()
    refuse_unexpanded(Path("~"))
    refuse_unexpanded(Path("a~b/c$"))


def test_raises_for_a_new_folder_that_is_not_new(folder: Path) -> None:
    Path("itself").symlink_to("itself")
    for name, rule in (
        ("model", "is not empty"),
        ("same", "is not empty"),
        ("notes.txt", "is not a folder"),
        ("/proc", "is not empty"),
        ("~/policy", "not expanded"),
        ("itself", "is a link to itself"),
    ):
        with pytest.raises(ValueError, match=rf"argument --out: .*{rule}"):
            prepare_new_folder(Path(name))
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    for name in ("empty", "link", "new", "new/deep"):
        prepare_new_folder(Path(name))
    assert not Path("new").exists()


def run_in(name: str, kind: str) -> None:
    with output_folder(Path(name), kind):
        Path(name, "result.txt").write_text(kind)


def test_property_a_folder_is_taken_if_it_is_empty_or_of_the_same_command(folder: Path) -> None:
    Path("empty").mkdir()
    Path("empty/lost+found").mkdir()
    for name in ("new/deep", "empty"):
        run_in(name, "train")
        run_in(name, "train")
        with pytest.raises(ValueError, match=r"holds a run of rpo train, which is kept"):
            run_in(name, "study")
        assert Path(name, "result.txt").read_text() == "train"


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["parts/000000.parquet"], ["summary.json", "config.yaml"], [".git/x"]]
)
def test_raises_for_a_folder_with_files_of_others(names: list[str], folder: Path) -> None:
    for name in names:
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("kept")
    before = content(folder)
    with pytest.raises(ValueError, match=r"mine holds files that rpo study did not write"):
        run_in("mine", "study")
    assert content(folder) == before  # not even a lock
    with output_folder(Path("mine"), "study", is_earlier_run=lambda folder: True):
        pass
    run_in("mine", "study")


@pytest.mark.parametrize("marker", ["", "[]", '{"written_by": 3}', "\x00"])
def test_extreme_a_damaged_mark_is_no_mark(marker: str, folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine", MARKER_FILE).write_text(marker)
    run_in("mine", "train")
    assert json.loads(Path("mine", MARKER_FILE).read_text()) == {"written_by": "rpo train"}


def test_property_a_run_that_fails_before_it_writes_leaves_no_folder(folder: Path) -> None:
    def begin(name: str, write: bool, error: Exception) -> None:
        with output_folder(Path(name), "train"):
            if write:
                Path(name, "metrics.jsonl").touch()
            raise error

    def fail(name: str, write: bool, error: Exception | None = None) -> None:
        error = error or RuntimeError()
        with pytest.raises(type(error)):
            begin(name, write, error)

    for error in (RuntimeError(), ConnectionError(), StoreError("gs://a is gone", "unreachable")):
        fail("new/deep", write=False, error=error)
        assert not Path("new").exists()
    fail("new/deep", write=True)
    assert sorted(path.name for path in Path("new/deep").iterdir()) == [
        LOCK_FILE,
        MARKER_FILE,
        "metrics.jsonl",
    ]
    Path("empty").mkdir()
    fail("empty", write=False)
    assert Path("empty").is_dir()
