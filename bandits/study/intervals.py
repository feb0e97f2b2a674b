r"""Confidence intervals of a study: values of fitted policies minus that of the baseline.

The intervals are those of universal inference, :mod:`rpo_theory.intervals`: if the true reward is
in the class, an interval contains :math:`J(\hat\pi)-J(\pi_{base})` with the given probability, for
every number of comparisons. A study measures how often it does, and how wide it is.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from bandits.environments.base import Instance
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.data_splits import Counts, DataSplits, split_data
from rpo_theory.intervals import confidence_interval
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

N_SPLITS = 2
"""Number of splits of the data of a draw: each half is fitted and evaluated once."""
GROUP = 2048
"""Number of win counts that are processed together."""


def value_intervals(
    policy: Float[np.ndarray, "B x a"],
    instance: Instance,
    seeds: Int[np.ndarray, " B"],
    *,
    confidence: float,
) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Return confidence intervals for :math:`J(\hat\pi)-J(\pi_{base})` of a batch of fits.

    Args:
        policy: fitted policies.
        instance: the instances that they were fitted to; compact classes.
        seeds: seed of the splits of each.
        confidence: level :math:`1-\delta`.

    Returns:
        Columns by name: ``interval_lower`` and ``interval_upper``, units of reward;
        ``interval_width``; ``interval_covers``, 1 if the true difference lies between them and 0
        if not. NaN for data that cannot be split: fewer than two comparisons, or counts that are no
        whole numbers.
    """
    wins = np.asarray(instance.problem.wins, np.float64)
    off_diagonal = wins * (1.0 - np.eye(wins.shape[-1]))
    whole = (wins == np.round(wins)).all(axis=(1, 2, 3)) & (off_diagonal.sum(axis=(1, 2, 3)) >= 2)
    usable = whole & np.isfinite(policy).all(axis=(1, 2))
    rows = np.flatnonzero(usable)
    columns = {
        name: np.full(len(wins), np.nan)
        for name in ("interval_lower", "interval_upper", "interval_width", "interval_covers")
    }
    if not rows.size:
        return columns
    chosen: Instance = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], instance)
    splits = [
        split_data(
            jax.tree.map(lambda leaf, index=index: leaf[index], chosen.problem),
            N_SPLITS,
            seed=int(seeds[row]),
        )
        for index, row in enumerate(rows)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *splits)
    lower, upper = map_in_groups(
        _ends(confidence),
        chosen.problem,
        chosen.reward_class,
        policy[rows],
        stacked.fitting.wins,
        stacked.evaluation.wins,
        size=group_size(chosen.problem, GROUP),
    )
    baseline = np.asarray(chosen.problem.baseline_policy)
    weights = chosen.problem.context_weights
    truth = np.einsum("bx,bxa,bxa->b", weights, policy[rows] - baseline, chosen.true_reward)
    columns["interval_lower"][rows], columns["interval_upper"][rows] = lower, upper
    columns["interval_width"][rows] = upper - lower
    columns["interval_covers"][rows] = (lower <= truth) & (truth <= upper)
    return columns


@lru_cache(maxsize=16)
def _ends(confidence: float) -> Any:
    return jax.jit(jax.vmap(partial(_ends_of_one, confidence)))


def _ends_of_one(
    confidence: float,
    problem: Problem,
    reward_class: RewardClass,
    policy: Any,
    fitting: Any,
    evaluation: Any,
) -> tuple[Any, Any]:
    splits = DataSplits(Counts(fitting), Counts(evaluation))
    interval = confidence_interval(
        problem, reward_class, policy, confidence=confidence, splits=splits
    )
    return interval.lower, interval.upper
