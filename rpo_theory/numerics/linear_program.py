r"""Linear programs over a polyhedron in a box, by a primal-dual interior point.

.. math:: \min_x \langle v, x\rangle \quad\text{subject to}\quad 0 \le x \le u, \; Gx \le h

Slacks are separate unknowns, so that they keep their relative precision near the boundary.
Mehrotra's predictor-corrector steps start outside of the constraints, so no interior is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Int

from .linear_rows import Polyhedron

MAX_STEPS = 100
INSIDE = 0.99  # share of the way to the boundary that a step may go
PATIENCE = 5  # steps without progress after which rounding has stopped the iteration
START = 0.25  # smallest initial slack


class LinearOptimum(NamedTuple):
    """Solution of a linear program.

    Attributes:
        x: primal variables.
        slacks: distances from lower bounds, upper bounds and limits, shape ``[2m+c]``.
        duals: their multipliers, at least 0, shape ``[2m+c]``.
    """

    x: Float[Array, " m"]
    slacks: Float[Array, " s"]
    duals: Float[Array, " s"]


class _State(NamedTuple):
    point: LinearOptimum
    merit: Float[Array, ""]
    best: LinearOptimum
    best_merit: Float[Array, ""]
    since: Int[Array, ""]
    steps: Int[Array, ""]


@jax.jit
def solve(slope: Float[Array, " m"], polyhedron: Polyhedron) -> LinearOptimum:
    """Minimize a linear function; bounds and slope should be of order one.

    Args:
        slope: coefficients :math:`v` of the objective.
        polyhedron: constraints with a feasible point.

    Returns:
        The iterate that violates the optimality conditions least.

    Examples:
        >>> from rpo_theory.numerics.linear_rows import DenseRows
        >>> ones = jnp.ones(2)
        >>> polyhedron = Polyhedron(ones, DenseRows(jnp.ones((1, 2))), ones[:1])
        >>> solve(-ones, polyhedron).x.round(6).tolist()
        [0.5, 0.5]
    """
    x = 0.5 * polyhedron.upper
    slacks = jnp.maximum(polyhedron.all_limits() - polyhedron.apply(x), START)
    size = jnp.maximum(1.0, jnp.abs(slope).max())
    first = LinearOptimum(x, slacks, size / slacks)
    merit = _merit(slope, polyhedron, first)
    done = jnp.finfo(x.dtype).eps * size

    def running(state: _State) -> Array:
        going = (state.merit > done) & (state.since < PATIENCE) & (state.steps < MAX_STEPS)
        return going & jnp.isfinite(state.merit)

    def advance(state: _State) -> _State:
        point = _step(slope, polyhedron, state.point)
        merit = _merit(slope, polyhedron, point)
        better = merit < state.best_merit
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), point, state.best)
        since = jnp.where(merit < 0.9 * state.best_merit, 0, state.since + 1)
        best_merit = jnp.where(better, merit, state.best_merit)
        return _State(point, merit, best, best_merit, since, state.steps + 1)

    state = _State(first, merit, first, merit, jnp.int32(0), jnp.int32(0))
    return jax.lax.while_loop(running, advance, state).best


def _step(slope: Float[Array, " m"], polyhedron: Polyhedron, point: LinearOptimum) -> LinearOptimum:
    """Take one predictor-corrector step."""
    x, slacks, duals = point
    matrix = polyhedron.gram(duals / slacks)
    scale = jax.lax.rsqrt(jnp.diag(matrix))
    factor = cho_factor(matrix * scale[:, None] * scale)
    stationarity = slope + polyhedron.adjoint(duals)
    violation = polyhedron.all_limits() - polyhedron.apply(x) - slacks

    def direction(complementarity: Float[Array, " s"]) -> LinearOptimum:
        pushed = -(complementarity + duals * violation) / slacks
        dx = scale * cho_solve(factor, scale * (-stationarity - polyhedron.adjoint(pushed)))
        ds = violation - polyhedron.apply(dx)
        return LinearOptimum(dx, ds, -(complementarity + duals * ds) / slacks)

    mean = jnp.vdot(slacks, duals) / slacks.shape[0]
    predictor = direction(slacks * duals)
    primal = _reach(slacks, predictor.slacks, 1.0)
    dual = _reach(duals, predictor.duals, 1.0)
    ahead = jnp.vdot(slacks + primal * predictor.slacks, duals + dual * predictor.duals)
    target = mean * (ahead / (slacks.shape[0] * mean)) ** 3
    corrector = direction(slacks * duals + predictor.slacks * predictor.duals - target)
    primal = _reach(slacks, corrector.slacks, INSIDE)
    dual = _reach(duals, corrector.duals, INSIDE)
    return LinearOptimum(
        x + primal * corrector.x,
        slacks + primal * corrector.slacks,
        duals + dual * corrector.duals,
    )


def _reach(values: Float[Array, " s"], change: Float[Array, " s"], share: float) -> Array:
    """Return the longest step up to 1 that keeps values positive, times a share."""
    falling = change < 0
    ratio = jnp.where(falling, -values / jnp.where(falling, change, -1.0), jnp.inf)
    return jnp.minimum(1.0, share * ratio.min())


def _merit(
    slope: Float[Array, " m"], polyhedron: Polyhedron, point: LinearOptimum
) -> Float[Array, ""]:
    """Return the largest violation of the optimality conditions."""
    stationarity = jnp.abs(slope + polyhedron.adjoint(point.duals)).max()
    violation = polyhedron.all_limits() - polyhedron.apply(point.x) - point.slacks
    complementarity = jnp.vdot(point.slacks, point.duals)
    return jnp.maximum(complementarity, jnp.maximum(stationarity, jnp.abs(violation).max()))
