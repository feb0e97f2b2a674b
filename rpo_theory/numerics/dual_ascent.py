r"""Dual ascent for a linear objective under a constraint on a mean of exponentials.

The problem :math:`\min_r\langle v,r\rangle` subject to

.. math:: g(r) = \log\frac1K\sum_k e^{G_k(r)} \le c

is convex if every :math:`G_k` is. Since :math:`g = \max_w\sum_k w_kG_k - KL(w\,\|\,1/K)` over
weights :math:`w`, its dual variables are a multiplier :math:`s` and weights, that is
:math:`u = sw \ge 0`:

.. math:: D(u) = \min_r\Big\{\langle v,r\rangle + \sum_k u_kG_k(r)\Big\}
    - s\,KL(u/s\,\|\,1/K) - sc, \qquad
    \frac{\partial D}{\partial u_k} = G_k(r) - \log(Kw_k) - c.

:math:`D` is concave. It is maximized by the BFGS method in :math:`\log u`. Each step asks for one
minimizer :math:`r`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

SHARE = 0.25  # share of the natural gradient that the first step moves
LONGEST = 3.0  # nats that the logarithm of a dual variable moves at most in a step
SUFFICIENT = 1e-4  # share of the predicted increase that a step must reach
SHORTEST = 1e-4  # shortest part of a step that is tried
ROUNDING = 1e-14  # relative change of the dual function that counts as rounding
TOLERANCE = 1e-8  # violation of the optimality conditions, relative to the level, at which to stop
NEGLIGIBLE = 1e-12  # the same, relative to the largest difference of objectives


class DualPoint(NamedTuple):
    r"""Minimizer at dual variables.

    Attributes:
        log_dual: logarithms of :math:`u`.
        reward: the minimizer :math:`r`.
        objective: :math:`\langle v,r\rangle`.
        log_ratios: :math:`G_k(r)`.
    """

    log_dual: Float[Array, " k"]
    reward: Float[Array, "x a"]
    objective: Float[Array, ""]
    log_ratios: Float[Array, " k"]

    @property
    def multiplier(self) -> Float[Array, ""]:
        """Sum of the dual variables, :math:`s`."""
        return jnp.exp(jax.nn.logsumexp(self.log_dual))

    @property
    def log_weights(self) -> Float[Array, " k"]:
        """Logarithms of the dual variables over their sum."""
        return jax.nn.log_softmax(self.log_dual)


class Ascent(NamedTuple):
    """State of the ascent.

    Attributes:
        point: the point with the largest dual function.
        value: dual function there.
        gradient: its derivative by the logarithms of the dual variables.
        inner: the point with the smallest :math:`g`.
        metric: estimate of the inverse of the negative Hessian.
        is_fresh: whether the metric is the initial one.
        direction: direction of the next step.
        length: part of the direction to go.
        steps: number of minimizations.
        done: whether the ascent has ended.
    """

    point: DualPoint
    value: Float[Array, ""]
    gradient: Float[Array, " k"]
    inner: DualPoint
    metric: Float[Array, "k k"]
    is_fresh: Bool[Array, ""]
    direction: Float[Array, " k"]
    length: Float[Array, ""]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def log_mean_exp(log_ratios: Float[Array, " k"]) -> Float[Array, ""]:
    """Return the logarithm of the mean of exponentials."""
    return jax.nn.logsumexp(log_ratios) - jnp.log(float(log_ratios.shape[0]))


def maximize_dual(
    respond: Callable[[Array], tuple[Array, Array, Array]],
    start: Float[Array, " k"],
    *,
    level: Float[Array, ""],
    highest: Float[Array, ""],
    extent: Float[Array, ""],
    max_steps: int,
) -> Ascent:
    r"""Maximize the dual function.

    Args:
        respond: function of :math:`u` that returns the minimizer, its objective and its
            :math:`G_k`.
        start: logarithms of the first dual variables.
        level: :math:`c > 0`.
        highest: largest objective; a dual function above it proves that nothing is feasible.
        extent: largest difference of objectives.
        max_steps: maximum number of minimizations.

    Returns:
        The last state.
    """

    def running(state: Ascent) -> Bool[Array, ""]:
        return ~state.done & (state.steps < max_steps)

    def advance(state: Ascent) -> Ascent:
        log_dual = state.point.log_dual + state.length * state.direction
        trial = DualPoint(log_dual, *respond(jnp.exp(log_dual)))
        return _advance(state, trial, level, highest, extent)

    return jax.lax.while_loop(running, advance, _init(respond, start))


def _init(respond: Callable, start: Float[Array, " k"]) -> Ascent:
    shapes = jax.eval_shape(respond, start)
    response = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    point = DualPoint(start, *response)
    infinite, count = jnp.full_like(start[0], jnp.inf), jnp.zeros((), jnp.int32)
    return Ascent(
        point=point,
        value=-infinite,
        gradient=jnp.zeros_like(start),
        inner=point._replace(log_ratios=jnp.full_like(start, jnp.inf)),
        metric=jnp.eye(len(start), dtype=start.dtype),
        is_fresh=count == 0,
        direction=jnp.zeros_like(start),
        length=jnp.ones_like(start[0]),
        steps=count,
        done=count > 0,
    )


def _advance(
    state: Ascent,
    trial: DualPoint,
    level: Float[Array, ""],
    highest: Float[Array, ""],
    extent: Float[Array, ""],
) -> Ascent:
    """Accept a trial point that raises the dual function, or go a shorter way."""
    log_n = jnp.log(float(len(trial.log_dual)))
    multiplier, dual = trial.multiplier, jnp.exp(trial.log_dual)
    slopes = trial.log_ratios - (trial.log_weights + log_n) - level
    value = trial.objective + dual @ slopes
    gradient = dual * slopes
    predicted = state.length * (state.gradient @ state.direction)
    noise = ROUNDING * (jnp.abs(value) + dual @ (jnp.abs(trial.log_ratios) + level))
    accepted = value >= state.value + SUFFICIENT * predicted - noise
    accepted = accepted & jnp.isfinite(value)

    stalled = accepted & (value - state.value <= noise)
    point, value, gradient = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old),
        (trial, value, gradient),
        (state.point, state.value, state.gradient),
    )
    natural = jnp.diag(SHARE * jnp.exp(-point.log_dual))
    move = state.length * state.direction
    metric = _updated(state.metric, move, state.gradient - gradient)
    first = jnp.isinf(state.value)
    length = jnp.where(accepted, 1.0, 0.3 * state.length)
    stuck = stalled | (length < SHORTEST)
    renew = first | stuck
    metric = jnp.where(renew, natural, jnp.where(accepted, metric, state.metric))
    direction = metric @ gradient
    renew = renew | (direction @ gradient <= 0)
    metric = jnp.where(renew, natural, metric)
    direction = _limited(jnp.where(renew, natural @ gradient, direction))

    scale = jnp.maximum(TOLERANCE * multiplier * level, NEGLIGIBLE * extent)
    optimal = accepted & (jnp.abs(gradient).sum() <= scale)
    lower = log_mean_exp(trial.log_ratios) < log_mean_exp(state.inner.log_ratios)
    return Ascent(
        point=point,
        value=value,
        gradient=gradient,
        inner=jax.tree.map(lambda new, old: jnp.where(lower, new, old), trial, state.inner),
        metric=metric,
        is_fresh=renew,
        direction=jnp.where(accepted | renew, direction, state.direction),
        length=jnp.where(renew, 1.0, length),
        steps=state.steps + 1,
        done=optimal | (stuck & state.is_fresh) | (value > highest + 1e-9 * extent),
    )


def _updated(
    metric: Float[Array, "k k"], move: Float[Array, " k"], change: Float[Array, " k"]
) -> Float[Array, "k k"]:
    """Return the metric after the BFGS update, where the curvature along the move is positive."""
    curvature = move @ change
    valid = curvature > 1e-10 * jnp.sqrt((move @ move) * (change @ change))
    inverse = 1.0 / jnp.where(valid, curvature, 1.0)
    shear = jnp.eye(len(move), dtype=move.dtype) - inverse * jnp.outer(move, change)
    updated = shear @ metric @ shear.T + inverse * jnp.outer(move, move)
    return jnp.where(valid, updated, metric)


def _limited(direction: Float[Array, " k"]) -> Float[Array, " k"]:
    """Shorten a direction so that no dual variable changes by more than a factor."""
    longest = jnp.abs(direction).max()
    return direction * (LONGEST / jnp.maximum(longest, LONGEST))
