"""Estimate of the cost of a run before it starts: steps, tokens, memory and time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.config import TrainConfig
from llm.hf.factory import ResolvedModel

from .batches import count_steps, describe_last_step, make_sampler
from .dataset import TrainingData
from .planned_step import PlannedStep, estimate_peak_bytes
from .schedules import describe_warmup

EFFICIENCY = 0.45
"""Share of the FLOP rate of a matrix product that a step reaches; measured on a CPU."""
SAMPLED_STEPS = 16
"""Number of steps whose tokens are counted."""
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with the memory limit of a container on Linux."""
MATRIX_SIZE = 2048
"""Size of the square matrices whose product is timed."""


class RunEstimate(NamedTuple):
    """Estimated cost of a run.

    Attributes:
        steps: number of steps.
        pairs_per_step: number of pairs of a step over all devices.
        tokens_per_step: mean number of tokens of a step.
        flops_per_step: model FLOPs of a step, as in :class:`llm.train.memory_plan.MemoryPlan`.
        peak_bytes_per_device: peak memory, from
            :func:`llm.train.planned_step.estimate_peak_bytes`.
        seconds: time of all steps, without the reference, evaluations and compilation.
        limit_bytes_per_device: memory of a device; None if the device does not report it.
        notes: sentences about the batches, for the log.
    """

    steps: int
    pairs_per_step: int
    tokens_per_step: int
    flops_per_step: int
    peak_bytes_per_device: int
    seconds: float
    limit_bytes_per_device: int | None = None
    notes: tuple[str, ...] = ()


def estimate_run(config: TrainConfig, model: ResolvedModel, data: TrainingData) -> RunEstimate:
    """Estimate the cost of a run on the devices of this machine; no parameter is created.

    Args:
        config: configuration of the run.
        model: ``config.model``, resolved.
        data: tokenized pairs.

    Returns:
        The estimate.

    Raises:
        ValueError: if the mesh does not divide the devices or the heads, or a step has many more
            pairs than there are.
    """
    step = PlannedStep(config, model, jax.device_count())
    config, trainer = step.config, step.config.trainer
    shards = step.plan.batch_shards
    sampler = make_sampler(config, data, shards)
    steps = count_steps(config, sampler)
    notes = (describe_last_step(sampler, steps), describe_warmup(config.optimizer, steps))
    sampled = min(SAMPLED_STEPS, steps, sampler.steps_per_epoch)
    batches = [sampler.batch(index) for index in range(sampled)]
    tokens = [int(np.count_nonzero(batch.rows.segments)) for batch in batches]
    predicted = [int(batch.lengths.sum()) for batch in batches]
    flops = step.flops(int(np.mean(tokens)), int(np.mean(predicted)))
    parts = trainer.gradient_accumulation_steps * shards
    rows = max(batch.rows.tokens.size for batch in batches) // parts
    completions = max(batch.completions.target.size for batch in batches) // parts
    return RunEstimate(
        steps=steps,
        pairs_per_step=sampler.pairs_per_step,
        tokens_per_step=int(np.mean(tokens)),
        flops_per_step=flops,
        peak_bytes_per_device=estimate_peak_bytes(step, rows, completions),
        seconds=steps * flops / (EFFICIENCY * jax.device_count() * _matmul_rate(config)),
        limit_bytes_per_device=device_memory(),
        notes=tuple(filter(None, notes)),
    )


def device_memory() -> int | None:
    """Return the memory of a device that a run can use; that of a CPU is the machine's.

    Returns:
        Bytes; None if the device does not report them. The devices of a process on CPUs share its
        memory, and so does a container its limit.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CONTAINER_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        limit = min(limit, int(text)) if text.isdigit() else limit
    return limit // jax.local_device_count()


def _matmul_rate(config: TrainConfig) -> float:
    """Measure the FLOPs per second of one device in matrix products of the model's dtype."""
    square = jnp.ones((MATRIX_SIZE, MATRIX_SIZE), jnp.dtype(config.model.dtype))
    matmul = jax.jit(jnp.matmul)
    jax.block_until_ready(matmul(square, square))
    start = time.perf_counter()
    jax.block_until_ready([matmul(square, square) for _ in range(3)])
    return 3 * 2 * MATRIX_SIZE**3 / (time.perf_counter() - start)
