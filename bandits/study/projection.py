r"""Misspecified classes: the reward of the class that explains the labels best, and bounds at it.

If the true reward :math:`r^\star` is not in the class, maximum likelihood tends to

.. math:: r^+ = \arg\min_{r\in\mathcal R} E_{\mu_D}KL(P^\star\|P_r),

the solution with :math:`\eta=0` on expected wins. Gap, coverage and bound at :math:`r^+` take the
place of those at :math:`r^\star`, and :math:`E_{\pi,\pi_{base}}[r^\star-r^+]` is what the class
misjudges about the comparator.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

from bandits.environments.base import Instance
from rpo_theory import minimax
from rpo_theory.coverage import coverage_coefficient_batch
from rpo_theory.minimax import Kernel

from .metrics import BoundInputs


class ProjectedTruth(NamedTuple):
    r"""The reward :math:`r^+` of misspecified instances, and what the bound at it depends on.

    Attributes:
        reward: :math:`r^+`, shape ``[B x a]``; NaN for instances whose true reward is in the class.
        inputs: the inputs of the bound with the coverage coefficient at :math:`r^+`.
        shift: :math:`E_{\pi,\pi_{base}}[r^\star-r^+]` of the comparator, units of reward, shape
            ``[B]``.
    """

    reward: Float[np.ndarray, "B x a"]
    inputs: BoundInputs
    shift: Float[np.ndarray, " B"]


def project_truth(
    instance: Instance,
    inputs: BoundInputs,
    misspecified: Bool[np.ndarray, " B"],
    *,
    label_noise: Float[np.ndarray, " B"],
    kernel: Kernel,
) -> ProjectedTruth:
    r"""Compute :math:`r^+` and the coverage at it for the misspecified instances.

    Args:
        instance: instances with a leading batch axis.
        inputs: inputs of the bounds at the true rewards.
        misspecified: which instances have a true reward outside of their class.
        label_noise: probability that a label of each instance is flipped.
        kernel: compiled code of the solvers.

    Returns:
        NaN for the other instances.
    """
    truth = np.asarray(instance.true_reward)
    reward = np.full(truth.shape, np.nan)
    coverage, shift = np.full((2, len(truth)), np.nan)
    rows = np.flatnonzero(misspecified)
    if rows.size:
        chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], instance)
        true_reward, pairs = np.asarray(chosen.true_reward), np.asarray(chosen.pair_distribution)
        rate = expit(true_reward[..., :, None] - true_reward[..., None, :])
        wins = (pairs + pairs.swapaxes(-1, -2)) * rate
        flipped = label_noise[rows, None, None, None]
        problem = chosen.problem._replace(
            wins=(1.0 - flipped) * wins + flipped * wins.swapaxes(-1, -2),
            eta=np.zeros(rows.size),
        )
        solution = minimax.solve_batch(problem, chosen.reward_class, throw=False, kernel=kernel)
        reward[rows] = np.asarray(solution.reward)
        coverage[rows] = coverage_coefficient_batch(
            chosen.reward_class,
            true_reward=reward[rows],
            comparator=chosen.comparator,
            baseline=chosen.problem.baseline_policy,
            context_weights=chosen.problem.context_weights,
            pair_distribution=chosen.pair_distribution,
            kernel=kernel,
        )
        excess = np.asarray(chosen.comparator) - np.asarray(chosen.problem.baseline_policy)
        difference = chosen.true_reward - reward[rows]
        weights = chosen.problem.context_weights
        shift[rows] = np.einsum("bx,bxa,bxa->b", weights, excess, difference)
    return ProjectedTruth(reward, inputs._replace(coverage=coverage), shift)


def gap_at_projection(
    policy: Float[np.ndarray, "B x a"], instance: Instance, projected: ProjectedTruth
) -> Float[np.ndarray, " B"]:
    r"""Return :math:`J(\pi)-J(\hat\pi)` under :math:`r^+`, for the comparator :math:`\pi`.

    Args:
        policy: fitted policies.
        instance: the instances that they were fitted to.
        projected: see :func:`project_truth`.

    Returns:
        Units of reward; NaN for instances whose true reward is in the class.
    """
    excess = np.asarray(instance.comparator) - policy
    weights = instance.problem.context_weights
    return np.einsum("bx,bxa,bxa->b", weights, excess, projected.reward)
