"""Collectives of an output head whose vocabulary is split over devices.

No device ever holds the logits of the whole vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class VocabParallel(NamedTuple):
    """Collectives over the devices that hold the shards of a vocabulary.

    Devices along ``fsdp`` hold different tokens, and each needs the logits of the whole vocabulary.
    So the hidden states of a chunk are gathered, and each device computes the logits of its
    vocabulary shard for all of them. Without axes every method is the identity.

    Attributes:
        axes: the mesh axes of the split, () or :data:`llm.parallel.layout.VOCAB_AXES`.
    """

    axes: tuple[str, ...]

    def all_gather_tokens(self, chunk: Any) -> Any:
        """Return the tokens of all devices along ``fsdp``, one device's after another's."""
        if not self.axes:
            return chunk
        return jax.tree.map(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), chunk)

    def take_local_tokens(self, chunk: Any) -> Any:
        """Return the device's own tokens out of those of :meth:`all_gather_tokens`."""
        if not self.axes:
            return chunk

        def take(x: Array) -> Array:
            size = x.shape[0] // jax.lax.axis_size("fsdp")
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("fsdp") * size, size)

        return jax.tree.map(take, chunk)

    def gather_vocabulary(self, logits: Array) -> Array:
        """Return the logits of the device's own tokens over the whole vocabulary.

        Args:
            logits: logits of the vocabulary shard, for the tokens of :meth:`all_gather_tokens`.

        Returns:
            The logits, the same on all devices along ``tensor``.
        """
        if not self.axes:
            return logits
        local = jax.lax.all_to_all(logits, "fsdp", split_axis=0, concat_axis=1, tiled=True)
        return jax.lax.all_gather(local, "tensor", axis=1, tiled=True)

    def local_index(self, ids: Array, shard_size: int) -> tuple[Array, Array]:
        """Return the index of each token id in the device's vocabulary shard.

        Args:
            ids: token ids.
            shard_size: number of vocabulary entries of the shard.

        Returns:
            The indices, 0 for ids of other shards, and whether the id belongs to this shard.
        """
        if not self.axes:
            return ids, jnp.ones(ids.shape, bool)
        first = jax.lax.axis_index(self.axes) * shard_size
        local = ids - first.astype(ids.dtype)
        is_local = (local >= 0) & (local < shard_size)
        return jnp.where(is_local, local, 0), is_local

    def reduce_sum(self, x: Array) -> Array:
        """Return the sum of ``x`` over all vocabulary shards."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def reduce_logsumexp(self, x: Array) -> Array:
        """Return the logarithm of the sum of ``exp(x)`` over all vocabulary shards."""
        if not self.axes:
            return x
        maximum = jax.lax.pmax(x, self.axes)
        return maximum + jnp.log(jax.lax.psum(jnp.exp(x - maximum), self.axes))

    def reduce_scatter_tokens(self, x: Array) -> Array:
        """Return the sum of ``x`` over all vocabulary shards, for the device's own tokens."""
        if not self.axes:
            return x
        unscattered = tuple(name for name in self.axes if name != "fsdp")
        local = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.psum(local, unscattered)
