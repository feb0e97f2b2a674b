r"""The adversary: the reward that is worst for a given policy, :math:`\arg\min_r\phi(\pi,r)`.

The inner problem of Algorithm 1 (`liu:24`, eq. 3.3), "MLE loss minus reward penalty" over a reward
class, and the second half of the certificate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .numerics import ball_interior_point, box_interior_point
from .objectives import saddle_objective
from .rewards import FiniteClass, LinearBall, TabularBox
from .types import ArrayLike, Problem

TOLERANCE = 1e-13
MAX_STEPS = 500


def adversarial_reward(
    problem: Problem,
    reward_class: TabularBox | LinearBall | FiniteClass,
    policy: Float[ArrayLike, "x a"],
) -> Float[Array, "x a"]:
    r"""Reward of the class that minimises :math:`\phi(\pi, r)` against a fixed policy.

    Args:
        problem: the instance, in float64.
        reward_class: a compact class.
        policy: :math:`\pi(a|x)`.

    Returns:
        The minimising reward; one of them where several do.

    References:
        `liu:24`, eq. 3.3.
    """
    match reward_class:
        case TabularBox(maximum):
            blocks = prompt_blocks(problem, jnp.asarray(maximum))
            given = jnp.asarray(policy).T
            state = box_interior_point.solve(
                blocks, given, tolerance=TOLERANCE, max_steps=MAX_STEPS
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


def prompt_blocks(problem: Problem, width: Float[Array, ""]) -> box_interior_point.Blocks:
    """Cut a tabular problem into one-prompt blocks, each divided by its own weight."""
    wins = jnp.asarray(problem.wins)
    total = wins.sum()
    safe_total = jnp.where(total > 0, total, 1.0)
    adversary = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)
    scale = adversary + wins.sum(axis=(1, 2)) / safe_total
    scale = jnp.where(scale > 0, scale, 1.0)
    return box_interior_point.Blocks(
        reference=jnp.asarray(problem.reference_policy).T,
        baseline=jnp.asarray(problem.baseline_policy).T,
        wins=jnp.moveaxis(wins, 0, -1),
        adversary_weight=adversary / scale,
        data_weight=1.0 / (safe_total * scale),
        beta=jnp.broadcast_to(jnp.asarray(problem.beta), scale.shape),
        width=jnp.broadcast_to(width, scale.shape),
    )


def unit_ball_reward(
    scaled_features: Float[Array, "x a d"], parameter: Float[Array, " d"]
) -> Float[Array, "x a"]:
    """Reward of a parameter pulled back into the unit ball, which it may leave by roundoff."""
    norm = jnp.linalg.norm(parameter)
    return scaled_features @ (parameter / jnp.maximum(norm, 1.0))
