"""Decoding with separate layers and a cache in pages, as one CPU does it fastest.

``lax.scan`` copies the parameters and the cache of a layer before it is applied. Separate layers
are read where they are, but a program of 30 layers takes three times as long to compile.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from llm.attention.dispatch import attend_cached
from llm.attention.pages import LayerPages, PagedCache, allocate_pages, split_pages
from rpo_theory.types import ArrayLike

from .decoder import Decoder
from .layers import separate_layers


def unroll(decoder: Decoder) -> Decoder:
    """Return a decoder that computes the same with separate layers.

    Args:
        decoder: the model, on one device. It is not changed; its layers are copied.

    Returns:
        The decoder, for the functions of this module.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> small = Architecture(**sizes, num_hidden_layers=2, num_attention_heads=2)
        >>> len(unroll(Decoder(small, rngs=nnx.Rngs(0))).layers)
        2
    """
    unrolled: Any = nnx.merge(*nnx.split(decoder))
    n_layers = decoder.architecture.num_hidden_layers
    unrolled.layers = nnx.List(separate_layers(decoder.layers, n_layers))
    return unrolled


def init_pages(decoder: Decoder, n_rows: int, n_slots: int, n_pages: int) -> PagedCache:
    """Allocate a cache in pages.

    Args:
        decoder: the model.
        n_rows: number of sequences.
        n_slots: length of the longest sequence, prompt and reply.
        n_pages: number of pages of all sequences.

    Returns:
        A cache whose pages are free.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> small = Architecture(**sizes, num_hidden_layers=2, num_attention_heads=2)
        >>> init_pages(Decoder(small, rngs=nnx.Rngs(0)), 2, 70, 8).n_slots
        96
    """
    a = decoder.architecture
    heads = a.num_key_value_heads, a.head_dim
    return allocate_pages(a.num_hidden_layers, n_rows, n_slots, n_pages, *heads, decoder.dtype)


def read_prompts(
    unrolled: Decoder,
    tokens: Int[ArrayLike, "r T"],
    lengths: Int[ArrayLike, " r"],
    n_slots: int,
    *,
    n_packed: int,
) -> tuple[Float[Array, "n D"], tuple[LayerPages, ...]]:
    """Read whole prompts, computing products for their tokens alone.

    Args:
        unrolled: the model with separate layers.
        tokens: token ids, padded at the end to a multiple of :data:`llm.attention.pages.PAGE`.
        lengths: number of tokens of each prompt.
        n_slots: length of the longest sequence, prompt and reply.
        n_packed: number of tokens that the prompts are packed into, at least the sum of the
            lengths.

    Returns:
        Hidden states of the prompts one after another, and the pages ``[r m G K S]`` and
        ``[r m G S K]`` of each layer.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> small = Architecture(**sizes, num_hidden_layers=1, num_attention_heads=2)
        >>> unrolled = unroll(Decoder(small, rngs=nnx.Rngs(0)))
        >>> read_prompts(unrolled, jnp.ones((1, 32), int), jnp.array([5]), 40, n_packed=8)[0].shape
        (8, 4)
    """
    tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths)
    n_rows, width = tokens.shape
    ends = jnp.cumsum(lengths)
    index = jnp.arange(n_packed, dtype=lengths.dtype)
    row = jnp.minimum(jnp.searchsorted(ends, index, side="right"), n_rows - 1)
    starts = ends - lengths
    filled = index < ends[-1]
    position = jnp.where(filled, index - starts[row], 0)
    columns = jnp.arange(width, dtype=lengths.dtype)
    gathered = jnp.minimum(starts[:, None] + columns, n_packed - 1)
    positions = jnp.where(columns < lengths[:, None], columns, -1)

    def attention(
        queries: Array, keys: Array, values: Array, *, index: None, carry: None, **options: Any
    ) -> tuple[Array, LayerPages]:
        del index, carry
        queries, keys, values = (each[0][gathered] for each in (queries, keys, values))
        mixed = attend_cached(queries, keys, values, positions, **options)
        pages = split_pages(keys), split_pages(values).swapaxes(-1, -2)
        return mixed[row, position][None], LayerPages(*pages)

    packed = jnp.where(filled, tokens[row, position], 0)[None], position[None]
    hidden, layers, _ = unrolled.apply_layers(*packed, n_slots, attention, None, "none", None)
    return hidden[0], layers


def decode_with_pages(
    unrolled: Decoder,
    tokens: Int[ArrayLike, "r 1"],
    positions: Int[ArrayLike, "r 1"],
    cache: PagedCache,
) -> tuple[Float[Array, "r 1 D"], PagedCache]:
    """Read the next token of each sequence.

    Args:
        unrolled: the model with separate layers.
        tokens: token ids; any values at padding.
        positions: positions in the sequences; negative at padding.
        cache: keys and values of the earlier tokens, with enough free pages.

    Returns:
        Hidden states after the final norm, finite at padding, and the cache with the new tokens.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> small = Architecture(**sizes, num_hidden_layers=1, num_attention_heads=2)
        >>> unrolled = unroll(Decoder(small, rngs=nnx.Rngs(0)))
        >>> pages = init_pages(unrolled, 1, 40, 8)
        >>> decode_with_pages(unrolled, jnp.array([[3]]), jnp.array([[0]]), pages)[0].shape
        (1, 1, 4)
    """
    positions = jnp.asarray(positions)
    filled = positions >= 0
    table = cache.table.with_room(positions[:, 0])

    def attention(
        queries: Array, keys: Array, values: Array, *, index: None, carry: Any, **options: Any
    ) -> tuple[Array, LayerPages]:
        del index
        pages = carry.write(table, positions, keys, values)
        return pages.attend(table, queries, positions, **options), pages

    clean = jnp.where(filled, tokens, 0), jnp.where(filled, positions, 0)
    parts = attention, cache.layers, "none", None
    hidden, layers, _ = unrolled.apply_layers(*clean, cache.n_slots, *parts)
    return hidden, PagedCache(table, layers)
