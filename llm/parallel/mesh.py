"""The devices of a run: what is written for one device runs on all of them, each with its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm.config import MeshConfig

from .layout import AXES, SHARDS, Layout, make_layout, mesh_sizes

BATCHES = PartitionSpec(None, SHARDS)
"""Parts of a batch one after another, each dealt out to the devices with pairs of their own."""


@dataclass(frozen=True)
class Devices:
    """A mesh, and the layout of a model on it: runs what is written for one device on all.

    Attributes:
        mesh: the devices.
        layout: of the model; its :attr:`llm.models.decoder.Decoder.layout` too.
    """

    mesh: Mesh
    layout: Layout

    def gradients(self, on_device: Callable[..., Any]) -> Callable[..., Any]:
        """``(trainable, frozen, batches, reference) -> ((slope, totals), per pair)`` on all."""

        def reduced(*shares: Any) -> Any:
            (slope, totals), each = on_device(*shares)
            return (self.layout.reduced(slope), jax.lax.psum(totals, SHARDS)), each

        def specs(trainable: Any) -> Any:
            return (self.layout.specs(trainable), PartitionSpec())

        return self._everywhere(reduced, specs)

    def measures(self, on_device: Callable[..., Any]) -> Callable[..., Any]:
        """``(trainable, frozen, batches, reference) -> (totals, per pair)`` on all."""

        def reduced(*shares: Any) -> Any:
            totals, each = on_device(*shares)
            return jax.lax.psum(totals, SHARDS), each

        return self._everywhere(reduced, lambda trainable: PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """Where the layout wants parameters, or what is made of them: a tree of shardings."""
        specs = self.layout.specs(tree)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def sharding(self, path: tuple[Any, ...]) -> NamedSharding:
        """Where the layout wants one parameter."""
        return NamedSharding(self.mesh, PartitionSpec(*self.layout.split_of(path)))

    def place(self, tree: Any) -> Any:
        """Put parameters, or what is made of them, where the layout wants them."""
        return place(tree, self.layout.specs(tree), self.mesh)

    def place_batches(self, batches: Any) -> Any:
        """Put parts of a batch, ``[parts, shards, ...]`` each, on the devices that read them."""
        return place(batches, jax.tree.map(lambda _: BATCHES, batches), self.mesh)

    def dealt(self, batches: Any) -> Any:
        """Parts of a batch along one axis as ``[parts, shards, ...]``."""

        def deal(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(-1, self.layout.shards, *leaf.shape[1:])

        return jax.tree.map(deal, batches)

    def _everywhere(
        self, on_device: Callable[..., Any], totals_specs: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        def run(trainable: Any, frozen: Any, batches: Any, reference: Any) -> Any:
            def alone(trainable: Any, frozen: Any, batches: Any, reference: Any) -> Any:
                mine = jax.tree.map(lambda leaf: leaf[:, 0], batches)
                sums, each = on_device(trainable, frozen, mine, reference)
                return sums, each[:, None]

            specs = self.layout.specs
            return jax.shard_map(
                alone,
                mesh=self.mesh,
                in_specs=(specs(trainable), specs(frozen), BATCHES, specs(reference)),
                out_specs=(totals_specs(trainable), BATCHES),
                check_vma=False,
            )(trainable, frozen, batches, reference)

        return run


def devices_of(config: MeshConfig, model: Any) -> Devices | None:
    """All devices of all processes, with a model's layout on them.

    Args:
        config: the mesh.
        model: a decoder, or one that exists as shapes only.

    Returns:
        The devices; None if there is one.

    Raises:
        ValueError: the mesh does not divide the devices, or the heads.
    """
    sizes = mesh_sizes(
        data=config.data, fsdp=config.fsdp, tensor=config.tensor, devices=jax.device_count()
    )
    if jax.device_count() == 1:
        return None
    return Devices(make_mesh(sizes, jax.devices()), layout_of(sizes, model))


def layout_of(sizes: Mapping[str, int], model: Any) -> Layout:
    """A model's layout on a mesh of these sizes.

    Args:
        sizes: of :func:`llm.parallel.layout.mesh_sizes`.
        model: a decoder, or one that exists as shapes only.

    Returns:
        The layout.

    Raises:
        ValueError: the mesh does not divide the heads.
    """
    a = model.architecture
    heads = (a.num_attention_heads, a.num_key_value_heads)
    return make_layout(sizes, nnx.state(model), head_counts=heads, hidden_size=a.hidden_size)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The mesh of these sizes, neighbours along ``tensor`` first.

    Args:
        sizes: of :func:`mesh_sizes`.
        devices: the devices.

    Returns:
        A mesh with the axes :data:`AXES`.
    """
    return Mesh(np.array(devices).reshape([sizes[name] for name in AXES]), AXES)


def place(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Put arrays on a mesh, each device its own share.

    Args:
        tree: arrays; every process has all of them.
        specs: of the same structure.
        mesh: the devices.

    Returns:
        The same tree of global arrays.
    """

    def put(leaf: Any, spec: PartitionSpec) -> Array:
        sharding = NamedSharding(mesh, spec)
        there = isinstance(leaf, Array) and leaf.sharding == sharding
        if there or sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put, tree, specs)


def on_host(array: Any) -> np.ndarray:
    """An array's values, also those on devices of other processes, which all must ask for it.

    Args:
        array: any.

    Returns:
        All of it.
    """
    if isinstance(array, Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
