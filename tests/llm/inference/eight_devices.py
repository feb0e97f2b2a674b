"""Score and generate on meshes of eight devices and on one; print JSON to stdout.

:mod:`test_mesh` runs this script in a process with eight devices and reads its output.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.config import MeshConfig, ModelConfig
from llm.data.preferences import PairTokens
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.inference import generate, score
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.inference.score import score_pairs
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import add_lora
from llm.parallel.mesh import Devices, make_devices, single_device

MESHES = {
    "tensor 2 x fsdp 4": MeshConfig(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 2 x expert 2 x tensor 2": MeshConfig(fsdp=2, expert=2, tensor=2),
}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"qkv_bias": True, "final_logit_softcapping": 3.0},
    "tied": {"tie_word_embeddings": True, "qk_norm": True, "sliding_window": 5},
    "indivisible vocabulary": {"vocab_size": 33},
    "adapters": {},
    "sinks": {"attention_sinks": True, "partial_rotary_factor": 0.5},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2},
}
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
END = 3


def make_model(name: str, dtype: Any) -> Decoder:
    """Return a model with random parameters."""
    architecture = Architecture(**{**SIZES, **MODELS[name]})
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    if name == "adapters":
        add_lora(model, rank=4, alpha=8.0, target_modules="all-linear", rngs=nnx.Rngs(1))
        adapters = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.1, adapters))
    if model.layers.sinks is not None:
        model.layers.sinks[...] = model.layers.sinks[...] + 0.2
    return model


def make_prompts(count: int) -> list[list[int]]:
    """Return prompts of different lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 32, rng.integers(1, 12)).tolist() for _ in range(count)]


def make_pairs(count: int) -> list[PairTokens]:
    """Return pairs of different lengths."""
    rng = np.random.default_rng(1)

    def draw(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 32, rng.integers(1, most)).tolist())

    return [PairTokens(draw(9), draw(7), draw(7), None, row) for row in range(count)]


def compare(name: str, mesh: str, *, prompts: int) -> dict[str, Any]:
    """Compare scores, greedy tokens and samples of a model on a mesh with those on one device."""
    case: dict[str, Any] = {"case": f"{name} on {mesh}"}
    for dtype in (jnp.float64, jnp.float32):
        model = make_model(name, dtype)
        devices = make_devices(MESHES[mesh], model)
        pairs = make_pairs(21)
        one, many = (
            np.array([each[1:3] for each in score_pairs(model, pairs, devices=where)])
            for where in (None, devices)
        )
        case[f"score {dtype.__name__}"] = float(np.abs(many / one - 1).max())
    model = make_model(name, jnp.float64)
    kinds: dict[str, Any] = {"greedy": {}, "sampled": {"temperature": 1.2, "top_p": 0.9}}
    for kind, options in kinds.items():
        config = GenerationConfig(max_new_tokens=8, **options)
        one, many = (
            generate_tokens(
                model, make_prompts(prompts), config, end_ids=[END], batch_size=16, devices=where
            )
            for where in (None, devices)
        )
        case[kind] = one == many
        case[f"{kind} replies"] = len({reply.tokens for reply in one})
    return case


def device_bytes(tree: Any) -> int:
    """Return the largest number of bytes that a device holds of a tree."""
    held: Counter[Any] = Counter()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def peak_bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs on a device."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def measure_memory() -> dict[str, int]:
    """Load, score and sample a model on a mesh; return the bytes that a device needs."""
    sizes = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256}
    layers = {"num_hidden_layers": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = ModelConfig(architecture=sizes | layers)
    peaks: dict[str, int] = {}

    def spying(function: Any, name: str) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            peaks[name] = peak_bytes(function.lower(*arguments, **options).compile())
            return function(*arguments, **options)

        return run

    with TemporaryDirectory() as folder:
        export_model(build_model(resolve_model(config)), Path(folder) / "model")
        resolved = resolve_model(ModelConfig(path=f"{folder}/model"))
        mesh = MeshConfig(fsdp=4, tensor=2)
        model = build_model(resolved, mesh)
    devices = make_devices(mesh, model)
    state = nnx.state(model)
    peaks["parameters"] = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    peaks["loaded"] = device_bytes(state)
    score.log_probs_on_mesh = spying(score.log_probs_on_mesh, "scored")
    generate.decode_on_mesh = spying(generate.decode_on_mesh, "sampled")
    score_pairs(model, make_pairs(16), devices=devices)
    config = GenerationConfig(max_new_tokens=8, temperature=1.0)
    generate_tokens(model, make_prompts(16), config, end_ids=[END], batch_size=16, devices=devices)
    return peaks


def main() -> None:
    """Print one JSON object for each case."""
    jax.config.update("jax_enable_x64", True)
    assert isinstance(single_device(), Devices)
    if sys.argv[1:] == ["memory"]:
        sys.stdout.write(json.dumps(measure_memory()) + "\n")
        return
    name, mesh, prompts = sys.argv[1:]
    sys.stdout.write(json.dumps(compare(name, mesh, prompts=int(prompts))) + "\n")


if __name__ == "__main__":
    main()
