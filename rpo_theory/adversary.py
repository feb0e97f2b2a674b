r"""Adversarial reward: the member of a class that is worst for a given policy.

This is the inner problem of Algorithm 1 (`liu:24`, eq. 3.3), :math:`\arg\min_r\phi(\pi,r)`: the
likelihood loss plus the reward penalty. The certificate uses it too.
"""

from __future__ import annotations

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from . import rewards, routes
from ._tracing import in_trace, traced_arguments
from .rewards import RewardClass
from .types import ArrayLike, Problem
from .validation import InvalidProblemError, validate, validate_policy

TOLERANCE = 1e-13
MAX_STEPS = 500


def adversarial_reward(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
) -> Float[ArrayLike, "x a"]:
    r"""Return the reward of a class that minimizes :math:`\phi(\pi, r)` for a fixed policy.

    Args:
        problem: preference data, policies and weights.
        reward_class: a compact reward class.
        policy: :math:`\pi(a|x)`.

    Returns:
        A minimizer in float64, shape ``[x a]``.

    Raises:
        ValueError: if an argument is invalid, or the class is unbounded; the message names it. The
            values of traced arrays are not checked.

    References:
        `liu:24`, eq. 3.3.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> policy = jnp.array([[0.9, 0.1]])
        >>> adversarial_reward(problem, rewards.TabularBox(2.0), policy).round(6).tolist()
        [[0.0, 2.0]]
    """
    traced = in_trace(problem, reward_class, policy)
    if not traced:
        validate(problem, reward_class)
    if not rewards.is_compact(reward_class):
        kind = type(reward_class).__name__
        raise InvalidProblemError("reward_class", (), f"must be compact, got {kind}")
    if traced:
        return worst_reward(*traced_arguments(problem, reward_class, policy))
    validate_policy("policy", policy, np.shape(problem.reference_policy))
    with jax.enable_x64(True):
        return np.asarray(_worst_reward(*traced_arguments(problem, reward_class, policy)))


def worst_reward(
    problem: Problem, reward_class: RewardClass, policy: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    """Return :func:`adversarial_reward` of valid arguments, in pure JAX.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> members = rewards.FiniteClass(jnp.array([[[0.0, 0.0]], [[0.0, 1.0]]]))
        >>> worst_reward(problem, members, jnp.array([[0.9, 0.1]])).tolist()
        [[0.0, 1.0]]
    """
    options = {"tolerance": TOLERANCE, "max_steps": MAX_STEPS}
    return routes.minimizer(problem, reward_class, policy, **options).reward


_worst_reward = jax.jit(worst_reward)
