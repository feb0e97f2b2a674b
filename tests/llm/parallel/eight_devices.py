"""Gradients on meshes of eight devices beside those of one device, as JSON on standard output.

The number of devices is a process's own and fixed at its start, so that this runs in a process of
its own; :mod:`test_sharding` reads what it prints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.config import MeshConfig, ModelConfig, ObjectiveConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.hf import factory
from llm.hf.io import export_model
from llm.hf.safetensors import SafetensorsReader
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import add_lora, trainable_filter
from llm.parallel.layout import make_layout
from llm.parallel.mesh import Devices, devices_of, make_mesh, on_host
from llm.train.step import gradients
from llm.types import Batch

OBJECTIVE = ObjectiveConfig(method="rpo", beta=0.3, eta=0.5)
MESHES = {
    "fsdp": {"data": 1, "fsdp": 8, "tensor": 1},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "qk_norm": True},
    "untied": {"qkv_bias": True, "o_proj_bias": True, "final_logit_softcapping": 3.0},
    "adapters": {},
    "plain": {},
    "indivisible vocabulary": {"vocab_size": 33},
}
CASES = [("tied", "fsdp"), *((model, "all") for model in MODELS if model != "plain")]
N_PAIRS = 16


def make_pairs() -> list[PairTokens]:
    """Pairs of different lengths."""
    rng = np.random.default_rng(0)

    def draw(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 32, rng.integers(1, most)).tolist())

    return [PairTokens(draw(9), draw(7), draw(7), None, row) for row in range(N_PAIRS)]


def make_model(name: str) -> Decoder:
    """A tiny decoder in float64."""
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    architecture = Architecture(
        **{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **MODELS[name]}
    )
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
    if name == "adapters":
        add_lora(model, rank=4, alpha=8.0, target_modules="all-linear", rngs=nnx.Rngs(1))
        adapters = nnx.state(model, nnx.LoRAParam)
        # B is 0 at the start, and would hide A.
        nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.1, adapters))
    return model


def with_reference(batch: Batch) -> Batch:
    """A batch with some log-probabilities of a reference."""
    return batch._replace(reference=np.full(batch.lengths.shape, -7.0))


def on_one(model: Decoder, pairs: list[PairTokens]) -> tuple[Any, Any]:
    """Gradient and metrics of all pairs at once on one device."""
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    batch = with_reference(BatchSampler(pairs, "shared", N_PAIRS).batch(0))
    step = partial(gradients, graphdef, config=OBJECTIVE)
    return jax.jit(step)(trainable, frozen, batch)


def on_mesh(model: Decoder, pairs: list[PairTokens], sizes: Mapping[str, int]) -> tuple[Any, Any]:
    """The same, of one pair a device and a part."""
    shards = sizes["data"] * sizes["fsdp"]
    a = model.architecture
    heads = (a.num_attention_heads, a.num_key_value_heads)
    layout = make_layout(sizes, nnx.state(model), head_counts=heads, hidden_size=a.hidden_size)
    devices = Devices(make_mesh(sizes, jax.devices()), layout)
    model.layout = layout
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    model.layout = None
    dealt = devices.dealt(BatchSampler(pairs, "shared", 1, accumulation_steps=N_PAIRS).batch(0))
    assert dealt.lengths.shape[:2] == (N_PAIRS // shards, shards)
    step = partial(gradients, graphdef, config=OBJECTIVE, devices=devices)
    return jax.jit(step)(
        devices.place(trainable),
        devices.place(frozen),
        devices.place_batches(with_reference(dealt)),
    )


def difference(one: Any, other: Any) -> float:
    """Largest difference of two trees, relative to the largest entry of each array."""

    def relative(a: Any, b: Any) -> float:
        a, b = np.asarray(a), np.asarray(b)
        return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300))

    return max(map(relative, jax.tree.leaves(one), jax.tree.leaves(other)))


def made_on_mesh() -> dict[str, Any]:
    """A model with adapters, read from files onto a mesh: what was read at once, and the values."""
    read = SafetensorsReader.read
    sizes: list[int] = []

    def spy(*arguments: Any) -> np.ndarray:
        tensor = read(*arguments)
        sizes.append(tensor.size)
        return tensor

    with TemporaryDirectory() as folder, patch.object(SafetensorsReader, "read", spy):
        export_model(make_model("plain"), Path(folder) / "model")
        config = ModelConfig(
            path=f"{folder}/model", dtype="float64", param_dtype="float64", lora_r=2
        )
        resolved = factory.resolve_model(config)
        whole: Any = nnx.state(factory.build_model(resolved))
        at_once, sizes[:] = max(sizes), []
        split: Any = nnx.state(factory.build_model(resolved, MeshConfig(**MESHES["all"])))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), whole, split)
    kernel = split["layers"]["up_proj"]["kernel"].get_value()
    return {
        "same": all(jax.tree.leaves(same)),
        "share": kernel.addressable_shards[0].data.size / kernel.size,
        "read_at_once": max(sizes) / at_once,
    }


def devices_and_model() -> tuple[Devices, Decoder]:
    """All devices, as a configuration asks for them."""
    model = make_model("plain")
    devices = devices_of(MeshConfig(**MESHES["all"]), model)
    assert devices is not None
    return devices, model


def measured_on_mesh() -> dict[str, Any]:
    """A measure of one number a pair, four parts of a pair a device, and its gradient."""
    devices, _ = devices_and_model()

    def on_device(trainable: Any, frozen: Any, batches: Any, reference: Any) -> Any:
        each = trainable["factor"] * batches
        return {"total": each.sum()}, each

    pairs = devices.dealt(np.arange(float(N_PAIRS)))
    given = {"factor": jnp.array(3.0)}, {}, devices.place_batches(pairs), None
    totals, each = jax.jit(devices.measures(on_device))(*given)

    def slope_on_device(trainable: Any, frozen: Any, batches: Any, reference: Any) -> Any:
        totals, each = on_device(trainable, frozen, batches, reference)
        return ({"factor": batches.sum()}, totals), each

    (slope, same), again = jax.jit(devices.gradients(slope_on_device))(*given)
    return {
        "total": float(totals["total"]),
        "each": on_host(each).tolist(),
        "slope": float(slope["factor"]),
        "same": float(same["total"]) == float(totals["total"]) and bool((again == each).all()),
    }


def where_on_mesh() -> dict[str, Any]:
    """Where parameters lie, and what is no parameter."""
    devices, model = devices_and_model()
    every: Any = nnx.state(model)
    kernel = every["layers"]["up_proj"]["kernel"].get_value()
    tree = {
        "embedding": every["embedding"].get_value(),
        "layers": {"up_proj": {"kernel": kernel}},
        "other": np.arange(3.0),
    }
    where, placed = devices.shardings(tree), devices.place(tree)
    leaves = jax.tree.leaves(placed)
    both = zip(leaves, jax.tree.leaves(tree), strict=True)
    return {
        "sizes": dict(devices.mesh.shape),
        "splits": [str(tuple(sharding.spec)) for sharding in jax.tree.leaves(where)],
        "shares": [leaf.addressable_shards[0].data.shape for leaf in leaves],
        "one": str(tuple(devices.sharding(("layers", "up_proj", "kernel")).spec)),
        "on_host": all(np.array_equal(on_host(there), leaf) for there, leaf in both),
    }


def main() -> None:
    """Print a line for each case."""
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1:] == ["arrays"]:
        found = {"made": made_on_mesh(), "measured": measured_on_mesh(), "where": where_on_mesh()}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    pairs, alone = make_pairs(), {}
    for name, mesh in (case for case in CASES if case[0] in sys.argv[1:]):
        model = make_model(name)
        if name not in alone:
            alone[name] = on_one(model, pairs)
        slope, result = alone[name]
        other_slope, other = on_mesh(model, pairs, MESHES[mesh])
        case = {
            "case": f"{name} on {mesh}",
            "gradient": difference(slope, other_slope),
            "metrics": difference(result.metrics, other.metrics),
        }
        sys.stdout.write(json.dumps(case) + "\n")


if __name__ == "__main__":
    main()
