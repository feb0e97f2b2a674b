"""Trackers: lines are complete and strict JSON; a resumed run logs no step twice."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.train.tracking import CompositeTracker, JsonLinesTracker, Tracker, make_tracker

NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name not in ("step", "event"))


def config(*report_to: Any) -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=ModelConfig(path="a"),
        data=DataConfig(train="b"),
        trainer=TrainerConfig(report_to=list(report_to)),
    )


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def logged(path: Path, *steps: int) -> JsonLinesTracker:
    tracker = JsonLinesTracker(path)
    tracker.start(0)
    for step in steps:
        tracker.log(step, {"loss": step / 2})
    return tracker


class Listener:
    """A tracker that records its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, step: int) -> None:
        self.calls.append(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append((step, dict(metrics)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.calls.append(dict(summary))


def test_roundtrip_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLinesTracker(path)
    tracker.start(0)
    assert rows(path) == []
    tracker.log(1, {"loss": 0.5, "tokens": 7.0})
    assert rows(path) == [{"step": 1, "loss": 0.5, "tokens": 7.0}]
    tracker.log(2, {})  # no line
    tracker.finish({"event": "finished", "parameters_sha256": "ab"})
    assert rows(path)[1:] == [{"event": "finished", "parameters_sha256": "ab"}]


@given(metrics=st.dictionaries(NAMES, st.floats(), min_size=1, max_size=4))
def test_roundtrip_finite_numbers_are_exact_and_others_are_null(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    JsonLinesTracker(path).log(3, metrics)
    (row,) = rows(path)
    assert row.pop("step") == 3
    assert row == {name: value if math.isfinite(value) else None for name, value in metrics.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_closed_form_a_number_that_is_not_finite_is_null(tmp_path: Path, bad: float) -> None:
    JsonLinesTracker(tmp_path / "metrics.jsonl").log(1, {"loss": bad})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize(
    ("resumed", "kept"),
    [(0, []), (1, [0, 1]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])],
)
def test_closed_form_a_resumed_run_drops_the_lines_of_repeated_steps(
    tmp_path: Path, resumed: int, kept: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    logged(path, 0, 1, 2, 3, 4).finish({"event": "finished"})
    JsonLinesTracker(path).start(resumed)
    assert rows(path) == [{"step": step, "loss": step / 2} for step in kept]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_property_the_log_of_a_resumed_run_equals_that_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    logged(whole, 1, 2, 3)
    logged(cut, 1, 2)
    resumed = JsonLinesTracker(cut)
    resumed.start(1)
    for step in (2, 3):
        resumed.log(step, {"loss": step / 2})
    assert cut.read_bytes() == whole.read_bytes()


def test_property_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logged(path, 1, 2)
    first, last = path.read_bytes().splitlines(keepends=True)
    for length in range(len(last) - 1):
        path.write_bytes(first + last[:length])
        JsonLinesTracker(path).start(2)
        assert rows(path) == [{"step": 1, "loss": 0.5}], length
    path.write_bytes(first + last[:-1])  # complete except for the line break
    JsonLinesTracker(path).start(2)
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_property_zero_bytes_after_a_power_failure_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + bytes(24) + b"\n")
    JsonLinesTracker(path).start(2)
    assert [row["step"] for row in rows(path)] == [1]


def test_closed_form_a_composite_tracker_forwards_every_call() -> None:
    first, second = Listener(), Listener()
    both = CompositeTracker([first, second])
    both.start(2)
    both.log(3, {"loss": 1.0})
    both.finish({"event": "finished"})
    assert first.calls == second.calls == [2, (3, {"loss": 1.0}), {"event": "finished"}]
    assert isinstance(both, Tracker)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("tensorboard", "tensorboardX"),
        ("wandb", "wandb"),
        ("mlflow", "mlflow"),
        ("trackio", "trackio"),
    ],
)
def test_raises_naming_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError) as caught:
        make_tracker(tmp_path / "metrics.jsonl", config(name))
    assert str(caught.value) == (
        f"`trainer.report_to` asks for {name!r}, whose package is missing: "
        f"pip install {package}, or leave it out"
    )


class FakeWriter:
    """Stands for ``tensorboardX.SummaryWriter``."""

    made: ClassVar[list[FakeWriter]] = []

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.events: list[tuple[str, int]] = []
        FakeWriter.made.append(self)

    def add_text(self, name: str, text: str, step: int) -> None:
        assert json.loads(text)["name"] == "tiny"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.events.append((name, step))

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_property_tensorboard_purges_the_steps_that_a_resumed_run_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWriter, "made", [])
    module: Any = types.ModuleType("tensorboardX")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    for first, last in ((0, 8), (5, 10), (0, 1)):  # killed at step 8, resumed from 5; a new run
        tracker = make_tracker(tmp_path / "metrics.jsonl", config("tensorboard"))
        tracker.start(first)
        for step in range(first + 1, last + 1):
            tracker.log(step, {"loss": 0.5})
    assert [writer.purge_step for writer in FakeWriter.made] == [None, 6, None]
    assert {writer.folder for writer in FakeWriter.made} == {str(tmp_path / "tensorboard")}
    killed, resumed, _ = FakeWriter.made
    kept = [step for _, step in killed.events if step < 6] + [step for _, step in resumed.events]
    assert kept == list(range(1, 11))  # what TensorBoard shows: no step twice, none missing


def test_property_no_other_package_is_needed_for_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("tensorboardX", "wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)
    tracker = make_tracker(tmp_path / "metrics.jsonl", config())
    tracker.start(0)
    tracker.log(1, {"loss": 1.0})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
