"""Cache of whole batches, against attention over the slots of one layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.caches import allocate_cache
from llm.attention.dispatch import attend_cached

ROUNDING = 1e-12  # float64, sums in another order
LAYERS, ROWS, SLOTS, HEADS, GROUPS, SIZE = 2, 3, 7, 4, 2, 5


def draw(n_tokens: int) -> tuple[Any, ...]:
    """Return queries, keys and values of some tokens of every row."""
    rng = np.random.default_rng(n_tokens)
    heads = (HEADS, GROUPS, GROUPS)
    return tuple(jnp.asarray(rng.normal(size=(ROWS, n_tokens, n, SIZE))) for n in heads)


@pytest.mark.parametrize(
    ("window", "soft_cap", "with_sinks"),
    [(None, None, False), (3, None, True), (None, 1.5, False)],
)
def test_parity_cached_tokens_are_attended_as_slots_of_a_layer(
    window: int | None, soft_cap: float | None, with_sinks: bool
) -> None:
    cache = allocate_cache(LAYERS, ROWS, SLOTS, GROUPS, SIZE, jnp.float64)
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
