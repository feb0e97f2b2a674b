"""Moments in 8 bits: their grid, rounding without bias, and training as with full moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.config import OptimizerConfig
from llm.train.adam_8bit import (
    decode_moment,
    encode_first,
    encode_second,
    scale_by_adam_8bit,
)
from llm.train.optimizer import make_optimizer

STEP = 2 ** (1 / 8)  # ratio of neighboring levels


@pytest.mark.parametrize("is_first", [True, False])
def test_extreme_a_moment_is_rounded_to_a_neighboring_level(is_first: bool) -> None:
    octaves = 15.5 if is_first else 31.5
    rng = np.random.default_rng(0)
    values = (2.0 ** rng.uniform(-octaves, 0, (4, 300))).astype(np.float32)
    values[:, 0], values[:, 1] = 1.0, 0.0
    values *= np.array([[1e-15], [1.0], [3.0], [1e10]], np.float32)
    values = values.astype(np.float32)
    if is_first:
        values *= rng.choice(np.array([-1, 1], np.float32), values.shape)
    encode = encode_first if is_first else encode_second
    codes, scale = encode(jnp.asarray(values), jax.random.key(1))
    found = np.asarray(decode_moment(codes, scale))
    np.testing.assert_array_equal(scale, np.abs(values).max(axis=1))
    np.testing.assert_array_equal(np.sign(found), np.sign(values))
    ratios = found[values != 0] / values[values != 0]
    assert ratios.max() < STEP * (1 + 1e-5)
    assert ratios.min() > 1 / STEP / (1 + 1e-5)


def test_property_levels_keep_their_codes_and_rows_of_zeros_stay_zero() -> None:
    codes = jnp.arange(-127, 128, dtype=jnp.int8)[None]
    values = decode_moment(codes, jnp.array([7.0], jnp.float32))
    again, scale = encode_first(values, jax.random.key(0))
    assert np.abs(np.asarray(again, int) - np.asarray(codes, int)).max() <= 1  # rounding of log2
    zeros, scale = encode_second(jnp.zeros((2, 3)), jax.random.key(0))
    np.testing.assert_array_equal(decode_moment(zeros, scale), np.zeros((2, 3)))


def test_property_rounding_has_the_exact_mean_and_a_small_second_moment_never_vanishes() -> None:
    values = jnp.array([[1.0, 0.3, 0.0101, 1e-3]])
    keys = jax.random.split(jax.random.key(2), 4000)
    for encode in (encode_first, encode_second):
        draws = jax.vmap(lambda key, encode=encode: decode_moment(*encode(values, key)))(keys)
        error = np.asarray(draws.mean(axis=0)) / np.asarray(values) - 1
        assert np.abs(error).max() < 4 * 0.045 / np.sqrt(4000) + 1 / 512  # 8 random bits
    codes, _ = encode_second(jnp.array([[1.0, 1e-30]]), jax.random.key(0))
    assert int(codes[0, 1]) == 1


def test_parity_the_first_update_is_that_of_optax_and_later_ones_are_near() -> None:
    rng = np.random.default_rng(3)

    def draw() -> Any:
        return {
            "layers": {"kernel": jnp.asarray(rng.normal(size=(2, 5, 64)))},
            "weight": jnp.asarray(rng.normal(size=64)),
        }

    exact, small = optax.scale_by_adam(), scale_by_adam_8bit()
    states: list[Any] = [exact.init(draw()), small.init(draw())]
    for step in range(6):
        gradient = draw()
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            wanted, states[0] = exact.update(gradient, states[0])
        found, states[1] = small.update(gradient, states[1])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if step == 0 else 0.2)
    moments = [*jax.tree.leaves(states[1].mu), *jax.tree.leaves(states[1].nu)]
    assert {leaf.dtype.itemsize for leaf in moments} == {1}


def test_roundtrip_a_restored_state_repeats_every_bit() -> None:
    adam = scale_by_adam_8bit()
    gradients = jax.random.normal(jax.random.key(4), (6, 8, 32))
    state = adam.init(gradients[0])
    for gradient in gradients[:3]:
        _, state = adam.update(gradient, state)
    stored = jax.tree.map(np.asarray, state)
    restored = jax.tree.map(jnp.asarray, stored)
    for gradient in gradients[3:]:
        update, state = adam.update(gradient, state)
        same, restored = adam.update(gradient, restored)
        np.testing.assert_array_equal(update, same)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, restored))


def test_property_a_classifier_ends_at_the_loss_of_full_moments() -> None:
    """Logistic regression on features of scales 0.01 to 1, in 400 steps of 32 samples."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(512, 40)) * np.geomspace(0.01, 1, 40)
    labels = jnp.asarray(rng.random(512) < 1 / (1 + np.exp(-features @ rng.normal(size=40) * 2)))
    features = jnp.asarray(features)

    def loss(weights: jax.Array, rows: jax.Array) -> jax.Array:
        logits = (features[rows] @ weights)[:, 0]
        return optax.losses.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def final_loss(optim: Any, seed: int) -> float:
        constants = {"lr_scheduler_type": "cosine", "learning_rate": 0.05, "max_grad_norm": 10.0}
        optimizer, _ = make_optimizer(OptimizerConfig(optim=optim, **constants), 400)
        rows = jnp.asarray(np.random.default_rng(seed).integers(0, 512, (400, 32)))
        weights = jnp.zeros((40, 1))

        def step(carry: Any, rows: jax.Array) -> Any:
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights, rows), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), rows)
        return float(loss(weights, jnp.arange(512)))

    with jax.numpy_dtype_promotion("standard"):
        full = np.array([final_loss("adamw", seed) for seed in range(5)])
        small = np.array([final_loss("adamw_8bit", seed) for seed in range(5)])
    noise = full.std(ddof=1)
    assert abs((small - full).mean()) < noise, (full, small)
