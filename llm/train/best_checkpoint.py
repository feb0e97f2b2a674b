"""The best evaluation of a run so far, by one of its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from llm.config import TrainerConfig
from llm.types import Batch

from .run import Run

BEST = "best"
"""Key in a checkpoint: step and value of the best evaluation so far; None if there is none."""


def check_best_metric(
    run: Run, with_reference: Callable[[Batch], Batch], more: Sequence[str] = ()
) -> None:
    """Refuse a metric that the evaluations of a run will not have.

    Args:
        run: a run; ``trainer.metric_for_best_model`` names the metric.
        with_reference: adds reference log-probabilities to a batch.
        more: metrics of a set of rows that are measured beside those of the pairs.

    Raises:
        ValueError: if there is no such metric, or there are no rows for evaluation.
    """
    metric = run.config.trainer.metric_for_best_model
    if metric is None:
        return
    sets = {name: pairs for name, pairs in run.data.evaluation_sets.items() if pairs}
    prefixes = [f"eval_{name}_" if name else "eval_" for name in sets]
    names: list[str] = []
    if sets:
        batch = with_reference(next(iter(run.batches_in_order(next(iter(sets.values()))))))
        sums, _ = jax.eval_shape(run.evaluation_step, run.state.trainable, run.frozen, batch)
        names = [prefix + name for prefix in prefixes for name in ("loss", *sums, *more)]
    # Quantiles and coverage are measured beside the sums.
    is_measured = metric in names or any(
        metric.startswith(f"{prefix}theory/") for prefix in ("eval_", *prefixes)
    )
    if not is_measured or not sets:
        known = f"one of {', '.join(names)}" if names else "left out without rows for evaluation"
        raise ValueError(f"`trainer.metric_for_best_model` must be {known}, got {metric!r}")


class BestEvaluation:
    """The best evaluation of a run so far.

    Attributes:
        step: number of updates made before it; None if there was none.
        value: value of the metric.
    """

    step: int | None
    value: float

    def __init__(self, config: TrainerConfig, recorded: Mapping[str, Any] | None = None) -> None:
        """Begin without an evaluation, or with the one that a checkpoint records.

        Args:
            config: configuration with the metric and its direction.
            recorded: :meth:`record` of the checkpoint; None for a new run, or before the first
                evaluation.

        Raises:
            ValueError: if the recorded evaluation is the best by another metric or direction.
        """
        self._metric = config.metric_for_best_model
        self._sign = 1.0 if config.greater_is_better else -1.0
        self.step, self.value = None, math.nan
        self._greater = config.greater_is_better
        if recorded is not None:
            self._check(recorded)
            self.step, self.value = recorded["step"], recorded["value"]

    def _check(self, recorded: Mapping[str, Any]) -> None:
        """Refuse another metric or direction: the kept checkpoint is the best by the first one."""
        kept = {
            "metric_for_best_model": recorded["metric"],
            "greater_is_better": recorded.get("greater_is_better", self._greater),
        }
        now = {"metric_for_best_model": self._metric, "greater_is_better": self._greater}
        changed = [
            f"`trainer.{name}` was {kept[name]!r} and is {value!r}"
            for name, value in now.items()
            if kept[name] != value
        ]
        if changed:
            raise ValueError(
                f"{', '.join(changed)}, but the checkpoint of step {recorded['step']} is kept as "
                "the best by the first: continue with the config.yaml of the run, or choose "
                "another --out"
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> float | None:
        """Compare an evaluation with the best one so far.

        Args:
            step: number of updates made.
            metrics: metrics of the evaluation.

        Returns:
            Its score, the larger the better, if it is the best so far; None otherwise.

        Raises:
            ValueError: if the evaluation has no such metric.
        """
        if self._metric is None or not metrics:
            return None
        if self._metric not in metrics:
            raise ValueError(
                f"`trainer.metric_for_best_model` must be a metric of the evaluation, got "
                f"{self._metric!r}: the metrics are {', '.join(sorted(metrics))}"
            )
        value = metrics[self._metric]
        is_better = self.step is None or self._sign * value > self._sign * self.value
        if not is_better:
            return None
        self.step, self.value = step, value
        return self._sign * value

    def record(self) -> dict[str, Any] | None:
        """Return the evaluation as plain values; None if there was none."""
        if self.step is None:
            return None
        return {
            "metric": self._metric,
            "greater_is_better": self._greater,
            "step": self.step,
            "value": self.value,
        }
