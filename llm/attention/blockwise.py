r"""Attention in blocks: work and memory grow with what tokens see, not with the square of a row.

All rows are laid end to end. A block of queries meets, one after another, only the blocks of keys
between the first token that any of its queries may see and itself; the softmax is kept up as a
running maximum and sum (`milakov:18`, `dao:22`), and the backward pass computes the weights once
more from the log-sum-exp. Nothing of size tokens times tokens is ever alive, and the prompts,
responses and pairs of a packed row cost no more than they would in rows of their own.
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

BLOCK = 64
"""Tokens of a block: of 32 to 256 the fastest on a CPU, from rows of 800 tokens to 4,000."""
SAVED = "attention"
"""Name of what the backward pass needs beside queries, keys and values."""


class Settings(NamedTuple):
    """What the logits are made with, besides queries and keys."""

    soft_cap: float | None
    scale: float
    block: int = BLOCK


class _Marks(NamedTuple):
    """What decides who sees whom, by token, and where each block of queries begins to look."""

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
    settings: Settings,
) -> Float[Array, "r T H K"]:
    """The same as :func:`llm.attention.dispatch.attend`, block by block.

    Args:
        queries: turned to their positions.
        keys: of ``G`` heads, each serving ``H / G`` query heads in turn; turned as well.
        values: of the same heads.
        rows: who sees whom.
        window: positions seen, a token's own among them.
        settings: cap, scale and size of the blocks.

    Returns:
        In the dtype of the queries; finite for padding, whose values mean nothing.
    """
    n_rows, n_tokens, n_heads, head_size = queries.shape
    n_groups = keys.shape[2]
    missing = -(n_rows * n_tokens) % settings.block

    def laid_out(x: Array) -> Array:
        """Heads of a group with their group first, then tokens end to end."""
        flat = x.reshape(n_rows * n_tokens, n_groups, -1, head_size)
        return jnp.pad(flat, ((0, missing), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)

    marks = _marks(rows, missing, window, settings.block)
    parts = laid_out(queries), laid_out(keys)[:, 0], laid_out(values)[:, 0]
    mixed = jnp.asarray(_attend(*parts, marks, settings))
    end = n_rows * n_tokens
    return mixed.transpose(2, 0, 1, 3)[:end].reshape(n_rows, n_tokens, n_heads, head_size)


def _marks(rows: Rows, missing: int, window: Array, block: int) -> _Marks:
    n_rows, n_tokens = rows.segments.shape
    segments = jnp.asarray(rows.segments)
    # Segments count anew in every row; laid end to end each has a number of its own.
    own = jnp.arange(n_rows, dtype=segments.dtype)[:, None] * (n_tokens + 1) + segments
    sequences = jnp.where(segments > 0, own, -1).reshape(-1)
    places = jnp.arange(n_rows * n_tokens)
    first = jax.ops.segment_min(
        places, jnp.maximum(sequences, 0), num_segments=n_rows * (n_tokens + 1)
    )
    first = jnp.where(sequences >= 0, first[jnp.maximum(sequences, 0)], places)

    def padded(x: Array, value: int) -> Array:
        return jnp.pad(x.reshape(-1), (0, missing), constant_values=value)

    return _Marks(
        padded(jnp.asarray(rows.positions), 0),
        padded(sequences, -1),
        padded(jnp.asarray(rows.branches), 0),
        padded(first, n_rows * n_tokens).reshape(-1, block).min(axis=1) // block,
        window,
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(queries: Array, keys: Array, values: Array, marks: _Marks, settings: Settings) -> Array:
    return _forward(queries, keys, values, marks, settings)[0]


def _forward(
    queries: Float[Array, "G h N K"],
    keys: Float[Array, "G N K"],
    values: Float[Array, "G N K"],
    marks: _Marks,
    settings: Settings,
) -> tuple[Array, tuple[Any, ...]]:
    wide = accumulation_dtype(queries.dtype)
    groups, heads, n_tokens, head_size = queries.shape
    size = settings.block

    def of_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        """Outputs and log-sum-exps of a block of queries."""
        q = _cut(queries, i, size).reshape(groups, heads * size, head_size)

        def meet(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, mixed = state
            logits = _logits(q, _cut(keys, j, size), marks, i, j, settings)
            higher = jnp.maximum(top, logits.max(axis=-1))
            weights = jnp.exp(logits - higher[..., None])
            shrink = jnp.exp(top - higher)
            more = _product("gts,gsk->gtk", weights.astype(values.dtype), _cut(values, j, size))
            return (
                higher,
                total * shrink + weights.sum(axis=-1),
                mixed * shrink[..., None] + more,
            )

        shape = (groups, heads * size)
        start = (
            jnp.full(shape, jnp.finfo(wide).min, wide),
            jnp.zeros(shape, wide),
            jnp.zeros((*shape, head_size), wide),
        )
        top, total, mixed = jax.lax.fori_loop(marks.first_block[i], i + 1, meet, start)
        out = (mixed / total[..., None]).astype(queries.dtype)
        return None, (out, top + jnp.log(total))

    _, (out, lse) = jax.lax.scan(of_block, None, jnp.arange(n_tokens // size))
    lse = checkpoint_name(lse, SAVED)
    out = out.reshape(-1, groups, heads, size, head_size)
    out = checkpoint_name(out.transpose(1, 2, 0, 3, 4).reshape(queries.shape), SAVED)
    return out, (queries, keys, values, marks, out, lse)


def _backward(
    settings: Settings, kept: tuple, slope: Float[Array, "G h N K"]
) -> tuple[Array | None, ...]:
    queries, keys, values, marks, out, lse = kept
    wide = accumulation_dtype(queries.dtype)
    groups, heads, n_tokens, head_size = queries.shape
    size = settings.block
    # The softmax takes from every slope their mean under the weights.
    mean = jnp.sum(slope.astype(wide) * out.astype(wide), axis=-1)

    def of_block(
        slopes: tuple[Array, Array], xs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        i, lse_i = xs
        rows = (groups, heads * size)
        q = _cut(queries, i, size).reshape(*rows, head_size)
        d_out = _cut(slope, i, size).reshape(*rows, head_size)
        mean_i = jax.lax.dynamic_slice_in_dim(mean, i * size, size, 2).reshape(rows)

        def meet(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_keys, d_values = state
            k, v = _cut(keys, j, size), _cut(values, j, size)
            logits = _logits(q, k, marks, i, j, settings)
            weights = jnp.exp(logits - lse_i[..., None])
            d_weights = _product("gtk,gsk->gts", d_out, v)
            d_logits = weights * (d_weights - mean_i[..., None])
            if settings.soft_cap is not None:
                # What is not seen has weight 0, and its logit is no value of the cap.
                capped = jnp.where(weights > 0, logits / settings.soft_cap, 0)
                d_logits = d_logits * (1 - jnp.square(capped))
            d_logits = (settings.scale * d_logits).astype(queries.dtype)
            d_v = _product("gts,gtk->gsk", weights.astype(values.dtype), d_out)
            d_k = _product("gts,gtk->gsk", d_logits, q)
            return (
                d_q + _product("gts,gsk->gtk", d_logits, k),
                _add(d_keys, d_k, j, size),
                _add(d_values, d_v, j, size),
            )

        d_q = jnp.zeros((*rows, head_size), wide)
        d_q, *rest = jax.lax.fori_loop(marks.first_block[i], i + 1, meet, (d_q, *slopes))
        return (rest[0], rest[1]), d_q

    zeros = jnp.zeros(keys.shape, wide), jnp.zeros(values.shape, wide)
    (d_keys, d_values), d_q = jax.lax.scan(of_block, zeros, (jnp.arange(n_tokens // size), lse))
    d_q = d_q.reshape(-1, groups, heads, size, head_size)
    d_q = d_q.transpose(1, 2, 0, 3, 4).reshape(queries.shape)
    return (
        d_q.astype(queries.dtype),
        d_keys.astype(keys.dtype),
        d_values.astype(values.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _logits(
    q: Float[Array, "G t K"],
    k: Float[Array, "G s K"],
    marks: _Marks,
    i: Array,
    j: Array,
    settings: Settings,
) -> Float[Array, "G t s"]:
    """Logits of a block of queries at a block of keys; a finite bound where nothing is seen."""
    logits = settings.scale * _product("gtk,gsk->gts", q, k)
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    size = settings.block

    def here(x: Array, block: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, block * size, size)

    def differs(x: Array) -> tuple[Array, Array]:
        return here(x, i)[:, None], here(x, j)[None, :]

    offsets = jnp.arange(size)
    seen = (i * size + offsets)[:, None] >= (j * size + offsets)[None, :]
    ours, theirs = differs(marks.sequences)
    seen &= ours == theirs
    ours, theirs = differs(marks.branches)
    seen &= (theirs == int(Branch.PROMPT)) | (ours == theirs)
    ours, theirs = differs(marks.positions)
    seen &= ours - theirs < marks.window
    bound = jnp.finfo(logits.dtype).min
    return jnp.where(jnp.tile(seen, (q.shape[1] // size, 1)), logits, bound)


def _cut(x: Array, block: Array, size: int) -> Array:
    """A block of the tokens, which are on the last axis but one."""
    return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=x.ndim - 2)


def _add(x: Array, more: Array, block: Array, size: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(
        x, _cut(x, block, size) + more, block * size, axis=x.ndim - 2
    )


def _product(subscripts: str, one: Array, other: Array) -> Array:
    wide = accumulation_dtype(one.dtype)
    return jnp.einsum(subscripts, one, other, preferred_element_type=wide)
