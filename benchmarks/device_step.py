"""A training step on an accelerator: is it the CPU's, how fast is it, how near to the limit.

    python benchmarks/device_step.py --out out/bench [--shape small|1b] [--pairs 16]

First a small decoder in float32: loss and gradient of one packed batch on the device against the
same on the CPU, and in bfloat16 with the device's attention kernel against float32. Then steps of a
decoder of a known shape with random weights, on pairs of random lengths: prompts of 64 to 512
tokens, responses of 32 to 512; once with every prompt written once, and once with a row for each
response, which is how other trainers lay pairs out. The limit is the rate of the device's own
matrix product; useful work is that of unique tokens in the layers and of responses in the head.
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

from llm.attention.blockwise import Settings, attend_in_blocks
from llm.attention.dispatch import attend
from llm.config import ObjectiveConfig, OptimizerConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.precision import computing_in
from llm.train.optimizer import make_optimizer
from llm.train.step import gradients, init_train_state, make_train_step
from llm.types import Batch, Rows

SHAPES = {
    "tiny": (512, 128, 256, 2, 2, 1),
    "small": (49152, 576, 1536, 30, 9, 3),
    "1b": (128256, 2048, 8192, 16, 32, 8),
}
"""Words, width, hidden units, layers, heads, heads of keys; the last two are SmolLM2-135M's and
Llama-3.2-1B's."""
OBJECTIVE = ObjectiveConfig(method="rpo", beta=0.1, eta=0.05)
STEPS = 6


def architecture_of(shape: str) -> Architecture:
    """A decoder of a known shape."""
    names = (
        "vocab_size",
        "width",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return Architecture(**dict(zip(names, SHAPES[shape], strict=True)))


def draw_pairs(n: int, vocabulary: int) -> list[PairTokens]:
    """Pairs of random tokens and lengths."""
    rng = np.random.default_rng(0)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, rng.integers(low, high)).tolist())

    return [
        PairTokens(draw(64, 513), draw(32, 513), draw(32, 513), baseline=None, row=row)
        for row in range(n)
    ]


def batches_of(pairs: list[PairTokens], layout: Any, size: int) -> list[Batch]:
    """Steps of so many pairs, with reference log-probabilities that are made up."""
    schedule = BatchSampler(pairs, layout, size, seed=0)
    batches = [schedule.batch(step) for step in range(len(pairs) // size)]
    return [
        batch._replace(reference=np.full(batch.lengths.shape, -7.0, np.float32))
        for batch in batches
    ]


def first_gradient(dtype: str, batch: Batch) -> tuple[float, np.ndarray]:
    """Loss and gradient of the tiny decoder."""
    model = Decoder(architecture_of("tiny"), rngs=nnx.Rngs(0), dtype=dtype)
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    slope = jax.jit(lambda *state: gradients(graphdef, state[0], state[1], batch, OBJECTIVE))
    grads, result = slope(trainable, frozen)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(grads)])
    return float(result.metrics["loss"]), flat


def far(one: np.ndarray, other: np.ndarray) -> float:
    """Relative distance."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def check_attention() -> float:
    """The kernel of 16 bits against blocks in float32, forward and backward, relative."""
    batch = batches_of(draw_pairs(4, 512), "shared", 4)[0]
    rows: Rows = jax.tree.map(lambda leaf: leaf[0], batch.rows)
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = [(*rows.tokens.shape, heads, 64) for heads in (4, 2, 2, 4)]
    drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    filled = jnp.asarray(rows.segments > 0)[..., None, None]

    def measured(mix: Any, dtype: Any) -> list[np.ndarray]:
        *parts, weight = (x.astype(dtype) for x in drawn)
        mixed, pull = jax.vjp(lambda *qkv: jnp.where(filled, mix(*qkv), 0), *parts)
        return [np.asarray(x.astype(jnp.float32)) for x in (mixed, *pull(weight))]

    def kernel(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, rows, window=None, soft_cap=None, scale=0.125)

    def blocks(q: Any, k: Any, v: Any) -> Any:
        window = jnp.asarray(np.iinfo(np.int32).max)
        return attend_in_blocks(q, k, v, rows, window=window, settings=Settings(None, 0.125))

    pairs = zip(
        measured(kernel, jnp.bfloat16),
        measured(blocks, jnp.float32),
        strict=True,
    )
    return max(far(one, other) for one, other in pairs)


def check_step() -> dict[str, float]:
    """The device's loss and gradient against the CPU's; bfloat16 against float32."""
    batch = batches_of(draw_pairs(6, 512), "shared", 6)[0]
    with computing_in("float32"):
        loss, slope = first_gradient("float32", batch)
        with jax.default_device(jax.devices("cpu")[0]):
            cpu_loss, cpu_slope = first_gradient("float32", batch)
    half_loss, half_slope = first_gradient("bfloat16", batch)
    return {
        "loss_device_vs_cpu": abs(loss - cpu_loss) / abs(cpu_loss),
        "gradient_device_vs_cpu": far(slope, cpu_slope),
        "loss_bfloat16_vs_float32": abs(half_loss - loss) / abs(loss),
        "gradient_bfloat16_vs_float32": far(half_slope, slope),
        "attention_bfloat16_vs_float32": check_attention(),
    }


def matmul_rate() -> float:
    """Bfloat16 matrix products of 8192 x 8192, best of 10, FLOP/s."""
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
    """Seconds a step, after every shape was compiled."""
    architecture = architecture_of(shape)
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, remat=remat)
    head = model.embedding[...].size
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    embeddings = 2 * head  # read at every token, and multiplied with at responses only
    layers = sum(leaf.size for leaf in jax.tree.leaves(trainable)) - embeddings
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    state = init_train_state(trainable, optimizer)
    step = make_train_step(graphdef, OBJECTIVE, optimizer)
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
    """Check, time, print, write JSON."""
    parser = argparse.ArgumentParser(description="a training step on an accelerator")
    parser.add_argument("--shape", default="small", choices=tuple(SHAPES))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--layouts", nargs="+", default=["shared", "separate"])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    found: dict[str, Any] = {"device": device, "checks": check_step(), "rate": matmul_rate()}
    print(device, json.dumps(found["checks"], indent=1))
    for layout in args.layouts:
        steps = found[layout] = time_steps(args.shape, layout, args.pairs, args.remat)
        share = steps["useful_flops"] / steps["seconds"] / found["rate"]
        print(
            f"{args.shape}, {layout:8} {1e3 * steps['seconds']:8.1f} ms a step, "
            f"{args.pairs / steps['seconds']:7.1f} pairs and "
            f"{steps['unique'] / steps['seconds']:9.0f} unique tokens a second, "
            f"{100 * share:.1f} % of {found['rate'] / 1e12:.1f} TFLOP/s, "
            f"{steps['processed']:.0f} positions for {steps['unique']:.0f} tokens, "
            f"{steps['compiled']} programs in {steps['with_compilation']:.0f} s, "
            f"peak {steps['peak_gib']:.1f} GiB, loss {steps['loss']:.4f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"device_step_{args.shape}_{args.pairs}_{args.remat}.json"
    (args.out / name).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
