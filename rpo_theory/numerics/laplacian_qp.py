r"""Resistor networks with diodes to ground: what coverage of a tabular class comes down to.

At one prompt the comparisons are a network whose node :math:`i` is a response and whose
conductances :math:`w_{ij}` are comparison frequencies, with Laplacian :math:`L`; :math:`c` is the
current fed in. A node may be tied to ground by a diode that keeps its potential :math:`d_i\ge0`, or
:math:`d_i\le0`. The energy that the network dissipates is

.. math:: 2\,\sup_d\; \langle c, d\rangle - \tfrac12 \langle d, L d\rangle
          \quad\text{with the signs that the diodes allow,}

infinite where a connected part is fed a net current that no diode of it lets out.

The diodes that conduct are found as the strategies of a stopping game (Hoffman and Karp: answer
best to the other side's strategy, then let it improve), finitely many steps, each one elimination
of the nodes that are not at ground. Eliminating a node replaces its star by a mesh: only positive
numbers are added, so conductances of 1 and of 1e-12 in one network lose no digits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

PANEL = 64  # nodes eliminated before one matrix product updates the rest: measured, flat 32 to 128
ERROR_GROWTH = 16.0  # roundings of an elimination, in units of the number of nodes


class Network(NamedTuple):
    """A network of ``a`` nodes.

    Attributes:
        conductance: conductance between nodes, symmetric, zero diagonal, at least 0.
        current: current fed into each node.
        nonnegative: nodes with a diode that keeps the potential at least 0.
        nonpositive: nodes with a diode that keeps the potential at most 0; no node has both.
    """

    conductance: Float[Array, "a a"]
    current: Float[Array, " a"]
    nonnegative: Bool[Array, " a"]
    nonpositive: Bool[Array, " a"]


class Operation(NamedTuple):
    """The network with some nodes held at ground.

    Attributes:
        potential: potential of each node, 0 at ground.
        potential_error: bound on its rounding error.
        surplus: current that ground feeds into each node held there; 0 elsewhere.
        surplus_error: bound on its rounding error.
        energy: energy dissipated.
    """

    potential: Float[Array, " a"]
    potential_error: Float[Array, " a"]
    surplus: Float[Array, " a"]
    surplus_error: Float[Array, " a"]
    energy: Float[Array, ""]


class _Elimination(NamedTuple):
    """Rows, degrees and loads of the nodes when they were eliminated; degree 0 at ground."""

    rows: Float[Array, "a a"]
    degree: Float[Array, " a"]
    loads: Float[Array, "a 2"]


class _Game(NamedTuple):
    """Nodes held at ground, the operation found there, and how the game stands."""

    grounded: Bool[Array, " a"]
    energy: Float[Array, ""]
    settled: Bool[Array, ""]
    steps: Int[Array, ""]


def dissipated_energy(
    network: Network, roundoff: Float[Array, ""]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    r"""Energy of a network with diodes; pure, for ``jit`` and ``vmap``.

    Args:
        network: the network.
        roundoff: net current into a connected part, in absolute value, that counts as none.

    Returns:
        The energy, at least 0, ``inf`` where current cannot leave; and whether the game settled
        within its step limit (it does in exact arithmetic).

    Examples:
        >>> wire = jnp.array([[0.0, 2.0], [2.0, 0.0]])
        >>> none = jnp.zeros(2, bool)
        >>> network = Network(wire, jnp.array([1.0, -1.0]), none, none)
        >>> float(dissipated_energy(network, jnp.array(1e-6))[0])
        0.5
    """
    together = connected_parts(network.conductance)
    net = jnp.where(together, network.current, 0.0).sum(axis=1)
    has_nonnegative = jnp.any(together & network.nonnegative, axis=1)
    has_nonpositive = jnp.any(together & network.nonpositive, axis=1)
    fed, drained = net > roundoff, net < -roundoff
    trapped = jnp.any((fed & ~has_nonpositive) | (drained & ~has_nonnegative))

    # A net current within roundoff is spread back over the part, so that it sums to zero.
    magnitude = jnp.abs(network.current)
    of_part = jnp.where(together, magnitude, 0.0).sum(axis=1)
    spread = magnitude / jnp.where(of_part > 0, of_part, 1.0)
    balanced = network.current - jnp.where(fed | drained, 0.0, net * spread)
    # Drained parts are turned upside down: the side that moves last always keeps a node at ground.
    oriented = Network(
        network.conductance,
        jnp.where(trapped, 0.0, jnp.where(drained, -balanced, balanced)),
        jnp.where(drained, network.nonpositive, network.nonnegative),
        jnp.where(drained, network.nonnegative, network.nonpositive),
    )
    first_of_part = jnp.argmax(together, axis=1) == jnp.arange(net.size)
    anchor = first_of_part & ~has_nonnegative & ~has_nonpositive
    energy, settled = _play(oriented, anchor)
    return jnp.where(trapped, jnp.inf, energy), settled


def connected_parts(conductance: Float[Array, "a a"]) -> Bool[Array, "a a"]:
    """Which nodes are joined by a path, by squaring the relation until it stands still.

    Args:
        conductance: conductance between nodes.

    Returns:
        A symmetric table; every node is joined to itself.

    Examples:
        >>> connected_parts(jnp.zeros((2, 2))).tolist()
        [[True, False], [False, True]]
    """
    joined = (conductance > 0) | jnp.eye(conductance.shape[0], dtype=bool)

    def square(state: tuple[Array, Array]) -> tuple[Array, Array]:
        step = state[0].astype(jnp.float32)
        further = (step @ step) > 0
        return further, jnp.any(further != state[0])

    return jax.lax.while_loop(lambda state: state[1], square, (joined, jnp.array(True)))[0]


def operate(network: Network, grounded: Bool[Array, " a"]) -> Operation:
    r"""Potentials and currents with some nodes held at ground and the diodes left out.

    The same elimination of the absolute currents bounds the rounding errors, node by node.

    Args:
        network: the network.
        grounded: nodes held at ground; a connected part without one must be fed no net current.

    Returns:
        The operation.

    Examples:
        >>> wire, none = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.zeros(2, bool)
        >>> network = Network(wire, jnp.array([1.0, 0.0]), none, none)
        >>> operate(network, jnp.array([False, True])).potential.tolist()
        [0.5, 0.0]
    """
    rows, degree, loads = _eliminate(network, grounded)
    present = degree > 0
    safe_degree = jnp.where(present, degree, 1.0)

    def substitute(potential: Array, k: Array) -> tuple[Array, None]:
        raised = (loads[k] + rows[k] @ potential) / safe_degree[k]
        return potential.at[k].set(jnp.where(present[k], raised, 0.0)), None

    order = jnp.arange(degree.size)[::-1]
    potential = jax.lax.scan(substitute, jnp.zeros_like(loads), order)[0]
    at_ground = jnp.where(grounded[:, None], loads, 0.0)
    error = ERROR_GROWTH * degree.size * jnp.finfo(degree.dtype).eps
    return Operation(
        potential=potential[:, 0],
        potential_error=error * potential[:, 1],
        surplus=-at_ground[:, 0],
        surplus_error=error * at_ground[:, 1],
        energy=jnp.where(present, jnp.square(loads[:, 0]) / safe_degree, 0.0).sum(),
    )


def _play(network: Network, anchor: Bool[Array, " a"]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Find the nodes at which the diodes conduct, from all of them, and the energy there."""
    limit = 100 + 10 * anchor.size

    def running(game: _Game) -> Bool[Array, ""]:
        return ~game.settled & (game.steps < limit)

    def improve(game: _Game) -> _Game:
        now = operate(network, game.grounded)
        too_low = jnp.where(
            game.grounded, now.surplus < -now.surplus_error, now.potential < -now.potential_error
        )
        too_high = jnp.where(
            game.grounded, now.surplus > now.surplus_error, now.potential > now.potential_error
        )
        inner, outer = network.nonnegative & too_low, network.nonpositive & too_high
        changed = jnp.where(jnp.any(inner), inner, outer)
        settled = ~jnp.any(changed)
        return _Game(game.grounded ^ changed, now.energy, settled, game.steps + 1)

    start = network.nonnegative | network.nonpositive | anchor
    no = jnp.array(False)
    game = _Game(start, jnp.zeros_like(network.current[0]), no, jnp.array(0, jnp.int32))
    game = jax.lax.while_loop(running, improve, game)
    return game.energy, game.settled


def _eliminate(network: Network, grounded: Bool[Array, " a"]) -> _Elimination:
    """Replace the star of every node that is not at ground by a mesh, panel after panel."""
    n_nodes = grounded.size
    width = min(n_nodes, PANEL)
    padding = -n_nodes % width
    conductance = jnp.pad(network.conductance, (0, padding))
    held = jnp.pad(grounded, (0, padding))
    current = jnp.pad(network.current, (0, padding))
    loads = jnp.stack([current, jnp.abs(current)], axis=1)
    off_diagonal = ~jnp.eye(held.size, dtype=bool)

    def panel(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], tuple]:
        conductance, loads = carry
        block = jax.lax.dynamic_slice_in_dim(conductance, start, width)
        loads, rows, degree = _eliminate_panel(block, loads, held, start)
        share = rows / jnp.where(degree > 0, degree, 1.0)[:, None]
        inside = jnp.arange(held.size) - start
        left = held | (inside < 0) | (inside >= width)
        stays = off_diagonal & left[:, None] & left[None, :]
        conductance = jnp.where(stays, conductance + rows.T @ share, 0.0)
        return (conductance, loads), (rows, degree)

    starts = jnp.arange(0, held.size, width)
    (_, loads), (rows, degree) = jax.lax.scan(panel, (conductance, loads), starts)
    rows = rows.reshape(held.size, held.size)[:n_nodes, :n_nodes]
    return _Elimination(rows, degree.reshape(-1)[:n_nodes], loads[:n_nodes])


def _eliminate_panel(
    block: Float[Array, "w p"],
    loads: Float[Array, "p 2"],
    held: Bool[Array, " p"],
    start: Int[Array, ""],
) -> tuple[Float[Array, "p 2"], Float[Array, "w p"], Float[Array, " w"]]:
    """Eliminate the nodes of a panel among themselves; loads move on to every neighbour."""
    own = jnp.arange(block.shape[0])
    nodes = jnp.arange(block.shape[1])

    def star_to_mesh(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], tuple]:
        block, loads = carry
        node = start + k
        row = jnp.where(held[node], 0.0, block[k])
        degree = row.sum()
        share = row / jnp.where(degree > 0, degree, 1.0)
        mesh = block + jax.lax.dynamic_slice_in_dim(share, start, own.size)[:, None] * row[None, :]
        gone = ~held[node] & ((own[:, None] == k) | (nodes[None, :] == node))
        block = jnp.where(gone | (own[:, None] + start == nodes[None, :]), 0.0, mesh)
        return (block, loads + share[:, None] * loads[node]), (row, degree)

    (_, loads), (rows, degree) = jax.lax.scan(star_to_mesh, (block, loads), own)
    return loads, rows, degree
