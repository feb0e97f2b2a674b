"""Words that are split over devices: log-probabilities without all logits in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Words(NamedTuple):
    """Exchanges for words that are split over devices; with no axes, one device has them all.

    Devices along ``fsdp`` have different tokens, and each needs the words of all: the hidden states
    of a chunk go to everyone, and every device answers for its own words.

    Attributes:
        over: mesh axes, none or :data:`llm.parallel.layout.WORDS`.
    """

    over: tuple[str, ...]

    def everyone(self, parts: Any) -> Any:
        """Tokens of all devices, one after another."""
        if not self.over:
            return parts
        return jax.tree.map(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), parts)

    def back(self, parts: Any) -> Any:
        """A device's own tokens among those of :meth:`everyone`."""
        if not self.over:
            return parts

        def mine(x: Array) -> Array:
            size = x.shape[0] // jax.lax.axis_size("fsdp")
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("fsdp") * size, size)

        return jax.tree.map(mine, parts)

    def own(self, ids: Array, n_words: int) -> tuple[Array, Array]:
        """Places of words among a device's own, and whether they are there."""
        if not self.over:
            return ids, jnp.ones(ids.shape, bool)
        first = jax.lax.axis_index(self.over) * n_words
        local = ids - first.astype(ids.dtype)
        mine = (local >= 0) & (local < n_words)
        return jnp.where(mine, local, 0), mine

    def total(self, x: Array) -> Array:
        """Sum over all words' devices."""
        return jax.lax.psum(x, self.over) if self.over else x

    def log_total(self, x: Array) -> Array:
        """Logarithm of the sum of exponentials over all words' devices."""
        if not self.over:
            return x
        top = jax.lax.pmax(x, self.over)
        return top + jnp.log(jax.lax.psum(jnp.exp(x - top), self.over))

    def scattered(self, x: Array) -> Array:
        """Sum over all words' devices, each device's own tokens of it."""
        if not self.over:
            return x
        others = tuple(name for name in self.over if name != "fsdp")
        own = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.psum(own, others)
