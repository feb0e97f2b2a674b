"""Claims about names of the hub: local names ask no network, and failures take one line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from llm.data.model_folder import resolve_model_folder
from rpo_io import hub
from rpo_io.hub import HubRepository, list_hub_files, missing_source, parse_hub_name
from rpo_io.staging import local_file


def test_closed_form_hub_names_are_parsed() -> None:
    assert parse_hub_name("owner/name") == HubRepository("owner/name")
    assert parse_hub_name("hf://gpt2") == HubRepository("gpt2")
    assert parse_hub_name("hf://owner/name@v1.0") == HubRepository("owner/name", "v1.0")
    expected = HubRepository("owner/name", "v1", "a/b")
    assert parse_hub_name("hf://datasets/owner/name@v1/a/b", kind="dataset") == expected
    assert parse_hub_name("owner/name@v1/a/b", kind="dataset") == expected


@pytest.mark.parametrize(
    "source",
    [
        *("out/polcy", "data/rows", "model", "./owner/name", "/owner/name", "../owner/name"),
        *("~/owner", "a/b/c", "owner/rows.jsonl", "owner/name.parquet", "C:\\owner\\name", "a b/c"),
        *("Policies/final", "polices/final", "owner/", "", "."),
    ],
)
def test_property_names_like_paths_are_local(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_hub_name(source) is None


def test_raises_for_a_missing_path_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "policy").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", pytest.fail)
    with pytest.raises(ValueError, match=r"^out/polcy does not exist: out/policy does; give a mod"):
        resolve_model_folder("out/polcy")
    with pytest.raises(ValueError, match=r"^data/rows does not exist: give a model folder, or a "):
        resolve_model_folder("data/rows")
    with pytest.raises(ValueError, match=r"^file must be a folder with config.json, got a file$"):
        resolve_model_folder("file")
    assert "hf://owner/name" in str(missing_source("", what="rows"))


def test_raises_for_an_explicit_name_of_another_form() -> None:
    for source in ("hf://", "hf://a b/c", "hf://datasets/owner/name", "hf://owner/name/file"):
        with pytest.raises(ValueError, match=f"^{source}: must "):
            parse_hub_name(source)


@pytest.mark.parametrize("no_network", [False, True])
def test_raises_in_one_line_without_retries_if_the_hub_is_out_of_reach(
    no_network: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    reason = "HF_HUB_OFFLINE is set" if no_network else "the Hugging Face hub is out of reach"
    with pytest.raises(ValueError, match=reason) as model:
        resolve_model_folder("owner/name")
    with pytest.raises(ValueError, match=reason) as data:
        list_hub_files(HubRepository("owner/name"))
    with pytest.raises(ValueError, match="not a valid name"):
        resolve_model_folder("hf://owner/a--b")
    for error in (model, data):
        assert str(error.value).startswith("hf://owner/name")
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 5
    assert not caplog.records


def test_closed_form_a_file_on_the_hub_is_downloaded_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[HubRepository, list[str], str]] = []

    def download(repository: HubRepository, patterns: list[str], *, kind: str) -> Path:
        asked.append((repository, patterns, kind))
        return tmp_path

    monkeypatch.setattr(hub, "download_from_hub", download)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a[1].yaml").write_text("name: a")
    for prefix, kind in (("", "model"), ("datasets/", "dataset")):
        path = local_file(f"hf://{prefix}owner/name@v1/runs/a[1].yaml")
        assert path.read_text() == "name: a"
        repository = HubRepository("owner/name", "v1", "runs/a[1].yaml")
        assert asked[-1] == (repository, ["runs/a[[]1].yaml"], kind)
    with pytest.raises(ValueError, match="must have the form hf://owner/name"):
        local_file("hf://owner/name")
    with pytest.raises(ValueError, match="does not exist in its repository"):
        local_file("hf://owner/name/b.yaml")
