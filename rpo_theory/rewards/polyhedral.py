r"""What the two classes of linear inequalities share: projection and linear programs.

The functions take the class in units of its maximum: a polyhedron in the box :math:`[0,1]^n`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rpo_theory.numerics import linear_program, polyhedron_projection
from rpo_theory.numerics.linear_rows import Polyhedron
from rpo_theory.types import ArrayLike

PROXIMAL_STEPS = 2
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
    lowest = _minimizer(polyhedron, _unit(direction))
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
    duals = _duals(polyhedron, direction, _minimizer(polyhedron, _unit(direction)))
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
    lowest = _minimizer(polyhedron, _unit(direction))
    bounds = [bound(_duals(polyhedron, direction, point)) for point in (unit, lowest)]
    return jnp.minimum(*bounds) * maximum


def _unit(direction: Float[Array, "x a"]) -> Float[Array, " n"]:
    """Return a direction as a list whose largest entry is 1."""
    largest = jnp.abs(direction).max()
    return direction.reshape(-1) / jnp.where(largest > 0, largest, 1.0)


@jax.jit
def _minimizer(polyhedron: Polyhedron, slope: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return a minimizer of a linear function.

    Two proximal steps remove the error that rounding leaves in the interior point.
    """
    slope, polyhedron = jax.lax.stop_gradient((slope, polyhedron))
    start = linear_program.solve(slope, polyhedron).x

    def proximal(_: int, point: Float[Array, " n"]) -> Float[Array, " n"]:
        return polyhedron_projection.project(point - slope, polyhedron).point

    return jax.lax.fori_loop(0, PROXIMAL_STEPS, proximal, start)


def _duals(
    polyhedron: Polyhedron, direction: Float[Array, "x a"], point: Float[Array, " n"]
) -> Float[Array, " c"]:
    """Return multipliers of the rows, at least 0; they prove a minimizer to be one."""
    target, frozen = jax.lax.stop_gradient((point - _unit(direction), polyhedron))
    duals = polyhedron_projection.project(target, frozen).duals[2 * point.shape[0] :]
    scale = jax.lax.stop_gradient(jnp.abs(direction).max())
    return jnp.where(jnp.isfinite(duals), scale * duals, 0.0)
