"""Trackers of metrics: JSON lines always; TensorBoard and services on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llm.config import TrainConfig
from rpo_io.atomic import write_atomic
from rpo_io.strict_json import format_line, null_non_finite

from .run_services import SERVICES, import_package


@runtime_checkable
class Tracker(Protocol):
    """A receiver of the metrics of a run."""

    def start(self, step: int) -> None:
        """Begin or resume a run.

        Args:
            step: number of updates made; metrics of later steps were logged by an interrupted run
                and are void.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by name."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """End the run and record its summary, plain values by name."""
        ...


class JsonLinesTracker:
    """A tracker that writes one JSON object per line to a file; lines are appended whole."""

    def __init__(self, path: Path) -> None:
        """Write to a file, which is created or continued."""
        self._path = path

    def start(self, step: int) -> None:
        """Drop the lines of steps that will be repeated, and an incomplete last line."""
        kept = [line for line in self._read() if line.get("step", 0) <= step and step > 0]
        write_atomic(self._path, "".join(map(_line, kept)).encode())

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line unless there are no metrics."""
        if metrics:
            self._append({"step": step, **metrics})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Append the summary as the last line."""
        self._append(dict(summary))

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        return [row for row in read_log(self._path) if "event" not in row]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log of metrics, also one that a process died on while writing.

    Args:
        path: path of ``metrics.jsonl``; a missing file has no lines.

    Returns:
        The complete lines, with that of a finished run.

    Examples:
        >>> read_log(Path("no_such_run/metrics.jsonl"))
        []
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the process died while it wrote this line
    return rows


class TensorBoardTracker:
    """A tracker that writes TensorBoard events, through ``tensorboardX``.

    A resumed run purges the events of the steps that it repeats, so that no step occurs twice.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        """Find the package; the folder of events is created when the run starts."""
        self._create = import_package("tensorboard", "tensorboardX").SummaryWriter
        self._folder, self._config = folder, config
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Open a file of events; those of later steps, which an earlier file holds, are purged."""
        self._writer = self._create(str(self._folder), purge_step=step + 1 if step else None)
        if hasattr(self._writer, "add_text"):
            self._writer.add_text("config", json.dumps(asdict(self._config)), step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric; a killed process loses none of them."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if metrics and hasattr(self._writer, "flush"):
            self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Flush and close the file."""
        self._writer.close()


class CompositeTracker:
    """A tracker that forwards to several trackers; with none, metrics are dropped."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Forward to these trackers, in this order."""
        self._trackers = trackers

    def start(self, step: int) -> None:
        """Start every tracker; the first one, which drops lines of its file, comes last."""
        for tracker in reversed(self._trackers):
            tracker.start(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log to every tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finish every tracker."""
        for tracker in self._trackers:
            tracker.finish(summary)


def make_tracker(path: Path, config: TrainConfig) -> Tracker:
    """Create the trackers that a configuration asks for.

    Args:
        path: file of the JSON lines; the events of TensorBoard go to a folder beside it.
        config: configuration of the run; ``trainer.report_to`` names further trackers.

    Returns:
        One tracker that forwards to all of them.

    Raises:
        ValueError: if the package of a tracker is not installed.
    """
    trackers: list[Tracker] = [JsonLinesTracker(path)]
    if "tensorboard" in config.trainer.report_to:
        trackers.append(TensorBoardTracker(path.parent / "tensorboard", config))
    for name, service in SERVICES.items():
        if name in config.trainer.report_to:
            trackers.append(service(path.parent, config))
    return CompositeTracker(trackers)


def _line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of strict JSON; numbers that are not finite become null."""
    return format_line(null_non_finite(row)) + "\n"
