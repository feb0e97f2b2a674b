r"""Primal-dual Newton method for the linear ball: all prompts share one parameter.

With :math:`r = \langle\theta,\phi\rangle`, :math:`\|\theta\|\le B`, the unknown is
:math:`u = \theta/B` in the unit ball, with multiplier :math:`\lambda\ge 0`
and slack
:math:`t`:

.. math:: \nabla_u F + \lambda u = 0, \qquad t = (1-\|u\|^2)/2, \qquad \lambda t = \mu \to 0.

The slack is an unknown of its own, so that the iterates may leave the ball on the way: forced to
stay inside they would creep along its surface. The step is shortened, and a small :math:`\beta`
reached through larger ones, as in :mod:`rpo_theory.numerics.box_interior_point`. One problem at a time; batches are
``vmap`` over :func:`solve`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from rpo_theory.policies import gibbs_policy
from rpo_theory.types import ArrayLike, Problem

from .box_interior_point import CENTRING, CENTRING_HOT, COOLING, EPSILON, TRUST

INSIDE = 0.99  # share of the way to the boundary that a step may go


class BallState(NamedTuple):
    r"""Iterate of the method.

    Attributes:
        parameter: :math:`u = \theta/B`.
        slack: :math:`t > 0`.
        dual: :math:`\lambda`.
        temperature: scale at which the policy (if above :math:`\beta`) and the comparisons (if
            above 1) are smoothed; it falls until it smooths neither.
        residual: KKT residual of this iterate, of the objective divided by its weight.
        steps: Newton steps taken.
        done: whether the iteration has converged and stands still.
    """

    parameter: Float[Array, " d"]
    slack: Float[Array, ""]
    dual: Float[Array, ""]
    temperature: Float[Array, ""]
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def init(problem: Problem, features: Float[Array, "x a d"]) -> BallState:
    """Start at the zero reward, at a temperature at which nothing is sharp."""
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
    r"""Minimise over the unit ball, against the best policy or against a given one.

    Args:
        problem: the instance.
        features: :math:`B\phi(x,a)`, so that the parameter lives in the unit ball.
        policy: if given, the reward answers this policy: :math:`\min_r\phi(\pi,r)`; if None it
            answers its own best policy: :math:`\min_r F(r)`.
        tolerance: KKT residual at which to stop.
        max_steps: most Newton steps.

    Returns:
        The final state.
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
    """One guarded Newton step, unless the iterate has converged."""
    gradient, hessian, sharpness = _derivatives(problem, features, policy, state)
    u, t, dual = state.parameter, state.slack, state.dual
    stationarity = gradient + dual * u
    infeasibility = 0.5 * (1.0 - u @ u) - t
    residual = jnp.maximum(
        jnp.abs(stationarity).max(), jnp.maximum(dual * t, jnp.abs(infeasibility))
    )
    # exp(r / beta) cannot be known better than r / beta is, nor a mean of features than they are.
    resolved = 4.0 * EPSILON * jnp.maximum(sharpness, jnp.linalg.norm(features, axis=-1).max())
    reached = residual <= jnp.maximum(tolerance, resolved)
    sharp = jnp.minimum(problem.beta, 1.0)
    done = state.done | (reached & (state.temperature <= sharp))

    centring = jnp.where(state.temperature > sharp, CENTRING_HOT, CENTRING)
    target = jnp.maximum(centring * dual * t, 0.1 * tolerance)
    # The multiplier is eliminated last: (dual / t) u u' inside the matrix would drown the rest.
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
    """Gradient and Hessian of the objective divided by its weight, and the size of r / beta."""
    wins = jnp.asarray(problem.wins)
    total = wins.sum()
    has_data = (total > 0).astype(wins.dtype)
    scale = problem.eta + has_data
    scale = jnp.where(scale > 0, scale, 1.0)
    adversary = problem.eta / scale * jnp.asarray(problem.context_weights)
    data = has_data / (jnp.where(total > 0, total, 1.0) * scale)

    reward = features @ state.parameter
    beta, unit = _scales(problem, state.temperature)
    margin = (reward[:, :, None] - reward[:, None, :]) / unit
    surprise = jax.nn.sigmoid(-margin)
    flow = data * wins * surprise
    edge_weights = data / unit * (wins + wins.mT) * surprise * jax.nn.sigmoid(margin)
    degrees = edge_weights.sum(axis=2)
    hessian = jnp.einsum("xad,xa,xae->de", features, degrees, features)
    # The difference may lose its sign to rounding: lift it by what rounding can take.
    hessian = hessian + jnp.diag(64.0 * EPSILON * jnp.diagonal(hessian))
    hessian = hessian - jnp.einsum("xad,xab,xbe->de", features, edge_weights, features)

    if policy is None:
        probability = gibbs_policy(reward, problem.reference_policy, beta)
        mean = jnp.einsum("xa,xad->xd", probability, features)
        centred = features - mean[:, None, :]
        sharp = adversary[:, None] * probability / beta
        hessian = hessian + jnp.einsum("xad,xa,xae->de", centred, sharp, centred)
    else:
        probability = jnp.asarray(policy)
    excess = adversary[:, None] * (probability - jnp.asarray(problem.baseline_policy))
    excess = excess + flow.sum(axis=1) - flow.sum(axis=2)
    gradient = jnp.einsum("xa,xad->d", excess, features)
    return gradient, hessian, jnp.max(probability * jnp.abs(reward)) / problem.beta


def _scales(
    problem: Problem, temperature: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The beta of the policy and the unit of the margins that are in force."""
    return jnp.maximum(problem.beta, temperature), jnp.maximum(1.0, temperature)


def _positive_solve(
    hessian: Float[Array, "d d"], dual: Float[Array, ""], right: Float[Array, "d m"]
) -> Float[Array, "d m"]:
    """Solve (hessian + dual I) v = right; a unit diagonal and a small lift keep it positive."""
    matrix = hessian + dual * jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(matrix), jnp.finfo(matrix.dtype).tiny))
    scaled = matrix * scale[:, None] * scale[None, :]
    lifted = scaled + 64.0 * EPSILON * jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    factor = jax.scipy.linalg.cho_factor(lifted, lower=True)
    return scale[:, None] * jax.scipy.linalg.cho_solve(factor, scale[:, None] * right)


def _longest_step(value: Float[Array, ""], change: Float[Array, ""]) -> Float[Array, ""]:
    """Largest multiple of ``change``, at most 1, that keeps ``value`` well positive."""
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
    """How far a full step moves the sharpest of its arguments, in nats."""
    moved = features @ direction
    spread = moved.max(axis=-1) - moved.min(axis=-1)
    beta, unit = _scales(problem, temperature)
    policy = jnp.where(jnp.asarray(problem.eta) > 0, spread.max() / beta, 0.0)
    return jnp.maximum(policy, spread.max() / unit)
