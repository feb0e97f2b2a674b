"""Claims about a run's devices where there is one: no mesh; eight are in :mod:`test_sharding`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import MeshConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.parallel.mesh import devices_of, layout_of, on_host


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


def test_limit_one_device_has_no_mesh_and_two_are_not_there() -> None:
    assert devices_of(MeshConfig(), shapes()) is None
    with pytest.raises(ValueError, match="`mesh` must use all 1 devices, got data 1 x fsdp 2"):
        devices_of(MeshConfig(fsdp=2), shapes())


def test_closed_form_a_models_layout_is_that_of_its_parameters_and_heads() -> None:
    layout = layout_of({"data": 3, "fsdp": 4, "tensor": 2}, shapes())
    assert (layout.data, layout.fsdp, layout.tensor, layout.shards) == (3, 4, 2, 12)
    assert layout.split_of(("embedding",)) == (("tensor", "fsdp"), None)
    assert layout.split_of(("layers", "up_proj", "kernel")) == (None, "fsdp", "tensor")
    assert layout.split_of(("norm", "weight")) == (None,)
    with pytest.raises(ValueError, match=r"`mesh.tensor` must divide the 2 heads, got 4"):
        layout_of({"data": 1, "fsdp": 1, "tensor": 4}, shapes())


def test_roundtrip_values_come_to_the_host_as_they_are() -> None:
    for array in (jnp.array([[1.5, -2.0]]), np.array([[1.5, -2.0]])):
        found = on_host(array)
        assert isinstance(found, np.ndarray)
        assert found.tolist() == [[1.5, -2.0]]
