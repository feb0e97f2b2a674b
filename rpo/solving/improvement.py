"""Confidence interval of ``rpo solve`` for the value of a policy minus that of the baseline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rpo.results import Improvement
from rpo_theory.data_splits import DataSplits, split_data
from rpo_theory.intervals import confidence_interval
from rpo_theory.rewards import is_compact

from .tasks import FITTED_TIES, SolveTask


def check_confidence(task: SolveTask, seed: int) -> DataSplits:
    """Split the data of a task; refuse a task that allows no confidence interval.

    Args:
        task: problem, reward class and names.
        seed: seed of the split.

    Returns:
        The splits.

    Raises:
        ValueError: if the class is unbounded, the parameter of the ties was fitted to the data, or
            the counts cannot be split.
    """
    if not is_compact(task.reward_class):
        rule = "needs a bounded reward class: without bounds no interval is finite"
        raise ValueError(f"argument --confidence: {rule}")
    if FITTED_TIES in task.notes:
        rule = "needs a tie parameter that was not fitted to the data: give one"
        raise ValueError(f"argument --confidence: {rule}")
    try:
        return split_data(task.problem, seed=seed)
    except ValueError as error:
        raise ValueError(f"argument --confidence: {error}") from error


def improvement(
    task: SolveTask,
    policy: Float[np.ndarray, "x a"],
    splits: DataSplits,
    *,
    confidence: float,
    seed: int,
) -> Improvement:
    """Return the confidence interval for the improvement of a policy on the baseline.

    Args:
        task: problem, reward class and names.
        policy: any policy, also one that was fitted to the same data.
        splits: splits of the data, of :func:`check_confidence`.
        confidence: level of the interval, between 0 and 1.
        seed: seed of the splits.

    Returns:
        The interval and its level.
    """
    interval = confidence_interval(
        task.problem, task.reward_class, policy, confidence=confidence, splits=splits
    )
    return Improvement(confidence, seed, float(interval.lower), float(interval.upper))
