r"""Win rates of a study: the true one of every policy, and its estimates from a second log.

The log has the size and the pairs of the data, and is drawn apart from them, so that estimates of
fitted policies are unbiased; see :mod:`bandits.off_policy`. The doubly robust estimate takes the
fitted reward of the method as its model.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from bandits.environments.base import Instance
from bandits.environments.sampling import draw_win_counts
from bandits.methods.base import FitResult
from bandits.off_policy import (
    LoggedPairs,
    doubly_robust_win_rate,
    ips_win_rate,
    snips_win_rate,
)
from rpo_theory._batching import group_size, map_in_groups

LOG_STREAM = 2**61
"""Random stream of the second log; those of data sets and of rounds are others."""
GROUP = 65_536
"""Number of win counts that are processed together."""


def draw_log(
    instance: Instance,
    seeds: Int[np.ndarray, " B"],
    comparisons: Float[np.ndarray, " B"],
    label_noise: Float[np.ndarray, " B"],
) -> Float[np.ndarray, "B x a a"]:
    """Draw a second log of every instance, of the size of its data.

    Args:
        instance: instances with a leading batch axis.
        seeds: seed of each.
        comparisons: number of comparisons of each.
        label_noise: probability that a label of each is flipped.

    Returns:
        Win counts.
    """
    truth, pairs = np.asarray(instance.true_reward), np.asarray(instance.pair_distribution)
    wins = np.zeros(pairs.shape)
    for n, noise in np.unique(np.stack([comparisons, label_noise]), axis=1).T:
        rows = np.flatnonzero((comparisons == n) & (label_noise == noise))
        wins[rows] = draw_win_counts(
            truth[rows],
            pairs[rows],
            comparisons=int(n),
            seeds=np.asarray(seeds)[rows],
            label_noise=float(noise),
            stream=LOG_STREAM,
        )
    return wins


def measure_win_rates(
    result: FitResult,
    instance: Instance,
    log: Float[np.ndarray, "B x a a"],
    label_noise: Float[np.ndarray, " B"],
) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Measure how often policies win against the baseline, and estimate it from a log.

    Args:
        result: a batch of fits.
        instance: the instances that the policies were fitted to.
        log: win counts of comparisons that the fits have not seen, see :func:`draw_log`.
        label_noise: probability that a label of each instance is flipped.

    Returns:
        Columns by name: ``win_rate``, the true probability that a response of the policy wins
        against one of the baseline; its estimates ``win_rate_ips``, ``win_rate_snips`` and
        ``win_rate_dr``, NaN where the log does not cover the pairs; and ``effective_sample_size``.
    """
    problem, policy = instance.problem, result.policy
    weights, baseline = np.asarray(problem.context_weights), np.asarray(problem.baseline_policy)
    truth = np.asarray(instance.true_reward)
    rate = expit(truth[..., :, None] - truth[..., None, :])
    flipped = label_noise[:, None, None, None]
    rate = flipped + (1.0 - 2.0 * flipped) * rate
    ips, snips, robust, size = map_in_groups(
        _estimates,
        log,
        instance.pair_distribution,
        policy,
        baseline,
        weights,
        result.reward,
        size=group_size(problem, GROUP),
    )
    return {
        "win_rate": np.einsum("bx,bxi,bxj,bxij->b", weights, policy, baseline, rate),
        "win_rate_ips": ips,
        "win_rate_snips": snips,
        "win_rate_dr": robust,
        "effective_sample_size": size,
    }


def _estimates_of_one(
    wins: Any, pairs: Any, policy: Any, baseline: Any, weights: Any, reward: Any
) -> tuple[Any, Any, Any, Any]:
    log, policies = LoggedPairs.from_wins(wins, pairs), (policy, baseline, weights)
    ips = ips_win_rate(log, *policies)
    return (
        ips.win_rate,
        snips_win_rate(log, *policies).win_rate,
        doubly_robust_win_rate(log, *policies, reward).win_rate,
        ips.effective_sample_size,
    )


_estimates = jax.jit(jax.vmap(_estimates_of_one))
