r"""Algorithm 1 for classes with a projection only: double oracle, and Newton's method at the end.

The adversary mixes finitely many rewards, the columns. The policy of that game is exact
(:mod:`rpo_theory.numerics.saddle_interior_point`); the reward of the class that is worst for it
becomes a new column in place of the one with the smallest probability. From there Newton's method
solves the conditions of the saddle point,

.. math:: r - \beta\log(\pi/\pi_{ref}) = \nu, \qquad \sum_a\pi = 1,
          \qquad r = P\big(r - t\nabla_r\phi(\pi, r)\big),

on policy, level :math:`\nu` and reward, without a partition function. The pair with the smallest
duality gap is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from . import rewards, routes, saddle_forms
from .certificate import GAP_TOLERANCE, duality_gap_bound, reward_gradient
from .numerics import saddle_interior_point
from .numerics.projected_minimization import difference_quotients
from .objectives import saddle_objective
from .rewards import RewardClass
from .types import Problem, Solution, Status

COLUMNS = 48  # rewards that the adversary mixes
ROUNDS = 200  # largest number of columns that are tried
NEWTON_STEPS = 4  # Newton steps from the policy of each game
FLAT = 1e-10  # relative singular value below which a direction is left as it is
EXACT = 1e-3  # share of the tolerance of the certificate at which to stop


class _State(NamedTuple):
    """Columns, the worst reward of the last policy, and the best pair so far."""

    columns: Float[Array, "k x a"]
    policy: Float[Array, "x a"]
    reward: Float[Array, "x a"]
    gap: Float[Array, ""]
    rounds: Int[Array, ""]


def solve(
    problem: Problem, reward_class: RewardClass, *, tolerance: Array | float, max_steps: int
) -> Solution:
    r"""Maximize over policies the objective under the worst reward of a convex class.

    Args:
        problem: one problem with arrays in float64.
        reward_class: a compact convex class.
        tolerance: residual at which the game on the columns is solved.
        max_steps: maximum number of Newton steps on that game.

    Returns:
        The pair with the smallest duality gap. Its status claims a solution; the certificate
        decides. ``residual`` is the gap, and ``steps`` the number of columns.
    """
    reference = jnp.asarray(problem.reference_policy)
    scale = jnp.maximum(1.0, jnp.asarray(problem.eta))
    first = reward_class.project(jnp.zeros_like(reference))
    step = _step_length(problem)

    def running(state: _State) -> Array:
        return (state.gap > EXACT * GAP_TOLERANCE * scale) & (state.rounds < ROUNDS)

    def advance(state: _State) -> _State:
        game = saddle_forms.mixture_problem(problem, state.columns)
        result = saddle_interior_point.solve(
            game, tolerance=jnp.asarray(tolerance, reference.dtype), max_steps=max_steps
        )
        policy = result.state.policy / _or_one(result.state.policy.sum(axis=-1, keepdims=True))
        mixture = jnp.maximum(result.state.adversary, 0.0)
        mixture = mixture / _or_one(mixture.sum())
        reward = jnp.einsum("k,kxa->xa", mixture, state.columns)
        pair = _newton(problem, reward_class, policy, reward, step)
        gap = _gap(problem, reward_class, *pair)
        better = gap < state.gap
        worst = routes.minimizer(
            problem, reward_class, policy, tolerance=GAP_TOLERANCE * 1e-2, max_steps=100
        ).reward
        return _State(
            columns=state.columns.at[jnp.argmin(mixture)].set(worst),
            policy=jnp.where(better, pair[0], state.policy),
            reward=jnp.where(better, pair[1], state.reward),
            gap=jnp.where(better, gap, state.gap),
            rounds=state.rounds + 1,
        )

    last = jax.lax.while_loop(
        running,
        advance,
        _State(
            columns=jnp.broadcast_to(first, (COLUMNS, *first.shape)),
            policy=reference,
            reward=first,
            gap=_gap(problem, reward_class, reference, first),
            rounds=jnp.zeros((), jnp.int32),
        ),
    )
    value = lower_bound(problem, reward_class, last.policy, last.reward)
    status = jnp.where(jnp.isfinite(value), Status.SOLVED.value, Status.NOT_FINITE.value)
    stats = {"residual": last.gap, "steps": last.rounds}
    return Solution(last.policy, last.reward, value, status, stats)


def lower_bound(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
) -> Float[Array, ""]:
    r"""Bound :math:`\min_r\phi(\pi, r)` from below by convexity: the tangent at a reward.

    Args:
        problem: preference data, policies and weights.
        reward_class: a compact convex class.
        policy: any policy.
        reward: any member; the bound is exact at a minimizer.

    Returns:
        Nats.
    """
    gradient = reward_gradient(problem, policy, reward)
    gap = rewards.linear_gap(reward_class, gradient, reward)
    return saddle_objective(problem, policy, reward) - jnp.maximum(gap, 0.0)


def _gap(problem: Problem, reward_class: RewardClass, policy: Array, reward: Array) -> Array:
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    return jnp.where(jnp.isnan(gap), jnp.inf, gap)


def _step_length(problem: Problem) -> Float[Array, ""]:
    """Return a length of gradient steps of the order of the inverse curvature."""
    return 1.0 / (routes.objective_scale(problem) * (1.0 + 1.0 / jnp.asarray(problem.beta)))


def _newton(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
    step: Float[Array, ""],
) -> tuple[Float[Array, "x a"], Float[Array, "x a"]]:
    """Take Newton steps on the conditions of the saddle point, on policy, level and reward."""
    reference = jnp.asarray(problem.reference_policy)
    support = reference > 0
    shape, cells = reference.shape, reference.size
    log_reference = jnp.log(jnp.where(support, reference, 1.0))

    def split(point: Array) -> tuple[Array, Array, Array]:
        policy, level, reward = jnp.split(point, [cells, cells + shape[0]])
        return policy.reshape(shape), level, reward.reshape(shape)

    def response_errors(point: Array) -> Array:
        """Return the errors of the policy's first-order conditions and of its sums."""
        policy, level, reward = split(point)
        log_ratio = jnp.log(jnp.where(support & (policy > 0), policy, 1.0)) - log_reference
        error = reward - problem.beta * log_ratio - level[:, None]
        error = jnp.where(support, error, policy)
        return jnp.concatenate([error.reshape(-1), policy.sum(axis=-1) - 1.0])

    def aim(point: Array) -> Array:
        policy, _, reward = split(point)
        return reward - step * reward_gradient(problem, policy, reward)

    def advance(_: Int[Array, ""], pair: tuple[Array, Array]) -> tuple[Array, Array]:
        policy, reward = pair
        log_ratio = jnp.log(jnp.where(support & (policy > 0), policy, 1.0)) - log_reference
        level = jnp.sum(reference * (reward - problem.beta * log_ratio), axis=-1)
        point = jnp.concatenate([policy.reshape(-1), level, reward.reshape(-1)])
        target = aim(point)
        unit = jnp.eye(point.size, dtype=point.dtype)
        turned = jax.vmap(lambda move: jax.jvp(aim, (point,), (move,))[1])(unit)
        projected = difference_quotients(reward_class.project, target, turned)
        fixed_point = unit[cells + shape[0] :] - projected.reshape(point.size, cells).T
        matrix = jnp.concatenate([jax.jacfwd(response_errors)(point), fixed_point])
        distance = reward - reward_class.project(target)
        errors = jnp.concatenate([response_errors(point), distance.reshape(-1)])
        policy_move, _, reward_move = split(-jnp.linalg.lstsq(matrix, errors, rcond=FLAT)[0])
        # A probability moves by its logarithm where it would change sign.
        ratio = policy_move / jnp.where(policy > 0, policy, 1.0)
        factor = jnp.where(ratio > -0.5, 1.0 + ratio, jnp.exp(jnp.maximum(ratio, -30.0)))
        policy = policy * jnp.maximum(factor, 0.0)
        policy = policy / _or_one(policy.sum(axis=-1, keepdims=True))
        return policy, reward_class.project(reward + reward_move)

    return jax.lax.fori_loop(0, NEWTON_STEPS, advance, (policy, reward))


def _or_one(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by one, for use as denominators."""
    return jnp.where(values > 0, values, 1.0)
