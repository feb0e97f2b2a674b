"""Cache of keys and values of whole batches, in the layout that accelerators read fastest.

Slot ``s`` of a sequence holds its position ``s``. One CPU uses :mod:`llm.attention.pages` instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from .dispatch import attend_cached

Index = Int[Array, ""] | int


def allocate_cache(
    n_layers: int, n_rows: int, n_slots: int, n_heads: int, head_size: int, dtype: DTypeLike
) -> SlotMajorCache:
    """Allocate an empty cache.

    Args:
        n_layers: number of layers.
        n_rows: number of sequences.
        n_slots: number of positions of each sequence.
        n_heads: number of heads of keys and values.
        head_size: size of a head.
        dtype: dtype of keys and values.

    Returns:
        The cache.

    Examples:
        >>> allocate_cache(1, 2, 3, 4, 5, jnp.float32).keys.shape
        (1, 2, 3, 4, 5)
    """
    zeros = jnp.zeros((n_layers, n_rows, n_slots, n_heads, head_size), dtype)
    return SlotMajorCache(zeros, zeros)


class SlotMajorCache(NamedTuple):
    """Keys and values of the tokens read so far.

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
