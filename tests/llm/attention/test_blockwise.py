"""Blockwise attention against dense attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention import blockwise
from llm.attention.blockwise import attend_in_blocks
from llm.attention.dispatch import NO_WINDOW, attend, visible
from llm.attention.logits import AttentionSettings
from llm.types import Rows

ROUNDING = 1e-12  # sums of tens of terms of order 1 in float64
HEADS, GROUPS, SIZE, BLOCK = 4, 2, 5, 8


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that the rows below have several."""
    monkeypatch.setattr(blockwise, "BLOCK", BLOCK)


def packed(rows: list[list[tuple[int, int, int]]], n_tokens: int) -> Rows:
    """Return rows of pairs, each given by its numbers of prompt, chosen and rejected tokens."""
    parts = np.zeros((4, len(rows), n_tokens), int)
    for row, pairs in enumerate(rows):
        column = 0
        for segment, (prompt, *responses) in enumerate(pairs, 1):
            for branch, count in enumerate((prompt, *responses)):
                start = 0 if branch == 0 else prompt
                span = slice(column, column + count)
                parts[1, row, span] = start + np.arange(count)
                parts[2, row, span], parts[3, row, span] = segment, branch
                column += count
    return Rows(parts[0], parts[1], parts[2], parts[3])


# Pairs inside a block, across blocks and at the end of one; rows with and without padding.
ROWS = packed([[(3, 2, 2), (9, 14, 5), (1, 1, 1)], [(16, 8, 8), (4, 5, 5)]], 46)


def draw(rows: Rows, dtype: Any = float) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shape = np.shape(rows.tokens)
    heads = (HEADS, GROUPS, GROUPS, HEADS)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((*shape, h, SIZE)), dtype) for h in heads)
    return q, k, v, weight


def attend_densely(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, window: int, cap: float | None
) -> jax.Array:
    """Compute the softmax over all tokens, by head."""
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    logits = 0.3 * jnp.einsum("rthk,rshk->rhts", q, k)
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    seen = visible(rows, window=window)[:, None]
    return jnp.einsum("rhts,rshk->rthk", jax.nn.softmax(logits, where=seen, axis=-1), v)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [NO_WINDOW, 6])
def test_gradient_and_values_equal_those_of_dense_attention(window: int, cap: float | None) -> None:
    q, k, v, weight = draw(ROWS)
    filled = jnp.asarray(ROWS.segments > 0)[..., None, None]
    settings = AttentionSettings(cap, 0.3)

    def blocks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_in_blocks(q, k, v, ROWS, window=jnp.asarray(window), settings=settings)

    def value_and_gradient(attend: Any) -> Any:
        def weighted(*qkv: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(filled, attend(*qkv), 0) * weight)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))(q, k, v)

    got = value_and_gradient(blocks)
    expected = value_and_gradient(lambda q, k, v: attend_densely(q, k, v, ROWS, window, cap))
    for actual, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        bound = ROUNDING * float(jnp.abs(wanted).max())
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=bound)


@pytest.mark.usefixtures("small_blocks")
def test_gradient_with_sinks_is_that_of_a_key_without_a_value() -> None:
    q, k, v, weight = draw(ROWS)
    sinks = jnp.asarray([0.5, -1.0, 2.0, 0.0])
    seen = visible(ROWS, window=6)[:, None]
    filled = jnp.asarray(ROWS.segments > 0)[..., None, None]

    def dense(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
        weights = jnp.where(seen, jnp.exp(0.3 * jnp.einsum("rthk,rshk->rhts", q, k)), 0)
        denominator = weights.sum(axis=-1, keepdims=True) + jnp.exp(sinks)[:, None, None]
        return jnp.einsum("rhts,rshk->rthk", weights / denominator, v)

    def blocks(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
        settings = AttentionSettings(None, 0.3)
        window = jnp.asarray(6)
        return attend_in_blocks(q, k, v, ROWS, window=window, settings=settings, sinks=sinks)

    def by_dispatch(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
        return attend(q, k, v, ROWS, window=6, soft_cap=None, scale=0.3, sinks=sinks)

    def value_and_gradient(attention: Any) -> Any:
        def weighted(*parts: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(filled, attention(*parts), 0) * weight)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2, 3)))(q, k, v, sinks)

    expected = value_and_gradient(dense)
    for attention in (blocks, by_dispatch):
        got = value_and_gradient(attention)
        for actual, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            bound = ROUNDING * float(jnp.abs(wanted).max())
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=bound)


@pytest.mark.usefixtures("small_blocks")
def test_extreme_large_logits_and_padding_stay_finite() -> None:
    q, k, v, _ = draw(ROWS)
    settings = AttentionSettings(None, 1e5)

    def output_sum(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        window = jnp.asarray(NO_WINDOW)
        return jnp.sum(attend_in_blocks(q, k, v, ROWS, window=window, settings=settings))

    results = jax.jit(jax.value_and_grad(output_sum, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_property_the_compiled_gradient_has_no_array_of_tokens_times_tokens() -> None:
    n_tokens = 4096
    rows = packed([[(n_tokens // 2, n_tokens // 4, n_tokens // 4)]], n_tokens)
    q, k, v, weight = draw(rows, jnp.float32)
    settings = AttentionSettings(None, 0.3)

    def output_sum(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        window = jnp.asarray(NO_WINDOW)
        return jnp.sum(attend_in_blocks(q, k, v, rows, window=window, settings=settings) * weight)

    compiled = jax.jit(jax.grad(output_sum, argnums=(0, 1, 2))).lower(q, k, v).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    # Memory is linear in the tokens: a few arrays of the size of the queries.
    assert memory.temp_size_in_bytes < n_tokens**2
    assert memory.temp_size_in_bytes < 40 * q.nbytes
