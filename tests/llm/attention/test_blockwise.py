"""Attention in blocks against attention all at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.blockwise import Settings, attend_in_blocks
from llm.attention.dispatch import EVERYTHING, visible
from llm.types import Rows

ROUNDING = 1e-12  # sums of tens of terms of order 1 in float64
HEADS, GROUPS, SIZE, BLOCK = 4, 2, 5, 8


def packed(rows: list[list[tuple[int, int, int]]], n_tokens: int) -> Rows:
    """Rows of pairs, each given by its numbers of prompt, chosen and rejected tokens."""
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


# Pairs within a block, over several and ending with one; rows that end with padding and without.
ROWS = packed([[(3, 2, 2), (9, 14, 5), (1, 1, 1)], [(16, 8, 8), (4, 5, 5)]], 46)


def draw(rows: Rows, dtype: Any = float) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shape = np.shape(rows.tokens)
    heads = (HEADS, GROUPS, GROUPS, HEADS)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((*shape, h, SIZE)), dtype) for h in heads)
    return q, k, v, weight


def at_once(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, window: int, cap: float | None
) -> jax.Array:
    """Softmax over all tokens, by head."""
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    logits = 0.3 * jnp.einsum("rthk,rshk->rhts", q, k)
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    seen = visible(rows, window=window)[:, None]
    return jnp.einsum("rhts,rshk->rthk", jax.nn.softmax(logits, where=seen, axis=-1), v)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("window", [EVERYTHING, 6])
def test_gradient_and_values_are_those_of_attention_at_once(window: int, cap: float | None) -> None:
    q, k, v, weight = draw(ROWS)
    filled = jnp.asarray(ROWS.segments > 0)[..., None, None]
    settings = Settings(cap, 0.3, BLOCK)

    def blocks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_in_blocks(q, k, v, ROWS, window=jnp.asarray(window), settings=settings)

    def value(mix: Any) -> Any:
        def weighted(*qkv: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(filled, mix(*qkv), 0) * weight)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))(q, k, v)

    ours, theirs = value(blocks), value(lambda q, k, v: at_once(q, k, v, ROWS, window, cap))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING * float(jnp.abs(other).max()))


def test_extreme_large_logits_and_padding_stay_finite() -> None:
    q, k, v, _ = draw(ROWS)
    settings = Settings(None, 1e5, BLOCK)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        window = jnp.asarray(EVERYTHING)
        return jnp.sum(attend_in_blocks(q, k, v, ROWS, window=window, settings=settings))

    found = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_property_what_is_compiled_has_no_array_of_tokens_times_tokens() -> None:
    n_tokens = 4096
    rows = packed([[(n_tokens // 2, n_tokens // 4, n_tokens // 4)]], n_tokens)
    q, k, v, weight = draw(rows, jnp.float32)
    settings = Settings(None, 0.3)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        window = jnp.asarray(EVERYTHING)
        return jnp.sum(attend_in_blocks(q, k, v, rows, window=window, settings=settings) * weight)

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    # All that is kept is linear in the tokens: a few arrays of their heads.
    assert memory.temp_size_in_bytes < n_tokens**2
    assert memory.temp_size_in_bytes < 40 * q.nbytes
