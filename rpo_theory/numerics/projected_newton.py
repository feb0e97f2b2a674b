r"""Projected Newton method on a box and on a ball, for smooth convex functions.

The gradient comes from automatic differentiation, the Hessian from the caller. A step aims at the
minimizer of the quadratic model (on the box, over the coordinates that no bound blocks), and the
line search tries many step lengths at once.
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
"""Step lengths that the line search tries, as fractions of the Newton step, longest first."""
ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Relative differences below this count as rounding; also the lift of a singular Hessian."""
SECULAR_STEPS = 30
"""Number of Newton steps on the secular equation of the ball."""


class Descent(NamedTuple):
    """Iterate of the method.

    Attributes:
        point: variables of the problem.
        movement: length of the last full step, in the measure of the problem.
        gradient_norm: largest entry of the projected gradient before the last step.
        steps: number of steps.
    """

    point: Float[Array, "*p"]
    movement: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    steps: Int[Array, ""]


class NewtonProblem(NamedTuple):
    """Constrained convex problem.

    Attributes:
        objective: smooth convex function.
        direction: Newton direction at a point with a gradient.
        project: projection onto the feasible set.
        movement: distance between two points, for the stopping rule.
    """

    objective: Callable[[Array], Array]
    direction: Callable[[Array, Array], Array]
    project: Callable[[Array], Array]
    movement: Callable[[Array, Array], Array]


def minimize(
    problem: NewtonProblem, start: Float[Array, "*p"], *, tolerance: float, max_steps: int
) -> Descent:
    """Minimize until a full step moves the point by at most the tolerance.

    Args:
        problem: objective and feasible set.
        start: a feasible point.
        tolerance: largest distance that a full step may move at the end, by ``problem.movement``.
        max_steps: maximum number of steps.

    Returns:
        The last iterate.

    Examples:
        >>> problem = NewtonProblem(
        ...     objective=lambda point: (point**2).sum(),
        ...     direction=lambda point, gradient: -gradient / 2,
        ...     project=jnp.abs,
        ...     movement=lambda new, old: new[0],
        ... )
        >>> minimize(problem, jnp.ones(2), tolerance=1e-3, max_steps=9).point.tolist()
        [0.0, 0.0]
    """
    unknown = jnp.full_like(start, jnp.inf, shape=())
    return jax.lax.while_loop(
        lambda state: (state.movement > tolerance) & (state.steps < max_steps),
        lambda state: step(problem, state),
        Descent(start, unknown, unknown, jnp.zeros((), jnp.int32)),
    )


def step(problem: NewtonProblem, state: Descent) -> Descent:
    """Take one Newton step with the length that gives the smallest objective."""
    value, gradient = jax.value_and_grad(problem.objective)(state.point)
    direction = problem.direction(state.point, gradient)
    lengths = jnp.asarray(LENGTHS, state.point.dtype)
    candidates = jax.vmap(lambda t: problem.project(state.point + t * direction))(lengths)
    values = jax.vmap(problem.objective)(candidates)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    best = jnp.argmin(values)
    # Near the minimum rounding hides the differences between lengths: take the full step.
    rounding = ROUNDING * (1.0 + jnp.abs(value))
    chosen = jnp.where(values[0] <= values[best] + rounding, 0, best)
    residual = state.point - problem.project(state.point - gradient)
    return Descent(
        point=jnp.where(values[chosen] <= value + rounding, candidates[chosen], state.point),
        movement=problem.movement(candidates[0], state.point),
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
    r"""Return the Newton direction in a box for a Hessian that is a graph Laplacian.

    Coordinates that even the shortest step would take out of the box are fixed at their bound, and
    the direction is recomputed until there is no such coordinate.

    Args:
        edge_weights: weights :math:`K`, symmetric, at least 0, with zero diagonal: the Hessian is
            :math:`\mathrm{diag}(K1) - K`.
        gradient: gradient of an objective whose terms are of order one.
        below: distances to the lower bound.
        above: distances to the upper bound.
        reach: largest move of a group of coordinates with almost no curvature.

    Returns:
        A descent direction.

    Examples:
        >>> distance, edge = jnp.ones(2), jnp.array([[0.0, 0.5], [0.5, 0.0]])
        >>> box_direction(edge, jnp.array([1.0, -1.0]), distance, distance, 1e6).round(4).tolist()
        [-1.0, 1.0]
    """
    # Regularization proportional to the gradient: it vanishes as fast as the error.
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
    """Return the minimizer of a quadratic model over a ball around zero.

    Args:
        hessian: positive semi-definite Hessian of the model.
        gradient: gradient of the model at ``point``.
        point: point of expansion of the model.
        radius: radius of the ball.

    Returns:
        The minimizer, from the secular equation of its multiplier.

    Examples:
        >>> ball_minimizer(jnp.eye(1), -4.0 * jnp.ones(1), jnp.zeros(1), jnp.array(2.0)).tolist()
        [2.0]
    """
    curvature, axes = jnp.linalg.eigh(hessian)
    curvature = jnp.maximum(curvature, 0.0) + ROUNDING * positive_or_one(curvature[-1])
    pull = curvature * (axes.T @ point) - axes.T @ gradient

    multiplier = radius_multiplier(curvature, pull, radius)
    return into_ball(axes @ (pull / (curvature + multiplier)), radius)


@jax.jit
def radius_multiplier(
    curvature: Float[Array, " d"], pull: Float[Array, " d"], radius: Float[Array, ""]
) -> Float[Array, ""]:
    r"""Return the multiplier of a ball in a diagonal quadratic program.

    .. math:: \min_\theta \tfrac12\sum_i h_i\theta_i^2 - \langle p,\theta\rangle
        \quad\text{subject to}\quad \|\theta\|\le B

    Args:
        curvature: :math:`h_i\ge0`; where it is 0 the pull must be 0.
        pull: :math:`p_i`.
        radius: :math:`B`.

    Returns:
        :math:`\nu\ge0` with :math:`\theta_i=p_i/(h_i+\nu)`; 0 if the ball does not bind.

    Examples:
        >>> float(radius_multiplier(jnp.ones(1), 4.0 * jnp.ones(1), jnp.array(2.0)))
        1.0
    """

    def raise_multiplier(_: Int[Array, ""], multiplier: Array) -> Array:
        weights = positive_or_one(curvature + multiplier)
        solution = pull / weights
        norm = jnp.linalg.norm(solution)
        derivative = jnp.sum(solution**2 / weights) / positive_or_one(norm)
        # Newton on the concave 1 / norm - 1 / radius increases from 0 to the root, never past it.
        rise = norm * (norm / radius - 1.0) / positive_or_one(derivative)
        return jnp.maximum(multiplier + rise, 0.0)

    return jax.lax.fori_loop(0, SECULAR_STEPS, raise_multiplier, jnp.zeros_like(radius))


def into_ball(point: Float[Array, " d"], radius: Float[Array, ""]) -> Float[Array, " d"]:
    """Project a point onto a ball around zero.

    Args:
        point: any point.
        radius: radius of the ball.

    Returns:
        The nearest point of the ball.

    Examples:
        >>> point = jnp.array([3.0, -4.0])
        >>> into_ball(point, jnp.array(1.0)).tolist(), into_ball(point, jnp.array(9.0)).tolist()
        ([0.6000000000000001, -0.8], [3.0, -4.0])
    """
    return point * jnp.minimum(1.0, radius / positive_or_one(jnp.linalg.norm(point)))


def positive_or_one(value: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by 1, for use as denominators.

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
    held_value: Float[Array, " a"],
) -> Float[Array, " a"]:
    """Solve (Laplacian + ground) @ v = right for the free entries, with the held ones fixed."""
    degree = edge_weights.sum(axis=-1) + ground
    free = ~held & (degree > 0)
    right = jnp.where(free, right + edge_weights @ jnp.where(held, held_value, 0.0), 0.0)
    scale = jnp.where(free, jax.lax.rsqrt(positive_or_one(degree)), 0.0)
    matrix = -scale[:, None] * edge_weights * scale[None, :]
    matrix = matrix + (1.0 + ROUNDING) * jnp.eye(len(right), dtype=right.dtype)
    solution = scale * cho_solve((jnp.linalg.cholesky(matrix), True), scale * right)
    # If no free entry is connected to a held one, a common shift costs nothing: remove it.
    freedom = jnp.where(free, degree, 0.0)
    tie = jnp.sum(jnp.where(free[:, None] & held[None, :], edge_weights, 0.0))
    unconstrained = (tie <= ROUNDING * freedom.sum()) & (jnp.abs(right.sum()) <= ROUNDING)
    level = freedom @ solution / positive_or_one(freedom.sum())
    solution = jnp.where(unconstrained, solution - level, solution)
    return jnp.where(held, held_value, jnp.where(free, solution, 0.0))
