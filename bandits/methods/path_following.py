r"""Newton's method along a path of smooth problems, for convex kinks and constraints.

A kink is smoothed at the scale of a temperature :math:`\tau`, and a constraint is replaced by
:math:`\tau` times a logarithmic barrier. As :math:`\tau` falls, the minimizers approach that of the
problem itself. The caller's certificate measures how close they came.
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

FINAL_TEMPERATURE = 1e-8  # below it, rounding of the point is amplified too much
COOLING = 0.3  # ratio of consecutive temperatures
CENTERED = 0.1  # squared Newton decrement, per temperature, that allows the next temperature
CONVERGED = 1e-6  # the same, below which full steps are right and the objective only shows rounding
STEP_LENGTHS = 0.3 ** np.arange(24)  # down to 1e-12: near a kink a full Newton step is far too long
RIDGE = 1e-14  # added to a scaled Hessian, which may be singular up to rounding
MAX_STEPS = 400

SmoothedObjective = Callable[[Float[Array, " p"], Float[Array, ""]], Float[Array, ""]]


class PathState(NamedTuple):
    """State of Newton's method on the path.

    Attributes:
        point: free variables.
        temperature: scale of the smoothing.
        decrement: squared Newton decrement per temperature before the last step; infinite at a new
            temperature.
        steps: number of Newton steps so far.
        done: whether the problem at the final temperature is solved.
    """

    point: Float[Array, " p"]
    temperature: Float[Array, ""]
    decrement: Float[Array, ""]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def follow_path(
    objective: SmoothedObjective, start: Float[Array, " p"], *, is_convex: bool = True
) -> PathState:
    """Minimize an objective at falling temperatures, each from the minimizer of the one before.

    Args:
        objective: function of point and temperature, scaled so that its terms are of order one,
            and not finite outside of the constraints.
        start: a point inside of the constraints.
        is_convex: whether the objective is convex. If not, directions of negative curvature are
            followed downhill, and the path ends in a stationary point.

    Returns:
        The final state.

    Examples:
        >>> kink = lambda p, t: t * jax.nn.softplus(p / t).sum() - 0.5 * p.sum() + t * (p**2).sum()
        >>> bool(abs(follow_path(kink, jnp.ones(1)).point[0]) < 1e-6)
        True
    """
    initial = PathState(
        start,
        jnp.ones_like(start, shape=()),
        jnp.full_like(start, jnp.inf, shape=()),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    return jax.lax.while_loop(
        lambda path: ~path.done & (path.steps < MAX_STEPS),
        lambda path: _step(objective, path, is_convex),
        initial,
    )


def _step(objective: SmoothedObjective, path: PathState, is_convex: bool) -> PathState:
    """Take a Newton step of the best length, and lower the temperature if the step was small."""

    def at_temperature(point: Float[Array, " p"]) -> Float[Array, ""]:
        return objective(point, path.temperature)

    gradient = jax.grad(at_temperature)(path.point)
    hessian = jax.hessian(at_temperature)(path.point)
    curvature = jnp.diagonal(hessian) if is_convex else jnp.abs(jnp.diagonal(hessian))
    scale = jax.lax.rsqrt(jnp.maximum(curvature, jnp.finfo(hessian.dtype).tiny))
    matrix = scale[:, None] * hessian * scale + RIDGE * jnp.eye(len(scale), dtype=hessian.dtype)
    if is_convex:
        direction = -scale * cho_solve((jnp.linalg.cholesky(matrix), True), scale * gradient)
    else:
        values, vectors = jnp.linalg.eigh(matrix)
        size = jnp.maximum(jnp.abs(values), RIDGE)
        direction = -scale * (vectors @ ((vectors.T @ (scale * gradient)) / size))
    # If rounding makes the factorization fail, use the gradient in the same scale.
    direction = jnp.where(jnp.isfinite(direction).all(), direction, -(scale**2) * gradient)
    decrement = -gradient @ direction / path.temperature

    candidates = path.point + jnp.asarray(STEP_LENGTHS, path.point.dtype)[:, None] * direction
    values = jax.vmap(at_temperature)(candidates)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    value = at_temperature(path.point)
    converged = (decrement <= CONVERGED) & (values[0] <= value + path.temperature)
    best = jnp.where(converged, 0, jnp.argmin(values))
    improved = converged | (values[best] <= value)
    is_final = path.temperature <= FINAL_TEMPERATURE
    cool = ((decrement <= CENTERED) | ~improved) & ~is_final
    # Newton's steps shrink until rounding stops them.
    settled = ~improved | (converged & (decrement >= 0.5 * path.decrement))
    return PathState(
        point=jnp.where(improved, candidates[best], path.point),
        temperature=jnp.where(
            cool, jnp.maximum(COOLING * path.temperature, FINAL_TEMPERATURE), path.temperature
        ),
        decrement=jnp.where(cool, jnp.inf, decrement),
        steps=path.steps + 1,
        done=is_final & settled,
    )
