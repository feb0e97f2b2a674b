r"""Resistor networks with diodes to ground: what coverage of a tabular class comes down to.

At one prompt the comparisons are a problem whose node :math:`i` is a response and whose
conductances :math:`w_{ij}` are comparison frequencies, with Laplacian :math:`L`; :math:`c` is the
linear fed in. A node may be tied to ground by a diode that keeps its point :math:`d_i\ge0`, or
:math:`d_i\le0`. The objective that the problem dissipates is

.. math:: 2\,\sup_d\; \langle c, d\rangle - \tfrac12 \langle d, L d\rangle
          \quad\text{with the signs that the diodes allow,}

infinite where a connected part is fed a net linear that no diode of it lets out.

The diodes that conduct are found as the strategies of a stopping iterate (Hoffman and Karp: answer
best to the other side's strategy, then let it improve), finitely many steps, each one elimination
of the nodes that are not at ground. Eliminating a node replaces its star by a mesh: only positive
numbers are added, so conductances of 1 and of 1e-12 in one problem lose no digits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

PANEL = 64  # nodes eliminated before one matrix product updates the rest: measured, flat 32 to 128
ERROR_GROWTH = 16.0  # roundings of an elimination, in units of the number of nodes


class LaplacianQP(NamedTuple):
    """A problem of ``a`` nodes.

    Attributes:
        edge_weights: edge_weights between nodes, symmetric, zero diagonal, at least 0.
        linear: linear fed into each node.
        nonnegative: nodes with a diode that keeps the point at least 0.
        nonpositive: nodes with a diode that keeps the point at most 0; no node has both.
    """

    edge_weights: Float[Array, "a a"]
    linear: Float[Array, " a"]
    nonnegative: Bool[Array, " a"]
    nonpositive: Bool[Array, " a"]


class ActiveSetSolution(NamedTuple):
    """The problem with some nodes held at ground.

    Attributes:
        point: point of each node, 0 at ground.
        point_error: bound on its rounding error.
        multiplier: linear that ground feeds into each node held there; 0 elsewhere.
        multiplier_error: bound on its rounding error.
        objective: objective dissipated.
    """

    point: Float[Array, " a"]
    point_error: Float[Array, " a"]
    multiplier: Float[Array, " a"]
    multiplier_error: Float[Array, " a"]
    objective: Float[Array, ""]


class _Elimination(NamedTuple):
    """Rows, degrees and loads of the nodes when they were eliminated; degree 0 at ground."""

    rows: Float[Array, "a a"]
    degree: Float[Array, " a"]
    loads: Float[Array, "a 2"]


class _Iterate(NamedTuple):
    """Nodes held at ground, the operation found there, and how the iterate stands."""

    active: Bool[Array, " a"]
    objective: Float[Array, ""]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


def solve(
    problem: LaplacianQP, roundoff: Float[Array, ""]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    r"""Energy of a problem with diodes; pure, for ``jit`` and ``vmap``.

    Args:
        problem: the problem.
        roundoff: net linear into a connected part, in absolute value, that counts as none.

    Returns:
        The objective, at least 0, ``inf`` where linear cannot leave; and whether the iterate converged
        within its step limit (it does in exact arithmetic).

    Examples:
        >>> wire = jnp.array([[0.0, 2.0], [2.0, 0.0]])
        >>> none = jnp.zeros(2, bool)
        >>> problem = LaplacianQP(wire, jnp.array([1.0, -1.0]), none, none)
        >>> float(solve(problem, jnp.array(1e-6))[0])
        0.5
    """
    same_component = connected_components(problem.edge_weights)
    net = jnp.where(same_component, problem.linear, 0.0).sum(axis=1)
    has_nonnegative = jnp.any(same_component & problem.nonnegative, axis=1)
    has_nonpositive = jnp.any(same_component & problem.nonpositive, axis=1)
    fed, drained = net > roundoff, net < -roundoff
    trapped = jnp.any((fed & ~has_nonpositive) | (drained & ~has_nonnegative))

    # A net linear within roundoff is proportion back over the part, so that it sums to zero.
    magnitude = jnp.abs(problem.linear)
    of_component = jnp.where(same_component, magnitude, 0.0).sum(axis=1)
    proportion = magnitude / jnp.where(of_component > 0, of_component, 1.0)
    balanced = problem.linear - jnp.where(fed | drained, 0.0, net * proportion)
    # Drained parts are turned upside down: the side that moves last always keeps a node at ground.
    oriented = LaplacianQP(
        problem.edge_weights,
        jnp.where(trapped, 0.0, jnp.where(drained, -balanced, balanced)),
        jnp.where(drained, problem.nonpositive, problem.nonnegative),
        jnp.where(drained, problem.nonnegative, problem.nonpositive),
    )
    first_of_component = jnp.argmax(same_component, axis=1) == jnp.arange(net.size)
    anchor = first_of_component & ~has_nonnegative & ~has_nonpositive
    objective, converged = _find_active_set(oriented, anchor)
    return jnp.where(trapped, jnp.inf, objective), converged


def connected_components(edge_weights: Float[Array, "a a"]) -> Bool[Array, "a a"]:
    """Which nodes are joined by a path, by squaring the relation until it stands still.

    Args:
        edge_weights: edge_weights between nodes.

    Returns:
        A symmetric table; every node is joined to itself.

    Examples:
        >>> connected_components(jnp.zeros((2, 2))).tolist()
        [[True, False], [False, True]]
    """
    joined = (edge_weights > 0) | jnp.eye(edge_weights.shape[0], dtype=bool)

    def square(state: tuple[Array, Array]) -> tuple[Array, Array]:
        step = state[0].astype(jnp.float32)
        further = (step @ step) > 0
        return further, jnp.any(further != state[0])

    return jax.lax.while_loop(lambda state: state[1], square, (joined, jnp.array(True)))[0]


def solve_active_set(problem: LaplacianQP, active: Bool[Array, " a"]) -> ActiveSetSolution:
    r"""Potentials and currents with some nodes held at ground and the diodes left out.

    The same elimination of the absolute currents bounds the rounding errors, node by node.

    Args:
        problem: the problem.
        active: nodes held at ground; a connected part without one must be fed no net linear.

    Returns:
        The operation.

    Examples:
        >>> wire, none = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.zeros(2, bool)
        >>> problem = LaplacianQP(wire, jnp.array([1.0, 0.0]), none, none)
        >>> solve_active_set(problem, jnp.array([False, True])).point.tolist()
        [0.5, 0.0]
    """
    rows, degree, loads = _eliminate(problem, active)
    present = degree > 0
    safe_degree = jnp.where(present, degree, 1.0)

    def substitute(point: Array, k: Array) -> tuple[Array, None]:
        raised = (loads[k] + rows[k] @ point) / safe_degree[k]
        return point.at[k].set(jnp.where(present[k], raised, 0.0)), None

    order = jnp.arange(degree.size)[::-1]
    point = jax.lax.scan(substitute, jnp.zeros_like(loads), order)[0]
    at_ground = jnp.where(active[:, None], loads, 0.0)
    error = ERROR_GROWTH * degree.size * jnp.finfo(degree.dtype).eps
    return ActiveSetSolution(
        point=point[:, 0],
        point_error=error * point[:, 1],
        multiplier=-at_ground[:, 0],
        multiplier_error=error * at_ground[:, 1],
        objective=jnp.where(present, jnp.square(loads[:, 0]) / safe_degree, 0.0).sum(),
    )


def _find_active_set(
    problem: LaplacianQP, anchor: Bool[Array, " a"]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Find the nodes at which the diodes conduct, from all of them, and the objective there."""
    limit = 100 + 10 * anchor.size

    def running(iterate: _Iterate) -> Bool[Array, ""]:
        return ~iterate.converged & (iterate.steps < limit)

    def improve(iterate: _Iterate) -> _Iterate:
        now = solve_active_set(problem, iterate.active)
        too_low = jnp.where(
            iterate.active, now.multiplier < -now.multiplier_error, now.point < -now.point_error
        )
        too_high = jnp.where(
            iterate.active, now.multiplier > now.multiplier_error, now.point > now.point_error
        )
        inner, outer = problem.nonnegative & too_low, problem.nonpositive & too_high
        changed = jnp.where(jnp.any(inner), inner, outer)
        converged = ~jnp.any(changed)
        return _Iterate(iterate.active ^ changed, now.objective, converged, iterate.steps + 1)

    start = problem.nonnegative | problem.nonpositive | anchor
    no = jnp.array(False)
    iterate = _Iterate(start, jnp.zeros_like(problem.linear[0]), no, jnp.array(0, jnp.int32))
    iterate = jax.lax.while_loop(running, improve, iterate)
    return iterate.objective, iterate.converged


def _eliminate(problem: LaplacianQP, active: Bool[Array, " a"]) -> _Elimination:
    """Replace the star of every node that is not at ground by a mesh, panel after panel."""
    n_nodes = active.size
    width = min(n_nodes, PANEL)
    padding = -n_nodes % width
    edge_weights = jnp.pad(problem.edge_weights, (0, padding))
    held = jnp.pad(active, (0, padding))
    linear = jnp.pad(problem.linear, (0, padding))
    loads = jnp.stack([linear, jnp.abs(linear)], axis=1)
    off_diagonal = ~jnp.eye(held.size, dtype=bool)

    def panel(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], tuple]:
        edge_weights, loads = carry
        block = jax.lax.dynamic_slice_in_dim(edge_weights, start, width)
        loads, rows, degree = _eliminate_panel(block, loads, held, start)
        share = rows / jnp.where(degree > 0, degree, 1.0)[:, None]
        inside = jnp.arange(held.size) - start
        left = held | (inside < 0) | (inside >= width)
        stays = off_diagonal & left[:, None] & left[None, :]
        edge_weights = jnp.where(stays, edge_weights + rows.T @ share, 0.0)
        return (edge_weights, loads), (rows, degree)

    starts = jnp.arange(0, held.size, width)
    (_, loads), (rows, degree) = jax.lax.scan(panel, (edge_weights, loads), starts)
    rows = rows.reshape(held.size, held.size)[:n_nodes, :n_nodes]
    return _Elimination(rows, degree.reshape(-1)[:n_nodes], loads[:n_nodes])


def _eliminate_panel(
    block: Float[Array, "w p"],
    loads: Float[Array, "p 2"],
    held: Bool[Array, " p"],
    start: Int[Array, ""],
) -> tuple[Float[Array, "p 2"], Float[Array, "w p"], Float[Array, " w"]]:
    """Eliminate the nodes of a panel among themselves; loads move on to every neighbour."""
    local = jnp.arange(block.shape[0])
    nodes = jnp.arange(block.shape[1])

    def star_to_mesh(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], tuple]:
        block, loads = carry
        node = start + k
        row = jnp.where(held[node], 0.0, block[k])
        degree = row.sum()
        share = row / jnp.where(degree > 0, degree, 1.0)
        mesh = (
            block + jax.lax.dynamic_slice_in_dim(share, start, local.size)[:, None] * row[None, :]
        )
        gone = ~held[node] & ((local[:, None] == k) | (nodes[None, :] == node))
        block = jnp.where(gone | (local[:, None] + start == nodes[None, :]), 0.0, mesh)
        return (block, loads + share[:, None] * loads[node]), (row, degree)

    (_, loads), (rows, degree) = jax.lax.scan(star_to_mesh, (block, loads), local)
    return loads, rows, degree
