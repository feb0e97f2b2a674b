"""Trackers of services: one run at the service for one run here, also after a resume."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.train.tracking import JsonLinesTracker, make_tracker


def config(*report_to: Any) -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=ModelConfig(path="a"),
        data=DataConfig(train="b"),
        trainer=TrainerConfig(report_to=list(report_to)),
    )


class FakeWandb(types.ModuleType):
    """Stands for ``wandb``; its ``init`` records its arguments and returns itself."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.logged: list[int] = []
        self.error: Exception | None = None

    def init(self, **options: Any) -> FakeWandb:
        if self.error is not None:
            raise self.error
        self.runs.append(options)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append(step)

    def finish(self) -> None: ...


def test_property_weights_and_biases_continues_one_run_with_the_resolved_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    path = tmp_path / "a" / "metrics.jsonl"
    for first in (0, 5):
        tracker = make_tracker(path, config("wandb"))
        assert len(wandb.runs) == first // 5  # a run that is refused later leaves no trace
        tracker.start(first)
        tracker.log(first + 1, {"loss": 0.5})
    tracker.finish({"event": "finished"})
    make_tracker(tmp_path / "b" / "metrics.jsonl", config("wandb")).start(0)
    one, again, other = wandb.runs
    assert one == again
    assert one["resume"] == "allow"
    assert one["id"] == (tmp_path / "a" / "wandb_id").read_text()
    assert other["id"] != one["id"]
    assert (one["project"], one["name"], one["dir"]) == ("rpo", "tiny", str(tmp_path / "a"))
    assert one["config"] == dataclasses.asdict(config("wandb"))
    assert wandb.logged == [1, 6]
    assert wandb.summary == {"event": "finished"}


class FakeService(types.ModuleType):
    """Stands for ``mlflow`` or ``trackio``: records the calls of their functions."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*values: Any, **options: Any) -> Any:
            named = {str(index): value for index, value in enumerate(values)}
            self.calls.append((name, {**named, **options}))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run7"))

        return call


def test_property_mlflow_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeService("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for first in (0, 5):
        tracker = make_tracker(tmp_path / "metrics.jsonl", config("mlflow"))
        tracker.start(first)
        tracker.log(first + 1, {"loss": 0.5})
        tracker.log(first + 2, {})
    tracker.finish({"event": "finished"})
    names = [name for name, _ in mlflow.calls]
    assert names == [
        *("start_run", "log_params", "log_metrics"),
        *("start_run", "log_metrics", "set_tags", "end_run"),
    ]
    assert mlflow.calls[0][1] == {"run_name": "tiny"}
    assert mlflow.calls[1][1]["0"]["objective.method"] == "rpo"
    assert mlflow.calls[1][1]["0"]["trainer.report_to"] == '["mlflow"]'
    assert mlflow.calls[2][1] == {"0": {"loss": 0.5}, "step": 1}
    assert mlflow.calls[3][1] == {"run_id": "run7"}
    assert mlflow.calls[5][1] == {"0": {"event": "finished"}}


def test_property_trackio_continues_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = FakeService("trackio")
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    for first in (0, 5):
        tracker = make_tracker(tmp_path / "metrics.jsonl", config("trackio"))
        tracker.start(first)
        tracker.log(first + 1, {"loss": 0.5})
        tracker.finish({"event": "finished"})
    assert [name for name, _ in trackio.calls] == ["init", "log", "finish"] * 2
    one, again = trackio.calls[0][1], trackio.calls[3][1]
    assert one == again
    assert (one["project"], one["resume"]) == ("mine", "allow")
    assert one["name"] == f"tiny-{(tmp_path / 'trackio_id').read_text()}"
    assert trackio.calls[4][1] == {"0": {"loss": 0.5}, "step": 6}


def test_raises_one_line_if_weights_and_biases_does_not_start_and_keeps_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    wandb.error = RuntimeError("api_key not configured (no-tty)\nmore")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    path = tmp_path / "metrics.jsonl"
    JsonLinesTracker(path).log(1, {"loss": 0.5})
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"^`trainer.report_to`: .*no-tty\): log in with"
    ) as caught:
        make_tracker(path, config("wandb")).start(1)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
