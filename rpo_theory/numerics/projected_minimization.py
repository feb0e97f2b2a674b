r"""Minimization over a convex set that is known by its projection and its linear minimizer only.

A point minimizes a smooth convex :math:`f` over the set if and only if a projected gradient step
leaves it unchanged, :math:`r = P(r - t\nabla f(r))`. Accelerated projected gradient steps with
adaptive length and restarts come near it; Newton steps on this equation then find it to rounding.
The derivative of the projection is a central difference, so the projection may sort, iterate or
bisect. Both kinds of steps are judged by their result: a Newton step that does not help is dropped.

The Frank-Wolfe gap :math:`\langle\nabla f(r), r - s\rangle`, with :math:`s` the linear minimizer in
the direction of the gradient, bounds :math:`f(r) - \min f`; it ends the iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

GRADIENT_STEPS = 25  # accelerated gradient steps between two attempts of Newton's method
NEWTON_STEPS = 2  # Newton steps of one attempt
LONGER, SHORTER = 0.8, 2.0  # factors on the inverse step after an accepted and a refused step
DIFFERENCE = 1e-5  # relative step of the central differences of the projection
FLAT = 1e-10  # relative singular value below which a direction is left as it is
PATIENCE = 20  # rounds without a smaller gap after which rounding has stopped the iteration
COARSE = 1e-4  # relative gap above which it is not rounding that stops the iteration


class ProjectedProblem(NamedTuple):
    """Smooth convex problem on a convex set.

    Attributes:
        objective: the function.
        project: projection onto the set.
        linear_minimizer: member that minimizes the inner product with a direction.
    """

    objective: Callable[[Array], Array]
    project: Callable[[Array], Array]
    linear_minimizer: Callable[[Array], Array]


class ProjectedMinimum(NamedTuple):
    """Minimizer over the set.

    Attributes:
        point: the minimizer, a result of the projection.
        gap: Frank-Wolfe gap in units of the objective.
        steps: number of rounds of gradient and Newton steps.
    """

    point: Float[Array, "x a"]
    gap: Float[Array, ""]
    steps: Int[Array, ""]


class _Momentum(NamedTuple):
    """Iterate of the accelerated gradient method."""

    point: Float[Array, "x a"]
    ahead: Float[Array, "x a"]
    weight: Float[Array, ""]
    inverse_step: Float[Array, ""]


class _State(NamedTuple):
    """Iterate, the best point so far, its gap, and how many rounds ago it was found."""

    momentum: _Momentum
    best: Float[Array, "x a"]
    gap: Float[Array, ""]
    since: Int[Array, ""]
    steps: Int[Array, ""]


def solve(
    problem: ProjectedProblem,
    start: Float[Array, "x a"],
    *,
    tolerance: float,
    max_steps: int,
) -> ProjectedMinimum:
    """Minimize from any table.

    Args:
        problem: objective and set.
        start: any table; it is projected first.
        tolerance: Frank-Wolfe gap at which to stop, in units of the objective.
        max_steps: maximum number of rounds of gradient and Newton steps.

    Returns:
        The point with the smallest Frank-Wolfe gap.

    Examples:
        >>> problem = ProjectedProblem(
        ...     objective=lambda table: ((table - 2.0) ** 2).sum(),
        ...     project=lambda table: jnp.clip(table, 0.0, 1.0),
        ...     linear_minimizer=lambda direction: jnp.where(direction < 0, 1.0, 0.0),
        ... )
        >>> solve(problem, jnp.zeros((1, 2)), tolerance=1e-9, max_steps=9).point.tolist()
        [[1.0, 1.0]]
    """
    first = problem.project(start)
    count = jnp.zeros((), jnp.int32)
    one = jnp.ones((), first.dtype)
    gap = _gap(problem, first)
    unit = jnp.where(gap > 0, gap, 1.0)

    def running(state: _State) -> Array:
        stuck = (state.since >= PATIENCE) & (state.gap <= COARSE * unit)
        return (state.gap > tolerance) & ~stuck & (state.steps < max_steps)

    def advance(state: _State) -> _State:
        momentum = jax.lax.fori_loop(
            0, GRADIENT_STEPS, lambda _, last: _gradient_step(problem, last), state.momentum
        )
        point = jax.lax.fori_loop(
            0,
            NEWTON_STEPS,
            lambda _, point: _newton_step(problem, point, momentum.inverse_step),
            momentum.point,
        )
        moved = jnp.any(point != momentum.point)
        fresh = _Momentum(point, point, one, momentum.inverse_step)
        momentum = jax.tree.map(lambda new, old: jnp.where(moved, new, old), fresh, momentum)
        gap = _gap(problem, point)
        better = gap < state.gap
        return _State(
            momentum=momentum,
            best=jnp.where(better, point, state.best),
            gap=jnp.where(better, gap, state.gap),
            since=jnp.where(gap < 0.9 * state.gap, 0, state.since + 1),
            steps=state.steps + 1,
        )

    last = jax.lax.while_loop(
        running, advance, _State(_Momentum(first, first, one, one), first, gap, count, count)
    )
    return ProjectedMinimum(last.best, last.gap, last.steps)


def _gap(problem: ProjectedProblem, point: Float[Array, "x a"]) -> Float[Array, ""]:
    gradient = jax.grad(problem.objective)(point)
    gap = jnp.vdot(gradient, point - problem.linear_minimizer(gradient))
    return jnp.where(jnp.isfinite(gap), jnp.maximum(gap, 0.0), jnp.inf)


def _gradient_step(problem: ProjectedProblem, state: _Momentum) -> _Momentum:
    """Take an accelerated step, or shorten it if the gradient changes too much along it."""
    slope = jax.grad(problem.objective)
    gradient = slope(state.ahead)
    point = problem.project(state.ahead - gradient / state.inverse_step)
    move = point - state.ahead
    # Unlike differences of the objective, differences of gradients keep their precision.
    bend = jnp.vdot(slope(point) - gradient, move)
    accepted = bend <= 0.5 * state.inverse_step * jnp.vdot(move, move)
    weight = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * state.weight**2))
    restart = jnp.vdot(move, point - state.point) < 0
    weight = jnp.where(restart, 1.0, weight)
    inertia = jnp.where(restart, 0.0, (state.weight - 1.0) / weight)
    fresh = _Momentum(
        point=point,
        ahead=point + inertia * (point - state.point),
        weight=weight,
        inverse_step=LONGER * state.inverse_step,
    )
    shorter = state._replace(inverse_step=SHORTER * state.inverse_step)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), fresh, shorter)


def _newton_step(
    problem: ProjectedProblem, point: Float[Array, "x a"], inverse_step: Float[Array, ""]
) -> Float[Array, "x a"]:
    """Take a Newton step on the fixed-point equation if it at least halves its residual."""
    slope = jax.grad(problem.objective)

    def target(table: Float[Array, "x a"]) -> Float[Array, "x a"]:
        return table - slope(table) / inverse_step

    aim = target(point)
    residual = point - problem.project(aim)
    unit = jnp.eye(point.size, dtype=point.dtype).reshape(-1, *point.shape)
    columns = jax.vmap(lambda move: jax.jvp(target, (point,), (move,))[1])(unit)
    projected = difference_quotients(problem.project, aim, columns)
    matrix = (unit - projected).reshape(point.size, point.size).T
    move = jnp.linalg.lstsq(matrix, residual.reshape(-1), rcond=FLAT)[0].reshape(point.shape)
    candidate = problem.project(point - move)
    error = jnp.linalg.norm(candidate - problem.project(target(candidate)))
    better = error <= 0.5 * jnp.linalg.norm(residual)
    return jnp.where(better, candidate, point)


def difference_quotients(
    project: Callable[[Array], Array],
    point: Float[Array, "x a"],
    directions: Float[Array, "m x a"],
) -> Float[Array, "m x a"]:
    """Return the derivatives of a projection along directions, by central differences.

    Args:
        project: the projection.
        point: where to differentiate.
        directions: directions, stacked on the first axis.

    Returns:
        Derivatives, to about ten digits away from kinks.

    Examples:
        >>> rise = difference_quotients(jnp.abs, jnp.full((1, 1), -2.0), jnp.ones((1, 1, 1)))
        >>> rise.round(6).tolist()
        [[[-1.0]]]
    """
    size = DIFFERENCE * (1.0 + jnp.abs(point).max())
    lengths = jnp.sqrt(jnp.square(directions).sum(axis=(1, 2), keepdims=True))
    steps = size * directions / jnp.where(lengths > 0, lengths, 1.0)
    rise = jax.vmap(project)(point + steps) - jax.vmap(project)(point - steps)
    return lengths * rise / (2.0 * size)
