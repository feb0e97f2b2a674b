r"""Quadratic programs over a polyhedral cone, as coverage needs them.

.. math:: \min_d\; \langle w, d\rangle + \tfrac12\langle d, S d\rangle, \qquad J d \ge 0,

with a positive semidefinite :math:`S`. The dual has one multiplier per row of :math:`J`,

.. math:: \min_{\lambda\ge0} \|w - J^\top\lambda\|_{S^+}
          \quad\text{with } w - J^\top\lambda \text{ in the range of } S,

and the program is unbounded if and only if there are no such multipliers (Farkas). It is a
non-negative least-squares problem, solved by the active-set method of Lawson and Hanson, in which
components outside of the range weigh more than all others.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

OUTSIDE = 1e6
"""Weight of a component outside of the range of the quadratic form, relative to the others."""
RANK = 1e-11
"""Eigenvalues of the quadratic form below this share of the largest count as zero."""
TOLERANCE = 1e-9
"""Relative size below which a residual outside of the range is zero."""


class ActiveRows(NamedTuple):
    """Solution of the dual program.

    Attributes:
        active: rows with a positive multiplier: the solution of the program has ``J d = 0`` there.
        multipliers: the multipliers.
        bounded: whether the program has a solution.
    """

    active: Bool[Array, " c"]
    multipliers: Float[Array, " c"]
    bounded: Bool[Array, ""]


class _State(NamedTuple):
    """Passive variables of the active-set method, their values, and its progress."""

    passive: Bool[Array, " c"]
    values: Float[Array, " c"]
    done: Bool[Array, ""]
    steps: Int[Array, ""]


def active_rows(
    quadratic: Float[Array, "m m"], linear: Float[Array, " m"], rows: Float[Array, "c m"]
) -> ActiveRows:
    """Return the rows that are active at the solution of a quadratic program over a cone.

    Args:
        quadratic: positive semidefinite :math:`S`.
        linear: linear term :math:`w`.
        rows: :math:`J`, the normals of the cone; rows of zeros constrain nothing.

    Examples:
        >>> found = active_rows(jnp.eye(2), jnp.array([1.0, -1.0]), jnp.eye(2))
        >>> found.active.tolist(), bool(found.bounded)
        ([True, False], True)
    """
    sizes, axes = jnp.linalg.eigh(quadratic)
    largest = jnp.where(sizes[-1] > 0, sizes[-1], 1.0)
    seen = sizes > RANK * largest
    scale = jnp.where(seen, jax.lax.rsqrt(jnp.where(seen, sizes, 1.0)), 0.0)
    scale = jnp.where(seen, scale, OUTSIDE * jnp.maximum(scale.max(), jax.lax.rsqrt(largest)))
    lengths = jnp.linalg.norm(rows, axis=1)
    lengths = jnp.where(lengths > 0, lengths, 1.0)
    unit = rows / lengths[:, None]
    multipliers = non_negative_least_squares(
        scale[:, None] * (axes.T @ unit.T), scale * (axes.T @ linear)
    )
    left = axes.T @ (linear - unit.T @ multipliers)
    outside = jnp.linalg.norm(jnp.where(seen, 0.0, left))
    size = jnp.linalg.norm(linear) + jnp.abs(multipliers).sum()
    return ActiveRows(multipliers > 0, multipliers / lengths, outside <= TOLERANCE * size)


def non_negative_least_squares(
    matrix: Float[Array, "m c"], right: Float[Array, " m"]
) -> Float[Array, " c"]:
    r"""Minimize :math:`\|A\lambda-b\|` over :math:`\lambda\ge0` by Lawson and Hanson's method.

    Args:
        matrix: :math:`A`.
        right: :math:`b`.

    Returns:
        A minimizer.

    Examples:
        >>> non_negative_least_squares(jnp.eye(2), jnp.array([1.0, -1.0])).tolist()
        [1.0, 0.0]
    """
    n_variables = matrix.shape[1]
    limit = 3 * n_variables + 10
    lengths = jnp.linalg.norm(matrix, axis=0)
    lengths = jnp.where(lengths > 0, lengths, 1.0)
    columns = matrix / lengths
    tolerance = 1e-13 * jnp.linalg.norm(right)

    def least_squares(passive: Bool[Array, " c"]) -> Float[Array, " c"]:
        chosen = jnp.where(passive, columns, 0.0)
        return jnp.where(passive, jnp.linalg.pinv(chosen, rtol=1e-13) @ right, 0.0)

    def shrink(carry: tuple) -> tuple:
        passive, values, target, steps = carry
        blocking = passive & (target <= 0)
        fall = jnp.where(blocking, values - target, 1.0)
        ratio = jnp.where(blocking, values / jnp.where(fall > 0, fall, 1.0), jnp.inf)
        values = values + jnp.min(ratio) * (target - values)
        first = blocking & (ratio <= jnp.min(ratio))
        passive = passive & ~first & (values > 0)
        values = jnp.where(passive, values, 0.0)
        return passive, values, least_squares(passive), steps + 1

    def improve(state: _State) -> _State:
        slope = columns.T @ (right - columns @ state.values)
        slope = jnp.where(state.passive, -jnp.inf, slope)
        entering = jnp.argmax(slope)
        done = slope[entering] <= tolerance
        passive = jnp.where(done, state.passive, state.passive.at[entering].set(True))
        carry = passive, state.values, least_squares(passive), state.steps + 1
        carry = jax.lax.while_loop(
            lambda c: jnp.any(c[0] & (c[2] <= 0)) & (c[3] < limit), shrink, carry
        )
        passive, _, target, steps = carry
        # A variable that enters and leaves at once would enter again: rounding has stopped us.
        stuck = ~passive[entering] & (steps > state.steps + 1) & jnp.all(passive == state.passive)
        values = jnp.where(done, state.values, jnp.maximum(target, 0.0))
        return _State(passive, values, done | stuck, steps)

    nothing = jnp.zeros(n_variables, bool)
    start = _State(nothing, jnp.zeros_like(columns[0]), jnp.array(False), jnp.zeros((), jnp.int32))
    last = jax.lax.while_loop(lambda s: ~s.done & (s.steps < limit), improve, start)
    return last.values / lengths
