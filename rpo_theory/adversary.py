r"""Adversarial reward: the member of a class that is worst for a given policy.

This is the inner problem of Algorithm 1 (`liu:24`, eq. 3.3), :math:`\arg\min_r\phi(\pi,r)`: the
likelihood loss plus the reward penalty. The certificate uses it too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from .numerics import ball_interior_point, box_interior_point
from .objectives import saddle_objective
from .rewards import FiniteClass, LinearBall, TabularBox
from .types import ArrayLike, Problem
from .validation import InvalidProblemError, is_traced, validate, validate_policy

TOLERANCE = 1e-13
MAX_STEPS = 500


def adversarial_reward(
    problem: Problem,
    reward_class: TabularBox | LinearBall | FiniteClass,
    policy: Float[ArrayLike, "x a"],
) -> Float[Array, "x a"]:
    r"""Return the reward of a class that minimizes :math:`\phi(\pi, r)` for a fixed policy.

    Args:
        problem: preference data, policies and weights, in float64.
        reward_class: a compact reward class.
        policy: :math:`\pi(a|x)`.

    Returns:
        A minimizer, shape ``[x a]``.

    Raises:
        ValueError: if an argument is invalid, or the class is unbounded; the message names it. The
            values of traced arrays are not checked.

    References:
        `liu:24`, eq. 3.3.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> policy = jnp.array([[0.9, 0.1]])
        >>> adversarial_reward(problem, TabularBox(2.0), policy).round(6).tolist()
        [[0.0, 2.0]]
    """
    if not isinstance(reward_class, TabularBox | LinearBall | FiniteClass):
        kind = type(reward_class).__name__
        raise InvalidProblemError("reward_class", (), f"must be compact, got {kind}")
    if not is_traced(problem, reward_class, policy):
        validate(problem, reward_class)
        validate_policy("policy", policy, np.shape(problem.reference_policy))
    match reward_class:
        case TabularBox(maximum):
            blocks = box_interior_point.prompt_blocks(problem, jnp.asarray(maximum))
            state = box_interior_point.solve(
                blocks, jnp.asarray(policy).T, tolerance=TOLERANCE, max_steps=MAX_STEPS
            )
            return reward_class.project(state.reward.T + 0.5 * maximum)
        case LinearBall(features, radius):
            scaled = jnp.asarray(features) * radius
            state = ball_interior_point.solve(
                problem, scaled, policy, tolerance=TOLERANCE, max_steps=MAX_STEPS
            )
            return unit_ball_reward(scaled, state.parameter)
        case FiniteClass(rewards):
            values = jax.vmap(lambda reward: saddle_objective(problem, policy, reward))(
                jnp.asarray(rewards)
            )
            return jnp.asarray(rewards)[jnp.argmin(values)]


def unit_ball_reward(
    scaled_features: Float[Array, "x a d"], parameter: Float[Array, " d"]
) -> Float[Array, "x a"]:
    """Return the reward of a parameter, after projection into the unit ball against roundoff."""
    norm = jnp.linalg.norm(parameter)
    return scaled_features @ (parameter / jnp.maximum(norm, 1.0))
