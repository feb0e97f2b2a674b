"""Sources in buckets stand for the same files as local ones, with the same refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.data.bucket_sources import (
    copy_model_folder,
    objects_at,
    objects_of,
    objects_of_pattern,
)
from llm.data.model_folder import resolve_model_folder, resolve_tokenizer_folder
from llm.data.rows import read_rows
from llm.data.sources import source_files
from rpo_io.locations import parse_location
from rpo_io.staging import remove_staged_files
from tests.fake_gcs import FakeGcs
from tests.fake_s3 import FakeS3

LINE = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
NAMES = ("shards/b.jsonl", "shards/a.jsonl", "shards/README.md", "more/c.jsonl", "more/.d.jsonl")


@pytest.fixture(autouse=True)
def no_copies_left() -> Iterator[None]:
    """Remove the local copies after every test."""
    yield
    remove_staged_files()


@pytest.fixture(params=["gs", "s3"])
def root(request: pytest.FixtureRequest) -> tuple[str, FakeGcs | FakeS3]:
    """Upload shards to each fake store in turn; return the root, and the server."""
    server = request.getfixturevalue("gcs" if request.param == "gs" else "s3")
    for name in NAMES:
        server.write(f"bucket/{name}", LINE)
    return f"{request.param}://bucket", server


@pytest.mark.parametrize(
    "pattern", ["shards/*.jsonl", "*/[ac].jsonl", "**/*.jsonl", "more/*", "shards/?.jsonl", "**"]
)
def test_parity_patterns_match_the_files_that_glob_finds(
    root: Any, tmp_path: Path, pattern: str
) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    local = [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern)]
    wanted = [name for name in local if (tmp_path / name).is_file() and "/." not in name]
    if pattern == "**":  # pathlib finds folders alone, as its name says; the glob module also files
        wanted = [name for name in NAMES if "/." not in name]
    found = objects_of_pattern(parse_location(f"{root[0]}/{pattern}"))
    assert [item.location.key for item in found] == sorted(wanted)


def test_closed_form_files_folders_and_lists_in_buckets(root: Any) -> None:
    bucket, server = root
    shown = [f"{bucket}/shards/a.jsonl", f"{bucket}/shards/b.jsonl"]
    assert [file.shown for file in source_files(f"{bucket}/shards")] == shown
    assert [file.shown for file in source_files(f"{bucket}/shards/")] == shown
    assert [file.shown for file in source_files(shown[::-1])] == shown[::-1]
    assert [row.where for row in read_rows(shown[0])] == [f"{shown[0]}:1"]
    assert objects_at(parse_location(f"{bucket}/none")) == []
    assert objects_of(parse_location(f"{bucket}/*.csv")) == []
    assert [str(each.location) for each in objects_of(parse_location(shown[0]))] == shown[:1]
    cases = {
        f"{bucket}/none.jsonl": "none.jsonl does not exist: give a file or folder of rows",
        f"{bucket}/*.csv": "matches no file",
        bucket: "has folders of rows (more, shards, splits): name one of them",
    }
    server.write("bucket/splits/train.jsonl", LINE)
    server.write("bucket/splits/test.jsonl", LINE)
    cases[f"{bucket}/splits"] = "has files of several splits (test, train)"
    for source, message in cases.items():
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            source_files(source)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"is the same file as .*: name it once"):
        source_files([shown[0], shown[0]])


def test_closed_form_weights_of_a_model_are_listed_and_not_copied(root: Any) -> None:
    bucket, server = root
    for name in ("config.json", "tokenizer.json", "model.safetensors", "x.bin", "notes.txt"):
        server.write(f"bucket/policy/{name}", name.encode())
    server.write("bucket/policy/additional_chat_templates/tool_use.jinja", b"t")
    folder = resolve_model_folder(f"{bucket}/policy/")
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert sizes == {
        "config.json": 11,
        "tokenizer.json": 14,
        "model.safetensors": 0,
        "x.bin": 0,
        "additional_chat_templates/tool_use.jinja": 1,
    }
    assert resolve_tokenizer_folder(f"{bucket}/policy") == folder
    assert resolve_model_folder(f"file://{folder}") == folder
    with pytest.raises(ValueError, match="does not exist: give a model folder"):
        resolve_model_folder(f"{bucket}/none")
    with pytest.raises(ValueError, match=r"must be a folder with config\.json, got a file"):
        copy_model_folder(parse_location(f"{bucket}/policy/x.bin"), [], what="a model folder")
