"""Claims about the bound on the coverage coefficient by density ratios."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from rpo_theory.coverage import coverage_coefficient_batch
from rpo_theory.density_ratio import density_ratio_bound
from rpo_theory.rewards import Unbounded

ROUNDING = 1e-12
"""Hundreds of roundings of the coefficient."""
FIRST, SECOND = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])


def random_instances(n: int) -> dict[str, np.ndarray]:
    """Return instances whose data contain every pair in at least one order."""
    rng = np.random.default_rng(5)
    pairs = np.triu(rng.exponential(size=(n, 2, 3, 3)), 1)
    swapped = rng.random((n, 1, 1, 1)) < 0.5
    return {
        "comparator": rng.dirichlet(np.ones(3), size=(n, 2)),
        "baseline": rng.dirichlet(np.ones(3), size=(n, 2)),
        "context_weights": rng.dirichlet(np.ones(2), size=n),
        "pair_distribution": np.where(swapped, pairs.mT, pairs),
    }


def test_closed_form_counts_are_divided_by_their_sum() -> None:
    counts = np.array([[[0.0, 25.0], [75.0, 0.0]]])
    arguments = (FIRST, SECOND, np.ones(1))
    assert float(density_ratio_bound(*arguments, counts)) == 1.0
    assert float(density_ratio_bound(*arguments, counts.astype(int))) == 1.0
    assert float(density_ratio_bound(*arguments, counts / 100)) == 1.0
    assert np.isinf(density_ratio_bound(*arguments, np.zeros((1, 2, 2))))


def test_closed_form_both_orders_of_a_pair_count() -> None:
    even = np.full((1, 2), 0.5)
    one_order = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    # Both orders have density 1/4; without the sum over orders the bound would be infinite.
    np.testing.assert_allclose(
        density_ratio_bound(even, even, np.ones(1), one_order), np.sqrt(0.5), rtol=1e-15
    )


def test_property_the_bound_is_in_float64_and_never_below_the_coefficient() -> None:
    instances: dict[str, Any] = random_instances(200)
    zero = np.zeros_like(instances["comparator"])
    coefficients = coverage_coefficient_batch(Unbounded(), true_reward=zero, **instances)
    bounds = np.array([density_ratio_bound(*row) for row in zip(*instances.values(), strict=True)])
    assert bounds.dtype == np.float64
    assert np.all(bounds >= coefficients * (1.0 - ROUNDING))
    # Policies that differ by one pair: the bound is the coefficient, and float32 falls below it.
    for share in 0.3 + np.arange(20) / 40.0:
        pairs = np.array([[[0.0, 0.1], [share - 0.1, 1.0 - share]]])
        bound = float(density_ratio_bound(FIRST, SECOND, np.ones(1), pairs))
        np.testing.assert_allclose(bound, 1.0 / np.sqrt(share), rtol=1e-15)


def test_parity_traced_bounds_equal_the_concrete_ones() -> None:
    rows = [leaf[:4] for leaf in random_instances(4).values()]
    concrete = [float(density_ratio_bound(*row)) for row in zip(*rows, strict=True)]
    with jax.enable_x64(True):
        traced = jax.jit(jax.vmap(density_ratio_bound))(*rows)
    np.testing.assert_allclose(np.asarray(traced), concrete, rtol=1e-15)


def test_raises_in_a_trace_without_float64() -> None:
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="jax_enable_x64"):
        jax.jit(density_ratio_bound)(FIRST, SECOND, np.ones(1), np.ones((1, 2, 2)))
