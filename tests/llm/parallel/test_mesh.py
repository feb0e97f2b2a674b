"""The mesh of one device, and sharding plans of models; :mod:`test_layout` uses eight devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llm.config import MeshConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.parallel.layout import SINGLE_DEVICE, ShardingPlan
from llm.parallel.mesh import (
    ROW_SPEC,
    is_first_process,
    make_devices,
    on_host,
    plan_model,
    put_on_mesh,
    single_device,
)


def shapes() -> Decoder:
    architecture = Architecture(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0)))


def test_limit_one_device_is_a_mesh_that_splits_nothing() -> None:
    devices = make_devices(MeshConfig(), shapes())
    assert devices == single_device()
    assert devices.plan == SINGLE_DEVICE
    assert dict(devices.mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1}
    assert devices.sharding(("embedding",)).is_fully_replicated


def test_limit_the_collectives_of_one_device_are_identities() -> None:
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    plan = SINGLE_DEVICE
    for collective in (plan.tp_broadcast, plan.tp_reduce, plan.batch_sum, plan.reduce_gradients):
        assert collective(x) is x
    assert plan.gather_tokens(x) is plan.scatter_tokens(x) is x
    assert plan.expert_index() == 0
    layer = {"q_proj": {"kernel": x, "adapter": {"a": x}}}
    assert plan.fsdp_gather(layer, jnp.bfloat16) == layer
    np.testing.assert_array_equal(plan.embed(x, jnp.array([1, 0]), x.dtype), x[::-1])


def test_closed_form_functions_on_one_device_sum_over_all_its_parts() -> None:
    devices = single_device()

    def on_device(trainable: Any, frozen: Any, batches: jax.Array) -> Any:
        per_pair = trainable["factor"] * frozen["offset"] + batches
        return {"sum": per_pair.sum()}, per_pair

    batches = devices.assign(np.arange(6.0).reshape(3, 2))
    assert batches.shape == (3, 1, 2)
    arguments = {"factor": jnp.array(3.0)}, {"offset": jnp.array(2.0)}, batches
    sums, per_pair = jax.jit(devices.map_metrics(on_device))(*arguments)
    np.testing.assert_array_equal(per_pair, batches + 6.0)
    assert float(sums["sum"]) == 6 * 6.0 + 15.0


def test_raises_for_a_mesh_of_more_devices_than_there_are() -> None:
    with pytest.raises(ValueError, match="`mesh` must use all 1 devices, got data 1 x fsdp 2"):
        make_devices(MeshConfig(fsdp=2), shapes())


def test_closed_form_a_model_is_planned_by_its_parameters_and_heads() -> None:
    plan = plan_model({"data": 3, "fsdp": 4, "tensor": 2}, shapes())
    assert (plan.data, plan.fsdp, plan.tensor, plan.batch_shards) == (3, 4, 2, 12)
    assert plan.split_of(("embedding",)) == (("tensor", "fsdp"), None)
    assert plan.split_of(("layers", "up_proj", "kernel")) == (None, "fsdp", "tensor")
    assert plan.split_of(("norm", "weight")) == (None,)
    with pytest.raises(ValueError, match=r"`mesh.tensor` must divide the 2 heads, got 4"):
        plan_model({"data": 1, "fsdp": 1, "tensor": 4}, shapes())


def test_roundtrip_arrays_are_copied_to_the_host_unchanged() -> None:
    for array in (jnp.array([[1.5, -2.0]]), np.array([[1.5, -2.0]])):
        copied = on_host(array)
        assert isinstance(copied, np.ndarray)
        assert copied.tolist() == [[1.5, -2.0]]


def test_roundtrip_put_on_mesh_shards_arrays_by_their_specs() -> None:
    mesh = single_device().mesh
    tree = {"row": np.arange(4.0), "scalar": np.array(2)}
    specs = {"row": PartitionSpec("data"), "scalar": PartitionSpec()}
    placed = put_on_mesh(tree, specs, mesh)
    assert placed["row"].sharding == NamedSharding(mesh, PartitionSpec("data"))
    np.testing.assert_array_equal(placed["row"], tree["row"])
    assert int(placed["scalar"]) == 2


def test_roundtrip_rows_are_mapped_with_shared_numbers_and_parameters() -> None:
    devices = single_device()

    def on_device(parameters: Any, shared: jax.Array, rows: jax.Array) -> jax.Array:
        return parameters["factor"] * rows + shared

    rows = devices.put_rows(np.arange(6.0).reshape(3, 2))
    shared = devices.put_shared(np.array(0.5))
    mapped = devices.map_rows(on_device)({"factor": jnp.array(2.0)}, shared, rows)
    np.testing.assert_array_equal(mapped, 2 * np.arange(6.0).reshape(3, 2) + 0.5)
    assert mapped.sharding == NamedSharding(devices.mesh, ROW_SPEC)
    eight = dataclasses.replace(devices, plan=ShardingPlan(data=2, fsdp=4, tensor=2))
    assert [eight.rows_of(n) for n in (1, 8, 9)] == [8, 8, 16]


def test_property_a_split_model_has_the_plan_of_the_mesh_and_is_not_changed() -> None:
    model: Any = nnx.Module()
    model.sharding_plan = ShardingPlan(data=3)
    model.weight = nnx.Param(jnp.arange(3.0))
    devices = single_device()
    graphdef, state = devices.split_model(model)
    merged: Any = nnx.merge(graphdef, state)
    assert merged.sharding_plan == SINGLE_DEVICE
    assert model.sharding_plan == ShardingPlan(data=3)
    assert is_first_process()
