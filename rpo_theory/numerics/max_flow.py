r"""Maximum flow from many sources to one sink, by shortest augmenting paths on dense graphs.

The number of augmentations is at most the number of nodes times that of arcs, whatever the
capacities are (Edmonds and Karp, 1972). The loops run under ``jit`` and ``vmap``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


class Flow(NamedTuple):
    """State of the method.

    Attributes:
        residual: remaining capacity of every arc, indexed by tail and head.
        supply: amount at every node that has not been sent to the sink.
    """

    residual: Float[Array, "v v"]
    supply: Float[Array, " v"]


def solve(flow: Flow, sink: int, tolerance: Float[Array, "v v"]) -> Flow:
    """Send as much of the supply to the sink as the capacities allow.

    Args:
        flow: capacities and supplies, at least 0; capacities may be infinite.
        sink: index of the sink.
        tolerance: remaining capacities up to this size count as rounding.

    Returns:
        The flow at which no path from a node with supply to the sink has capacity left.
    """

    def find_path(flow: Flow) -> tuple[Int[Array, " v"], Bool[Array, ""]]:
        return _shortest_path(flow.residual > tolerance, flow.supply > 0, sink)

    def augment(carry: tuple) -> tuple:
        flow, (parent, _) = carry
        path, start = _arcs(parent, sink)
        amount = jnp.minimum(jnp.where(path, flow.residual, jnp.inf).min(), flow.supply[start])
        moved = jnp.where(path, amount, 0.0)
        flow = Flow(flow.residual - moved + moved.T, flow.supply.at[start].add(-amount))
        return flow, find_path(flow)

    return jax.lax.while_loop(lambda carry: carry[1][1], augment, (flow, find_path(flow)))[0]


def reachable(arcs: Bool[Array, "*b v v"]) -> Bool[Array, "*b v v"]:
    """Return whether a path leads from one node to another, for all pairs of nodes.

    Args:
        arcs: whether an arc leads from the first to the second node.

    Returns:
        The reflexive and transitive closure.
    """
    n_nodes = arcs.shape[-1]
    relation = arcs | jnp.eye(n_nodes, dtype=bool)
    for _ in range(max(1, (n_nodes - 1).bit_length())):
        steps = relation.astype(jnp.float32)
        relation = jnp.matmul(steps, steps) > 0
    return relation


def _shortest_path(
    arcs: Bool[Array, "v v"], starts: Bool[Array, " v"], sink: int
) -> tuple[Int[Array, " v"], Bool[Array, ""]]:
    """Return the parents in a breadth-first search, and whether it reached the sink."""

    def expand(carry: tuple) -> tuple:
        parent, reached, frontier = carry
        hits = arcs & frontier[:, None]
        new = hits.any(axis=0) & ~reached
        return jnp.where(new, hits.argmax(axis=0), parent), reached | new, new

    first = (jnp.arange(len(starts)), starts, starts)
    parent, reached, _ = jax.lax.while_loop(
        lambda carry: carry[2].any() & ~carry[1][sink], expand, first
    )
    return parent, reached[sink]


def _arcs(parent: Int[Array, " v"], sink: int) -> tuple[Bool[Array, "v v"], Int[Array, ""]]:
    """Return the arcs of the path to the sink, and its first node."""

    def to_parent(carry: tuple) -> tuple:
        node, arcs = carry
        return parent[node], arcs.at[parent[node], node].set(True)

    first = (jnp.asarray(sink), jnp.zeros((len(parent), len(parent)), bool))
    start, arcs = jax.lax.while_loop(lambda carry: parent[carry[0]] != carry[0], to_parent, first)
    return arcs, start
