"""AdamW with gradient clipping, a warm-up and a learning rate schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from llm.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Create the learning rate schedule of a run.

    Args:
        config: peak, warm-up and shape of the schedule.
        num_steps: number of steps of the run.

    Returns:
        A function of the number of updates made. It rises linearly to the peak over the warm-up
        and then decays to 0 at the end of the run, or stays constant.

    Examples:
        >>> rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.5), 4)
        >>> [round(float(rate(step)), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    peak, warmup = config.learning_rate, round(config.warmup_ratio * num_steps)
    rest = max(num_steps - warmup, 1)
    match config.lr_scheduler_type:
        case "cosine":
            falling = optax.cosine_decay_schedule(peak, rest)
        case "linear":
            falling = optax.linear_schedule(peak, 0.0, rest)
        case "constant":
            falling = optax.constant_schedule(peak)
    # The warm-up starts above 0, or the first update would do nothing.
    rising = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rising, falling], [warmup]) if warmup else falling


def make_optimizer(
    config: OptimizerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Create the optimizer of a run.

    Args:
        config: constants of the optimizer.
        num_steps: number of steps of the run.

    Returns:
        Clipping by the global norm followed by AdamW, and the learning rate schedule.

    Examples:
        >>> optimizer, schedule = make_optimizer(OptimizerConfig(warmup_ratio=0.0), 10)
        >>> round(1e7 * float(schedule(0)), 3)
        5.0
    """
    schedule = learning_rate_schedule(config, num_steps)
    adam = optax.adamw(
        schedule,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip_by_global_norm(config.max_grad_norm), adam), schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Scale gradients down to a maximal global norm: :math:`g\,\min(1, c/\|g\|)`.

    Unlike ``optax.clip_by_global_norm`` it computes one factor and reads the gradients once. Optax
    divides by the norm and then multiplies by :math:`c`, a second pass over all parameters.

    Args:
        max_norm: largest norm :math:`c`.

    Returns:
        A gradient transformation without state.

    Examples:
        >>> clip = clip_by_global_norm(1.0)
        >>> clip.update(jnp.array([3.0, 4.0]), clip.init(None))[0].round(3).tolist()
        [0.6, 0.8]
    """

    def clip(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradient))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)

    return optax.stateless(clip)
