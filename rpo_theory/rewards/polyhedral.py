r"""What the two classes of linear inequalities share: projection and linear programs.

The functions take the class in units of its maximum: a polyhedron in the box :math:`[0,1]^n`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from rpo_theory.numerics import linear_program, polyhedron_projection
from rpo_theory.numerics.linear_rows import Polyhedron
from rpo_theory.types import ArrayLike

PROXIMAL_STEPS = 3
"""Proximal steps after the interior point; one from near a solution ends in a solution."""


def project(
    polyhedron: Polyhedron, maximum: ArrayLike | float, reward: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    """Return the nearest table whose entries over the maximum are in a polyhedron.

    Args:
        polyhedron: constraints in units of the maximum.
        maximum: largest reward.
        reward: any table.
    """
    reward = jnp.asarray(reward)
    nearest = polyhedron_projection.project(reward.reshape(-1) / maximum, polyhedron).point
    return (nearest * maximum).reshape(reward.shape)


def linear_minimizer(
    polyhedron: Polyhedron, maximum: ArrayLike | float, direction: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return a table that minimizes :math:`\langle v,r\rangle`.

    Args:
        polyhedron: constraints in units of the maximum.
        maximum: largest reward.
        direction: :math:`v(x,a)`.
    """
    direction = jnp.asarray(direction)
    lowest = _minimize(polyhedron, direction, jnp.zeros(direction.size)).minimizer
    return (jnp.clip(lowest, 0.0, 1.0) * maximum).reshape(direction.shape)


def linear_minimum(
    polyhedron: Polyhedron, maximum: ArrayLike | float, direction: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""Bound the minimum of :math:`\langle v,r\rangle` from below, by the dual linear program.

    With any :math:`\lambda\ge0` and :math:`w=v+G^\top\lambda`, weak duality gives
    :math:`-\langle\lambda,h\rangle-\sum w_-`; it is exact at the dual solution.

    Args:
        polyhedron: constraints in units of the maximum.
        maximum: largest reward.
        direction: :math:`v(x,a)`.
    """
    direction = jnp.asarray(direction)
    duals = _minimize(polyhedron, direction, jnp.zeros(direction.size)).duals
    reduced = direction.reshape(-1) + polyhedron.rows.adjoint(duals)
    lowest = jnp.minimum(reduced, 0.0).sum() - jnp.vdot(duals, polyhedron.limits)
    return lowest * maximum


def linear_gap(
    polyhedron: Polyhedron,
    maximum: ArrayLike | float,
    direction: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, ""]:
    r"""Bound the linear gap of a member from above, by the dual linear program.

    .. math:: \langle\lambda, h-Gr\rangle + \sum_{w>0} w\,r + \sum_{w<0} |w|(1-r)

    The terms are at least 0, so none cancel. Any multipliers :math:`\lambda\ge0` give a bound.

    Args:
        polyhedron: constraints in units of the maximum.
        maximum: largest reward.
        direction: :math:`v(x,a)`.
        reward: a member.
    """
    unit, direction = jnp.asarray(reward).reshape(-1) / maximum, jnp.asarray(direction)
    slack = polyhedron.limits - polyhedron.rows.apply(unit)
    # The limits and the rows nearly cancel: add a bound on their rounding errors.
    size = unit.shape[0] ** 0.5 * polyhedron.rows.lengths(unit.shape[0]) * jnp.abs(unit).max()
    slack = slack + jnp.finfo(unit.dtype).eps * (jnp.abs(polyhedron.limits) + size)

    def bound(duals: Float[Array, " c"]) -> Float[Array, ""]:
        reduced = direction.reshape(-1) + polyhedron.rows.adjoint(duals)
        bounds = jnp.sum(reduced * jnp.where(reduced > 0, unit, unit - 1.0))
        return bounds + jnp.vdot(duals, slack)

    # The multipliers at the reward are exact if it is a minimizer, those of the program if not.
    optimum = _minimize(polyhedron, direction, unit)
    return jnp.minimum(bound(optimum.duals), bound(optimum.duals_at_point)) * maximum


class _Optimum(NamedTuple):
    """Minimizer of a linear function, and multipliers of the rows, at least 0.

    Those at a point prove it a minimizer if it is one.
    """

    minimizer: Float[Array, " n"]
    duals: Float[Array, " c"]
    duals_at_point: Float[Array, " c"]


@jax.jit
def _minimize(
    polyhedron: Polyhedron, direction: Float[Array, "x a"], point: Float[Array, " n"]
) -> _Optimum:
    """Minimize a linear function by an interior point and proximal steps.

    The steps remove the error that rounding leaves in the interior point; the last one starts at
    the point instead. One loop takes them all, so that the projection is compiled once.
    """
    polyhedron, direction, point = jax.lax.stop_gradient((polyhedron, direction, point))
    largest = jnp.abs(direction).max()
    slope = direction.reshape(-1) / jnp.where(largest > 0, largest, 1.0)

    def step(
        current: Float[Array, " n"], at_point: Bool[Array, ""]
    ) -> tuple[Float[Array, " n"], tuple[Float[Array, " n"], Float[Array, " c"]]]:
        start = jnp.where(at_point, point, current)
        nearest = polyhedron_projection.project(start - slope, polyhedron)
        duals = largest * nearest.duals[2 * slope.shape[0] :]
        return nearest.point, (nearest.point, jnp.where(jnp.isfinite(duals), duals, 0.0))

    start = linear_program.solve(slope, polyhedron).x
    last = jnp.arange(PROXIMAL_STEPS + 1) == PROXIMAL_STEPS
    _, (points, duals) = jax.lax.scan(step, start, last)
    return _Optimum(points[-2], duals[-2], duals[-1])
