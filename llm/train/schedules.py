"""Learning rate schedules, those of Transformers with a least rate."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from llm.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Create the learning rate schedule of a run, that of ``transformers.get_scheduler``.

    Args:
        config: peak, warm-up and shape of the schedule.
        num_steps: number of steps of the run.

    Returns:
        A function of the number of updates made. It rises linearly from 0 to the peak over the
        warm-up, so that the first update of a warm-up changes nothing, and then falls to
        ``min_lr`` at the end of the run, or stays constant. An integer gives a float64; an array,
        as in a compiled step, gives its values in float32 or wider.

    Examples:
        >>> rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.5), 4)
        >>> [round(float(rate(step)), 3) for step in range(4)]
        [0.0, 0.5, 1.0, 0.5]
    """
    peak, kind, warmup = (
        config.learning_rate,
        config.lr_scheduler_type,
        warmup_steps(config, num_steps),
    )
    rest = max(num_steps - warmup, 1)
    decay = max(min(math.ceil(num_steps * config.decay_ratio), rest), 1)
    least = config.min_lr / peak

    def schedule(count: Any) -> Any:
        traced = isinstance(count, Array)
        xp: Any = jnp if traced else np
        step = count.astype(jnp.result_type(float)) if traced else np.asarray(count, np.float64)
        share = xp.minimum((step - warmup) / rest, 1.0)
        match kind:
            case "cosine":
                falling = 0.5 * (1.0 + xp.cos(math.pi * share))
            case "linear":
                falling = 1.0 - share
            case "warmup_stable_decay":
                decayed = xp.clip((step - (num_steps - decay)) / decay, 0.0, 1.0)
                falling = 0.5 * (1.0 + xp.cos(math.pi * decayed))
            case _:
                falling = xp.ones_like(step)
        if least:
            falling = least + (1.0 - least) * falling
        return peak * xp.where(step < warmup, step / max(warmup, 1), falling)

    return schedule


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
    """Return the number of steps of the warm-up; a share is rounded up as in Transformers.

    Args:
        config: the schedule; ``constant`` has no warm-up.
        num_steps: number of steps of the run.

    Examples:
        >>> warmup_steps(OptimizerConfig(warmup_ratio=0.1), 6)
        1
    """
    if config.lr_scheduler_type == "constant":
        return 0
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(num_steps * config.warmup_ratio)


def describe_warmup(config: OptimizerConfig, num_steps: int) -> str | None:
    """Describe a warm-up that the run does not leave, for the log.

    Args:
        config: the schedule.
        num_steps: number of steps of the run.

    Returns:
        A sentence; None if some step has the peak rate.

    Examples:
        >>> describe_warmup(OptimizerConfig(warmup_ratio=0.1), 1)[:49]
        'no parameter will change: the only step has the l'
        >>> describe_warmup(OptimizerConfig(warmup_ratio=0.1), 2)
    """
    warmup = warmup_steps(config, num_steps)
    given = f"`optimizer.warmup_steps` {warmup}"
    if config.warmup_steps is None:
        given = f"`optimizer.warmup_ratio` {config.warmup_ratio:g}"
    if num_steps == 1 and warmup:
        return (
            "no parameter will change: the only step has the learning rate 0, with which the "
            f"warm-up begins: set {given} to 0"
        )
    if warmup >= num_steps:
        return (
            f"the learning rate never reaches its peak: {given} is not below the {num_steps} steps "
            "of the run"
        )
    return None
