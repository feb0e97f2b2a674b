"""Written-out gradients against those that JAX derives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.custom_vjp import project, rms_norm

EXACT = 1e-12  # float64, sums of tens of terms of order 1


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("shape", [(2, 5, 7), (5, 7), (7,), (2, 3, 4, 7)])
def test_gradient_of_the_norm_is_the_derived_one(shape: tuple[int, ...]) -> None:
    x, weight, cotangent = draw(shape, shape[-1:], shape)

    def plain(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 0.3) * weight

    got, vjp = jax.vjp(lambda x, weight: rms_norm(x, weight, 0.3), x, weight)
    expected, derived_vjp = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=EXACT)
    for written, derived in zip(vjp(cotangent), derived_vjp(cotangent), strict=True):
        np.testing.assert_allclose(written, derived, rtol=0, atol=EXACT)


def test_extreme_a_norm_whose_squares_overflow_is_nan_and_not_zero() -> None:
    x = jnp.array([[1e20, 1.0], [1e18, 1e18]], jnp.float32)
    normalized, vjp = jax.vjp(lambda x: rms_norm(x, jnp.ones(2, jnp.float32), 1e-6), x)
    normalized = np.asarray(normalized)
    assert np.isnan(normalized[0]).all()
    np.testing.assert_allclose(normalized[1], 1.0, rtol=1e-6)
    (gradient,) = vjp(jnp.ones_like(x))
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1]).all()


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 8), (8, 3), (4, 4)])
def test_gradient_of_a_projection_is_the_derived_one(n_in: int, n_out: int) -> None:
    x, kernel, cotangent = draw((2, 5, n_in), (n_in, n_out), (2, 5, n_out))
    _, vjp = jax.vjp(project, x, kernel)
    _, derived_vjp = jax.vjp(jnp.matmul, x, kernel)
    for written, derived in zip(vjp(cotangent), derived_vjp(cotangent), strict=True):
        np.testing.assert_allclose(written, derived, rtol=0, atol=EXACT)
