r"""Primal-dual interior point for a smooth convex function under smooth concave constraints.

.. math:: \min_u f(u) \quad\text{subject to}\quad c(u) \ge 0

Derivatives come from automatic differentiation. With slacks :math:`t > 0` and multipliers
:math:`\lambda \ge 0` the method follows

.. math:: \nabla f(u) = \nabla c(u)^\top\lambda, \qquad c(u) = t, \qquad \lambda_i t_i = \mu \to 0

by Mehrotra's predictor-corrector steps. As in :mod:`rpo_theory.numerics.box_interior_point`, slacks
are separate unknowns, a step moves no log-probability farther than Newton's model can be trusted,
and sharp terms are smoothed at a temperature that falls with the barrier. At the end a few Newton
steps on the active constraints remove what the barrier leaves of the error.

Inside, the coordinates of :math:`u` are divided by the half-widths of the feasible set and the
slacks by their initial values, so all residuals are in the unit of :math:`f`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Bool, Float, Int

from .box_interior_point import COOLING, EPSILON, TRUST

INSIDE = 0.995  # share of the way to the boundary that a step may go
HOT = 0.1  # smallest factor on the barrier per step while the temperature is still falling
SHARPER = 1e-4  # weight of complementarity in the residual: the active constraints are found early
PATIENCE = 20  # steps without a smaller residual after which rounding has stopped the iteration
COARSE = 1e-6  # relative residual above which it is not rounding that stops the iteration
FLOOR = 0.1 * SHARPER  # smallest target of the barrier, relative to the tolerance
RESOLVED = 16.0 * EPSILON  # slack that rounding of the constraints decides
POLISH_STEPS = 3  # Newton steps on the active constraints
FLAT = 1e-11  # relative curvature below which rounding decides the Newton step of the polish


Objective: TypeAlias = Callable[[Array, Array], Array]
"""Smooth convex function of a point and a temperature."""


class ConstrainedProblem(NamedTuple):
    r"""Smooth convex problem.

    Attributes:
        objective: :math:`f(u, T)`, smoothed if the temperature :math:`T` is above ``sharp``.
        slack: :math:`c(u)`, concave in every entry.
        distance: number of nats that a move of :math:`u` changes a log-probability by at most, at a
            temperature.
        hottest: temperature at which the objective is almost a quadratic function.
        sharp: temperature at which the objective is the original one.
    """

    objective: Objective
    slack: Callable[[Array], Array]
    distance: Callable[[Array, Array], Array]
    hottest: Float[Array, ""]
    sharp: Float[Array, ""]


class ConstrainedMinimum(NamedTuple):
    r"""Minimizer and multipliers.

    Attributes:
        point: minimizer :math:`u`.
        multipliers: :math:`\lambda\ge0` of the constraints.
        residual: KKT residual in units of the objective.
        steps: number of Newton steps.
    """

    point: Float[Array, " m"]
    multipliers: Float[Array, " c"]
    residual: Float[Array, ""]
    steps: Int[Array, ""]


class _Local(NamedTuple):
    """Slacks and derivatives at a point; the curvature is that of the Lagrangian."""

    slack: Float[Array, " c"]
    slopes: Float[Array, "c m"]
    gradient: Float[Array, " m"]
    curvature: Float[Array, "m m"]


class _State(NamedTuple):
    """Iterate in scaled coordinates; ``best`` is the smallest residual and ``since`` its age."""

    point: Float[Array, " m"]
    slack: Float[Array, " c"]
    dual: Float[Array, " c"]
    temperature: Float[Array, ""]
    residual: Float[Array, ""]
    best: Float[Array, ""]
    since: Int[Array, ""]
    steps: Int[Array, ""]


def solve(
    problem: ConstrainedProblem,
    interior: Float[Array, " m"],
    *,
    tolerance: float,
    max_steps: int,
) -> ConstrainedMinimum:
    """Minimize from a point strictly inside the feasible set.

    Args:
        problem: objective and constraints.
        interior: parameter at which every slack is greater than 0.
        tolerance: KKT residual at which to stop, relative to the gradient at the start.
        max_steps: maximum number of Newton steps.

    Returns:
        The minimizer.

    Examples:
        >>> problem = ConstrainedProblem(
        ...     objective=lambda point, temperature: point.sum(),
        ...     slack=lambda point: 1.0 - (point**2).sum(keepdims=True),
        ...     distance=lambda move, temperature: 0.0 * temperature,
        ...     hottest=jnp.ones(()),
        ...     sharp=jnp.ones(()),
        ... )
        >>> solve(problem, jnp.zeros(1), tolerance=1e-6, max_steps=50).point.round(4).tolist()
        [-1.0]
    """
    widths, depths = half_widths(problem.slack, interior), problem.slack(interior)

    def from_scaled(point: Float[Array, " m"]) -> Float[Array, " m"]:
        return interior + widths * point

    scaled = problem._replace(
        objective=lambda point, heat: problem.objective(from_scaled(point), heat),
        slack=lambda point: problem.slack(from_scaled(point)) / depths,
        distance=lambda move, heat: problem.distance(widths * move, heat),
    )
    first = _init(scaled, jnp.zeros_like(interior))
    unit = _gradient_scale(scaled, first)
    first = first._replace(dual=unit * first.dual)

    def running(state: _State) -> Bool[Array, ""]:
        cold = state.temperature <= problem.sharp
        stuck = (state.since >= PATIENCE) & (state.residual <= COARSE * unit)
        finished = cold & ((state.residual <= tolerance * unit) | stuck)
        return ~finished & (state.steps < max_steps)

    last = jax.lax.while_loop(running, lambda state: _step(scaled, unit, tolerance, state), first)
    point, dual, residual = _polish(scaled, unit, last)
    return ConstrainedMinimum(from_scaled(point), dual / depths, residual / unit, last.steps)


def half_widths(
    slack: Callable[[Array], Array], interior: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Return how far a point may move along each coordinate before a constraint stops it.

    Args:
        slack: concave constraints.
        interior: point at which they are greater than 0.

    Returns:
        Half-widths of the ellipsoid of the logarithmic barrier; 1 along free coordinates.

    Examples:
        >>> half_widths(lambda point: 2.0 - jnp.concatenate([point, -point]), jnp.zeros(1)).tolist()
        [1.414213562373095]
    """
    depths = slack(interior)
    slopes = jax.jacfwd(slack)(interior) / depths[:, None]
    bends = jnp.diagonal(jax.hessian(lambda point: -(slack(point) / depths).sum())(interior))
    curvature = jnp.square(slopes).sum(axis=0) + jnp.maximum(bends, 0.0)
    return jnp.where(curvature > 0, jax.lax.rsqrt(_or_one(curvature)), 1.0)


def _init(problem: ConstrainedProblem, point: Float[Array, " m"]) -> _State:
    slack = problem.slack(point)
    unknown = jnp.full_like(problem.sharp, jnp.inf)
    count = jnp.zeros((), jnp.int32)
    hottest = jnp.maximum(problem.hottest, problem.sharp)
    return _State(point, slack, jnp.ones_like(slack), hottest, unknown, unknown, count, count)


def _gradient_scale(problem: ConstrainedProblem, state: _State) -> Float[Array, ""]:
    """Return the largest slope of the objective across the set, at the start."""
    hot = jax.grad(problem.objective)(state.point, state.temperature)
    cold = jax.grad(problem.objective)(state.point, problem.sharp)
    largest = jnp.maximum(jnp.abs(hot).max(), jnp.abs(cold).max())
    return jnp.maximum(largest, 1e-10)


def _local(problem: ConstrainedProblem, point: Array, dual: Array, heat: Array) -> _Local:
    def lagrangian_slope(point: Array) -> tuple[Array, tuple[Array, Array]]:
        gradient = jax.grad(problem.objective)(point, heat)
        slack, pull = jax.vjp(problem.slack, point)
        return gradient - pull(dual)[0], (slack, gradient)

    curvature, (slack, gradient) = jax.jacfwd(lagrangian_slope, has_aux=True)(point)
    return _Local(slack, jax.jacfwd(problem.slack)(point), gradient, curvature)


def _step(
    problem: ConstrainedProblem, unit: Float[Array, ""], tolerance: float, state: _State
) -> _State:
    """Take one predictor-corrector step; the residual is that of the iterate before it."""
    point, slack, dual, heat = state.point, state.slack, state.dual, state.temperature
    local = _local(problem, point, dual, heat)
    # A slack that moved along the tangent of a curved constraint is brought up to the constraint.
    slack = jnp.where(local.slack > slack + RESOLVED, local.slack, slack)
    residual = _residual(local, slack, dual)
    slopes = local.slopes
    factor, scale = _factor(local.curvature + (slopes.T * (dual / slack)) @ slopes)
    infeasible = local.slack - slack
    barrier = jnp.mean(dual * slack)

    def direction(target: Array, missing: Array) -> tuple[Array, Array, Array]:
        force = slopes.T @ ((target - dual * missing) / slack) - local.gradient
        move = scale * cho_solve((factor, True), scale * force)
        slack_move = slopes @ move + missing
        return move, slack_move, (target - dual * slack - dual * slack_move) / slack

    predicted, slack_predicted, dual_predicted = direction(jnp.zeros_like(slack), infeasible)
    reach = jnp.minimum(_longest(slack, slack_predicted), _longest(dual, dual_predicted))
    reached = jnp.mean((slack + reach * slack_predicted) * (dual + reach * dual_predicted))
    cold = heat <= problem.sharp
    centering = jnp.maximum((reached / barrier) ** 3, jnp.where(cold, 0.0, HOT))
    target = jnp.maximum(jnp.minimum(centering, 1.0) * barrier, FLOOR * tolerance * unit)
    target = jnp.maximum(target, RESOLVED * dual)
    # The second-order correction of a short predictor step is unreliable.
    bent = problem.slack(point + reach * predicted) - local.slack - reach * (slopes @ predicted)
    move, slack_move, dual_move = direction(
        target - reach**2 * slack_predicted * dual_predicted,
        infeasible + jnp.where(bent < -RESOLVED, bent, 0.0),
    )
    length = jnp.minimum(_longest(slack, slack_move), _longest(dual, dual_move))
    distance = length * problem.distance(move, heat)
    trust = jnp.where(distance > TRUST, jnp.log1p(distance) / jnp.maximum(distance, TRUST), 1.0)
    length = length * trust
    better = ~cold | (residual < 0.9 * state.best)
    return _State(
        point=point + length * move,
        slack=slack + length * slack_move,
        dual=dual + length * dual_move,
        temperature=jnp.where(distance < TRUST, jnp.maximum(problem.sharp, COOLING * heat), heat),
        residual=jnp.where(cold, residual, jnp.inf),
        best=jnp.where(cold, jnp.minimum(residual, state.best), jnp.inf),
        since=jnp.where(better, 0, state.since + 1),
        steps=state.steps + 1,
    )


def _residual(local: _Local, slack: Array, dual: Array) -> Float[Array, ""]:
    """Return the largest error of stationarity, feasibility and complementarity."""
    stationarity = jnp.abs(local.gradient - local.slopes.T @ dual).max()
    infeasible = jnp.abs((local.slack - slack) * dual).max()
    complementarity = (dual * jnp.maximum(slack - 4.0 * RESOLVED, 0.0)).max() / SHARPER
    return jnp.maximum(jnp.maximum(stationarity, infeasible), complementarity)


def _factor(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Factor a matrix, scaled to a unit diagonal and lifted to stay positive definite."""
    diagonal = jnp.diagonal(matrix)
    # Directions without curvature, such as a constant per context, are held by the lift.
    smallest = jnp.maximum(EPSILON * EPSILON * diagonal.max(), jnp.finfo(matrix.dtype).tiny)
    scale = jax.lax.rsqrt(jnp.maximum(diagonal, smallest))
    lifted = matrix * scale[:, None] * scale + 64.0 * EPSILON * jnp.eye(
        len(scale), dtype=scale.dtype
    )
    return cho_factor(lifted, lower=True)[0], scale


def _polish(
    problem: ConstrainedProblem, unit: Float[Array, ""], state: _State
) -> tuple[Float[Array, " m"], Float[Array, " c"], Float[Array, ""]]:
    """Take Newton steps on the active constraints; keep the best point of all."""
    active = state.slack * unit < state.dual

    def advance(carry: tuple, _: None) -> tuple[tuple, None]:
        point, dual, best = carry
        local = _local(problem, point, dual, problem.sharp)
        slack = jnp.where(active & (jnp.abs(local.slack) <= RESOLVED), 0.0, local.slack)
        feasible = jnp.all(slack >= 0.0)
        valid = feasible & jnp.all(dual >= -FLAT * unit) & jnp.isfinite(point).all()
        positive = jnp.maximum(dual, 0.0)
        residual = jnp.where(valid, _residual(local, slack, positive), jnp.inf)
        best = jax.tree.map(
            lambda new, old: jnp.where(residual < best[2], new, old),
            (point, positive, residual),
            best,
        )
        slopes = jnp.where(active[:, None], local.slopes, 0.0)
        sizes, axes = jnp.linalg.eigh(slopes.T @ slopes)
        bound = sizes > FLAT * _or_one(sizes[-1])
        inverse = (axes * jnp.where(bound, 1.0 / _or_one(sizes), 0.0)) @ axes.T
        free = jnp.where(bound, 0.0, axes) @ axes.T
        onto = -inverse @ (slopes.T @ jnp.where(active, local.slack, 0.0))
        force = free @ (local.gradient + local.curvature @ onto)
        move = onto - free @ _solve_stiff(free @ local.curvature @ free, force)
        error = local.gradient + local.curvature @ move - slopes.T @ dual
        return (point + move, dual + slopes @ (inverse @ error), best), None

    held = jnp.where(active, state.dual, 0.0)
    start = state.point, state.dual, state.residual
    (_, _, best), _ = jax.lax.scan(
        advance, (state.point, held, start), None, length=POLISH_STEPS + 1
    )
    return best


def _solve_stiff(matrix: Float[Array, "m m"], right: Float[Array, " m"]) -> Float[Array, " m"]:
    """Solve in the directions whose curvature rounding does not decide, and not in the others."""
    bends, axes = jnp.linalg.eigh(matrix)
    stiff = bends > FLAT * _or_one(bends[-1])
    return axes @ jnp.where(stiff, (axes.T @ right) / _or_one(bends), 0.0)


def _longest(value: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
    """Return the longest step, at most 1, that keeps every value positive."""
    falls = change < 0
    ratio = jnp.where(falls, -value / jnp.where(falls, change, -1.0), jnp.inf)
    return jnp.minimum(1.0, INSIDE * jnp.min(ratio, initial=jnp.inf))


def _or_one(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by one, for use as denominators."""
    return jnp.where(values > 0, values, 1.0)
