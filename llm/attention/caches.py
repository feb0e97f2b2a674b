"""Caches of keys and values, in the layout that the platform reads fastest.

========================= ============= =================================================
cache                     platform      attention of one token
========================= ============= =================================================
:class:`SlotMajorCache`   TPU, GPU      two matrix products
:class:`HeadMajorCache`   CPU           multiply and sum, which copies no slice of a layer
========================= ============= =================================================

Slot ``s`` of a sequence holds its position ``s``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from llm.precision import accumulation_dtype

from .dispatch import Window, attend_cached
from .logits import apply_soft_cap

Index = Int[Array, ""] | int


def allocate_cache(
    n_layers: int,
    n_rows: int,
    n_slots: int,
    n_heads: int,
    head_size: int,
    dtype: DTypeLike,
    *,
    platform: str,
) -> Cache:
    """Allocate an empty cache.

    Args:
        n_layers: number of layers.
        n_rows: number of sequences.
        n_slots: number of positions of each sequence.
        n_heads: number of heads of keys and values.
        head_size: size of a head.
        dtype: dtype of keys and values.
        platform: ``cpu``, ``gpu`` or ``tpu``, which decides the layout.

    Returns:
        The cache.

    Examples:
        >>> allocate_cache(1, 2, 3, 4, 5, jnp.float32, platform="cpu").keys.shape
        (1, 2, 4, 5, 3)
    """
    if platform != "cpu":
        zeros = jnp.zeros((n_layers, n_rows, n_slots, n_heads, head_size), dtype)
        return SlotMajorCache(zeros, zeros)
    keys = jnp.zeros((n_layers, n_rows, n_heads, head_size, n_slots), dtype)
    return HeadMajorCache(keys, keys.swapaxes(-1, -2))


class SlotMajorCache(NamedTuple):
    """Keys and values of the tokens read so far, for accelerators.

    Attributes:
        keys: keys of all layers.
        values: values of all layers.
    """

    keys: Float[Array, "L r S G K"]
    values: Float[Array, "L r S G K"]

    @property
    def n_slots(self) -> int:
        """Number of positions that the cache has room for."""
        return self.keys.shape[2]

    def write(self, layer: Index, slots: Array, keys: Array, values: Array) -> SlotMajorCache:
        """Return the cache with the tokens of a layer; a slot past the last one is dropped."""
        row = jnp.arange(slots.shape[0])[:, None]
        return SlotMajorCache(
            self.keys.at[layer, row, slots].set(keys, mode="drop"),
            self.values.at[layer, row, slots].set(values, mode="drop"),
        )

    def attend(self, layer: Index, queries: Array, positions: Array, **options: Any) -> Array:
        """Compute :func:`llm.attention.dispatch.attend_cached` over a layer."""
        return attend_cached(queries, self.keys[layer], self.values[layer], positions, **options)

    def grown(self, n_slots: int) -> SlotMajorCache:
        """Return the cache with room for more positions."""
        more = ((0, 0), (0, 0), (0, n_slots - self.n_slots), (0, 0), (0, 0))
        return SlotMajorCache(jnp.pad(self.keys, more), jnp.pad(self.values, more))


class HeadMajorCache(NamedTuple):
    """Keys and values of the tokens read so far, for CPUs.

    Attributes:
        keys: keys of all layers.
        values: values of all layers.
    """

    keys: Float[Array, "L r G K S"]
    values: Float[Array, "L r G S K"]

    @property
    def n_slots(self) -> int:
        """Number of positions that the cache has room for."""
        return self.keys.shape[-1]

    def write(self, layer: Index, slots: Array, keys: Array, values: Array) -> HeadMajorCache:
        """Return the cache with the tokens of a layer; a slot past the last one is dropped."""
        row = jnp.arange(slots.shape[0])[:, None]
        return HeadMajorCache(
            self.keys.at[layer, row, :, :, slots].set(keys, mode="drop"),
            self.values.at[layer, row, :, slots].set(values, mode="drop"),
        )

    def attend(self, layer: Index, queries: Array, positions: Array, **options: Any) -> Array:
        """Compute :func:`llm.attention.dispatch.attend_cached` over a layer."""
        keys, values = self.keys[layer], self.values[layer]
        if queries.shape[1] == 1:
            return _attend_one_token(queries, keys, values, positions, **options)
        by_slot = queries, jnp.moveaxis(keys, -1, 1), values.swapaxes(1, 2)
        # XLA's CPU backend has no product of transposed bfloat16 arrays.
        q, k, v = (x.astype(accumulation_dtype(x.dtype)) for x in by_slot)
        return attend_cached(q, k, v, positions, **options).astype(queries.dtype)

    def grown(self, n_slots: int) -> HeadMajorCache:
        """Return the cache with room for more positions."""
        more = (0, n_slots - self.n_slots)
        return HeadMajorCache(
            jnp.pad(self.keys, (*[(0, 0)] * 4, more)),
            jnp.pad(self.values, (*[(0, 0)] * 3, more, (0, 0))),
        )


Cache = SlotMajorCache | HeadMajorCache
"""Keys and values of the tokens read so far, of all layers."""


def _attend_one_token(
    queries: Float[Array, "r 1 H K"],
    keys: Float[Array, "r G K S"],
    values: Float[Array, "r G S K"],
    positions: Int[Array, "r 1"],
    *,
    window: Window,
    soft_cap: float | None,
    scale: float,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "r 1 H K"]:
    """Attend by products and sums that are fused with reading the cache, and divide last."""
    n_rows, n_heads, head_size, n_slots = keys.shape
    wide = accumulation_dtype(queries.dtype)
    grouped = queries.reshape(n_rows, n_heads, -1, head_size, 1).astype(wide)
    logits = scale * jnp.sum(grouped * keys[:, :, None].astype(wide), axis=3)
    logits = apply_soft_cap(logits, soft_cap)
    distance = positions - jnp.arange(n_slots, dtype=positions.dtype)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    # The least number and not minus infinity: a query that attends to nothing must not become NaN.
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(wide).min)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    sink = None
    if sinks is not None:  # a key of every query whose value is zero
        sink = sinks.astype(wide).reshape(1, n_heads, -1, 1)
        largest = jnp.maximum(largest, sink)
    weights = jnp.exp(logits - largest)
    denominator = jnp.sum(weights, axis=-1, keepdims=True)
    if sink is not None:
        denominator = denominator + jnp.exp(sink - largest)
    mixed = jnp.sum(weights[..., None] * values[:, :, None].astype(wide), axis=3) / denominator
    return mixed.astype(queries.dtype).reshape(queries.shape)
