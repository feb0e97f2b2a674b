"""Stochastic rounding of bfloat16 parameters: unbiased, reproducible, absent for float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.config import OptimizerConfig
from llm.train.optimizer import make_optimizer
from llm.train.stochastic_rounding import apply_optimizer, stochastic_round


@pytest.fixture(autouse=True)
def promotion_of_the_trainer() -> Iterator[None]:
    """Optax divides by powers of an integer count, which strict promotion does not allow."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _bfloat16(*size: int) -> dict[str, jax.Array]:
    return {"kernel": jnp.full(size, 1.0, jnp.bfloat16)}


def test_property_rounding_is_unbiased_and_gives_neighbors_only() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=5), [1.0, -1.0, 0.0, 3e-39, -1e30]]).astype(np.float32)
    draws = 4096
    rounded = stochastic_round(jnp.asarray(np.tile(values, (draws, 1))), jax.random.key(0))
    rounded = np.asarray(rounded.astype(jnp.float32))
    width = np.abs(values) * 2.0**-7 + 1e-40  # at least the gap between two bfloat16 numbers
    assert np.all(np.abs(rounded - values) <= width)
    error = rounded.mean(0) - values
    assert np.all(np.abs(error) <= 5 * 0.5 * width / math.sqrt(draws))  # five standard deviations
    exact = np.asarray(jnp.asarray(values).astype(jnp.bfloat16).astype(jnp.float32)) == values
    assert np.all(rounded[:, exact] == values[exact])
    special = jnp.asarray([np.nan, np.inf, -np.inf], jnp.float32)
    kept = np.asarray(stochastic_round(special, jax.random.key(1)).astype(jnp.float32))
    np.testing.assert_array_equal(kept, special)


def test_property_updates_below_the_resolution_of_bfloat16_move_the_weights_on_average() -> None:
    # The update is 2^-13 of the weight; half the gap to the next number below 1 is 2^-9.
    config = OptimizerConfig(learning_rate=2.0**-13, warmup_ratio=0.0, lr_scheduler_type="constant")
    optimizer, _ = make_optimizer(config, 10)
    start = _bfloat16(256, 128)
    state = optimizer.init(start)
    gradient = jax.tree.map(jnp.ones_like, start)
    step = jax.jit(partial(apply_optimizer, optimizer))
    weights, shares = start, []
    for count in range(8):
        key = jax.random.fold_in(jax.random.key(3), count)
        weights, state, metrics = step(gradient, state, weights, key)
        shares.append(float(metrics["params/moved_share"]))
    assert weights["kernel"].dtype == jnp.bfloat16
    moved = float(jnp.mean(weights["kernel"].astype(jnp.float32))) - 1.0
    assert moved == pytest.approx(-8 * 2.0**-13, rel=0.1)
    assert shares[0] == pytest.approx(2.0**-13 / 2.0**-8, rel=0.2)
    nearest, _ = optimizer.update(gradient, optimizer.init(start), start)
    to_nearest: Any = optax.apply_updates(start, nearest)
    lost = to_nearest["kernel"]
    assert np.all(np.asarray(lost == start["kernel"]))  # to nearest, nothing moves


def test_property_rounding_depends_on_the_key_and_not_on_sharding() -> None:
    values = jnp.linspace(0.5, 1.5, 64, dtype=jnp.float32).reshape(8, 8)
    key = jax.random.key(5)
    plain = stochastic_round(values, key)
    np.testing.assert_array_equal(plain, jax.jit(stochastic_round)(values, key))
    assert np.any(np.asarray(plain != stochastic_round(values, jax.random.key(6))))
    # A mesh of devices computes a part each: the bits of a position do not depend on the parts.
    assert jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]


def test_property_float32_parameters_are_updated_as_optax_does_without_a_metric() -> None:
    optimizer, _ = make_optimizer(OptimizerConfig(warmup_ratio=0.0), 10)
    start = {"kernel": jnp.full((4, 4), 1.0, jnp.float32)}
    gradient = jax.tree.map(jnp.ones_like, start)
    state = optimizer.init(start)
    new, _, metrics = apply_optimizer(optimizer, gradient, state, start, jax.random.key(0))
    updates, _ = optimizer.update(gradient, state, start)
    expected: Any = optax.apply_updates(start, updates)
    np.testing.assert_array_equal(new["kernel"], expected["kernel"])
    assert metrics == {}
