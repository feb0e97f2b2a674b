"""Train adapters in bfloat16 on one device and on meshes of eight; print JSON to stdout.

:mod:`test_lora_meshes` runs this script in a process with eight devices. For every mesh it prints
the losses of ten steps, and the share of the entries of the first update whose sign is that of the
update on one device. ``float32`` as an argument computes in that dtype.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from llm.config import ObjectiveConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.models.architecture import Architecture
from llm.models.base_weights import compress_base_weights
from llm.models.decoder import Decoder
from llm.models.lora import add_lora, trainable_filter
from llm.parallel.mesh import Devices, make_mesh, plan_model
from llm.train.step import init_train_state, make_train_step

N_PAIRS, STEPS, RATE = 16, 10, 3e-3
OBJECTIVE = ObjectiveConfig(method="rpo", beta=0.3, eta=0.5)
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
MESHES = {
    "one device": ONE,
    "fsdp 8": {"data": 1, "fsdp": 8, "tensor": 1},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "data 8": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp 8, permuted": {"data": 1, "fsdp": 8, "tensor": 1},
}
PERMUTED = [5, 2, 7, 0, 3, 6, 1, 4]


def make_model(dtype: Any, quantization: Any) -> Decoder:
    """Return a small decoder with adapters in float32 beside frozen weights in ``dtype``."""
    architecture = Architecture(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=dtype)
    add_lora(model, rank=8, alpha=16.0, rngs=nnx.Rngs(1))
    return compress_base_weights(model, dtype=dtype, quantization=quantization)


def make_pairs() -> list[PairTokens]:
    """Return pairs of different lengths."""
    rng = np.random.default_rng(0)

    def draw(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 64, rng.integers(2, most)).tolist())

    return [PairTokens(draw(12), draw(16), draw(16), None, row) for row in range(N_PAIRS)]


def train(name: str, dtype: Any, quantization: Any) -> tuple[list[float], list[np.ndarray]]:
    """Return the losses of all steps, and the first update of every adapter."""
    sizes, model = MESHES[name], make_model(dtype, quantization)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    if "permuted" in name:
        devices = [devices[index] for index in PERMUTED]
    on_mesh = Devices(make_mesh(sizes, devices), plan_model(sizes, model))
    model.sharding_plan = on_mesh.plan
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    shards = sizes["data"] * sizes["fsdp"]
    sampler = BatchSampler(make_pairs(), "shared", 2, accumulation_steps=N_PAIRS // 2)
    batch = on_mesh.assign(sampler.batch(0))
    assert batch.lengths.shape[:2] == (N_PAIRS // 2 // shards, shards)
    batch = batch._replace(reference=np.full(batch.lengths.shape, -40.0, np.float32))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(RATE)
        state = on_mesh.put(init_train_state(trainable, optimizer))
        step = make_train_step(graphdef, OBJECTIVE, optimizer, devices=on_mesh)
        frozen, batch = on_mesh.put(frozen), on_mesh.put_batches(batch)
        before, losses, first = jax.tree.map(np.asarray, state.trainable), [], []
        for _ in range(STEPS):
            state, result = step(state, frozen, batch)
            losses.append(float(result.metrics["loss"]))
            if not first:
                moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.trainable, before)
                first = jax.tree.leaves(moved)
    return losses, first


def main() -> None:
    """Print one JSON object for each mesh."""
    dtype = jnp.float32 if "float32" in sys.argv else jnp.bfloat16
    quantization = "nf4" if "nf4" in sys.argv else None
    expected: list[np.ndarray] = []
    for name in MESHES:
        losses, update = train(name, dtype, quantization)
        expected = expected or update
        pairs = [(a.ravel(), b.ravel()) for a, b in zip(update, expected, strict=True)]
        here, there = (np.concatenate(leaves) for leaves in zip(*pairs, strict=True))
        moved = there != 0  # the first matrices have no gradient while the second ones are 0
        agreement = float((np.sign(here) == np.sign(there))[moved].mean())
        case = {"mesh": name, "losses": losses, "sign_agreement": agreement}
        sys.stdout.write(json.dumps(case) + "\n")


if __name__ == "__main__":
    main()
