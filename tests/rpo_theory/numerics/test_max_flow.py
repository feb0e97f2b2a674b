"""Maximum flows and reachability against SciPy's graph routines."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import floyd_warshall, maximum_flow

from rpo_theory.numerics import max_flow

N_NODES = 6


def draw_capacities(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    capacities = rng.integers(1, 9, (N_NODES, N_NODES)) * rng.binomial(1, 0.3, (N_NODES, N_NODES))
    np.fill_diagonal(capacities, 0)
    capacities[-1] = 0
    return capacities


def test_parity_the_flow_is_as_large_as_that_of_scipy() -> None:
    for seed in range(5):
        capacities = draw_capacities(seed)
        supply = np.array([7, 4, 0, 3, 0, 0])
        network = np.zeros((N_NODES + 1, N_NODES + 1), np.int32)  # the last node is the source
        network[:-1, :-1], network[-1, :-1] = capacities, supply
        expected = maximum_flow(csr_array(network), N_NODES, N_NODES - 1).flow_value
        start = max_flow.Flow(jnp.asarray(capacities * 1.0), jnp.asarray(supply * 1.0))
        end = max_flow.solve(start, N_NODES - 1, jnp.full((N_NODES, N_NODES), 1e-9))
        assert float((start.supply - end.supply).sum()) == expected
        assert np.all(np.asarray(end.residual) >= 0)


def test_parity_reachable_nodes_have_a_finite_distance() -> None:
    arcs = np.stack([draw_capacities(seed) > 0 for seed in range(5)])
    expected = [np.isfinite(floyd_warshall(csr_array(each * 1.0))) for each in arcs]
    np.testing.assert_array_equal(max_flow.reachable(jnp.asarray(arcs)), expected)
