"""Trackers that send metrics to a service: Weights & Biases, MLflow and trackio.

The id of the run at the service is kept in the folder of the run, so that a resumed run continues
it. If a service fails while the run goes on, one warning is logged and the metrics are dropped for
it: ``metrics.jsonl`` has them all.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm.config import TrainConfig
from rpo_io.atomic import write_atomic
from rpo_io.bucket_paths import AnyPath

if TYPE_CHECKING:
    from collections.abc import Iterator

_logger = logging.getLogger(__name__)
LONGEST_PARAMETER = 500
"""Characters of a parameter that every server of MLflow keeps."""


def import_package(tracker: str, package: str) -> Any:
    """Import the package of a tracker.

    Args:
        tracker: name of the tracker in ``trainer.report_to``.
        package: name of the package.

    Returns:
        The module.

    Raises:
        ValueError: if the package is not installed.

    Examples:
        >>> import_package("json", "json").__name__
        'json'
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"`trainer.report_to` asks for {tracker!r}, whose package is missing: "
            f"pip install {package}, or leave it out"
        ) from error


class _Service:
    """A service whose failures do not end the run."""

    name: str
    _failed = False

    def _send(self, function: Callable[..., Any], *values: Any, **options: Any) -> None:
        try:
            function(*values, **options)
        except Exception as error:  # services raise errors of many types
            if not self._failed:
                _logger.warning(
                    "%s failed, metrics.jsonl has all metrics: %s", self.name, _first_line(error)
                )
            self._failed = True


class WandbTracker(_Service):
    """A tracker that sends metrics to Weights & Biases, which keeps the first of repeated steps."""

    name = "Weights & Biases"

    def __init__(self, folder: AnyPath, config: TrainConfig) -> None:
        """Find the package; the run is created or continued when the training starts."""
        self._wandb = import_package("wandb", "wandb")
        self._folder, self._config = folder, config
        self._run: Any = None

    def start(self, step: int) -> None:
        """Create the run, or continue the one whose id the folder holds."""
        run_id = _run_id(self._folder / "wandb_id")
        remedy = "log in with `wandb login`, set WANDB_MODE=offline, or leave 'wandb' out"
        with _starting(self.name, remedy):
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "rpo"),
                name=self._config.name,
                id=run_id,
                resume="allow",
                config=asdict(self._config),
                dir=str(self._folder),
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if metrics:
            self._send(self._run.log, dict(metrics), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close the run."""
        self._send(self._run.summary.update, dict(summary))
        self._send(self._run.finish)


class MlflowTracker(_Service):
    """A tracker that sends metrics to MLflow, which keeps all values of repeated steps.

    ``MLFLOW_TRACKING_URI`` names the server or the store, and ``MLFLOW_EXPERIMENT_NAME`` the
    experiment. A slash in the name of a metric becomes a dot: its store of files has folders for
    slashes, and so could not keep ``loss`` beside ``loss/dpo``.
    """

    name = "MLflow"

    def __init__(self, folder: AnyPath, config: TrainConfig) -> None:
        """Find the package; the run is created or continued when the training starts."""
        self._mlflow = import_package("mlflow", "mlflow")
        self._file, self._config = folder / "mlflow_id", config

    def start(self, step: int) -> None:
        """Create the run, or continue the one whose id the folder holds."""
        remedy = "set MLFLOW_TRACKING_URI to a server that answers, or leave 'mlflow' out"
        with _starting(self.name, remedy):
            if self._file.exists():
                self._mlflow.start_run(run_id=self._file.read_text().strip())
                return
            run = self._mlflow.start_run(run_name=self._config.name)
            self._mlflow.log_params(_flat(asdict(self._config)))
            write_atomic(self._file, run.info.run_id.encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if metrics:
            dotted = {name.replace("/", "."): value for name, value in metrics.items()}
            self._send(self._mlflow.log_metrics, dotted, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary as tags and close the run."""
        self._send(self._mlflow.set_tags, dict(summary))
        self._send(self._mlflow.end_run)


class TrackioTracker(_Service):
    """A tracker that sends metrics to trackio, on this machine or in a Space of the hub.

    ``TRACKIO_PROJECT`` names the project.
    """

    name = "trackio"

    def __init__(self, folder: AnyPath, config: TrainConfig) -> None:
        """Find the package; the run is created or continued when the training starts."""
        self._trackio = import_package("trackio", "trackio")
        self._file, self._config = folder / "trackio_id", config

    def start(self, step: int) -> None:
        """Create the run, or continue the one whose id the folder holds."""
        run_id = _run_id(self._file)
        with _starting(self.name, "leave 'trackio' out"):
            self._trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "rpo"),
                name=f"{self._config.name}-{run_id}",
                config=_flat(asdict(self._config)),
                resume="allow",
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if metrics:
            self._send(self._trackio.log, dict(metrics), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run; trackio has no summary."""
        self._send(self._trackio.finish)


SERVICES = {"wandb": WandbTracker, "mlflow": MlflowTracker, "trackio": TrackioTracker}
"""Trackers of services by their name in ``trainer.report_to``."""


@contextmanager
def _starting(service: str, remedy: str) -> Iterator[None]:
    """Turn the errors of a service, which have many types, into one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"`trainer.report_to`: {service} did not start a run: {_first_line(error)}: {remedy}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _run_id(file: AnyPath) -> str:
    """Return the id that a file holds; the file is made with a new one."""
    if not file.exists():
        write_atomic(file, secrets.token_hex(4).encode())
    return file.read_text().strip()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a configuration as texts by dotted key."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[f"{prefix}{name}"] = text[:LONGEST_PARAMETER]
    return flat
