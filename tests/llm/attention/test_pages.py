"""Cache in pages, against attention over the tokens of each sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.dispatch import attend_cached
from llm.attention.pages import PAGE, LayerPages, PagedCache, allocate_pages, split_pages

ROUNDING = 1e-12  # float64, sums in another order
ROWS, HEADS, GROUPS, SIZE = 3, 4, 2, 5
WIDTH = 3 * PAGE
PROMPTS = np.array([PAGE + 3, 2, 2 * PAGE])


def draw(n_tokens: int, seed: int = 0) -> tuple[Any, ...]:
    """Return queries, keys and values of some tokens of every row."""
    rng = np.random.default_rng(seed)
    heads = (HEADS, GROUPS, GROUPS)
    return tuple(jnp.asarray(rng.normal(size=(ROWS, n_tokens, n, SIZE))) for n in heads)


def admit(cache: PagedCache, keys: Any, values: Any, sources: dict[int, int]) -> PagedCache:
    """Give rows to prompts, whose keys and values are padded at the end."""
    pages = (LayerPages(split_pages(keys), split_pages(values).swapaxes(-1, -2)),)
    for row, source in sources.items():
        numbers = jnp.int32(source), jnp.int32(row), jnp.int32(PROMPTS[source])
        cache = jax.jit(PagedCache.admit)(cache, pages, *numbers)
    return cache


def append(cache: PagedCache, positions: Any, keys: Any, values: Any) -> PagedCache:
    """Write the next token of every row."""
    table = cache.table.with_room(positions[:, 0])
    return PagedCache(table, (cache.layers[0].write(table, positions, keys, values),))


@pytest.mark.parametrize(
    ("window", "soft_cap", "with_sinks"),
    [(None, None, False), (PAGE + 2, None, True), (None, 1.5, False)],
)
def test_parity_pages_are_attended_as_the_tokens_of_each_sequence(
    window: int | None, soft_cap: float | None, with_sinks: bool
) -> None:
    """Prompts end within a page, at its start and at its end; a row is given to another prompt."""
    options: dict[str, Any] = {"window": window, "soft_cap": soft_cap, "scale": 0.7}
    if with_sinks:
        options["sinks"] = jnp.array([0.3, -1.0, 2.0, 0.0])
    _, keys, values = draw(WIDTH)
    cache = allocate_pages(1, ROWS, WIDTH + 2, 6, GROUPS, SIZE, jnp.float64)
    cache = admit(cache, keys, values, {0: 2, 1: 0, 2: 1})
    cache = cache.release(jnp.array([True, False, False])).grown(8)
    cache = admit(cache, keys, values, {0: 2})
    assert int(cache.table.n_free) == 8 - 2 - 2 - 1
    of_row = np.array([2, 0, 1])
    keys, values, lengths = keys[of_row], values[of_row], PROMPTS[of_row]
    for step in range(2):
        queries, new_keys, new_values = draw(1, seed=1 + step)
        positions = jnp.asarray(lengths + step)[:, None]
        cache = append(cache, positions, new_keys, new_values)
        rows = np.arange(ROWS)
        keys = keys.at[rows, lengths + step].set(new_keys[:, 0])
        values = values.at[rows, lengths + step].set(new_values[:, 0])
        mixed = cache.layers[0].attend(cache.table, queries, positions, **options)
        expected = attend_cached(queries, keys, values, positions, **options)
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=ROUNDING)


def test_closed_form_pages_are_taken_from_the_end_of_the_free_ones() -> None:
    table = allocate_pages(1, ROWS, WIDTH, 6, GROUPS, SIZE, jnp.float64).table
    table, pages = table.take(jnp.int32(1), jnp.int32(PAGE + 1))
    assert pages[:2].tolist() == [5, 4]
    assert table.row.tolist() == [ROWS] * 4 + [1, 1]
    assert table.first[4:].tolist() == [PAGE, 0]
    table = table.with_room(jnp.array([0, -1, PAGE - 1], jnp.int32))
    assert table.row.tolist() == [ROWS] * 3 + [0, 1, 1]
    assert int(table.release(jnp.array([False, True, False])).n_free) == 5


def test_extreme_padding_and_bfloat16_stay_finite() -> None:
    cache = allocate_pages(1, ROWS, WIDTH, 4, GROUPS, SIZE, jnp.bfloat16)
    queries, keys, values = (each.astype(jnp.bfloat16) for each in draw(1))
    positions = jnp.array([[0], [-1], [-1]])
    cache = append(cache, positions, keys, values)
    assert int(cache.table.n_free) == 3
    mixed = cache.layers[0].attend(
        cache.table, queries, positions, window=2, soft_cap=None, scale=1.0
    )
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mixed[0, 0], np.repeat(values[0, 0], HEADS // GROUPS, axis=0))
    assert not np.asarray(mixed[1:], np.float32).any()


@pytest.mark.parametrize("part", ["queries", "keys", "values"])
def test_property_numbers_that_are_not_finite_do_not_reach_another_sequence(part: str) -> None:
    cache = allocate_pages(1, ROWS, WIDTH, 4, GROUPS, SIZE, jnp.float64)
    names = "queries", "keys", "values"
    arrays = dict(zip(names, draw(1), strict=True))
    arrays[part] = arrays[part].at[1].set(jnp.nan)
    positions = jnp.zeros((ROWS, 1), int)
    cache = append(cache, positions, arrays["keys"], arrays["values"])
    mixed = cache.layers[0].attend(
        cache.table, arrays["queries"], positions, window=None, soft_cap=None, scale=1.0
    )
    assert np.isfinite(mixed).all(axis=(1, 2, 3)).tolist() == [True, False, True]
