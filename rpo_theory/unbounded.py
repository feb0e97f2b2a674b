r"""Infimum of the minimax objective over all rewards, whether or not it is attained.

Over all reward tables :math:`F` need not attain its infimum. Lowering the rewards of a set of
responses together never increases :math:`F` if the baseline never picks them and they beat only one
another. These are the responses from which no chain of wins leads to one that the baseline picks.
Their rewards tend to :math:`-\infty`, their probabilities to 0 (identity S3), and the comparisons
that other responses won against them no longer contribute. The reduced problem without these
responses has a minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from .types import Problem


class ReducedProblem(NamedTuple):
    r"""Problem without the responses whose reward diverges.

    Attributes:
        problem: the problem without these responses and the comparisons that they lost to others.
            Its ``eta`` and objective are relative to the remaining comparisons.
        share: share of the comparisons that remain. The infimum of the original problem is
            ``share`` times that of ``problem``.
        kept: responses whose reward stays finite.
        attained: whether every reward stays finite.
        bounded: whether the infimum is finite.
    """

    problem: Problem
    share: Float[Array, ""]
    kept: Bool[Array, "x a"]
    attained: Bool[Array, ""]
    bounded: Bool[Array, ""]


def reduce(problem: Problem) -> ReducedProblem:
    """Remove the responses whose reward tends to minus infinity.

    Args:
        problem: problem whose adversary may choose any reward.

    Returns:
        The reduced problem. In a context without adversarial term (``eta`` or its weight is 0)
        nothing is removed; its likelihood attains its maximum if every chain of wins is part of a
        cycle.
    """
    wins = jnp.asarray(problem.wins)
    reference = jnp.asarray(problem.reference_policy)
    baseline = jnp.asarray(problem.baseline_policy)
    adversarial = (problem.eta * jnp.asarray(problem.context_weights) > 0)[:, None]
    leads_to = _closure(wins > 0)
    kept = jnp.any(leads_to & (baseline > 0)[:, None, :], axis=2) | ~adversarial
    closed = ~leads_to | leads_to.mT

    n_comparisons = wins.sum()
    crossing = kept[:, :, None] != kept[:, None, :]
    remaining = jnp.where(crossing, 0.0, wins)
    safe_count = jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    share = jnp.where(remaining.sum() > 0, remaining.sum() / safe_count, 1.0)
    return ReducedProblem(
        problem=problem._replace(
            reference_policy=jnp.where(kept, reference, 0.0),
            wins=remaining,
            eta=problem.eta / share,
        ),
        share=share,
        kept=kept,
        attained=jnp.all(kept & (adversarial | closed.all(axis=2))),
        bounded=~jnp.any(adversarial & (baseline > 0) & (reference == 0)),
    )


def component_means(
    reward: Float[Array, "x a"], wins: Float[Array, "x a a"]
) -> Float[Array, "x a"]:
    """Return the mean reward over the connected component of each response.

    Components are those of the comparison graph. Gradient descent on the likelihood never changes
    their means, so subtracting them gives the limit of descent from the zero reward (for DPO, from
    the reference policy).

    Args:
        reward: rewards.
        wins: win counts.

    Returns:
        Means, shape ``[x a]``.
    """
    connected = _closure((wins > 0) | (wins.mT > 0)).astype(reward.dtype)
    return jnp.einsum("xab,xb->xa", connected, reward) / connected.sum(axis=2)


def _closure(edge: Bool[Array, "x a a"]) -> Bool[Array, "x a a"]:
    """Return the reflexive and transitive closure of a relation."""
    n_actions = edge.shape[-1]
    relation = edge | jnp.eye(n_actions, dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(2, n_actions))))):
        steps = relation.astype(jnp.float32)
        relation = jnp.matmul(steps, steps) > 0
    return relation
