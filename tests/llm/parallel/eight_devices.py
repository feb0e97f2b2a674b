"""Compare gradients on meshes of eight devices with those on one device; print JSON to stdout.

The number of devices is fixed when a process starts, so :mod:`test_layout` runs this script in a
process with eight devices and reads its output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
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
from llm.models.base_weights import compress_base_weights
from llm.models.decoder import Decoder
from llm.models.lora import add_lora, trainable_filter
from llm.models.quantization import QuantizedParam
from llm.parallel.layout import SINGLE_DEVICE
from llm.parallel.mesh import (
    Devices,
    make_devices,
    make_mesh,
    on_host,
    plan_model,
    single_device,
)
from llm.train.step import gradients
from llm.types import Batch

OBJECTIVE = ObjectiveConfig(method="rpo", beta=0.3, eta=0.5)
MESHES = {
    "fsdp": {"data": 1, "fsdp": 8, "tensor": 1},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "experts": {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
    "experts alone": {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1},
}
ROUTER = {"router_aux_loss_coef": 0.3, "output_router_logits": True}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "qk_norm": True},
    "untied": {"qkv_bias": True, "o_proj_bias": True, "final_logit_softcapping": 3.0},
    "adapters": {},
    "nf4 base with adapters": {"intermediate_size": 128, "head_dim": 32},
    "int8 base with adapters": {
        "intermediate_size": 128,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "plain": {},
    "indivisible vocabulary": {"vocab_size": 33},
    "olmo and granite": {
        "pre_norms": False,
        "post_norms": True,
        "qk_proj_norm": True,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "phi and smollm": {
        "partial_rotary_factor": 0.5,
        "rope_layers": (True, False),
        "attention_sinks": True,
    },
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, **ROUTER},
    "experts with biases": {
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "expert_bias": True,
        "swiglu_limit": 0.5,
        "attention_sinks": True,
    },
}
CASES = [
    ("tied", "fsdp"),
    *((model, "all") for model in MODELS if model != "plain"),
    *(("experts", "experts"), ("experts", "experts alone"), ("experts with biases", "experts")),
]
N_PAIRS = 16


def make_pairs() -> list[PairTokens]:
    """Return pairs of different lengths."""
    rng = np.random.default_rng(0)

    def draw(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 32, rng.integers(1, most)).tolist())

    return [PairTokens(draw(9), draw(7), draw(7), None, row) for row in range(N_PAIRS)]


def make_model(name: str) -> Decoder:
    """Return a tiny decoder in float64."""
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
    if "adapters" in name:
        add_lora(model, rank=4, alpha=8.0, target_modules="all-linear", rngs=nnx.Rngs(1))
        adapters = nnx.state(model, nnx.LoRAParam)
        # B is 0 at the start, and would hide A.
        nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.1, adapters))
        kind: Any = name.split()[0]
        compress_base_weights(model, quantization=kind if "base" in name else None)
    if model.layers.sinks is not None:
        model.layers.sinks[...] = model.layers.sinks[...] + 0.2
    return model


def with_reference(batch: Batch) -> Batch:
    """Set constant reference log-probabilities; KTO's reference point is above 0."""
    constant = -7.0 if batch.desirable is None else -20.0
    return batch._replace(reference=np.full(batch.lengths.shape, constant))


def on_one(
    model: Decoder, pairs: list[PairTokens], objective: ObjectiveConfig = OBJECTIVE
) -> tuple[Any, Any]:
    """Return the gradient and metrics of all pairs at once on one device."""
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    devices = single_device()
    batch = devices.assign(BatchSampler(pairs, "shared", N_PAIRS).batch(0))
    step = partial(gradients, graphdef, config=objective, devices=devices)
    return jax.jit(step)(trainable, frozen, with_reference(batch))


def on_mesh(
    model: Decoder,
    pairs: list[PairTokens],
    sizes: Mapping[str, int],
    objective: ObjectiveConfig = OBJECTIVE,
) -> tuple[Any, Any]:
    """Return the same on a mesh, with one pair per device and part, or all pairs in one part."""
    shards = sizes["data"] * sizes["fsdp"] * sizes.get("expert", 1)
    devices = Devices(make_mesh(sizes, jax.devices()), plan_model(sizes, model))
    model.sharding_plan = devices.plan
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    model.sharding_plan = SINGLE_DEVICE
    # The router's loss is that of a part, so that parts and batch must be the same.
    in_one = model.architecture.output_router_logits
    at_once = N_PAIRS // shards if in_one else 1
    sampler = BatchSampler(pairs, "shared", at_once, accumulation_steps=N_PAIRS // at_once)
    assigned = devices.assign(sampler.batch(0))
    assert assigned.lengths.shape[:2] == (N_PAIRS // shards // at_once, shards)
    step = partial(gradients, graphdef, config=objective, devices=devices)
    return jax.jit(step)(
        devices.put(trainable),
        devices.put(frozen),
        devices.put_batches(with_reference(assigned)),
    )


def objectives_on_mesh() -> dict[str, dict[str, float]]:
    """Compare objectives that need more of a batch than sums over pairs."""
    pairs, differences = make_pairs(), {}
    unpaired = [pair._replace(desirable=pair.row % 3 == 0) for pair in pairs]
    ranked = [
        pair._replace(others=tuple(other.chosen for other in pairs[: pair.row % 4]))
        for pair in pairs
    ]
    for name, method, rows in (
        *((method, method, pairs) for method in ("aot", "wpo", "ld_dpo")),
        ("kto on unpaired rows", "kto", unpaired),
        ("plackett_luce on ranked rows", "plackett_luce", ranked),
    ):
        model, objective = make_model("plain"), ObjectiveConfig(method=method, beta=0.3)
        expected, expected_result = on_one(model, rows, objective)
        gradient, result = on_mesh(model, rows, MESHES["all"], objective)
        differences[name] = {
            "gradient": difference(expected, gradient),
            "metrics": difference(expected_result.metrics, result.metrics),
        }
    return differences


def difference(first: Any, second: Any) -> float:
    """Return the largest difference of two trees, relative to the largest entry of each array."""

    def relative(a: Any, b: Any) -> float:
        a, b = np.asarray(a), np.asarray(b)
        return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300))

    return max(map(relative, jax.tree.leaves(first), jax.tree.leaves(second)))


def load_on_mesh() -> dict[str, Any]:
    """Read a model with adapters onto a mesh; return how much was read at once, and compare."""
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
        read_at_once = max(sizes) / at_once
        quantized = replace(resolved, config=replace(config, quantization="nf4"))
        codes = [
            nnx.state(factory.build_model(quantized, mesh), QuantizedParam)
            for mesh in (None, MeshConfig(fsdp=8))  # whose shards begin within blocks
        ]
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), whole, split)
    same_codes = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), *codes)
    kernel = split["layers"]["up_proj"]["kernel"].get_value()
    return {
        "same": all(jax.tree.leaves(same)),
        "same_codes": all(jax.tree.leaves(same_codes)),
        "share": kernel.addressable_shards[0].data.size / kernel.size,
        "read_at_once": read_at_once,
    }


def devices_and_model() -> tuple[Devices, Decoder]:
    """Return the mesh of a configuration, and the model that it is planned for."""
    model = make_model("plain")
    return make_devices(MeshConfig(**MESHES["all"]), model), model


def measure_on_mesh() -> dict[str, Any]:
    """Sum one number per pair over four parts of one pair per device; return its gradient too."""
    devices, _ = devices_and_model()

    def metrics_on_device(trainable: Any, frozen: Any, batches: Any) -> Any:
        per_pair = trainable["factor"] * batches
        return {"sum": per_pair.sum()}, per_pair

    def gradients_on_device(trainable: Any, frozen: Any, batches: Any) -> Any:
        sums, per_pair = metrics_on_device(trainable, frozen, batches)
        return ({"factor": batches.sum()}, sums), per_pair

    pairs = devices.assign(np.arange(float(N_PAIRS)))
    arguments = {"factor": jnp.array(3.0)}, {}, devices.put_batches(pairs)
    sums, per_pair = jax.jit(devices.map_metrics(metrics_on_device))(*arguments)
    (gradient, same), again = jax.jit(devices.map_gradients(gradients_on_device))(*arguments)
    return {
        "sum": float(sums["sum"]),
        "per_pair": on_host(per_pair).tolist(),
        "gradient": float(gradient["factor"]),
        "same": float(same["sum"]) == float(sums["sum"]) and bool((again == per_pair).all()),
    }


def shard_on_mesh() -> dict[str, Any]:
    """Put parameters and another array on a mesh; return their shardings."""
    devices, model = devices_and_model()
    state: Any = nnx.state(model)
    kernel = state["layers"]["up_proj"]["kernel"].get_value()
    tree = {
        "embedding": state["embedding"].get_value(),
        "layers": {"up_proj": {"kernel": kernel}},
        "other": np.arange(3.0),
    }
    shardings, placed = devices.shardings(tree), devices.put(tree)
    leaves = jax.tree.leaves(placed)
    pairs = zip(leaves, jax.tree.leaves(tree), strict=True)
    return {
        "sizes": dict(devices.mesh.shape),
        "splits": [str(tuple(sharding.spec)) for sharding in jax.tree.leaves(shardings)],
        "shards": [leaf.addressable_shards[0].data.shape for leaf in leaves],
        "kernel_split": str(tuple(devices.sharding(("layers", "up_proj", "kernel")).spec)),
        "on_host": all(np.array_equal(on_host(array), leaf) for array, leaf in pairs),
    }


def main() -> None:
    """Print one JSON object for each case."""
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1:] == ["objectives"]:
        sys.stdout.write(json.dumps(objectives_on_mesh()) + "\n")
        return
    if sys.argv[1:] == ["arrays"]:
        results = {
            "loaded": load_on_mesh(),
            "measured": measure_on_mesh(),
            "placed": shard_on_mesh(),
        }
        sys.stdout.write(json.dumps(results) + "\n")
        return
    pairs, single = make_pairs(), {}
    for name, mesh in (case for case in CASES if case[0] in sys.argv[1:]):
        model = make_model(name)
        if name not in single:
            single[name] = on_one(model, pairs)
        expected, expected_result = single[name]
        gradient, result = on_mesh(model, pairs, MESHES[mesh])
        case = {
            "case": f"{name} on {mesh}",
            "gradient": difference(expected, gradient),
            "metrics": difference(expected_result.metrics, result.metrics),
        }
        sys.stdout.write(json.dumps(case) + "\n")


if __name__ == "__main__":
    main()
