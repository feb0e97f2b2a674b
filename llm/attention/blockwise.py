r"""Blockwise attention over packed rows, for rows too long for dense attention.

All rows are concatenated. A block of queries is multiplied with one block of keys after another,
from the first token that any of its queries attends to up to the block itself. The softmax is
updated online with a running maximum and sum (`milakov:18`, `dao:22`), and the backward pass
recomputes the weights from the log-sum-exp. No array of size tokens times tokens is ever in memory,
and a packed row costs no more than its pairs would in rows of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from llm.precision import accumulation_dtype
from llm.types import Branch, Rows

from .logits import AttentionSettings, apply_soft_cap

BLOCK = 64
"""Tokens of a block: the fastest size from 32 to 256 on a CPU, for rows of 800 to 4,000 tokens."""
ATTENTION_RESIDUALS = "attention_residuals"
"""Name of the arrays that the backward pass needs besides queries, keys and values."""


class _TokenInfo(NamedTuple):
    """Arrays that define the attention mask, and the first key block of every query block."""

    positions: Int[Array, " N"]
    sequences: Int[Array, " N"]
    branches: Int[Array, " N"]
    first_block: Int[Array, " blocks"]
    window: Int[Array, ""]


def attend_in_blocks(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r T G K"],
    values: Float[Array, "r T G K"],
    rows: Rows,
    *,
    window: Int[Array, ""],
    settings: AttentionSettings,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "r T H K"]:
    """Compute :func:`llm.attention.dispatch.attend` in blocks of :data:`BLOCK` tokens.

    Args:
        queries: queries after rotary embedding.
        keys: keys after rotary embedding; each of the ``G`` heads serves ``H / G`` query heads.
        values: values of the same heads as the keys.
        rows: segments, branches and positions of the tokens.
        window: number of positions that a token attends to, its own included.
        settings: soft cap and scale of the logits.
        sinks: logits that join the softmax of each head without a value; None for none.

    Returns:
        Mixed values in the dtype of the queries; finite and without meaning for padding.
    """
    n_rows, n_tokens, n_heads, head_size = queries.shape
    n_groups = keys.shape[2]
    missing = -(n_rows * n_tokens) % BLOCK

    def concatenate_rows(x: Array) -> Array:
        """Return ``[r T H K]`` as ``[G H/G N K]``."""
        flat = x.reshape(n_rows * n_tokens, n_groups, -1, head_size)
        return jnp.pad(flat, ((0, missing), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)

    info = _token_info(rows, missing, window)
    parts = concatenate_rows(queries), concatenate_rows(keys)[:, 0], concatenate_rows(values)[:, 0]
    least = jnp.finfo(accumulation_dtype(queries.dtype)).min
    logits = jnp.full(n_heads, least) if sinks is None else sinks
    logits = logits.astype(least.dtype).reshape(n_groups, -1)
    mixed = jnp.asarray(_attend(*parts, logits, info, settings))
    end = n_rows * n_tokens
    return mixed.transpose(2, 0, 1, 3)[:end].reshape(n_rows, n_tokens, n_heads, head_size)


def _token_info(rows: Rows, missing: int, window: Array) -> _TokenInfo:
    n_rows, n_tokens = rows.segments.shape
    segments = jnp.asarray(rows.segments)
    # Segments are numbered by row; a sequence number is unique among all rows.
    numbers = jnp.arange(n_rows, dtype=segments.dtype)[:, None] * (n_tokens + 1) + segments
    sequences = jnp.where(segments > 0, numbers, -1).reshape(-1)
    indices = jnp.arange(n_rows * n_tokens)
    first = jax.ops.segment_min(
        indices, jnp.maximum(sequences, 0), num_segments=n_rows * (n_tokens + 1)
    )
    first = jnp.where(sequences >= 0, first[jnp.maximum(sequences, 0)], indices)

    def pad(x: Array, value: int) -> Array:
        return jnp.pad(x.reshape(-1), (0, missing), constant_values=value)

    return _TokenInfo(
        pad(jnp.asarray(rows.positions), 0),
        pad(sequences, -1),
        pad(jnp.asarray(rows.branches), 0),
        pad(first, n_rows * n_tokens).reshape(-1, BLOCK).min(axis=1) // BLOCK,
        window,
    )


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    queries: Array,
    keys: Array,
    values: Array,
    sinks: Array,
    info: _TokenInfo,
    settings: AttentionSettings,
) -> Array:
    return _forward(queries, keys, values, sinks, info, settings)[0]


def _forward(
    queries: Float[Array, "G h N K"],
    keys: Float[Array, "G N K"],
    values: Float[Array, "G N K"],
    sinks: Float[Array, "G h"],
    info: _TokenInfo,
    settings: AttentionSettings,
) -> tuple[Array, tuple[Any, ...]]:
    wide = accumulation_dtype(queries.dtype)
    groups, heads, n_tokens, head_size = queries.shape
    size = BLOCK

    def query_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        """Return outputs and log-sum-exps of a block of queries."""
        q = _slice(queries, i, size).reshape(groups, heads * size, head_size)

        def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            maximum, denominator, mixed = state
            logits = _logits(q, _slice(keys, j, size), info, i, j, settings)
            new_maximum = jnp.maximum(maximum, logits.max(axis=-1))
            weights = jnp.exp(logits - new_maximum[..., None])
            rescale = jnp.exp(maximum - new_maximum)
            added = _einsum("gts,gsk->gtk", weights.astype(values.dtype), _slice(values, j, size))
            return (
                new_maximum,
                denominator * rescale + weights.sum(axis=-1),
                mixed * rescale[..., None] + added,
            )

        shape = (groups, heads * size)
        # A sink is a key without a value, seen before all others.
        sink = jnp.repeat(sinks, size, axis=1)
        start = (
            sink,
            (sink > jnp.finfo(wide).min).astype(wide),
            jnp.zeros((*shape, head_size), wide),
        )
        maximum, denominator, mixed = jax.lax.fori_loop(
            info.first_block[i], i + 1, key_block, start
        )
        out = (mixed / denominator[..., None]).astype(queries.dtype)
        return None, (out, maximum + jnp.log(denominator))

    _, (out, lse) = jax.lax.scan(query_block, None, jnp.arange(n_tokens // size))
    lse = checkpoint_name(lse, ATTENTION_RESIDUALS)
    out = out.reshape(-1, groups, heads, size, head_size)
    out = checkpoint_name(out.transpose(1, 2, 0, 3, 4).reshape(queries.shape), ATTENTION_RESIDUALS)
    return out, (queries, keys, values, sinks, info, out, lse)


def _backward(
    settings: AttentionSettings, residuals: tuple, cotangent: Float[Array, "G h N K"]
) -> tuple[Array | None, ...]:
    queries, keys, values, sinks, info, out, lse = residuals
    wide = accumulation_dtype(queries.dtype)
    groups, heads, n_tokens, head_size = queries.shape
    size = BLOCK
    # Gradient of the softmax: from each weight's cotangent subtract their mean under the weights.
    mean = jnp.sum(cotangent.astype(wide) * out.astype(wide), axis=-1)

    def query_block(
        d_keys_values: tuple[Array, Array], xs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        i, lse_i = xs
        shape = (groups, heads * size)
        q = _slice(queries, i, size).reshape(*shape, head_size)
        d_out = _slice(cotangent, i, size).reshape(*shape, head_size)
        mean_i = jax.lax.dynamic_slice_in_dim(mean, i * size, size, 2).reshape(shape)

        def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_keys, d_values = state
            k, v = _slice(keys, j, size), _slice(values, j, size)
            logits = _logits(q, k, info, i, j, settings)
            weights = jnp.exp(logits - lse_i[..., None])
            d_weights = _einsum("gtk,gsk->gts", d_out, v)
            d_logits = weights * (d_weights - mean_i[..., None])
            if settings.soft_cap is not None:
                # The logit of a masked key is no value of the cap; its weight is 0.
                capped = jnp.where(weights > 0, logits / settings.soft_cap, 0)
                d_logits = d_logits * (1 - jnp.square(capped))
            d_logits = (settings.scale * d_logits).astype(queries.dtype)
            d_v = _einsum("gts,gtk->gsk", weights.astype(values.dtype), d_out)
            d_k = _einsum("gts,gtk->gsk", d_logits, q)
            return (
                d_q + _einsum("gts,gsk->gtk", d_logits, k),
                _add(d_keys, d_k, j, size),
                _add(d_values, d_v, j, size),
            )

        d_q = jnp.zeros((*shape, head_size), wide)
        d_q, d_keys, d_values = jax.lax.fori_loop(
            info.first_block[i], i + 1, key_block, (d_q, *d_keys_values)
        )
        return (d_keys, d_values), d_q

    zeros = jnp.zeros(keys.shape, wide), jnp.zeros(values.shape, wide)
    (d_keys, d_values), d_q = jax.lax.scan(query_block, zeros, (jnp.arange(n_tokens // size), lse))
    d_q = d_q.reshape(-1, groups, heads, size, head_size)
    d_q = d_q.transpose(1, 2, 0, 3, 4).reshape(queries.shape)
    lse = lse.reshape(-1, groups, heads, size).transpose(1, 2, 0, 3).reshape(mean.shape)
    d_sinks = -jnp.sum(jnp.exp(sinks[..., None] - lse) * mean, axis=-1)
    return (
        d_q.astype(queries.dtype),
        d_keys.astype(keys.dtype),
        d_values.astype(values.dtype),
        d_sinks.astype(sinks.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _logits(
    q: Float[Array, "G t K"],
    k: Float[Array, "G s K"],
    info: _TokenInfo,
    i: Array,
    j: Array,
    settings: AttentionSettings,
) -> Float[Array, "G t s"]:
    """Return logits of a block of queries and a block of keys; masked ones are the least number."""
    logits = settings.scale * _einsum("gtk,gsk->gts", q, k)
    logits = apply_soft_cap(logits, settings.soft_cap)
    size = BLOCK

    def of_queries_and_keys(x: Array) -> tuple[Array, Array]:
        of_queries = jax.lax.dynamic_slice_in_dim(x, i * size, size)
        of_keys = jax.lax.dynamic_slice_in_dim(x, j * size, size)
        return of_queries[:, None], of_keys[None, :]

    offsets = jnp.arange(size)
    seen = (i * size + offsets)[:, None] >= (j * size + offsets)[None, :]
    query, key = of_queries_and_keys(info.sequences)
    seen &= query == key
    query, key = of_queries_and_keys(info.branches)
    seen &= (key == int(Branch.PROMPT)) | (query == key)
    query, key = of_queries_and_keys(info.positions)
    seen &= query - key < info.window
    bound = jnp.finfo(logits.dtype).min
    return jnp.where(jnp.tile(seen, (q.shape[1] // size, 1)), logits, bound)


def _slice(x: Array, block: Array, size: int) -> Array:
    """Return a block of tokens, which are on the second last axis."""
    return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=x.ndim - 2)


def _add(x: Array, added: Array, block: Array, size: int) -> Array:
    """Add to a block of tokens."""
    return jax.lax.dynamic_update_slice_in_dim(
        x, _slice(x, block, size) + added, block * size, axis=x.ndim - 2
    )


def _einsum(subscripts: str, x: Array, y: Array) -> Array:
    wide = accumulation_dtype(x.dtype)
    return jnp.einsum(subscripts, x, y, preferred_element_type=wide)
