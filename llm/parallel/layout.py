r"""How a model lies on a mesh of devices, and what devices tell each other.

The mesh has three axes. Along ``data`` devices hold the same parameters and different pairs; along
``fsdp`` they hold different pairs and a share of every parameter, which is gathered a layer at a
time; along ``tensor`` they hold the same pairs and different heads, hidden units and words. The
step is written for one device (``jax.shard_map``), every exchange where it happens:

* a layer's shares are gathered before it is applied, so that its gradient is scattered back;
* what enters a product split by columns is :meth:`Layout.spread` (its gradient is summed over
  ``tensor``), and what leaves one split by rows is :meth:`Layout.total` (summed over ``tensor``);
* the words of the embedding are split over ``tensor`` and ``fsdp``, for lookup and for the head
  (:class:`llm.parallel.vocab.Words`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")
SHARDS = ("data", "fsdp")
"""Axes along which devices have different pairs."""
WORDS = ("tensor", "fsdp")
"""Axes that the vocabulary is split over, the slower one first."""
BY_COLUMNS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
BY_ROWS = frozenset({"o_proj", "down_proj"})

Path = tuple[str, ...]
Spec = tuple[Any, ...]


def rule(path: Path, n_axes: int) -> Spec:
    """How a parameter is split, whatever its size: the one table of the package.

    Args:
        path: names that lead to it, as in ``("layers", "q_proj", "kernel")``.
        n_axes: of the array.

    Returns:
        For each axis of the array the mesh axes that it is split over, or None.

    Examples:
        >>> rule(("layers", "q_proj", "kernel"), 3)
        (None, 'fsdp', 'tensor')
        >>> rule(("layers", "mlp_norm", "weight"), 2)
        (None, None)
    """
    if path in (("embedding",), ("output",)):
        return (WORDS, None)
    columns = len(path) > 2 and path[1] in BY_COLUMNS
    by_rows = len(path) > 2 and path[1] in BY_ROWS
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


def is_partial(path: Path) -> bool:
    """Whether devices along ``tensor`` hold the same parameter but use it for different heads.

    Args:
        path: names that lead to it.

    Returns:
        True where its gradient is a sum over them.

    Examples:
        >>> is_partial(("layers", "q_norm", "weight")), is_partial(("norm", "weight"))
        (True, False)
        >>> [is_partial(("layers", name, "a")) for name in ("q_proj", "down_proj")]  # adapters
        [True, False]
    """
    if path[-2:-1] in (("q_norm",), ("k_norm",)):
        return True
    columns, by_rows = path[1:2] and path[1] in BY_COLUMNS, path[1:2] and path[1] in BY_ROWS
    return bool((columns and path[-1] == "a") or (by_rows and path[-1] == "b"))


@dataclass(frozen=True)
class Layout:
    """A mesh's sizes and how each parameter of a model is split over it.

    Attributes:
        data: devices along ``data``.
        fsdp: devices along ``fsdp``.
        tensor: devices along ``tensor``.
        splits: path and split of every parameter.
    """

    data: int
    fsdp: int
    tensor: int
    splits: tuple[tuple[Path, Spec], ...]

    @property
    def shards(self) -> int:
        """Devices with pairs of their own, times ``tensor`` fewer than all.

        Examples:
            >>> Layout(data=2, fsdp=3, tensor=4, splits=()).shards
            6
        """
        return self.data * self.fsdp

    def split_of(self, path: Path) -> Spec:
        """Split of a parameter."""
        return dict(self.splits)[path]

    def specs(self, state: Any, *, beneath: Path = ()) -> Any:
        """Splits as a tree of ``PartitionSpec``, for a tree of parameters or of their moments.

        Args:
            state: a tree in which parameters are found under their paths, maybe deeper.
            beneath: path of the tree's root.

        Returns:
            A tree of the same structure; what is no parameter is on every device.
        """
        known = dict(self.splits)

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            names = beneath + _names(path)
            for start in range(len(names)):
                split = known.get(names[start:])
                if split is not None and len(split) == len(leaf.shape):
                    return PartitionSpec(*split)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, state)

    def gathered(self, slices: Any, dtype: Any) -> Any:
        """A layer's parameters, whole but for their share along ``tensor``.

        Args:
            slices: parameters of one layer, each a device's share.
            dtype: that they will be used in; shares travel in it.

        Returns:
            The same tree.
        """

        def gather(path: Any, leaf: Array) -> Array:
            names = ("layers", *_names(path))
            split = self.split_of(names)[1:]
            if "fsdp" in split:
                # Or else the compiler converts the shares of all layers at once, and keeps them.
                leaf = jax.lax.optimization_barrier(leaf)
                return jax.lax.all_gather(
                    leaf.astype(dtype), "fsdp", axis=split.index("fsdp"), tiled=True
                )
            return self.spread(leaf) if is_partial(names) else leaf

        return jax.tree_util.tree_map_with_path(gather, slices)

    def spread(self, x: Array) -> Array:
        """The same on every device along ``tensor``; the gradient is summed over them."""
        return _spread(x) if self.tensor > 1 else x

    def total(self, x: Array) -> Array:
        """Sum over ``tensor``; the gradient is the same on each of them."""
        return _total(x) if self.tensor > 1 else x

    def reduced(self, slope: Any) -> Any:
        """Gradients summed over all devices that hold the same share of a parameter.

        Args:
            slope: gradient of each device's part of the loss by its shares.

        Returns:
            The same tree; shares along ``fsdp`` were summed when they were scattered.
        """
        specs = self.specs(slope)

        def reduce(leaf: Array, spec: PartitionSpec) -> Array:
            split_over = {name for part in spec for name in _as_tuple(part)}
            return jax.lax.psum(leaf, tuple(name for name in SHARDS if name not in split_over))

        return jax.tree.map(reduce, slope, specs)

    def embed(self, table: Array, tokens: Array) -> Array:
        """Rows of an embedding whose words are split over the mesh.

        Args:
            table: a device's words, ``[V / (tensor fsdp), D]``, or all of them.
            tokens: ids of a device's tokens.

        Returns:
            Their embeddings, of all ``D``.
        """
        if self.split_of(("embedding",))[0] is None:
            return table[tokens]
        # Words change places with features: every device looks up all tokens in its features.
        table = jax.lax.all_to_all(table, "fsdp", split_axis=1, concat_axis=0, tiled=True)
        ids = jax.lax.all_gather(tokens, "fsdp")
        local = ids - jax.lax.axis_index("tensor").astype(ids.dtype) * table.shape[0]
        mine = (local >= 0) & (local < table.shape[0])
        found = jnp.where(mine[..., None], table[jnp.where(mine, local, 0)], 0)
        last = found.ndim - 1
        back = jax.lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=last, tiled=True)
        return self.total(back[0])


def make_layout(
    sizes: Mapping[str, int], shapes: Any, *, head_counts: Sequence[int], hidden_size: int
) -> Layout:
    """Split a model over a mesh.

    Args:
        sizes: devices along each axis of :data:`AXES`.
        shapes: the model's parameters, or their shapes.
        head_counts: numbers of heads that ``tensor`` must divide.
        hidden_size: of the hidden states.

    Returns:
        The layout. What does not divide evenly along ``fsdp`` lies whole on every device.

    Raises:
        ValueError: heads, or a parameter split along ``tensor``, do not divide by it.
    """
    tensor = sizes["tensor"]
    for count in head_counts:
        if count % tensor:
            raise ValueError(f"`mesh.tensor` must divide the {count} heads, got {tensor}")
    splits = []
    for key, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = _names(key)
        split = list(rule(path, len(leaf.shape)))
        if split[:1] == [WORDS]:
            fits = (
                leaf.shape[0] % (tensor * sizes["fsdp"]) == 0 and hidden_size % sizes["fsdp"] == 0
            )
            splits.append((path, (WORDS, None) if fits else (None, None)))
            continue
        for axis, name in enumerate(split):
            if name is not None and leaf.shape[axis] % sizes[name]:
                if name == "tensor":
                    raise ValueError(
                        f"`mesh.tensor` must divide axis {axis} of {'.'.join(path)}, which is of "
                        f"{leaf.shape[axis]}, got {tensor}"
                    )
                split[axis] = None
        splits.append((path, tuple(split)))
    return Layout(sizes["data"], sizes["fsdp"], tensor, tuple(splits))


def mesh_sizes(*, data: int | None, fsdp: int | None, tensor: int, devices: int) -> dict[str, int]:
    """Sizes of a mesh of all devices.

    Args:
        data: along ``data``; None for 1.
        fsdp: along ``fsdp``; None for all devices that are left.
        tensor: along ``tensor``.
        devices: how many there are.

    Returns:
        A size for each of :data:`AXES`.

    Raises:
        ValueError: their product is not the number of devices.

    Examples:
        >>> mesh_sizes(data=None, fsdp=None, tensor=2, devices=8)
        {'data': 1, 'fsdp': 4, 'tensor': 2}
    """
    data = 1 if data is None else data
    if fsdp is None:
        fsdp = max(devices // (data * tensor), 1)
    if data * fsdp * tensor != devices:
        raise ValueError(
            f"`mesh` must use all {devices} devices, got data {data} x fsdp {fsdp} x tensor "
            f"{tensor} = {data * fsdp * tensor}"
        )
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@jax.custom_vjp
def _spread(x: Array) -> Array:
    return x


_spread.defvjp(lambda x: (x, None), lambda _, slope: (jax.lax.psum(slope, "tensor"),))


@jax.custom_vjp
def _total(x: Array) -> Array:
    return jax.lax.psum(x, "tensor")


_total.defvjp(lambda x: (jax.lax.psum(x, "tensor"), None), lambda _, slope: (slope,))


def _names(path: Any) -> Path:
    """Names of a place in a tree of parameters, without those of the container."""
    named = (getattr(key, "key", None) for key in path)
    return tuple(name for name in named if isinstance(name, str))


def _as_tuple(part: Any) -> Iterator[str]:
    if part is None:
        return iter(())
    return iter((part,) if isinstance(part, str) else part)
