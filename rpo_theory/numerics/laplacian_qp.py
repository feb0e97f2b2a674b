r"""Quadratic programs with a graph Laplacian and sign constraints, as coverage needs them.

In one context, the nodes :math:`i` of the graph are responses and the edge weights :math:`w_{ij}`
comparison frequencies, with Laplacian :math:`L`. The program is

.. math:: 2\,\sup_d\; \langle c, d\rangle - \tfrac12 \langle d, L d\rangle,
          \qquad d_i\ge0 \text{ or } d_i\le0 \text{ for some } i.

It is infinite if :math:`c` has a nonzero sum over a connected component in which no constraint
limits a common shift of :math:`d`. (As a resistor network: :math:`c` is the current fed in,
:math:`d` the potential, constraints are diodes to ground, and the value is the dissipated energy.)

The active constraints are found by policy iteration for a game of two players (Hoffman and Karp):
the nonnegative constraints are updated until they are optimal for the active nonpositive ones, then
the nonpositive ones improve. It ends after finitely many steps, each of which eliminates the nodes
that are not fixed at zero. Elimination only adds positive numbers, so edge weights of 1 and of
1e-12 in one graph lose no digits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

PANEL = 64  # nodes eliminated per matrix product; the speed is flat from 32 to 128
ERROR_GROWTH = 16.0  # bound on the rounding errors of an elimination, per node


class LaplacianQP(NamedTuple):
    r"""Quadratic program on a graph of ``a`` nodes.

    Attributes:
        edge_weights: weights between nodes, symmetric, at least 0, with zero diagonal.
        linear: linear term :math:`c`.
        nonnegative: nodes with the constraint :math:`d_i\ge0`.
        nonpositive: nodes with the constraint :math:`d_i\le0`; no node has both.
    """

    edge_weights: Float[Array, "a a"]
    linear: Float[Array, " a"]
    nonnegative: Bool[Array, " a"]
    nonpositive: Bool[Array, " a"]


class ActiveSetSolution(NamedTuple):
    r"""Solution of the program with the active constraints as equations.

    Attributes:
        point: maximizer :math:`d`, 0 at active nodes.
        point_error: bound on its rounding error.
        multiplier: multiplier of each active constraint, :math:`Ld-c`; 0 at other nodes.
        multiplier_error: bound on its rounding error.
        objective: value of the program.
    """

    point: Float[Array, " a"]
    point_error: Float[Array, " a"]
    multiplier: Float[Array, " a"]
    multiplier_error: Float[Array, " a"]
    objective: Float[Array, ""]


class _Elimination(NamedTuple):
    """Rows, degrees and loads of the nodes at their elimination; degree 0 at active nodes."""

    rows: Float[Array, "a a"]
    degree: Float[Array, " a"]
    loads: Float[Array, "a 2"]


class _Iterate(NamedTuple):
    """Active nodes, the value there, convergence and the number of steps."""

    active: Bool[Array, " a"]
    objective: Float[Array, ""]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


class LaplacianOptimum(NamedTuple):
    """Solution of a program.

    Attributes:
        objective: its value, at least 0 and possibly ``inf``.
        active: nodes that constraints hold at zero.
        converged: whether the active-set method converged within its step limit (it does in exact
            arithmetic).
    """

    objective: Float[Array, ""]
    active: Bool[Array, " a"]
    converged: Bool[Array, ""]


def solve(problem: LaplacianQP, roundoff: Float[Array, ""]) -> LaplacianOptimum:
    r"""Solve a Laplacian quadratic program; works under ``jit`` and ``vmap``.

    Args:
        problem: the program.
        roundoff: largest absolute sum of the linear term over a component that counts as zero.

    Returns:
        Value, active constraints and convergence.

    Examples:
        >>> edge = jnp.array([[0.0, 2.0], [2.0, 0.0]])
        >>> free = jnp.zeros(2, bool)
        >>> problem = LaplacianQP(edge, jnp.array([1.0, -1.0]), free, free)
        >>> float(solve(problem, jnp.array(1e-6)).objective)
        0.5
    """
    same_component = connected_components(problem.edge_weights)
    net = jnp.where(same_component, problem.linear, 0.0).sum(axis=1)
    has_nonnegative = jnp.any(same_component & problem.nonnegative, axis=1)
    has_nonpositive = jnp.any(same_component & problem.nonpositive, axis=1)
    positive, negative = net > roundoff, net < -roundoff
    infinite = jnp.any((positive & ~has_nonpositive) | (negative & ~has_nonnegative))

    # A sum within roundoff is subtracted in proportion to the entries, so that it becomes zero.
    magnitude = jnp.abs(problem.linear)
    of_component = jnp.where(same_component, magnitude, 0.0).sum(axis=1)
    proportion = magnitude / jnp.where(of_component > 0, of_component, 1.0)
    balanced = problem.linear - jnp.where(positive | negative, 0.0, net * proportion)
    # Flip the sign of negative components: the player who moves last then keeps an active node.
    oriented = LaplacianQP(
        problem.edge_weights,
        jnp.where(infinite, 0.0, jnp.where(negative, -balanced, balanced)),
        jnp.where(negative, problem.nonpositive, problem.nonnegative),
        jnp.where(negative, problem.nonnegative, problem.nonpositive),
    )
    first_of_component = jnp.argmax(same_component, axis=1) == jnp.arange(net.size)
    anchor = first_of_component & ~has_nonnegative & ~has_nonpositive
    objective, active, converged = _find_active_set(oriented, anchor)
    return LaplacianOptimum(jnp.where(infinite, jnp.inf, objective), active & ~anchor, converged)


def connected_components(edge_weights: Float[Array, "a a"]) -> Bool[Array, "a a"]:
    """Return which nodes are connected by a path, by squaring the relation until it is stationary.

    Args:
        edge_weights: weights between nodes.

    Returns:
        Symmetric table; a node is connected to itself.

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
    r"""Solve the program with :math:`d_i=0` at active nodes and no other constraint.

    The same elimination, applied to the absolute values of the linear term, bounds the rounding
    errors of each node.

    Args:
        problem: the program; its sign constraints are ignored.
        active: nodes with :math:`d_i=0`. In a component without an active node the linear term
            must sum to zero.

    Returns:
        Maximizer, multipliers and value.

    Examples:
        >>> edge, free = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.zeros(2, bool)
        >>> problem = LaplacianQP(edge, jnp.array([1.0, 0.0]), free, free)
        >>> solve_active_set(problem, jnp.array([False, True])).point.tolist()
        [0.5, 0.0]
    """
    rows, degree, loads = _eliminate(problem, active)
    present = degree > 0
    safe_degree = jnp.where(present, degree, 1.0)

    def substitute(point: Array, k: Array) -> tuple[Array, None]:
        entry = (loads[k] + rows[k] @ point) / safe_degree[k]
        return point.at[k].set(jnp.where(present[k], entry, 0.0)), None

    order = jnp.arange(degree.size)[::-1]
    point = jax.lax.scan(substitute, jnp.zeros_like(loads), order)[0]
    active_loads = jnp.where(active[:, None], loads, 0.0)
    error = ERROR_GROWTH * degree.size * jnp.finfo(degree.dtype).eps
    return ActiveSetSolution(
        point=point[:, 0],
        point_error=error * point[:, 1],
        multiplier=-active_loads[:, 0],
        multiplier_error=error * active_loads[:, 1],
        objective=jnp.where(present, jnp.square(loads[:, 0]) / safe_degree, 0.0).sum(),
    )


def _find_active_set(
    problem: LaplacianQP, anchor: Bool[Array, " a"]
) -> tuple[Float[Array, ""], Bool[Array, " a"], Bool[Array, ""]]:
    """Find the optimal active set, starting from all constraints, and the value there."""
    limit = 100 + 10 * anchor.size

    def running(iterate: _Iterate) -> Bool[Array, ""]:
        return ~iterate.converged & (iterate.steps < limit)

    def improve(iterate: _Iterate) -> _Iterate:
        current = solve_active_set(problem, iterate.active)
        too_low = jnp.where(
            iterate.active,
            current.multiplier < -current.multiplier_error,
            current.point < -current.point_error,
        )
        too_high = jnp.where(
            iterate.active,
            current.multiplier > current.multiplier_error,
            current.point > current.point_error,
        )
        inner, outer = problem.nonnegative & too_low, problem.nonpositive & too_high
        changed = jnp.where(jnp.any(inner), inner, outer)
        converged = ~jnp.any(changed)
        return _Iterate(iterate.active ^ changed, current.objective, converged, iterate.steps + 1)

    start = problem.nonnegative | problem.nonpositive | anchor
    iterate = _Iterate(
        active=start,
        objective=jnp.zeros_like(problem.linear[0]),
        converged=jnp.array(False),
        steps=jnp.array(0, jnp.int32),
    )
    iterate = jax.lax.while_loop(running, improve, iterate)
    return iterate.objective, iterate.active, iterate.converged


def _eliminate(problem: LaplacianQP, active: Bool[Array, " a"]) -> _Elimination:
    """Eliminate every node that is not active, panel after panel.

    Eliminating a node replaces the star of its edges by a mesh between its neighbors.
    """
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
        remaining = held | (inside < 0) | (inside >= width)
        stays = off_diagonal & remaining[:, None] & remaining[None, :]
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
    """Eliminate the nodes of a panel among themselves, and pass their loads to the neighbors."""
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
        eliminated = ~held[node] & ((local[:, None] == k) | (nodes[None, :] == node))
        block = jnp.where(eliminated | (local[:, None] + start == nodes[None, :]), 0.0, mesh)
        return (block, loads + share[:, None] * loads[node]), (row, degree)

    (_, loads), (rows, degree) = jax.lax.scan(star_to_mesh, (block, loads), local)
    return loads, rows, degree
