r"""Sharding of a decoder over a mesh, and the collectives that its layers call.

The mesh has four axes:

========== ======================== ===========================================================
axis       pairs                    parameters
========== ======================== ===========================================================
``data``   different on each device the same on each device
``fsdp``   different on each device a shard of each; layers are gathered one at a time
``expert`` different on each device some of the experts; all other parameters on each device
``tensor`` the same on each device  the shard of some heads, hidden units and vocabulary entries
========== ======================== ===========================================================

The training step is written for one device and mapped over the mesh by ``jax.shard_map``. Four
kinds of collectives are explicit:

* :meth:`ShardingPlan.fsdp_gather` gathers the parameters of a layer before the layer is applied;
  its transpose scatters their gradients.
* :meth:`ShardingPlan.tp_broadcast` precedes column-parallel projections and sums the gradient over
  ``tensor``; :meth:`ShardingPlan.tp_reduce` follows row-parallel projections and sums the output.
* :meth:`ShardingPlan.gather_tokens` and :meth:`ShardingPlan.scatter_tokens` enclose the experts:
  each device applies its own to the tokens of all devices along ``expert``.
* The vocabulary is split over ``tensor`` and ``fsdp``: :meth:`ShardingPlan.embed` looks tokens up,
  :class:`llm.parallel.vocab.VocabParallel` serves the output head.

On one device every collective is the identity (:data:`SINGLE_DEVICE`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

MESH_AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")
"""Axes along which devices hold different pairs."""
VOCAB_AXES = ("tensor", "fsdp")
"""Axes that the vocabulary is split over, the slower one first."""
COLUMN_PARALLEL = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
"""Projections whose outputs are split over ``tensor``."""
ROW_PARALLEL = frozenset({"o_proj", "down_proj"})
"""Projections whose inputs are split over ``tensor``."""

VOCAB_SPLIT = (("embedding",), ("output",), ("embedding_adapter", "a"), ("output_adapter", "a"))
"""Parameters whose rows are tokens of the vocabulary."""

ParameterPath = tuple[str, ...]
AxisSplit = tuple[Any, ...]
"""Mesh axis, or axes, that each axis of an array is split over; None for an axis that is whole."""


def partition_rule(path: ParameterPath, n_axes: int) -> AxisSplit:
    """Return how a parameter is split, regardless of its size.

    Args:
        path: names of the parameter in the model's state, such as
            ``("layers", "q_proj", "kernel")``.
        n_axes: number of axes of the array.

    Returns:
        For each axis of the array the mesh axis or axes that it is split over, or None.

    Examples:
        >>> partition_rule(("layers", "q_proj", "kernel"), 3)
        (None, 'fsdp', 'tensor')
        >>> partition_rule(("layers", "mlp_norm", "weight"), 2)
        (None, None)
    """
    if path in VOCAB_SPLIT:
        return (VOCAB_AXES, None)
    if path[-2:-1] == ("kernel",):  # codes and scales have the axes of the quantized kernel
        return partition_rule(path[:-1], n_axes)
    if path[1:2] in (("sinks",), ("q_proj_norm",), ("k_proj_norm",)):
        return (None, "tensor")
    if path[1:2] == ("experts",):
        # Experts are split by number, and then as the projections of an MLP are.
        layer, *rest = partition_rule((path[0], *path[2:]), n_axes - 1)
        return (layer, "expert", *rest)
    columns = len(path) > 2 and path[1] in COLUMN_PARALLEL
    by_rows = len(path) > 2 and path[1] in ROW_PARALLEL
    match path[-1] if path else None:
        case "kernel" if columns:
            return (None, "fsdp", "tensor")
        case "kernel" if by_rows:
            return (None, "tensor", "fsdp")
        case "bias" if columns:
            return (None, "tensor")
        case "b" if columns:
            return (None, None, "tensor")
        case "a" if by_rows:
            return (None, "tensor", None)
    return (None,) * n_axes


def has_partial_gradient(path: ParameterPath) -> bool:
    """Return whether the gradient of a parameter must be summed over ``tensor``.

    This is so if all devices along ``tensor`` hold the same values and use them for different
    heads or hidden units.

    Args:
        path: names of the parameter in the model's state.

    Returns:
        True for norms of queries and keys, for the unsplit matrices of adapters, and for the
        biases of experts' outputs.

    Examples:
        >>> paths = ("layers", "q_norm", "weight"), ("norm", "weight")
        >>> [has_partial_gradient(path) for path in paths]
        [True, False]
        >>> [has_partial_gradient(("layers", name, "a")) for name in ("q_proj", "down_proj")]
        [True, False]
    """
    if path[-2:-1] in (("q_norm",), ("k_norm",)) or path[1:] == ("experts", "down_proj", "bias"):
        return True
    columns, by_rows = (
        path[1:2] and path[1] in COLUMN_PARALLEL,
        path[1:2] and path[1] in ROW_PARALLEL,
    )
    return bool((columns and path[-1] == "a") or (by_rows and path[-1] == "b"))


@dataclass(frozen=True)
class ShardingPlan:
    """Sizes of a mesh, and how each parameter of a model is split over it.

    Attributes:
        data: number of devices along ``data``.
        fsdp: number of devices along ``fsdp``.
        tensor: number of devices along ``tensor``.
        splits: path and split of each parameter; an array that is not listed is replicated.
        expert: number of devices along ``expert``.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    splits: tuple[tuple[ParameterPath, AxisSplit], ...] = ()
    expert: int = 1

    @property
    def batch_shards(self) -> int:
        """Number of shards of a batch: devices along ``data``, ``fsdp`` and ``expert``.

        Examples:
            >>> ShardingPlan(data=2, fsdp=3, tensor=4).batch_shards
            6
        """
        return self.data * self.fsdp * self.expert

    def split_of(self, path: ParameterPath) -> AxisSplit:
        """Return the split of a parameter, empty if it is replicated."""
        return dict(self.splits).get(path, ())

    def vocab_axes(self, name: str) -> tuple[str, ...]:
        """Return the mesh axes that ``embedding`` or ``output`` is split over, maybe none."""
        split = self.split_of((name,))
        return (split[0] or ()) if split else ()

    def partition_specs(self, state: Any) -> Any:
        """Return a ``PartitionSpec`` for each array of a tree.

        Args:
            state: a tree in which parameters, or arrays shaped like them, stand under the paths
                of the parameters or deeper, as in an optimizer's state.

        Returns:
            A tree of the same structure; arrays that belong to no parameter are replicated.
        """
        known = dict(self.splits)

        def spec(key_path: Any, leaf: Any) -> PartitionSpec:
            names = _parameter_path(key_path)
            for start in range(len(names)):
                split = known.get(names[start:])
                if split is not None and len(split) == len(leaf.shape):
                    return PartitionSpec(*split)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, state)

    def fsdp_gather(self, layer: Any, dtype: DTypeLike) -> Any:
        """Gather the parameters of one layer over ``fsdp``.

        Args:
            layer: shards of the parameters of one layer.
            dtype: dtype that the layer computes in, and in which shards are sent.

        Returns:
            The same tree. Shards along ``tensor`` stay shards.
        """

        def gather(key_path: Any, leaf: Array) -> Array:
            path = ("layers", *_parameter_path(key_path))
            split = self.split_of(path)[1:]
            if "fsdp" in split:
                # Without the barrier XLA converts the shards of all layers at once and keeps them.
                leaf = jax.lax.optimization_barrier(leaf)
                is_quantized = path[-2:-1] == ("kernel",)
                leaf = leaf if is_quantized else leaf.astype(dtype)
                return jax.lax.all_gather(leaf, "fsdp", axis=split.index("fsdp"), tiled=True)
            return self.tp_broadcast(leaf) if has_partial_gradient(path) else leaf

        return jax.tree_util.tree_map_with_path(gather, layer)

    def tp_broadcast(self, x: Array) -> Array:
        """Return ``x``; its gradient is summed over ``tensor``."""
        return _tp_broadcast(x) if self.tensor > 1 else x

    def tp_reduce(self, x: Array) -> Array:
        """Sum ``x`` over ``tensor``; its gradient is that of the sum on each device."""
        return _tp_reduce(x) if self.tensor > 1 else x

    def gather_tokens(self, tokens: Any) -> Any:
        """Gather a tree of arrays, with tokens on the first axis, over ``expert``."""
        if self.expert == 1:
            return tokens
        return jax.tree.map(lambda x: jax.lax.all_gather(x, "expert", tiled=True), tokens)

    def scatter_tokens(self, x: Array) -> Array:
        """Sum over ``expert``, and return the tokens of this device."""
        if self.expert == 1:
            return x
        return jax.lax.psum_scatter(x, "expert", scatter_dimension=0, tiled=True)

    def expert_index(self) -> Array | int:
        """Return the index of the device along ``expert``."""
        return jax.lax.axis_index("expert") if self.expert > 1 else 0

    def batch_sum(self, sums: Any) -> Any:
        """Sum a tree of arrays over the devices that hold different pairs."""
        return jax.lax.psum(sums, BATCH_AXES) if self.batch_shards > 1 else sums

    def gather_pairs(self, tree: Any) -> Any:
        """Gather the pairs of the whole batch on every device.

        Args:
            tree: arrays ``[parts, n, ...]`` of one device's pairs.

        Returns:
            Arrays ``[pairs, ...]``, the same on every device. The transpose sums the gradients of
            all devices for a device's own pairs.

        Examples:
            >>> ShardingPlan().gather_pairs(jnp.zeros((2, 3, 5))).shape
            (6, 5)
        """

        def gather(leaf: Array) -> Array:
            pairs = jnp.asarray(leaf).reshape(-1, *leaf.shape[2:])
            if self.batch_shards == 1:
                return pairs
            return jax.lax.all_gather(pairs, BATCH_AXES, tiled=True)

        return jax.tree.map(gather, tree)

    def reduce_gradients(self, gradients: Any) -> Any:
        """Sum gradients over the devices that hold the same shard of a parameter.

        Args:
            gradients: gradient of each device's part of the loss with respect to its shards.

        Returns:
            The same tree. The transpose of :meth:`fsdp_gather` has summed shards along ``fsdp``.
        """
        if self.batch_shards == 1:
            return gradients

        def reduce(leaf: Array, spec: PartitionSpec) -> Array:
            split_over = {name for part in spec for name in _axis_names(part)}
            return jax.lax.psum(leaf, tuple(name for name in BATCH_AXES if name not in split_over))

        return jax.tree.map(reduce, gradients, self.partition_specs(gradients))

    def embed(self, table: Array, tokens: Array, dtype: DTypeLike) -> Array:
        """Look tokens up in an embedding whose vocabulary may be split over the mesh.

        Args:
            table: the device's shard of the embedding, ``[V / (tensor fsdp), D]``, or all of it.
            tokens: token ids of the device's rows, ``[r T]``.
            dtype: dtype of the result.

        Returns:
            Embeddings of the tokens, ``[r T D]``.
        """
        if not self.vocab_axes("embedding"):
            return table[tokens].astype(dtype)
        # Trade a vocabulary shard for a feature shard: each device looks all tokens up, for its
        # features only.
        table = jax.lax.all_to_all(
            table.astype(dtype), "fsdp", split_axis=1, concat_axis=0, tiled=True
        )
        ids = jax.lax.all_gather(tokens, "fsdp")
        local = ids - jax.lax.axis_index("tensor").astype(ids.dtype) * table.shape[0]
        is_local = (local >= 0) & (local < table.shape[0])
        embedded = jnp.where(is_local[..., None], table[jnp.where(is_local, local, 0)], 0)
        features = embedded.ndim - 1
        embedded = jax.lax.all_to_all(
            embedded, "fsdp", split_axis=0, concat_axis=features, tiled=True
        )
        return self.tp_reduce(embedded[0])


SINGLE_DEVICE = ShardingPlan()
"""The plan of one device: nothing is split, and every collective is the identity."""


def make_sharding_plan(
    sizes: Mapping[str, int], shapes: Any, *, head_counts: Sequence[int], hidden_size: int
) -> ShardingPlan:
    """Split the parameters of a model over a mesh.

    Args:
        sizes: number of devices along each axis of :data:`MESH_AXES`.
        shapes: the model's parameters, or anything with their shapes.
        head_counts: numbers of heads that ``tensor`` must divide.
        hidden_size: size of the hidden states.

    Returns:
        The plan. A parameter that ``fsdp`` does not divide is replicated along ``fsdp``.

    Raises:
        ValueError: if ``tensor`` or ``expert`` does not divide the heads or a parameter that it
            splits, or ``expert`` has devices for a model without experts.
    """
    if math.prod(sizes.values()) == 1:
        return SINGLE_DEVICE
    sizes = {"expert": 1, **sizes}
    tensor, expert = sizes["tensor"], sizes["expert"]
    for count in head_counts:
        if count % tensor:
            raise ValueError(f"`mesh.tensor` must divide the {count} heads, got {tensor}")
    splits = []
    for key, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = _parameter_path(key)
        split = list(partition_rule(path, len(leaf.shape)))
        if split[:1] == [VOCAB_AXES]:
            rows_divide = leaf.shape[0] % (tensor * sizes["fsdp"]) == 0
            fits = rows_divide and hidden_size % sizes["fsdp"] == 0
            splits.append((path, (VOCAB_AXES, None) if fits else (None, None)))
            continue
        for axis, name in enumerate(split):
            if name is not None and leaf.shape[axis] % sizes[name]:
                if name in ("tensor", "expert"):
                    raise ValueError(
                        f"`mesh.{name}` must divide axis {axis} of {'.'.join(path)}, whose size "
                        f"is {leaf.shape[axis]}, got {sizes[name]}"
                    )
                split[axis] = None
        splits.append((path, tuple(split)))
    if expert > 1 and not any("expert" in split for _, split in splits):
        raise ValueError(f"`mesh.expert` must be 1 for a model without experts, got {expert}")
    return ShardingPlan(sizes["data"], sizes["fsdp"], tensor, tuple(splits), expert)


@jax.custom_vjp
def _tp_broadcast(x: Array) -> Array:
    return x


_tp_broadcast.defvjp(lambda x: (x, None), lambda _, cotangent: (jax.lax.psum(cotangent, "tensor"),))


@jax.custom_vjp
def _tp_reduce(x: Array) -> Array:
    return jax.lax.psum(x, "tensor")


_tp_reduce.defvjp(lambda x: (jax.lax.psum(x, "tensor"), None), lambda _, cotangent: (cotangent,))


def _parameter_path(key_path: Any) -> ParameterPath:
    """Return the names in a key path of a tree, without the attributes of its containers."""
    keys = (getattr(key, "key", None) for key in key_path)
    return tuple(key for key in keys if isinstance(key, str))


def _axis_names(part: Any) -> Iterator[str]:
    """Yield the mesh axes in one entry of a ``PartitionSpec``."""
    if part is None:
        return iter(())
    return iter((part,) if isinstance(part, str) else part)
