"""Gradients that are written out against those that JAX derives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.layers import product, rms_norm

EXACT = 1e-12  # float64, sums of tens of terms of order 1


def drawn(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("shape", [(2, 5, 7), (5, 7), (7,), (2, 3, 4, 7)])
def test_gradient_of_the_norm_is_the_derived_one(shape: tuple[int, ...]) -> None:
    x, weight, slope = drawn(shape, shape[-1:], shape)

    def plain(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 0.3) * weight

    one, pull = jax.vjp(lambda x, weight: rms_norm(x, weight, 0.3), x, weight)
    other, derived = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(np.asarray(one), other, rtol=EXACT)
    for mine, theirs in zip(pull(slope), derived(slope), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=EXACT)


def test_extreme_a_norm_whose_squares_overflow_is_nan_and_not_zero() -> None:
    x = jnp.array([[1e20, 1.0], [1e18, 1e18]], jnp.float32)
    one, pull = jax.vjp(lambda x: rms_norm(x, jnp.ones(2, jnp.float32), 1e-6), x)
    one = np.asarray(one)
    assert np.isnan(one[0]).all()
    np.testing.assert_allclose(one[1], 1.0, rtol=1e-6)
    (slope,) = pull(jnp.ones_like(x))
    assert np.isnan(slope[0]).all()
    assert np.isfinite(slope[1]).all()


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 8), (8, 3), (4, 4)])
def test_gradient_of_a_product_is_the_derived_one(n_in: int, n_out: int) -> None:
    x, kernel, slope = drawn((2, 5, n_in), (n_in, n_out), (2, 5, n_out))
    _, pull = jax.vjp(product, x, kernel)
    _, derived = jax.vjp(jnp.matmul, x, kernel)
    for mine, theirs in zip(pull(slope), derived(slope), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=EXACT)
