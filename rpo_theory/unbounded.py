r"""The infimum over all rewards, attained or not.

Over all reward tables :math:`F` need not attain its infimum: along a direction that lowers the
rewards of a set of responses together, nothing grows if the baseline never picks them and they beat
only one another. These are exactly the responses from which no chain of wins leads to one that the
baseline picks. Their rewards tend to :math:`-\infty`, their probability to 0 (identity S3), and the
comparisons that the others won against them no longer cost anything. What remains has a minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from .types import Problem


class ReducedProblem(NamedTuple):
    r"""The problem that is left when the responses whose reward diverges are taken out.

    Attributes:
        problem: the same problem without them and without the comparisons they lost to others;
            its ``eta`` and objective are in units of the comparisons that remain.
        share: those units: the infimum of the original is ``share`` times that of ``problem``.
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
    """Take out the responses whose reward tends to minus infinity.

    Args:
        problem: an instance whose adversary may choose any reward.

    Returns:
        The reduction. Where a prompt has no adversarial term (``eta`` or its weight is 0) nothing
        is taken out; its likelihood attains its maximum if every chain of wins can be closed.
    """
    wins = jnp.asarray(problem.wins)
    reference = jnp.asarray(problem.reference_policy)
    baseline = jnp.asarray(problem.baseline_policy)
    adversarial = (problem.eta * jnp.asarray(problem.context_weights) > 0)[:, None]
    leads_to = _closure(wins > 0)
    kept = jnp.any(leads_to & (baseline > 0)[:, None, :], axis=2) | ~adversarial
    closed = ~leads_to | leads_to.mT

    total = wins.sum()
    crossing = kept[:, :, None] != kept[:, None, :]
    left = jnp.where(crossing, 0.0, wins)
    share = jnp.where(left.sum() > 0, left.sum() / jnp.where(total > 0, total, 1.0), 1.0)
    return ReducedProblem(
        problem=problem._replace(
            reference_policy=jnp.where(kept, reference, 0.0), wins=left, eta=problem.eta / share
        ),
        share=share,
        kept=kept,
        attained=jnp.all(kept & (adversarial | closed.all(axis=2))),
        bounded=~jnp.any(adversarial & (baseline > 0) & (reference == 0)),
    )


def component_means(
    reward: Float[Array, "x a"], wins: Float[Array, "x a a"]
) -> Float[Array, "x a"]:
    """Mean reward of the connected component of the comparison graph that each response is in.

    Gradient descent on the likelihood alone never moves these means, so that subtracting them
    gives the limit of the descent from the zero reward (of DPO, from the reference policy).

    Args:
        reward: rewards.
        wins: win counts.

    Returns:
        Means, of the shape of ``reward``.
    """
    connected = _closure((wins > 0) | (wins.mT > 0)).astype(reward.dtype)
    return jnp.einsum("xab,xb->xa", connected, reward) / connected.sum(axis=2)


def _closure(edge: Bool[Array, "x a a"]) -> Bool[Array, "x a a"]:
    """Reflexive and transitive closure of a relation."""
    n_actions = edge.shape[-1]
    relation = edge | jnp.eye(n_actions, dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(2, n_actions))))):
        steps = relation.astype(jnp.float32)
        relation = jnp.matmul(steps, steps) > 0
    return relation
