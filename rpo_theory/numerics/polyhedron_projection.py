r"""Euclidean projection onto a polyhedron, by the dual active-set method.

.. math:: \min_x \tfrac12\|x-t\|^2 \quad\text{subject to}\quad Ax \le b

The method starts at the target, adds the constraint that is violated most, and drops constraints
whose multiplier would become negative (Goldfarb and Idnani, 1983). It ends at the exact active
set, so that the projection has no error but rounding. The last step is a linear solve on
that set, through which derivatives pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Bool, Float, Int

from .linear_rows import Polyhedron

VIOLATED = 8.0  # units in the last place by which a constraint must be exceeded to be added
DEPENDENT = 1e-10  # relative length of a row outside the span of the active rows that counts as 0
STEPS_PER_CONSTRAINT = 4  # bounds the number of steps; degenerate problems take about one each


class _State(NamedTuple):
    """Iterate; ``active`` lists rows in ``used`` places, ``entering`` is the row being added."""

    x: Float[Array, " m"]
    active: Int[Array, " m"]
    used: Bool[Array, " m"]
    duals: Float[Array, " m"]
    entering: Int[Array, ""]
    entering_dual: Float[Array, ""]
    done: Bool[Array, ""]
    steps: Int[Array, ""]


class Projection(NamedTuple):
    r"""Nearest point of a polyhedron.

    Attributes:
        point: the projection :math:`x` of the target :math:`t`.
        duals: multipliers :math:`\lambda\ge0` with :math:`t-x=A^\top\lambda`, for lower bounds,
            upper bounds and limits, shape ``[2m+c]``.
    """

    point: Float[Array, " m"]
    duals: Float[Array, " s"]


@jax.jit
def project(target: Float[Array, " m"], polyhedron: Polyhedron) -> Projection:
    """Return the nearest point of a polyhedron.

    Args:
        target: any point.
        polyhedron: constraints with a feasible point.

    Returns:
        The projection; a point that satisfies all constraints is returned as it is. Derivatives
        are those on the active set.

    Examples:
        >>> from rpo_theory.numerics.linear_rows import DenseRows
        >>> ones = jnp.ones(2)
        >>> polyhedron = Polyhedron(ones, DenseRows(jnp.ones((1, 2))), ones[:1])
        >>> project(jnp.array([0.75, 1.25]), polyhedron).point.round(9).tolist()
        [0.25, 0.75]
    """
    active, used = _active_set(*jax.lax.stop_gradient((target, polyhedron)))
    rows = jnp.where(used[:, None], polyhedron.select(active), 0.0)
    lengths = polyhedron.lengths()
    limits = (polyhedron.all_limits() / lengths)[active]
    excess = jnp.where(used, rows @ target - limits, 0.0)
    factor = cho_factor(rows @ rows.T + jnp.diag(jnp.where(used, 0.0, 1.0)))
    duals = cho_solve(factor, excess)
    multipliers = (
        jnp.zeros_like(lengths).at[active].add(jnp.where(used, duals / lengths[active], 0.0))
    )
    return Projection(target - duals @ rows, jnp.maximum(multipliers, 0.0))


def _active_set(
    target: Float[Array, " m"], polyhedron: Polyhedron
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Return the constraints that are active at the projection, linearly independent."""
    size = target.shape[0]
    lengths = polyhedron.lengths()
    limits = polyhedron.all_limits() / lengths
    eps = jnp.finfo(target.dtype).eps
    rounding = VIOLATED * eps * (jnp.abs(limits) + jnp.abs(target).max())

    def excess(x: Float[Array, " m"]) -> Float[Array, " s"]:
        return polyhedron.apply(x) / lengths - limits

    def choose(state: _State) -> _State:
        """Take the constraint that is violated most as the entering one."""
        over = excess(state.x)
        chosen = jnp.zeros_like(over, bool).at[state.active].max(state.used)
        over = jnp.where((over > rounding) & ~chosen, over, -jnp.inf)
        worst = jnp.argmax(over).astype(jnp.int32)
        return state._replace(
            entering=worst,
            entering_dual=jnp.zeros_like(state.entering_dual),
            done=over[worst] == -jnp.inf,
        )

    def move(state: _State) -> _State:
        """Raise the multiplier of the entering constraint until it holds or another drops."""
        rows = jnp.where(state.used[:, None], polyhedron.select(state.active), 0.0)
        entering = polyhedron.select(state.entering[None])[0]
        factor = cho_factor(rows @ rows.T + jnp.diag(jnp.where(state.used, 0.0, 1.0)))
        share = cho_solve(factor, rows @ entering)
        share = share + cho_solve(factor, rows @ (entering - share @ rows))  # refine once
        outside = entering - share @ rows
        squared = outside @ outside
        independent = (squared > DEPENDENT**2) & ~state.used.all()
        gap = excess(state.x)[state.entering]
        full = jnp.where(independent, gap / jnp.where(independent, squared, 1.0), jnp.inf)
        falling = state.used & (share > 0)
        ratio = jnp.where(falling, state.duals / jnp.where(falling, share, 1.0), jnp.inf)
        leaving = jnp.argmin(ratio)
        step = jnp.minimum(full, ratio[leaving])
        infeasible = ~jnp.isfinite(step)
        step = jnp.where(infeasible, 0.0, step)
        arrives = full <= ratio[leaving]
        free = jnp.argmin(state.used)
        duals = jnp.where(state.used, jnp.maximum(state.duals - step * share, 0.0), 0.0)
        dual = state.entering_dual + step
        slot = jnp.where(arrives, free, leaving)
        return _State(
            x=jnp.where(independent, state.x - step * outside, state.x),
            active=jnp.where(arrives, state.active.at[slot].set(state.entering), state.active),
            used=state.used.at[slot].set(arrives),
            duals=duals.at[slot].set(jnp.where(arrives, dual, 0.0)),
            entering=jnp.where(arrives, -1, state.entering),
            entering_dual=dual,
            done=infeasible,
            steps=state.steps + 1,
        )

    def advance(state: _State) -> _State:
        chosen = choose(state)
        state = jax.tree.map(
            lambda new, old: jnp.where(state.entering < 0, new, old), chosen, state
        )
        moved = move(state)
        return jax.tree.map(lambda new, old: jnp.where(state.done, old, new), moved, state)

    max_steps = STEPS_PER_CONSTRAINT * lengths.shape[0]
    first = _State(
        x=target,
        active=jnp.zeros(size, jnp.int32),
        used=jnp.zeros(size, bool),
        duals=jnp.zeros_like(target),
        entering=jnp.int32(-1),
        entering_dual=jnp.zeros_like(target[0]),
        done=jnp.array(False),
        steps=jnp.int32(0),
    )
    last = jax.lax.while_loop(lambda state: ~state.done & (state.steps < max_steps), advance, first)
    return last.active, last.used
