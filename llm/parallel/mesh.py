"""Meshes of devices, and functions that run on each device with its share of the data.

A mesh of one device is the single-device case: training, evaluation and loading take the same path
on one device and on many. On one device nothing is split, and the collectives are identities:
``jax.shard_map`` over it compiles to the program of the unmapped function, with the same results in
every bit and the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm.config import MeshConfig

from .layout import (
    BATCH_AXES,
    MESH_AXES,
    SINGLE_DEVICE,
    ShardingPlan,
    make_sharding_plan,
)

BATCH_SPEC = PartitionSpec(None, BATCH_AXES)
"""Sharding of a batch ``[parts, shards, ...]``: parts are accumulated, shards are on devices."""
ROW_SPEC = PartitionSpec(BATCH_AXES)
"""Sharding of rows ``[rows, ...]``: consecutive rows are on one device."""


@dataclass(frozen=True)
class Devices:
    """A mesh of devices with the sharding plan of a model.

    Attributes:
        mesh: the devices, with axes :data:`llm.parallel.layout.MESH_AXES`.
        plan: the sharding plan; the model's ``sharding_plan`` must be the same.
    """

    mesh: Mesh
    plan: ShardingPlan

    def map_gradients(self, on_device: Callable[..., Any]) -> Callable[..., Any]:
        """Run a function of one device's pairs on all devices, and sum its gradients and metrics.

        Args:
            on_device: ``(trainable, frozen, batches) -> ((gradients, sums), per pair)`` for one
                device, where ``batches`` is ``[parts, ...]`` and the last result ``[parts, n]``.

        Returns:
            A function of the same arguments and results for the whole mesh, with a second axis of
            shards: ``batches`` is ``[parts, shards, ...]``, the last result ``[parts, shards, n]``.
        """

        def reduced(*arguments: Any) -> Any:
            (gradients, sums), per_pair = on_device(*arguments)
            return (self.plan.reduce_gradients(gradients), self.plan.batch_sum(sums)), per_pair

        def specs(trainable: Any) -> Any:
            return (self.plan.partition_specs(trainable), PartitionSpec())

        return self._shard_map(reduced, specs)

    def map_metrics(self, on_device: Callable[..., Any]) -> Callable[..., Any]:
        """Run a function of one device's pairs on all devices, and sum its metrics.

        Args:
            on_device: ``(trainable, frozen, batches) -> (sums, per pair)`` for one device.

        Returns:
            A function of the same arguments and results for the whole mesh, see
            :meth:`map_gradients`.
        """

        def reduced(*arguments: Any) -> Any:
            sums, per_pair = on_device(*arguments)
            return self.plan.batch_sum(sums), per_pair

        return self._shard_map(reduced, lambda trainable: PartitionSpec())

    def map_rows(self, on_device: Callable[..., Any]) -> Callable[..., Any]:
        """Run a function of one device's rows on all devices.

        Args:
            on_device: ``(parameters, shared, rows) -> results`` for one device; ``shared`` is the
                same on all devices, and the first axis of rows and results counts rows.

        Returns:
            A function of the same arguments and results for the rows of the whole mesh.
        """

        def run(parameters: Any, shared: Any, rows: Any) -> Any:
            return jax.shard_map(
                on_device,
                mesh=self.mesh,
                in_specs=(self.plan.partition_specs(parameters), PartitionSpec(), ROW_SPEC),
                out_specs=ROW_SPEC,
                check_vma=False,
            )(parameters, shared, rows)

        return run

    def split_model(self, model: Any) -> tuple[nnx.GraphDef[Any], Any]:
        """Split a model for functions that run on this mesh.

        Args:
            model: a model, which is not changed; its parameters may be on the mesh already.

        Returns:
            The structure of the model with the sharding plan of the mesh, and its parameters on the
            mesh.
        """
        planned: Any = model
        if not hasattr(planned, "sharding_plan"):
            graphdef, state = nnx.split(planned)
            return graphdef, self.put(state)
        before, planned.sharding_plan = planned.sharding_plan, self.plan
        try:
            graphdef, state = nnx.split(planned)
        finally:
            planned.sharding_plan = before
        return graphdef, self.put(state)

    def rows_of(self, n_rows: int) -> int:
        """Return a number of rows, rounded up to a multiple of the shards of a batch.

        Examples:
            >>> single_device().rows_of(5)
            5
        """
        return self.plan.batch_shards * math.ceil(n_rows / self.plan.batch_shards)

    def shard_index(self) -> Any:
        """Return the index of the device's shard of a batch, inside a mapped function.

        Examples:
            >>> single_device().shard_index()
            0
        """
        if self.plan.batch_shards == 1:
            return 0
        return jax.lax.axis_index(BATCH_AXES)

    def shardings(self, tree: Any) -> Any:
        """Return a sharding for each parameter of a tree, or array shaped like a parameter."""
        specs = self.plan.partition_specs(tree)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def sharding(self, path: tuple[Any, ...]) -> NamedSharding:
        """Return the sharding of one parameter."""
        return NamedSharding(self.mesh, PartitionSpec(*self.plan.split_of(path)))

    def put(self, tree: Any) -> Any:
        """Place parameters, or arrays shaped like parameters, on the mesh."""
        return put_on_mesh(tree, self.plan.partition_specs(tree), self.mesh)

    def put_batches(self, batches: Any) -> Any:
        """Place the parts of a batch, ``[parts, shards, ...]``, on the mesh."""
        return put_on_mesh(batches, jax.tree.map(lambda _: BATCH_SPEC, batches), self.mesh)

    def put_rows(self, rows: Any) -> Any:
        """Place rows, ``[rows, ...]``, on the mesh."""
        return put_on_mesh(rows, jax.tree.map(lambda _: ROW_SPEC, rows), self.mesh)

    def put_shared(self, tree: Any) -> Any:
        """Place arrays whole on every device of the mesh."""
        return put_on_mesh(tree, jax.tree.map(lambda _: PartitionSpec(), tree), self.mesh)

    def assign(self, batches: Any) -> Any:
        """Assign the parts of a batch to shards.

        Args:
            batches: a tree of NumPy arrays ``[parts * shards, ...]``.

        Returns:
            The same arrays as ``[parts, shards, ...]``.
        """

        def split(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(-1, self.plan.batch_shards, *leaf.shape[1:])

        return jax.tree.map(split, batches)

    def _shard_map(
        self, on_device: Callable[..., Any], sums_specs: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        def run(trainable: Any, frozen: Any, batches: Any) -> Any:
            def on_shard(trainable: Any, frozen: Any, batches: Any) -> Any:
                local_batches = jax.tree.map(lambda leaf: leaf[:, 0], batches)
                sums, per_pair = on_device(trainable, frozen, local_batches)
                return sums, per_pair[:, None]

            specs = self.plan.partition_specs
            return jax.shard_map(
                on_shard,
                mesh=self.mesh,
                in_specs=(specs(trainable), specs(frozen), BATCH_SPEC),
                out_specs=(sums_specs(trainable), BATCH_SPEC),
                check_vma=False,
            )(trainable, frozen, batches)

        return run


def make_devices(config: MeshConfig, model: Any) -> Devices:
    """Make the mesh of all devices of all processes, with a sharding plan for a model.

    Args:
        config: sizes of the mesh.
        model: a decoder, or one that exists as shapes only.

    Returns:
        The devices, one or many.

    Raises:
        ValueError: if the mesh does not use all devices, or does not divide the heads.
    """
    sizes = mesh_sizes(
        data=config.data,
        fsdp=config.fsdp,
        tensor=config.tensor,
        expert=config.expert,
        devices=jax.device_count(),
    )
    return Devices(make_mesh(sizes, jax.devices()), plan_model(sizes, model))


def mesh_sizes(
    *, data: int | None, fsdp: int | None, tensor: int, devices: int, expert: int = 1
) -> dict[str, int]:
    """Return the sizes of a mesh that uses all devices.

    Args:
        data: number of devices along ``data``; None for 1.
        fsdp: number of devices along ``fsdp``; None for all devices that remain.
        tensor: number of devices along ``tensor``.
        devices: number of devices.
        expert: number of devices along ``expert``.

    Returns:
        The size of each axis of :data:`MESH_AXES`.

    Raises:
        ValueError: if the product of the sizes is not the number of devices.

    Examples:
        >>> mesh_sizes(data=None, fsdp=None, tensor=2, devices=8)
        {'data': 1, 'fsdp': 4, 'expert': 1, 'tensor': 2}
    """
    data = 1 if data is None else data
    if fsdp is None:
        fsdp = max(devices // (data * expert * tensor), 1)
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    if math.prod(sizes.values()) != devices:
        shown = {name: size for name, size in sizes.items() if name != "expert" or size > 1}
        product = " x ".join(f"{name} {size}" for name, size in shown.items())
        raise ValueError(
            f"`mesh` must use all {devices} devices, got {product} = {math.prod(sizes.values())}"
        )
    return sizes


def single_device() -> Devices:
    """Make the mesh of one device: JAX's default device in this process.

    Returns:
        The device, with the sharding plan that splits nothing.

    Examples:
        >>> single_device().mesh.size
        1
    """
    (device,) = jax.device_put(np.zeros(())).devices()
    return Devices(make_mesh(dict.fromkeys(MESH_AXES, 1), [device]), SINGLE_DEVICE)


def plan_model(sizes: Mapping[str, int], model: Any) -> ShardingPlan:
    """Return the sharding plan of a model on a mesh.

    Args:
        sizes: number of devices along each axis, see :func:`mesh_sizes`.
        model: a decoder, or one that exists as shapes only.

    Returns:
        The sharding plan.

    Raises:
        ValueError: if the mesh does not divide the heads.
    """
    a = model.architecture
    heads = (a.num_attention_heads, a.num_key_value_heads)
    return make_sharding_plan(sizes, nnx.state(model), head_counts=heads, hidden_size=a.hidden_size)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """Arrange devices in a mesh; consecutive devices are neighbors along ``tensor``.

    Args:
        sizes: number of devices along each axis, see :func:`mesh_sizes`.
        devices: the devices, in order.

    Returns:
        A mesh with the axes :data:`llm.parallel.layout.MESH_AXES`.
    """
    return Mesh(np.array(devices).reshape([sizes.get(name, 1) for name in MESH_AXES]), MESH_AXES)


def put_on_mesh(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Place arrays on a mesh; each device holds its shard.

    Args:
        tree: arrays; each process holds all of them.
        specs: a ``PartitionSpec`` for each array.
        mesh: mesh that ``specs`` refer to.

    Returns:
        The same tree of global arrays.
    """

    def put(leaf: Any, spec: PartitionSpec) -> Array:
        sharding = NamedSharding(mesh, spec)
        is_there = isinstance(leaf, Array) and leaf.sharding == sharding
        if is_there or sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host_array = np.asarray(leaf)
        return jax.make_array_from_callback(
            host_array.shape, sharding, lambda index: host_array[index]
        )

    return jax.tree.map(put, tree, specs)


def is_first_process() -> bool:
    """Return whether this is the process that writes the files of a group of processes.

    Examples:
        >>> is_first_process()
        True
    """
    return jax.process_index() == 0


def decide_on_first(value: bool) -> bool:
    """Return what process 0 has found, such as whether a file is there, in all processes.

    A network file system can show a new file to one host earlier than to another.

    Args:
        value: what this process has found.

    Examples:
        >>> decide_on_first(True)
        True
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def on_host(array: Any) -> np.ndarray:
    """Copy an array to the host, including shards on the devices of other processes.

    Args:
        array: an array; if it is on several processes, all of them must call this function.

    Returns:
        The whole array.
    """
    if isinstance(array, Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
