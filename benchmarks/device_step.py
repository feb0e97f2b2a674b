"""Benchmark of a training step on an accelerator: accuracy, speed, and distance to the limit.

    python benchmarks/device_step.py --out out/bench [--shape small|1b] [--pairs 16]

1. Accuracy: loss and gradient of a small decoder on one packed batch, on the device against the
   CPU in float32, and in bfloat16 with the device's attention kernel against float32.
2. Speed: steps of a decoder of a known shape with random weights, on pairs of random lengths
   (prompts of 64 to 511 tokens, responses of 32 to 511). Prompts are shared by the responses of a
   pair, or repeated in a row for each response as in other trainers.

The limit is the rate of the device's own matrix product. Useful work is that of unique tokens in
the layers and of response tokens in the output head.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.attention.blockwise import attend_in_blocks
from llm.attention.dispatch import NO_WINDOW, attend
from llm.attention.logits import AttentionSettings
from llm.config import ObjectiveConfig, OptimizerConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.mesh import single_device
from llm.precision import computing_in
from llm.train.optimizer import make_optimizer
from llm.train.step import gradients, init_train_state, make_train_step
from llm.types import Batch, Rows

SIZE_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
SHAPES = {
    "tiny": (512, 128, 256, 2, 2, 1),
    "small": (49152, 576, 1536, 30, 9, 3),
    "1b": (128256, 2048, 8192, 16, 32, 8),
}
"""Sizes of decoders, in the order of :data:`SIZE_NAMES`: SmolLM2-135M is small, Llama-3.2-1B 1b."""
OBJECTIVE = ObjectiveConfig(method="rpo", beta=0.1, eta=0.05)
STEPS = 6


def architecture_of(shape: str) -> Architecture:
    """Return the architecture of a known shape."""
    return Architecture(**dict(zip(SIZE_NAMES, SHAPES[shape], strict=True)))


def draw_pairs(n: int, vocabulary: int) -> list[PairTokens]:
    """Draw pairs of random tokens and lengths."""
    rng = np.random.default_rng(0)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, rng.integers(low, high)).tolist())

    return [
        PairTokens(draw(64, 513), draw(32, 513), draw(32, 513), baseline=None, row=row)
        for row in range(n)
    ]


def batches_of(pairs: list[PairTokens], layout: Any, size: int) -> list[Batch]:
    """Return batches of ``size`` pairs, with constant reference log-probabilities."""
    sampler = BatchSampler(pairs, layout, size, seed=0)
    batches = [sampler.batch(step) for step in range(len(pairs) // size)]
    return [
        single_device().assign(
            batch._replace(reference=np.full(batch.lengths.shape, -7.0, np.float32))
        )
        for batch in batches
    ]


def first_gradient(dtype: str, batch: Batch) -> tuple[float, np.ndarray]:
    """Return loss and gradient of the tiny decoder."""
    model = Decoder(architecture_of("tiny"), rngs=nnx.Rngs(0), dtype=dtype)
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    devices = single_device()
    run = jax.jit(
        lambda *state: gradients(graphdef, state[0], state[1], batch, OBJECTIVE, devices=devices)
    )
    gradient, result = run(trainable, frozen)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    return float(result.metrics["loss"]), flat


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the distance of two arrays, relative to the norm of the second."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def check_attention() -> float:
    """Compare the bfloat16 kernel with blockwise float32 attention; return the largest error."""
    batch = batches_of(draw_pairs(4, 512), "shared", 4)[0]
    rows: Rows = jax.tree.map(lambda leaf: leaf[0, 0], batch.rows)
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = [(*rows.tokens.shape, heads, 64) for heads in (4, 2, 2, 4)]
    inputs = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    filled = jnp.asarray(rows.segments > 0)[..., None, None]

    def output_and_gradients(attention: Any, dtype: Any) -> list[np.ndarray]:
        *parts, weight = (x.astype(dtype) for x in inputs)
        mixed, vjp = jax.vjp(lambda *qkv: jnp.where(filled, attention(*qkv), 0), *parts)
        return [np.asarray(x.astype(jnp.float32)) for x in (mixed, *vjp(weight))]

    def kernel(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, rows, window=None, soft_cap=None, scale=0.125)

    def blocks(q: Any, k: Any, v: Any) -> Any:
        settings = AttentionSettings(None, 0.125)
        return attend_in_blocks(q, k, v, rows, window=jnp.asarray(NO_WINDOW), settings=settings)

    pairs = zip(
        output_and_gradients(kernel, jnp.bfloat16),
        output_and_gradients(blocks, jnp.float32),
        strict=True,
    )
    return max(relative_error(actual, expected) for actual, expected in pairs)


def check_step() -> dict[str, float]:
    """Compare loss and gradient of the device with the CPU, and bfloat16 with float32."""
    batch = batches_of(draw_pairs(6, 512), "shared", 6)[0]
    with computing_in("float32"):
        loss, gradient = first_gradient("float32", batch)
        with jax.default_device(jax.devices("cpu")[0]):
            cpu_loss, cpu_gradient = first_gradient("float32", batch)
    half_loss, half_gradient = first_gradient("bfloat16", batch)
    return {
        "loss_device_vs_cpu": abs(loss - cpu_loss) / abs(cpu_loss),
        "gradient_device_vs_cpu": relative_error(gradient, cpu_gradient),
        "loss_bfloat16_vs_float32": abs(half_loss - loss) / abs(loss),
        "gradient_bfloat16_vs_float32": relative_error(half_gradient, gradient),
        "attention_bfloat16_vs_float32": check_attention(),
    }


def matmul_rate() -> float:
    """Return FLOP/s of a bfloat16 matrix product of 8192 x 8192, the best of 10."""
    a, b = (jax.random.normal(jax.random.key(i), (8192, 8192), jnp.bfloat16) for i in (0, 1))
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(a, b).block_until_ready()
    times = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(a, b).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2.0 * 8192**3 / min(times)


def time_steps(shape: str, layout: Any, size: int, remat: Any) -> dict[str, float]:
    """Time training steps after every batch shape was compiled."""
    architecture = architecture_of(shape)
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, remat=remat)
    head = model.embedding[...].size
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    embeddings = 2 * head  # looked up at every token, but multiplied at response tokens only
    layers = sum(leaf.size for leaf in jax.tree.leaves(trainable)) - embeddings
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    devices = single_device()
    state = devices.put(init_train_state(trainable, optimizer))
    step = make_train_step(graphdef, OBJECTIVE, optimizer, devices=devices)
    batches = batches_of(draw_pairs(STEPS * size, architecture.vocab_size), layout, size)

    def all_steps(state: Any) -> tuple[Any, float, float]:
        started, loss = time.perf_counter(), jnp.nan
        for batch in batches:
            state, result = step(state, frozen, batch)
            loss = result.metrics["loss"]
        return state, float(loss), time.perf_counter() - started

    state, _, compiling = all_steps(state)
    _, loss, seconds = all_steps(state)
    seconds /= len(batches)
    shared = batches_of(draw_pairs(STEPS * size, architecture.vocab_size), "shared", size)
    unique = sum(int((batch.rows.segments > 0).sum()) for batch in shared) / len(batches)
    predicted = sum(int(batch.lengths.sum()) for batch in batches) / len(batches)
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "with_compilation": compiling,
        "compiled": step._cache_size(),  # pyright: ignore[reportAttributeAccessIssue]
        "processed": sum(batch.rows.tokens.size for batch in batches) / len(batches),
        "unique": unique,
        "useful_flops": 6.0 * (unique * layers + predicted * head),
        "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
        "loss": loss,
    }


def main() -> None:
    """Run the checks and the timings; print them and write them as JSON."""
    parser = argparse.ArgumentParser(description="benchmark a training step on an accelerator")
    parser.add_argument("--shape", default="small", choices=tuple(SHAPES))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--layouts", nargs="+", default=["shared", "separate"])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    results: dict[str, Any] = {"device": device, "checks": check_step(), "rate": matmul_rate()}
    print(device, json.dumps(results["checks"], indent=1))
    for layout in args.layouts:
        steps = results[layout] = time_steps(args.shape, layout, args.pairs, args.remat)
        share = steps["useful_flops"] / steps["seconds"] / results["rate"]
        print(
            f"{args.shape}, {layout:8} {1e3 * steps['seconds']:8.1f} ms a step, "
            f"{args.pairs / steps['seconds']:7.1f} pairs and "
            f"{steps['unique'] / steps['seconds']:9.0f} unique tokens a second, "
            f"{100 * share:.1f} % of {results['rate'] / 1e12:.1f} TFLOP/s, "
            f"{steps['processed']:.0f} positions for {steps['unique']:.0f} tokens, "
            f"{steps['compiled']} programs in {steps['with_compilation']:.0f} s, "
            f"peak {steps['peak_gib']:.1f} GiB, loss {steps['loss']:.4f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"device_step_{args.shape}_{args.pairs}_{args.remat}.json"
    (args.out / name).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
