"""Caches of both layouts, against attention over the slots of one layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.caches import HeadMajorCache, SlotMajorCache, allocate_cache
from llm.attention.dispatch import attend_cached

ROUNDING = 1e-12  # float64, sums in another order
LAYERS, ROWS, SLOTS, HEADS, GROUPS, SIZE = 2, 3, 7, 4, 2, 5


def draw(n_tokens: int) -> tuple[Any, ...]:
    """Return queries, keys and values of some tokens of every row."""
    rng = np.random.default_rng(n_tokens)
    heads = (HEADS, GROUPS, GROUPS)
    return tuple(jnp.asarray(rng.normal(size=(ROWS, n_tokens, n, SIZE))) for n in heads)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("window", "soft_cap", "with_sinks"),
    [(None, None, False), (3, None, True), (None, 1.5, False)],
)
def test_parity_cached_tokens_are_attended_as_slots_of_a_layer(
    platform: str, window: int | None, soft_cap: float | None, with_sinks: bool
) -> None:
    cache = allocate_cache(LAYERS, ROWS, SLOTS, GROUPS, SIZE, jnp.float64, platform=platform)
    assert isinstance(cache, HeadMajorCache if platform == "cpu" else SlotMajorCache)
    options: dict[str, Any] = {"window": window, "soft_cap": soft_cap, "scale": 0.7}
    if with_sinks:
        options["sinks"] = jnp.array([0.3, -1.0, 2.0, 0.0])
    _, keys, values = draw(4)
    slots = np.array([[0, 1, 2, 3], [0, 1, SLOTS, SLOTS], [0, SLOTS, SLOTS, SLOTS]])
    cache = cache.write(1, jnp.asarray(slots), keys, values)
    expected = [np.zeros((ROWS, SLOTS, GROUPS, SIZE)) for _ in range(2)]
    for row, column in zip(*np.nonzero(slots < SLOTS), strict=True):
        for array, new in zip(expected, (keys, values), strict=True):
            array[row, slots[row, column]] = new[row, column]
    held = [jnp.asarray(array) for array in expected]
    for n_tokens, positions in ((1, [[3], [1], [0]]), (2, [[2, 3], [0, 1], [0, -1]])):
        queries, _, _ = draw(n_tokens)
        at = jnp.asarray(positions)
        mixed = cache.attend(1, queries, at, **options)
        other = attend_cached(queries, held[0], held[1], at, **options)
        filled = np.asarray(positions) >= 0
        np.testing.assert_allclose(
            np.asarray(mixed)[filled], np.asarray(other)[filled], rtol=0, atol=ROUNDING
        )
        assert np.isfinite(mixed).all()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_roundtrip_a_grown_cache_attends_as_before(platform: str) -> None:
    cache = allocate_cache(LAYERS, ROWS, 4, GROUPS, SIZE, jnp.float64, platform=platform)
    queries, keys, values = draw(4)
    cache = cache.write(0, jnp.broadcast_to(jnp.arange(4), (ROWS, 4)), keys, values)
    larger = cache.grown(SLOTS)
    assert (cache.n_slots, larger.n_slots) == (4, SLOTS)
    at = jnp.array([[3], [2], [0]])
    options: dict[str, Any] = {"window": None, "soft_cap": None, "scale": 1.0}
    before, after = (each.attend(0, queries[:, :1], at, **options) for each in (cache, larger))
    np.testing.assert_allclose(before, after, rtol=0, atol=ROUNDING)


def test_extreme_a_row_of_padding_and_bfloat16_stay_finite() -> None:
    cache = allocate_cache(LAYERS, ROWS, SLOTS, GROUPS, SIZE, jnp.bfloat16, platform="cpu")
    queries = draw(1)[0].astype(jnp.bfloat16)
    options: dict[str, Any] = {"window": 2, "soft_cap": None, "scale": 1.0}
    mixed = jax.jit(lambda q: cache.attend(0, q, jnp.full((ROWS, 1), -1), **options))(queries)
    assert mixed.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(mixed, np.float32)).all()
