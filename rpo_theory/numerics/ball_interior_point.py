r"""Primal-dual Newton method for the linear ball, where all contexts share one parameter.

With :math:`r = \langle\theta,\phi\rangle`, :math:`\|\theta\|\le B`, the unknown is
:math:`u = \theta/B` in the unit ball, with multiplier :math:`\lambda\ge 0` and slack :math:`t`:

.. math:: \nabla_u F + \lambda u = 0, \qquad t = (1-\|u\|^2)/2, \qquad \lambda t = \mu \to 0.

The slack is a separate unknown, so that iterates may leave the ball: if they had to stay inside,
they would move slowly along its surface. Steps are shortened, and sharp terms smoothed, as in
:mod:`rpo_theory.numerics.box_interior_point`. :func:`solve` takes one problem; use ``vmap`` for
batches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from rpo_theory.policies import gibbs_policy
from rpo_theory.types import ArrayLike, Problem

from .box_interior_point import CENTERING, CENTERING_HOT, COOLING, EPSILON, TRUST

INSIDE = 0.99  # share of the way to the boundary that a step may go


class BallState(NamedTuple):
    r"""Iterate of the method.

    Attributes:
        parameter: :math:`u = \theta/B`.
        slack: :math:`t > 0`.
        dual: multiplier :math:`\lambda`.
        temperature: scale at which the policy (if above :math:`\beta`) and the comparisons (if
            above 1) are smoothed; it falls until it smooths neither.
        residual: KKT residual of this iterate, for the objective divided by its weight.
        steps: number of Newton steps.
        done: whether the iteration has converged and no longer moves.
    """

    parameter: Float[Array, " d"]
    slack: Float[Array, ""]
    dual: Float[Array, ""]
    temperature: Float[Array, ""]
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def init(problem: Problem, features: Float[Array, "x a d"]) -> BallState:
    """Return the initial iterate: the zero reward, at a temperature that smooths every term."""
    beta = jnp.asarray(problem.beta)
    count = jnp.zeros((), jnp.int32)
    return BallState(
        parameter=jnp.zeros(features.shape[-1], features.dtype),
        slack=jnp.full_like(beta, 0.5),
        dual=jnp.full_like(beta, 0.01),
        temperature=jnp.linalg.norm(features, axis=-1).max(),
        residual=jnp.full_like(beta, jnp.inf),
        steps=count,
        done=count > 0,
    )


def solve(
    problem: Problem,
    features: Float[Array, "x a d"],
    policy: Float[ArrayLike, "x a"] | None = None,
    *,
    tolerance: float,
    max_steps: int,
) -> BallState:
    r"""Minimize over the unit ball, against a fixed policy or against the best response.

    Args:
        problem: preference data, policies and weights.
        features: :math:`B\phi(x,a)`, for a parameter in the unit ball.
        policy: fixed policy of :math:`\min_r \phi(\pi, r)`; if None, solve :math:`\min_r F(r)`.
        tolerance: KKT residual at which to stop.
        max_steps: maximum number of Newton steps.

    Returns:
        The last iterate.
    """

    def running(state: BallState) -> Bool[Array, ""]:
        return ~state.done & (state.steps < max_steps)

    return jax.lax.while_loop(
        running,
        lambda state: step(problem, features, policy, state, tolerance),
        init(problem, features),
    )


def step(
    problem: Problem,
    features: Float[Array, "x a d"],
    policy: Float[ArrayLike, "x a"] | None,
    state: BallState,
    tolerance: float,
) -> BallState:
    """Take one safeguarded Newton step, unless the iterate has converged."""
    gradient, hessian, sharpness = _derivatives(problem, features, policy, state)
    u, t, dual = state.parameter, state.slack, state.dual
    stationarity = gradient + dual * u
    infeasibility = 0.5 * (1.0 - u @ u) - t
    residual = jnp.maximum(
        jnp.abs(stationarity).max(), jnp.maximum(dual * t, jnp.abs(infeasibility))
    )
    # Rounding of r / beta limits exp(r / beta); rounding of the features limits their mean.
    resolved = 4.0 * EPSILON * jnp.maximum(sharpness, jnp.linalg.norm(features, axis=-1).max())
    reached = residual <= jnp.maximum(tolerance, resolved)
    sharp = jnp.minimum(problem.beta, 1.0)
    done = state.done | (reached & (state.temperature <= sharp))

    centering = jnp.where(state.temperature > sharp, CENTERING_HOT, CENTERING)
    target = jnp.maximum(centering * dual * t, 0.1 * tolerance)
    # Eliminate the multiplier last: (dual / t) u u' would dominate the other terms of the matrix.
    solved = _positive_solve(hessian, dual, jnp.stack([stationarity, u], axis=1))
    free, outward = -solved[:, 0], solved[:, 1]
    pressure = target - dual * (t + infeasibility - u @ free)
    dual_step = pressure / (t + dual * (u @ outward))
    direction = free - outward * dual_step
    slack_step = infeasibility - u @ direction

    length = _longest_step(t, slack_step)
    distance = length * _distance(problem, features, direction, state.temperature)
    trust = jnp.where(distance > TRUST, jnp.log1p(distance) / jnp.maximum(distance, TRUST), 1.0)
    length = length * trust
    dual_length = _longest_step(dual, dual_step)
    dual_length = jnp.where(trust < 1.0, jnp.minimum(dual_length, length), dual_length)
    cooled = jnp.maximum(sharp, COOLING * state.temperature)

    moved = BallState(
        parameter=u + length * direction,
        slack=t + length * slack_step,
        dual=dual + dual_length * dual_step,
        temperature=jnp.where(distance < TRUST, cooled, state.temperature),
        residual=residual,
        steps=state.steps + 1,
        done=done,
    )
    stays = state._replace(residual=residual, done=done)
    return BallState(*(jnp.where(done, old, new) for old, new in zip(stays, moved, strict=True)))


def _derivatives(
    problem: Problem,
    features: Float[Array, "x a d"],
    policy: Float[ArrayLike, "x a"] | None,
    state: BallState,
) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, ""]]:
    """Return gradient and Hessian of the objective over its weight, and the size of r / beta."""
    wins = jnp.asarray(problem.wins)
    n_comparisons = wins.sum()
    has_data = (n_comparisons > 0).astype(wins.dtype)
    scale = problem.eta + has_data
    scale = jnp.where(scale > 0, scale, 1.0)
    adversary = problem.eta / scale * jnp.asarray(problem.context_weights)
    data = has_data / (jnp.where(n_comparisons > 0, n_comparisons, 1.0) * scale)

    reward = features @ state.parameter
    beta, unit = _scales(problem, state.temperature)
    margin = (reward[:, :, None] - reward[:, None, :]) / unit
    surprise = jax.nn.sigmoid(-margin)
    flow = data * wins * surprise
    edge_weights = data / unit * (wins + wins.mT) * surprise * jax.nn.sigmoid(margin)
    degrees = edge_weights.sum(axis=2)
    hessian = jnp.einsum("xad,xa,xae->de", features, degrees, features)
    # Lift the diagonal by the rounding error, so that the difference stays positive definite.
    hessian = hessian + jnp.diag(64.0 * EPSILON * jnp.diagonal(hessian))
    hessian = hessian - jnp.einsum("xad,xab,xbe->de", features, edge_weights, features)

    if policy is None:
        probability = gibbs_policy(reward, problem.reference_policy, beta)
        mean = jnp.einsum("xa,xad->xd", probability, features)
        centered = features - mean[:, None, :]
        sharp = adversary[:, None] * probability / beta
        hessian = hessian + jnp.einsum("xad,xa,xae->de", centered, sharp, centered)
    else:
        probability = jnp.asarray(policy)
    excess = adversary[:, None] * (probability - jnp.asarray(problem.baseline_policy))
    excess = excess + flow.sum(axis=1) - flow.sum(axis=2)
    gradient = jnp.einsum("xa,xad->d", excess, features)
    return gradient, hessian, jnp.max(probability * jnp.abs(reward)) / problem.beta


def _scales(
    problem: Problem, temperature: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the smoothed beta of the policy and the smoothed unit of the margins."""
    return jnp.maximum(problem.beta, temperature), jnp.maximum(1.0, temperature)


def _positive_solve(
    hessian: Float[Array, "d d"], dual: Float[Array, ""], right: Float[Array, "d m"]
) -> Float[Array, "d m"]:
    """Solve (hessian + dual I) v = right, scaled to a unit diagonal and lifted to stay positive."""
    matrix = hessian + dual * jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(matrix), jnp.finfo(matrix.dtype).tiny))
    scaled = matrix * scale[:, None] * scale[None, :]
    lifted = scaled + 64.0 * EPSILON * jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    factor = jax.scipy.linalg.cho_factor(lifted, lower=True)
    return scale[:, None] * jax.scipy.linalg.cho_solve(factor, scale[:, None] * right)


def _longest_step(value: Float[Array, ""], change: Float[Array, ""]) -> Float[Array, ""]:
    """Return the largest step, at most 1, for which ``value + step * change`` is positive."""
    falling = change < 0
    return jnp.where(
        falling, jnp.minimum(1.0, -INSIDE * value / jnp.where(falling, change, -1.0)), 1.0
    )


def _distance(
    problem: Problem,
    features: Float[Array, "x a d"],
    direction: Float[Array, " d"],
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """Return the largest move of a log-probability or a margin by a full step, in nats."""
    move = features @ direction
    extent = move.max(axis=-1) - move.min(axis=-1)
    beta, unit = _scales(problem, temperature)
    policy = jnp.where(jnp.asarray(problem.eta) > 0, extent.max() / beta, 0.0)
    return jnp.maximum(policy, extent.max() / unit)
