"""The page "Coming from TRL" names keys, defaults and metrics that exist."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from llm.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from rpo.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrating.md").read_text("utf-8")
SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "mesh": MeshConfig,
}
KEY = re.compile(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)(?:: ([^`]+))?`")
TITLED = re.compile(r"^```text title=\"([^\"]+)\"\n(.*?)^```$", re.S | re.M)


def default_of(key: str) -> Any:
    section, name = key.split(".")
    for field in dataclasses.fields(SECTIONS[section]):
        if field.name == name:
            factory = field.default_factory
            return field.default if factory is dataclasses.MISSING else factory()
    raise KeyError(key)


def table(title: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    part = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_property_every_key_that_the_page_names_exists() -> None:
    keys = {key for key, _ in KEY.findall(PAGE)}
    assert len(keys) > 30
    for key in keys:
        default_of(key)
    assert {field.name for field in dataclasses.fields(TrainConfig)} == {"name", *SECTIONS}


def test_property_the_defaults_of_the_page_are_those_of_the_configuration() -> None:
    checked = 0
    for _, _, ours, printed, _ in table("Configuration"):
        match = KEY.search(ours)
        if match is None or not printed:
            continue
        default = default_of(match[1])
        if printed == "none":
            assert not default or default == "none", ours
        elif isinstance(default, str | bool):
            assert str(default) == printed, ours
        else:
            assert float(printed) == default, ours
        checked += 1
    assert checked > 25


def test_roundtrip_the_run_of_the_page_writes_the_metrics_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in TITLED.findall(PAGE):
        Path(name).write_text(content, encoding="utf-8")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert main(["train", "tiny.yaml"]) == 0
    lines = [json.loads(line) for line in Path("out/tiny/metrics.jsonl").read_text().splitlines()]
    written = set().union(*lines)
    part = PAGE.split("## Metrics\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:loss|theory|perf|rewards|logps)/[a-z_]+)`", part))
    named |= {"loss", "learning_rate", "epoch", "grad_norm", "num_tokens"}
    assert len(named) > 12
    assert named <= written, named - written
    assert "eval_rewards/margins" in written
    assert not {name for name in written if name.startswith(("logits/", "entropy"))}
    assert sorted(path.name for path in Path("out/tiny/checkpoints").glob("[0-9]*")) == ["4"]
