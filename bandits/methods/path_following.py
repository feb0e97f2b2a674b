r"""Newton's method along a path of smooth problems: for convex kinks and constraints.

A kink is rounded at the scale of a temperature :math:`\tau` and a constraint is replaced by
:math:`\tau` times a logarithmic barrier; as :math:`\tau` falls the minimisers lead to that of the
problem itself. How near they came is for the caller's certificate to say.
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

COOLEST = 1e-8  # colder, and the rounding of the point moves what the temperature divides
COOLING = 0.3
CENTRED = 0.1  # squared Newton decrement, per temperature, at which the next one may be tried
NEAR = 1e-6  # the same, from which Newton's step is right and the objective's rounding is larger
LENGTHS = 0.3 ** np.arange(24)  # to 1e-12: far from a kink Newton's own step is wild
LIFT = 1e-14  # of a Hessian that is singular to rounding, relative to its diagonal
MAX_STEPS = 400

SmoothedObjective = Callable[[Float[Array, " p"], Float[Array, ""]], Float[Array, ""]]


class PathState(NamedTuple):
    """Where the method stands.

    Attributes:
        point: the free variables.
        temperature: scale of the smoothing.
        decrement: squared Newton decrement per temperature, before the last step; infinite at a
            new temperature.
        steps: Newton steps taken.
        done: whether the last temperature is solved.
    """

    point: Float[Array, " p"]
    temperature: Float[Array, ""]
    decrement: Float[Array, ""]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def follow_path(objective: SmoothedObjective, start: Float[Array, " p"]) -> PathState:
    """Minimise at ever lower temperatures.

    Args:
        objective: of point and temperature; convex, in units in which its terms are about one, and
            not finite outside of the constraints.
        start: a point inside.

    Returns:
        The final state.

    Examples:
        >>> kink = lambda p, t: t * jax.nn.softplus(p / t).sum() - 0.5 * p.sum() + t * (p**2).sum()
        >>> bool(abs(follow_path(kink, jnp.ones(1)).point[0]) < 1e-6)
        True
    """
    first = PathState(
        start,
        jnp.ones_like(start, shape=()),
        jnp.full_like(start, jnp.inf, shape=()),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    return jax.lax.while_loop(
        lambda path: ~path.done & (path.steps < MAX_STEPS),
        lambda path: _step(objective, path),
        first,
    )


def _step(objective: SmoothedObjective, path: PathState) -> PathState:
    """One Newton step of the best of many lengths; colder where the step was small."""

    def at_temperature(point: Float[Array, " p"]) -> Float[Array, ""]:
        return objective(point, path.temperature)

    gradient = jax.grad(at_temperature)(path.point)
    hessian = jax.hessian(at_temperature)(path.point)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(hessian), jnp.finfo(hessian.dtype).tiny))
    matrix = scale[:, None] * hessian * scale + LIFT * jnp.eye(len(scale), dtype=hessian.dtype)
    direction = -scale * cho_solve((jnp.linalg.cholesky(matrix), True), scale * gradient)
    # A factorisation that rounding broke still leaves the gradient, in the same scale.
    direction = jnp.where(jnp.isfinite(direction).all(), direction, -(scale**2) * gradient)
    decrement = -gradient @ direction / path.temperature

    candidates = path.point + jnp.asarray(LENGTHS, path.point.dtype)[:, None] * direction
    values = jax.vmap(at_temperature)(candidates)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    here = at_temperature(path.point)
    near = (decrement <= NEAR) & (values[0] <= here + path.temperature)
    best = jnp.where(near, 0, jnp.argmin(values))
    better = near | (values[best] <= here)
    last = path.temperature <= COOLEST
    colder = ((decrement <= CENTRED) | ~better) & ~last
    # Newton's steps shrink until rounding stops them.
    settled = ~better | (near & (decrement >= 0.5 * path.decrement))
    return PathState(
        point=jnp.where(better, candidates[best], path.point),
        temperature=jnp.where(
            colder, jnp.maximum(COOLING * path.temperature, COOLEST), path.temperature
        ),
        decrement=jnp.where(colder, jnp.inf, decrement),
        steps=path.steps + 1,
        done=last & settled,
    )
