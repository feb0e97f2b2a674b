"""Claims about sources of rows: which files a name stands for, and what is ambiguous."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llm.data import hub_datasets, sources
from llm.data.sources import check_distinct, source_files
from rpo_io.hub import HubRepository

LINE = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LINE, encoding="utf-8")


def names_of(source: sources.Source, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path, _ in source_files(source)]


def refusal(source: sources.Source) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        source_files(source)
    return str(caught.value)


def test_property_folders_patterns_and_lists_name_their_shards_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "shards/b.jsonl", "shards/a.jsonl", "more/c.JSONL", "notes.txt")
    (tmp_path / "shards" / "README.md").touch()
    shards = ["shards/a.jsonl", "shards/b.jsonl"]
    assert names_of(tmp_path / "shards", tmp_path) == shards
    assert names_of(f"{tmp_path}/shards/*.jsonl", tmp_path) == shards
    assert names_of(f"{tmp_path}/**/[ab].jsonl", tmp_path) == shards
    assert names_of([tmp_path / "more", f"{tmp_path}/shards"], tmp_path) == [
        "more/c.JSONL",
        *shards,
    ]
    monkeypatch.chdir(tmp_path)
    assert source_files("shards/a.jsonl") == [(Path("shards/a.jsonl"), "shards/a.jsonl")]


def test_raises_for_folders_that_mix_splits_subsets_or_formats(tmp_path: Path) -> None:
    cases: Mapping[str, tuple[Sequence[str], str]] = {
        "splits": (("train-0.jsonl", "test-0.jsonl"), "several splits (test, train)"),
        "custom": (
            ("train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"),
            "several splits (test_prefs, train_prefs)",
        ),
        "subsets": (("one/train.jsonl", "two/train.jsonl"), "folders of rows (one, two)"),
        "formats": (("a.jsonl", "a.csv"), "several formats (.csv, .jsonl)"),
        "packed": (("a.jsonl", "a.jsonl.gz"), "several formats (.jsonl, .jsonl.gz)"),
        "other": (("a.jsonl", "b.jsonl.zst"), "not read (b.jsonl.zst)"),
        "hidden": (("a.jsonl", "_b.jsonl", ".c.jsonl", "_SUCCESS"), "not read (_b.jsonl)"),
        "empty": (("README.md",), "has no file of rows"),
    }
    for name, (files, message) in cases.items():
        write(tmp_path / name, *files)
        text = refusal(tmp_path / name)
        assert text.startswith(str(tmp_path / name)), text
        assert message in text, text


def test_raises_for_names_without_files_and_special_files(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl")
    assert "rows.jsonl does; give a file or folder" in refusal(tmp_path / "row.jsonl")
    assert refusal(f"{tmp_path}/*.csv").endswith("*.csv matches no file")
    assert refusal([]) == "a list of data files must name at least one, got none"
    assert "the scheme must be one of gs://, s3://" in refusal("http://host/rows.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "must be a regular file" in refusal(tmp_path / "pipe.jsonl")
    assert "must have a name" in refusal(" ")
    (tmp_path / "shards").mkdir()
    write(tmp_path, "shards/a.jsonl", "all/one/a.jsonl")
    assert "matches folders of rows" in refusal(f"{tmp_path}/all/*")
    (tmp_path / "shards" / "b.jsonl").symlink_to("missing.jsonl")
    for name in (tmp_path / "shards", f"{tmp_path}/shards/*.jsonl"):
        assert "b.jsonl is a broken link or a special file" in refusal(name)


def test_raises_for_one_file_under_several_names(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", "other.jsonl", "shards/a.jsonl")
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    os.link(tmp_path / "rows.jsonl", tmp_path / "hard.jsonl")
    rows = tmp_path / "rows.jsonl"
    for again in (rows, tmp_path / "link.jsonl", tmp_path / "hard.jsonl", f"{tmp_path}/./[r]ows.*"):
        assert "is the same file as" in refusal([rows, again])
        with pytest.raises(ValueError, match=r"^`data.eval` must be other rows than"):
            check_distinct(source_files([tmp_path / "other.jsonl", rows]), source_files(again))
    shards = source_files(tmp_path / "shards")
    with pytest.raises(ValueError, match=r"a\.jsonl in both"):
        check_distinct(shards, source_files([rows, tmp_path / "shards" / "a.jsonl"]))
    check_distinct(shards, source_files([rows, tmp_path / "other.jsonl"]))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of repositories that stands for the hub, by ``owner/name`` or with @."""
    monkeypatch.chdir(tmp_path)  # nothing local resembles the names of the repositories

    def folder(repository: HubRepository) -> Path:
        revision = f"@{repository.revision}" if repository.revision else ""
        return tmp_path / "hub" / (repository.name.replace("/", "--") + revision)

    def files(repository: HubRepository, *, kind: str) -> list[str]:
        root = folder(repository)
        assert kind == "dataset"
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

    def download(repository: HubRepository, patterns: Sequence[str], *, kind: str) -> Path:
        assert kind == "dataset"
        return folder(repository)

    monkeypatch.setattr(hub_datasets, "list_hub_files", files)
    monkeypatch.setattr(hub_datasets, "download_from_hub", download)
    return tmp_path / "hub"


def hub_names(source: str) -> list[str]:
    return [shown.split("/", 2)[2] for _, shown in source_files(source)]


def test_closed_form_a_file_of_a_hub_data_set_is_in_one_split(hub: Path) -> None:
    files = ("train/test-questions.jsonl", "train/rows.jsonl", "README.md", ".hidden/train.jsonl")
    write(hub / "someone--pairs", *files)
    assert hub_names("someone/pairs") == ["train/rows.jsonl"]
    repository = HubRepository("someone/pairs", None, "")
    ((path, shown),) = hub_datasets.repository_files(repository, None, "someone/pairs")
    assert (path.name, shown) == ("rows.jsonl", "someone/pairs/train/rows.jsonl")
    assert hub_names("someone/pairs:test") == ["train/test-questions.jsonl"]
    assert hub_names("hf://someone/pairs/train/rows.jsonl") == ["train/rows.jsonl"]
    prefs = [
        f"data/{split}_prefs-0000{n}-of-00002.parquet" for split in ("train", "test") for n in "01"
    ]
    write(hub / "someone--chats", *prefs, "data/train_gen-00000-of-00001.parquet")
    assert hub_names("someone/chats:train_prefs") == prefs[:2]
    assert hub_names("someone/chats:test_prefs") == prefs[2:]
    assert "its splits are test_prefs, train_gen, train_prefs" in refusal("someone/chats")
    write(hub / "someone--plain", "rows-0.jsonl", "rows-1.jsonl")
    assert hub_names("someone/plain") == ["rows-0.jsonl", "rows-1.jsonl"]
    write(hub / "someone--dev", "dev.jsonl", "data/train-1.jsonl", "data/train-0.jsonl")
    assert hub_names("someone/dev:validation") == hub_names("someone/dev:dev") == ["dev.jsonl"]
    assert hub_names("someone/dev") == ["data/train-0.jsonl", "data/train-1.jsonl"]


def test_raises_for_several_subsets_of_a_hub_data_set_with_their_names(hub: Path) -> None:
    write(hub / "someone--pairs", "harmless/train.jsonl.gz", "helpful/train.jsonl.gz")
    write(hub / "someone--pairs", "helpful/test.jsonl.gz")
    text = refusal("someone/pairs")
    assert "someone/pairs/harmless:train, someone/pairs/helpful:train" in text
    assert hub_names("someone/pairs/helpful:test") == ["helpful/test.jsonl.gz"]
    assert hub_names("someone/pairs/harmless") == ["harmless/train.jsonl.gz"]
    assert "its subsets are harmless, helpful" in refusal("someone/pairs/helpfull:train")
    assert "its splits are train: name one as someone/pairs/harmless:SPLIT" in refusal(
        "someone/pairs/harmless:test"
    )
    write(hub / "someone--twice", "train.jsonl", "train.parquet")
    assert "several formats (.jsonl, .parquet)" in refusal("someone/twice")
    write(hub / "someone--none", "model.bin")
    assert "no file that ends with one of" in refusal("someone/none")


def test_closed_form_the_card_and_the_revision_of_a_hub_data_set_are_respected(hub: Path) -> None:
    card = """---
configs:
- config_name: easy
  data_files:
  - {split: train, path: "a/*.jsonl"}
  - {split: test, path: b/part-0.jsonl}
- config_name: hard
  data_files: [{split: train, path: ["b/part-1.jsonl"]}]
---
"""
    write(hub / "someone--card", "a/x.jsonl", "a/y.jsonl", "b/part-0.jsonl", "b/part-1.jsonl")
    (hub / "someone--card" / "README.md").write_text(card, encoding="utf-8")
    assert hub_names("someone/card/easy") == ["a/x.jsonl", "a/y.jsonl"]
    assert hub_names("someone/card/easy:test") == ["b/part-0.jsonl"]
    assert hub_names("someone/card/hard") == ["b/part-1.jsonl"]
    assert "someone/card/easy:train, someone/card/hard:train" in refusal("someone/card")
    assert "its splits are train" in refusal("someone/card/hard:test")
    write(hub / "someone--card@v1", "train.jsonl")
    assert (
        hub_names("someone/card@v1") == hub_names("hf://someone/card@v1:train") == ["train.jsonl"]
    )
