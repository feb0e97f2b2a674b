r"""Projected Newton method on a box and on a ball, for any smooth convex function.

The gradient is JAX's, the Hessian is given; a step goes to the minimiser of the quadratic model
(on the box: over the coordinates that no bound holds back) and is tried at many lengths at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Bool, Float, Int

from rpo_theory.types import ArrayLike

LENGTHS = 0.25 ** np.arange(12)
"""Fractions of the Newton step that the line search tries, the full step first."""
ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Relative differences below this say nothing; also the lift of a singular Hessian."""
SECULAR_STEPS = 30


class Descent(NamedTuple):
    """Where the iteration stands.

    Attributes:
        point: the free variables.
        movement: how far the last full step went, in the caller's measure.
        gradient_norm: largest entry of the projected gradient before the last step.
        steps: steps taken.
    """

    point: Float[Array, "*p"]
    movement: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    steps: Int[Array, ""]


class NewtonProblem(NamedTuple):
    """What to minimize, and over what.

    Attributes:
        objective: smooth and convex.
        direction: from point and gradient to the Newton direction.
        project: nearest point of the feasible set.
        movement: distance between two points, for the stopping rule.
    """

    objective: Callable[[Array], Array]
    direction: Callable[[Array, Array], Array]
    project: Callable[[Array], Array]
    movement: Callable[[Array, Array], Array]


def minimize(
    task: NewtonProblem, start: Float[Array, "*p"], *, tolerance: float, max_steps: int
) -> Descent:
    """Step until a full step would move the point by no more than the tolerance.

    Args:
        task: what to minimise.
        start: a feasible point.
        tolerance: in the measure ``task.movement``.
        max_steps: most steps.

    Returns:
        The final state.

    Examples:
        >>> halves = NewtonProblem(lambda p: (p**2).sum(), lambda p, g: -g / 2, jnp.abs, lambda p, q: p[0])
        >>> minimize(halves, jnp.ones(2), tolerance=1e-3, max_steps=9).point.tolist()
        [0.0, 0.0]
    """
    unknown = jnp.full_like(start, jnp.inf, shape=())
    return jax.lax.while_loop(
        lambda state: (state.movement > tolerance) & (state.steps < max_steps),
        lambda state: step(task, state),
        Descent(start, unknown, unknown, jnp.zeros((), jnp.int32)),
    )


def step(task: NewtonProblem, state: Descent) -> Descent:
    """One Newton step, of the length that has the least objective."""
    value, gradient = jax.value_and_grad(task.objective)(state.point)
    direction = task.direction(state.point, gradient)
    lengths = jnp.asarray(LENGTHS, state.point.dtype)
    candidates = jax.vmap(lambda t: task.project(state.point + t * direction))(lengths)
    values = jax.vmap(task.objective)(candidates)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    best = jnp.argmin(values)
    # Near the minimum the objective no longer tells lengths apart, and the full step is the best.
    blur = ROUNDING * (1.0 + jnp.abs(value))
    chosen = jnp.where(values[0] <= values[best] + blur, 0, best)
    residual = state.point - task.project(state.point - gradient)
    return Descent(
        point=jnp.where(values[chosen] <= value + blur, candidates[chosen], state.point),
        movement=task.movement(candidates[0], state.point),
        gradient_norm=jnp.abs(residual).max(),
        steps=state.steps + 1,
    )


def box_direction(
    edge_weights: Float[Array, "a a"],
    gradient: Float[Array, " a"],
    below: Float[Array, " a"],
    above: Float[Array, " a"],
    reach: Float[Array, ""] | float,
) -> Float[Array, " a"]:
    r"""Newton direction in a box when the Hessian is a graph Laplacian.

    Coordinates that even the shortest step would take out of the box go to their bound and are
    held there, until no more would.

    Args:
        edge_weights: symmetric non-negative edge weights, zero diagonal: the Hessian is
            :math:`\mathrm{diag}(K1) - K`.
        gradient: of the objective, whose terms are of order one.
        below: distances to the lower bound.
        above: distances to the upper bound.
        reach: how far a group of coordinates may go where there is next to no curvature.

    Returns:
        A direction of descent.

    Examples:
        >>> room, edge = jnp.ones(2), jnp.array([[0.0, 0.5], [0.5, 0.0]])
        >>> box_direction(edge, jnp.array([1.0, -1.0]), room, room, 1e6).round(4).tolist()
        [-1.0, 1.0]
    """
    # A ground in proportion to the gradient: it vanishes as fast as the error does.
    ground = jnp.abs(gradient) / reach

    def leaving(held: Array, direction: Array) -> Array:
        shortest = LENGTHS[-1] * direction
        return ~held & ((-shortest > below) | (shortest > above))

    def hold_more(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        held, direction = carry
        more = leaving(held, direction)
        to_bound = jnp.where(more, jnp.where(direction < 0, -below, above), direction)
        held = held | more
        return held, _laplacian_solve(edge_weights, ground, -gradient, held, to_bound)

    first = hold_more((jnp.zeros(gradient.shape, bool), -gradient))
    return jax.lax.while_loop(lambda carry: jnp.any(leaving(*carry)), hold_more, first)[1]


def ball_minimizer(
    hessian: Float[Array, "d d"],
    gradient: Float[Array, " d"],
    point: Float[Array, " d"],
    radius: Float[Array, ""],
) -> Float[Array, " d"]:
    """Minimiser over a ball around zero of the quadratic model at a point.

    Args:
        hessian: positive semi-definite.
        gradient: of the objective at the point.
        point: where the model was made.
        radius: of the ball.

    Returns:
        The minimiser, from the secular equation of its multiplier.

    Examples:
        >>> ball_minimizer(jnp.eye(1), -4.0 * jnp.ones(1), jnp.zeros(1), jnp.array(2.0)).tolist()
        [2.0]
    """
    curvature, axes = jnp.linalg.eigh(hessian)
    curvature = jnp.maximum(curvature, 0.0) + ROUNDING * positive_or_one(curvature[-1])
    pull = curvature * (axes.T @ point) - axes.T @ gradient

    def raise_multiplier(_: Int[Array, ""], multiplier: Array) -> Array:
        solution = pull / (curvature + multiplier)
        norm = jnp.linalg.norm(solution)
        slope = jnp.sum(solution**2 / (curvature + multiplier)) / positive_or_one(norm)
        # Newton on 1 / norm - 1 / radius, concave: from 0 it rises to the root, never past it.
        rise = norm * (norm / radius - 1.0) / positive_or_one(slope)
        return jnp.maximum(multiplier + rise, 0.0)

    multiplier = jax.lax.fori_loop(0, SECULAR_STEPS, raise_multiplier, jnp.zeros_like(radius))
    return into_ball(axes @ (pull / (curvature + multiplier)), radius)


def into_ball(point: Float[Array, " d"], radius: Float[Array, ""]) -> Float[Array, " d"]:
    """Nearest point of the ball around zero.

    Args:
        point: any point.
        radius: of the ball.

    Returns:
        The point itself where it is inside.

    Examples:
        >>> point = jnp.array([3.0, -4.0])
        >>> into_ball(point, jnp.array(1.0)).tolist(), into_ball(point, jnp.array(9.0)).tolist()
        ([0.6000000000000001, -0.8], [3.0, -4.0])
    """
    return point * jnp.minimum(1.0, radius / positive_or_one(jnp.linalg.norm(point)))


def positive_or_one(value: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """The value where it is positive, else 1: a denominator.

    Args:
        value: any numbers.

    Returns:
        Positive numbers.

    Examples:
        >>> positive_or_one(jnp.array([2.0, 0.0, -3.0])).tolist()
        [2.0, 1.0, 1.0]
    """
    value = jnp.asarray(value)
    return jnp.where(value > 0, value, 1.0)


def _laplacian_solve(
    edge_weights: Float[Array, "a a"],
    ground: Float[Array, " a"],
    right: Float[Array, " a"],
    held: Bool[Array, " a"],
    given: Float[Array, " a"],
) -> Float[Array, " a"]:
    """Solve (Laplacian + ground) @ v = right where free, with v given where held."""
    degree = edge_weights.sum(axis=-1) + ground
    free = ~held & (degree > 0)
    right = jnp.where(free, right + edge_weights @ jnp.where(held, given, 0.0), 0.0)
    scale = jnp.where(free, jax.lax.rsqrt(positive_or_one(degree)), 0.0)
    matrix = -scale[:, None] * edge_weights * scale[None, :]
    matrix = matrix + (1.0 + ROUNDING) * jnp.eye(len(right), dtype=right.dtype)
    solution = scale * cho_solve((jnp.linalg.cholesky(matrix), True), scale * right)
    # Tied to none that is held, the free ones may all rise at no cost: rounding must not do it.
    freedom = jnp.where(free, degree, 0.0)
    tie = jnp.sum(jnp.where(free[:, None] & held[None, :], edge_weights, 0.0))
    afloat = (tie <= ROUNDING * freedom.sum()) & (jnp.abs(right.sum()) <= ROUNDING)
    level = freedom @ solution / positive_or_one(freedom.sum())
    solution = jnp.where(afloat, solution - level, solution)
    return jnp.where(held, given, jnp.where(free, solution, 0.0))
