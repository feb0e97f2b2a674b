"""Claims about the compiled step: what is never alive in it, and how often it is compiled."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig, OptimizerConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.models import logprobs
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.mesh import single_device
from llm.train.optimizer import make_optimizer
from llm.train.step import gradients, init_train_state, make_train_step

VOCABULARY, CHUNK = 5000, 64
SHAPE = re.compile(r"\b[a-z]+\d+\[([\d,]+)\]")
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def test_property_nothing_of_size_tokens_by_vocabulary_or_tokens_by_tokens_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ENTRIES", CHUNK * VOCABULARY)
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, n).tolist())

    pairs = [PairTokens(draw(128), draw(129), draw(129), None, row) for row in range(4)]
    devices = single_device()
    batch = devices.assign(BatchSampler(pairs, "shared", 4).batch(0))
    batch = batch._replace(reference=np.full(batch.lengths.shape, -7.0))
    tokens, completions = batch.rows.tokens.size, batch.completions.target.size
    architecture = Architecture(vocab_size=VOCABULARY, **SIZES)
    model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    config = ObjectiveConfig(beta=0.1, eta=0.1)

    def step(trainable: nnx.State, frozen: nnx.State) -> nnx.State:
        return gradients(graphdef, trainable, frozen, batch, config, devices=devices)[0]

    program = jax.jit(step).lower(trainable, frozen).compile().as_text() or ""
    sizes = [
        int(np.prod([int(size) for size in found.split(",")])) for found in SHAPE.findall(program)
    ]
    assert CHUNK * VOCABULARY in sizes  # a chunk's logits are there
    assert max(sizes) < min(tokens**2, completions * VOCABULARY) / 2


def test_property_each_shape_is_compiled_once_and_none_after_the_first_epoch() -> None:
    rng = np.random.default_rng(1)

    def draw() -> tuple[int, ...]:
        return tuple(rng.integers(0, 50, rng.integers(2, 40)).tolist())

    pairs = [PairTokens(draw(), draw(), draw(), None, row) for row in range(16)]
    schedule = BatchSampler(pairs, "shared", 2, accumulation_steps=2, seed=None)
    batches = [schedule.batch(step) for step in range(2 * schedule.steps_per_epoch)]
    shapes = {batch.rows.tokens.shape for batch in batches}
    assert len(shapes) > 1
    model = Decoder(Architecture(vocab_size=50, **SIZES), rngs=nnx.Rngs(0))
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    optimizer, _ = make_optimizer(OptimizerConfig(), len(batches))
    devices = single_device()
    step = make_train_step(graphdef, ObjectiveConfig(method="sft"), optimizer, devices=devices)
    state, compiled = devices.put(init_train_state(trainable, optimizer)), []
    with jax.enable_x64(False):
        for batch in batches:
            state, _ = step(state, frozen, devices.assign(batch))
            compiled.append(step._cache_size())  # pyright: ignore[reportAttributeAccessIssue]
    assert compiled[schedule.steps_per_epoch - 1] == len(shapes) == compiled[-1]
