"""Trackers of metrics: JSON lines always; TensorBoard and services on request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llm.config import TrainConfig
from rpo_io.bucket_paths import AnyPath, BucketPath
from rpo_io.line_logs import open_log
from rpo_io.strict_json import format_line, null_non_finite

from .run_services import SERVICES, import_package

LOCAL_TRACKERS = ("tensorboard", "wandb")
"""Trackers that keep files in the folder of the run."""


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
    """A tracker that writes one JSON object per line to a log; lines are appended whole."""

    def __init__(self, path: AnyPath) -> None:
        """Write to a file, local or in a bucket, which is created or continued."""
        self._log = open_log(path)

    def start(self, step: int) -> None:
        """Drop the lines of steps that will be repeated, and an incomplete last line."""
        rows = [row for row in _complete_rows(self._log.read()) if "event" not in row]
        self._log.replace([_line(row) for row in rows if row.get("step", 0) <= step and step > 0])

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line unless there are no metrics."""
        if metrics:
            self._log.append(_line({"step": step, **metrics}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Append the summary as the last line."""
        self._log.finish(_line(summary))


def read_log(path: AnyPath) -> list[dict[str, Any]]:
    """Read the lines of a log of metrics, also one that a process died on while writing.

    Args:
        path: path of ``metrics.jsonl``, local or in a bucket; a missing file has no lines.

    Returns:
        The complete lines, with that of a finished run.

    Examples:
        >>> read_log(Path("no_such_run/metrics.jsonl"))
        []
    """
    return _complete_rows(open_log(path).read())


def _complete_rows(lines: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
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


def make_tracker(path: AnyPath, config: TrainConfig) -> Tracker:
    """Create the trackers that a configuration asks for.

    Args:
        path: file of the JSON lines, local or in a bucket; the events of TensorBoard go to a
            folder beside it.
        config: configuration of the run; ``trainer.report_to`` names further trackers.

    Returns:
        One tracker that forwards to all of them.

    Raises:
        ValueError: if the package of a tracker is not installed, or it writes local files and
            ``path`` is in a bucket.
    """
    trackers: list[Tracker] = [JsonLinesTracker(path)]
    folder = path.parent
    if isinstance(folder, BucketPath):
        local = [name for name in config.trainer.report_to if name in LOCAL_TRACKERS]
        if local:
            raise ValueError(
                f"`trainer.report_to` must not have {local[0]!r} with an --out in a bucket: it "
                "writes local files: leave it out, metrics.jsonl has all metrics"
            )
    elif "tensorboard" in config.trainer.report_to:
        trackers.append(TensorBoardTracker(folder / "tensorboard", config))
    for name, service in SERVICES.items():
        if name in config.trainer.report_to:
            trackers.append(service(folder, config))
    return CompositeTracker(trackers)


def _line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of strict JSON; numbers that are not finite become null."""
    return format_line(null_non_finite(row))
