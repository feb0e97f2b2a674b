"""What a run is expected to take, before anything is loaded: steps, tokens, memory and time."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.config import TrainConfig
from llm.data.loader import BatchSampler
from llm.hf.factory import ResolvedModel

from .dataset import TrainingData
from .memory_plan import PlannedStep, estimate_peak_bytes

EFFICIENCY = 0.45
"""Share of the rate of a matrix product that a step reaches; measured on a CPU."""
LOOKED_AT = 16
"""Steps whose tokens are counted."""
SIDE = 2048


class RunEstimate(NamedTuple):
    """What a run is expected to take.

    Attributes:
        steps: of the run.
        pairs_per_step: over all devices.
        tokens_per_step: that are processed, on average.
        flops_per_step: useful ones, as in :class:`llm.train.memory_plan.MemoryPlan`.
        peak_bytes_per_device: estimated as :func:`llm.train.memory_plan.estimate_peak_bytes` does.
        seconds: of all steps; the reference, evaluations and compilation come on top.
    """

    steps: int
    pairs_per_step: int
    tokens_per_step: int
    flops_per_step: int
    peak_bytes_per_device: int
    seconds: float


def estimate_run(config: TrainConfig, model: ResolvedModel, data: TrainingData) -> RunEstimate:
    """What a run on the devices that are here will take; no parameter is made.

    Args:
        config: the run.
        model: ``config.model``, resolved.
        data: its pairs.

    Returns:
        The expectation.

    Raises:
        ValueError: no such model, or a mesh that does not divide the devices or the heads.
    """
    step, trainer = PlannedStep(config, model, jax.device_count()), config.trainer
    shards = step.layout.shards
    schedule = BatchSampler(
        data.train,
        config.data.layout,
        trainer.per_device_train_batch_size,
        trainer.gradient_accumulation_steps * shards,
        trainer.seed,
    )
    epochs = trainer.num_train_epochs * schedule.steps_per_epoch
    steps = trainer.max_steps or int(np.ceil(epochs))
    seen = [schedule.batch(i) for i in range(min(LOOKED_AT, steps, schedule.steps_per_epoch))]
    tokens = [int(np.count_nonzero(batch.rows.segments)) for batch in seen]
    asked = [int(batch.lengths.sum()) for batch in seen]
    flops = step.flops(int(np.mean(tokens)), int(np.mean(asked)))
    parts = trainer.gradient_accumulation_steps * shards
    rows = max(batch.rows.tokens.size for batch in seen) // parts
    completions = max(batch.completions.target.size for batch in seen) // parts
    return RunEstimate(
        steps=steps,
        pairs_per_step=schedule.pairs_per_step,
        tokens_per_step=int(np.mean(tokens)),
        flops_per_step=flops,
        peak_bytes_per_device=estimate_peak_bytes(step, rows, completions),
        seconds=steps * flops / (EFFICIENCY * jax.device_count() * _product_rate(config)),
    )


def _product_rate(config: TrainConfig) -> float:
    """FLOPs a second of one device in matrix products of the model's dtype, measured.

    Args:
        config: names the dtype.

    Returns:
        The rate.
    """
    square = jnp.ones((SIDE, SIDE), jnp.dtype(config.model.dtype))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    start = time.perf_counter()
    jax.block_until_ready([product(square, square) for _ in range(3)])
    return 3 * 2 * SIDE**3 / (time.perf_counter() - start)
