"""Linear programs and projections in units of the maximum, on a triangle solved by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rpo_theory.numerics.linear_rows import DenseRows, Polyhedron
from rpo_theory.rewards import polyhedral

MAXIMUM = 2.0


def triangle() -> Polyhedron:
    """Return r(0) + r(1) <= 1 in units of the maximum."""
    return Polyhedron(jnp.ones(2), DenseRows(jnp.ones((1, 2))), jnp.ones(1))


def test_closed_form_a_triangle() -> None:
    direction = jnp.array([[-1.0, -3.0]])
    nearest = polyhedral.project(triangle(), MAXIMUM, jnp.array([[2.0, 1.5]]))
    np.testing.assert_allclose(nearest, [[1.25, 0.75]], atol=1e-12)
    lowest = polyhedral.linear_minimizer(triangle(), MAXIMUM, direction)
    np.testing.assert_allclose(lowest, [[0.0, 2.0]], atol=1e-12)
    minimum = polyhedral.linear_minimum(triangle(), MAXIMUM, direction)
    np.testing.assert_allclose(minimum, -6.0, atol=1e-12)
    for reward, gap in (([[0.0, 2.0]], 0.0), ([[2.0, 0.0]], 4.0), ([[0.0, 0.0]], 6.0)):
        bound = polyhedral.linear_gap(triangle(), MAXIMUM, direction, jnp.asarray(reward))
        np.testing.assert_allclose(bound, gap, atol=1e-12)
