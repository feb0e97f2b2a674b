"""Where metrics go: one JSON object a line, always; TensorBoard and W&B if asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llm.config import TrainConfig


@runtime_checkable
class Tracker(Protocol):
    """What a run reports to."""

    def start(self, step: int) -> None:
        """A run begins, or goes on after so many steps: what was said of later ones is void."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over."""
        ...


class JsonLinesTracker:
    """Metrics as a file of JSON objects, one a line, each whole when it is there."""

    def __init__(self, path: Path) -> None:
        """To a file, which is created or continued."""
        self._path = path

    def start(self, step: int) -> None:
        """Drop the lines of steps that will be made again, and a last line that is not whole."""
        kept = [line for line in self._lines() if line.get("step", 0) <= step and step > 0]
        unfinished = self._path.with_name(self._path.name + ".part")
        unfinished.write_text("".join(map(_line, kept)), encoding="utf-8")
        unfinished.replace(self._path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line, if there is anything to say."""
        if metrics:
            self._append({"step": step, **metrics})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Append the last line."""
        self._append(dict(summary))

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the process died while it wrote this one
        return [line for line in found if "event" not in line]


class TensorBoardTracker:
    """Metrics as TensorBoard events, through ``tensorboardX``."""

    def __init__(self, folder: Path) -> None:
        """To a folder."""
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(_missing("tensorboard", "tensorboardX")) from error
        self._writer = SummaryWriter(str(folder))

    def start(self, step: int) -> None:
        """Nothing to drop: TensorBoard shows the later of two values."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what is left."""
        self._writer.close()


class WandbTracker:
    """Metrics to W&B."""

    def __init__(self, config: TrainConfig) -> None:
        """As a run of the configuration's name."""
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(_missing("wandb", "wandb")) from error
        self._run = wandb.init(project="rpo", name=config.name)

    def start(self, step: int) -> None:
        """Nothing to drop."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of a step at once."""
        self._run.log(dict(metrics), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run."""
        self._run.summary.update(dict(summary))
        self._run.finish()


class CompositeTracker:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """In this order."""
        self._trackers = trackers

    def start(self, step: int) -> None:
        """Start all."""
        for tracker in self._trackers:
            tracker.start(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log to all."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finish all."""
        for tracker in self._trackers:
            tracker.finish(summary)


def make_tracker(path: Path, config: TrainConfig) -> Tracker:
    """The trackers that a configuration asks for.

    Args:
        path: of the JSON lines.
        config: of the run.

    Returns:
        One tracker.

    Raises:
        ValueError: a package that one of them needs is missing.
    """
    trackers: list[Tracker] = [JsonLinesTracker(path)]
    if "tensorboard" in config.trainer.report_to:
        trackers.append(TensorBoardTracker(path.parent / "tensorboard"))
    if "wandb" in config.trainer.report_to:
        trackers.append(WandbTracker(config))
    return CompositeTracker(trackers)


def _line(row: Mapping[str, Any]) -> str:
    """Strict JSON: what is not finite is null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _missing(tracker: str, package: str) -> str:
    return (
        f"`trainer.report_to` asks for {tracker!r}, whose package is missing: "
        f"pip install {package}, or leave it out"
    )
