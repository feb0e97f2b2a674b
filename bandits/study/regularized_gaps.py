r"""Regularized gaps: how far a policy is from the best one for the value minus the KL penalty.

With :math:`J_\beta(\pi) = E_\pi r^\star - \beta\,KL(\pi\|\pi_{ref})` and its maximizer
:math:`\pi_{r^\star}`,

.. math:: J_\beta(\pi_{r^\star}) - J_\beta(\hat\pi) = \beta\,E_{d_0}KL(\hat\pi\|\pi_{r^\star}).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from bandits.environments.base import Instance
from rpo_theory._batching import map_in_groups, round_group_size
from rpo_theory.bounds import corrected_modulus, regularized_gap_bound
from rpo_theory.coverage import coverage_coefficient_batch
from rpo_theory.minimax import Kernel
from rpo_theory.policies import log_gibbs_policy
from rpo_theory.types import ArrayLike

from .metrics import BoundInputs

GROUP = 65_536
"""Number of policy entries that are computed at a time."""


class RegularizedOptimum(NamedTuple):
    r"""Best policies for the value minus the KL penalty, at one :math:`\beta` for each instance.

    Attributes:
        beta: weight :math:`\beta > 0` of each, shape ``[B]``.
        log_policy: logarithm of :math:`\pi_{r^\star}`, minus infinity outside of the support of the
            reference, shape ``[B x a]``.
        coverage: coverage coefficient of :math:`\pi_{r^\star}`, shape ``[B]``; NaN where it is
            unknown or not needed.
    """

    beta: Float[np.ndarray, " B"]
    log_policy: Float[np.ndarray, "B x a"]
    coverage: Float[np.ndarray, " B"]


def regularized_optimum(
    instance: Instance,
    beta: Float[np.ndarray, " B"],
    *,
    covered: Bool[np.ndarray, " B"],
    kernel: Kernel,
) -> RegularizedOptimum:
    r"""Return the policies :math:`\pi_{r^\star}` of instances, and their coverage coefficients.

    Args:
        instance: instances with a leading batch axis.
        beta: weight :math:`\beta > 0` of each.
        covered: which instances need the coverage coefficient; their true reward is in the class.
        kernel: compiled code of the coverage coefficient.

    Returns:
        One policy for each instance.
    """
    truth = np.asarray(instance.true_reward)
    size = round_group_size(GROUP / truth[0].size)
    arguments = truth, instance.problem.reference_policy, beta
    log_policy = map_in_groups(_log_policies, *arguments, size=size)
    coverage, rows = np.full(len(truth), np.nan), np.flatnonzero(covered)
    if rows.size:
        chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], instance)
        comparator = np.exp(log_policy[rows])
        coverage[rows] = coverage_coefficient_batch(
            chosen.reward_class,
            true_reward=chosen.true_reward,
            comparator=comparator / comparator.sum(axis=-1, keepdims=True),
            baseline=chosen.problem.baseline_policy,
            context_weights=chosen.problem.context_weights,
            pair_distribution=chosen.pair_distribution,
            kernel=kernel,
        )
    return RegularizedOptimum(beta, log_policy, coverage)


def regularized_gap(
    policy: Float[np.ndarray, "B x a"],
    optimum: RegularizedOptimum,
    context_weights: Float[ArrayLike, "B x"],
) -> Float[np.ndarray, " B"]:
    r"""Return :math:`\beta\,E_{d_0}KL(\hat\pi\|\pi_{r^\star})` of every policy.

    Args:
        policy: fitted policies.
        optimum: the best policies.
        context_weights: :math:`d_0`.

    Returns:
        Gaps of at least 0, units of reward; infinite for a policy that leaves the support of the
        reference.

    Examples:
        >>> even = np.full((1, 1, 2), 0.5)
        >>> optimum = RegularizedOptimum(np.ones(1), np.log(even), np.ones(1))
        >>> regularized_gap(even, optimum, np.ones((1, 1))).tolist()
        [0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * (np.log(policy) - optimum.log_policy), 0.0)
    # Roundoff may give -1e-17.
    return optimum.beta * np.maximum(
        np.einsum("bx,bxa->b", np.asarray(context_weights), terms), 0.0
    )


def regularized_bound(
    optimum: RegularizedOptimum,
    inputs: BoundInputs,
    *,
    comparisons: Float[np.ndarray, " B"],
    eta: Float[np.ndarray, " B"],
) -> Float[np.ndarray, " B"]:
    r"""Return the bound on the regularized gap of RPO, at the coverage of :math:`\pi_{r^\star}`.

    Args:
        optimum: the best policies with their coverage coefficients.
        inputs: complexity and reward range of the instances.
        comparisons: :math:`N` of each instance.
        eta: weights of the adversary; the bound is infinite at 0.

    Returns:
        Bounds, units of reward; NaN without a coverage coefficient, or where the class has no range
        or covering number.

    References:
        `liu:24`, eq. A.44 without its last term;
        :func:`rpo_theory.bounds.regularized_gap_bound`.
    """
    with jax.enable_x64(True):
        bound = regularized_gap_bound(
            corrected_modulus(inputs.reward_max),
            n_pairs=comparisons,
            complexity=inputs.complexity,
            coverage=optimum.coverage,
            eta=np.where(eta > 0, eta, 1.0),
        )
    unknown = np.isnan(np.asarray(bound))
    return np.where(unknown, np.nan, np.where(eta > 0, bound, np.inf))


_log_policies = jax.jit(jax.vmap(log_gibbs_policy))
