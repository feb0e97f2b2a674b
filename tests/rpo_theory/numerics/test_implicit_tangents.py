"""Claims about tangents of constrained minimizers, on quadratic functions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rpo_theory.numerics.implicit_tangents import face_tangent

NOISE = 1e-17


def test_closed_form_tangent_along_a_face() -> None:
    hessian, normal = jnp.diag(jnp.array([2.0, 4.0])), jnp.array([[1.0, 0.0]])
    moved = face_tangent(hessian, normal, jnp.array([1.0, 8.0]), jnp.array([-0.5]))
    np.testing.assert_allclose(moved, [0.5, 2.0], rtol=1e-14)


def test_limit_rounding_does_not_move_along_a_flat_face() -> None:
    hessian, normal = jnp.diag(jnp.array([2.0, NOISE])), jnp.array([[1.0, 0.0]])
    moved = face_tangent(hessian, normal, jnp.array([1.0, NOISE]), jnp.array([0.0]))
    np.testing.assert_allclose(moved, 0.0, atol=1e-14)
