r"""Objectives of the paper: value, gap, the saddle function :math:`\phi`, and its maximum.

.. math::
    \phi(\pi, r) = \eta\,E_{d_0,\pi,\pi_{base}}[r(x,a^1)-r(x,a^0)-\beta KL(\pi\|\pi_{ref})]+L_D(r)

.. math::
    F(r) = \max_\pi\phi(\pi,r) = \eta\,E_{d_0,\pi_{base}}[\beta\log Z_r(x) - r(x,a^0)] + L_D(r)
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .policies import kl_divergence, log_partition_scaled, scaled_below_max
from .preference import data_loss
from .types import ArrayLike, Problem


def value(
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
) -> Float[Array, ""]:
    r"""Return the value :math:`J(\pi) = E_{x\sim d_0, a\sim\pi}\, r(x,a)`, without a KL term.

    Args:
        policy: :math:`\pi(a|x)`.
        reward: :math:`r(x,a)`, usually :math:`r^\star`.
        context_weights: :math:`d_0(x)`.

    Returns:
        Expected reward.

    References:
        `liu:24`, eq. 2.3.

    Examples:
        >>> float(value(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]]), jnp.ones(1)))
        0.5
    """
    return jnp.einsum("x,xa,xa->", *map(jnp.asarray, (context_weights, policy, reward)))


def gap(
    policy: Float[ArrayLike, "x a"],
    comparator: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
) -> Float[Array, ""]:
    r"""Return the gap of a policy to a comparator, :math:`J(\pi) - J(\hat\pi)`.

    Args:
        policy: :math:`\hat\pi(a|x)`, the policy to evaluate.
        comparator: :math:`\pi(a|x)`, any policy.
        reward: the true reward :math:`r^\star(x,a)`.
        context_weights: :math:`d_0(x)`.

    Returns:
        Shortfall of expected reward; negative if the policy is better than the comparator.

    References:
        `liu:24`, eq. 2.5.

    Examples:
        >>> best, uniform = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])
        >>> float(gap(uniform, best, jnp.array([[1.0, 0.0]]), jnp.ones(1)))
        0.5
    """
    difference = jnp.asarray(comparator) - jnp.asarray(policy)
    return value(difference, reward, context_weights)


def saddle_objective(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""Return the saddle function :math:`\phi(\pi,r)`, concave in the policy, convex in the reward.

    Args:
        problem: preference data, policies and weights.
        policy: :math:`\pi(a|x)`, within the support of the reference policy.
        reward: :math:`r(x,a)`.

    Returns:
        Nats; ``-inf`` if the policy leaves the support of the reference policy.

    References:
        `liu:24`, eqs. 3.3 and 4.1.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> float(saddle_objective(problem, even, jnp.array([[1.0, 0.0]])))
        0.0
    """
    margin = value(
        jnp.asarray(policy) - jnp.asarray(problem.baseline_policy), reward, problem.context_weights
    )
    kl = jnp.asarray(problem.context_weights) @ kl_divergence(policy, problem.reference_policy)
    penalty = (margin - kl * problem.beta) * problem.eta
    return penalty + data_loss(problem, reward)


def minimax_objective(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""Return the minimax objective :math:`F(r) = \max_\pi\phi(\pi, r)`, convex in the reward.

    Args:
        problem: preference data, policies and weights.
        reward: :math:`r(x,a)`; a constant added to the rewards of a context changes nothing.

    Returns:
        Nats.

    References:
        `liu:24`, eq. 4.4.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> round(float(minimax_objective(problem, jnp.array([[1.0, 0.0]]))), 4)
        0.1201
    """
    reward, baseline = jnp.asarray(reward), jnp.asarray(problem.baseline_policy)
    top, scaled = scaled_below_max(reward, problem.reference_policy, problem.beta)
    # Relative to the highest reward both terms are small if their difference is: no cancellation.
    lost = jnp.sum(jnp.where(baseline != 0, baseline * (top - reward), 0.0), axis=-1)
    log_z = log_partition_scaled(scaled, problem.reference_policy)
    penalty = jnp.asarray(problem.context_weights) @ (log_z * problem.beta + lost)
    return penalty * problem.eta + data_loss(problem, reward)
