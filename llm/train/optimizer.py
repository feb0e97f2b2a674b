"""AdamW with gradient clipping and the learning rate schedules of Transformers.

bfloat16 parameters have 8 bits of precision, so an update of less than about 0.2 % of a weight is
lost by rounding to nearest. :func:`apply_optimizer` therefore computes the update in float32 and
rounds the new parameters and moments stochastically: up or down, with probabilities that make the
expected value exact.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from llm.config import OptimizerConfig

from .fingerprint import parameter_path

WITHOUT_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|/)norm(?:$|/)|_norm(?:$|/)")
"""Parameters that do not decay: the rule of ``Trainer.get_decay_parameter_names``."""


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Create the learning rate schedule of a run, that of ``transformers.get_scheduler``.

    Args:
        config: peak, warm-up and shape of the schedule.
        num_steps: number of steps of the run.

    Returns:
        A function of the number of updates made. It rises linearly from 0 to the peak over the
        warm-up, so that the first update of a warm-up changes nothing, and then falls to 0 at the
        end of the run, or stays constant. An integer gives a float64; an array, as in a compiled
        step, gives its values in float32 or wider.

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
            case _:
                falling = xp.ones_like(step)
        return peak * xp.where(step < warmup, step / max(warmup, 1), falling)

    return schedule


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
    """Return the number of steps of the warm-up, rounded up as in Transformers.

    Args:
        config: the schedule; ``constant`` has no warm-up.
        num_steps: number of steps of the run.

    Examples:
        >>> warmup_steps(OptimizerConfig(warmup_ratio=0.1), 6)
        1
    """
    if config.lr_scheduler_type == "constant":
        return 0
    return math.ceil(num_steps * config.warmup_ratio)


def describe_warmup(config: OptimizerConfig, num_steps: int) -> str | None:
    """Describe a warm-up that leaves no step to train with, for the log.

    Args:
        config: the schedule.
        num_steps: number of steps of the run.

    Returns:
        A sentence; None if some step has a positive learning rate.

    Examples:
        >>> describe_warmup(OptimizerConfig(warmup_ratio=0.1), 1)[:49]
        'no parameter will change: the only step has the l'
        >>> describe_warmup(OptimizerConfig(warmup_ratio=0.1), 2)
    """
    if num_steps > 1 or warmup_steps(config, num_steps) == 0:
        return None
    return (
        "no parameter will change: the only step has the learning rate 0, with which the warm-up "
        f"begins: set `optimizer.warmup_ratio` {config.warmup_ratio:g} to 0"
    )


def make_optimizer(
    config: OptimizerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Create the optimizer of a run.

    Args:
        config: constants of the optimizer.
        num_steps: number of steps of the run.

    Returns:
        Clipping by the global norm followed by AdamW, and the learning rate schedule. Biases and
        the weights of norms do not decay, as in Transformers.

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
        mask=decay_mask,
    )
    return optax.chain(clip_by_global_norm(config.max_grad_norm), adam), schedule


def decay_mask(parameters: Any) -> Any:
    """Select the parameters that decay, by Transformers' rule for their names.

    Args:
        parameters: a tree of parameters.

    Returns:
        The tree with True for each parameter that decays. The weights of norms and biases do not;
        embeddings, projections and adapters do.

    Examples:
        >>> layer = {"q_norm": {"weight": jnp.ones(2)}, "q_proj": {"kernel": jnp.ones((2, 2))}}
        >>> decay_mask(layer)
        {'q_norm': {'weight': False}, 'q_proj': {'kernel': True}}
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(parameters)
    names = ["/".join(parameter_path(path)).lower() if path else "" for path, _ in paths]
    return jax.tree.unflatten(structure, [WITHOUT_DECAY.search(name) is None for name in names])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Scale gradients down to a maximal global norm: :math:`g\,\min(1, c/\|g\|)`.

    Unlike ``optax.clip_by_global_norm`` it computes one factor and reads the gradients once. Optax
    divides by the norm and then multiplies by :math:`c`, a second pass over all parameters.
    PyTorch's ``clip_grad_norm_`` divides by :math:`\|g\| + 10^{-6}`; the factors differ by less
    than :math:`10^{-6}/c`, relatively.

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


def apply_optimizer(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    optimizer_state: optax.OptState,
    trainable: Any,
    key: PRNGKeyArray,
) -> tuple[Any, optax.OptState, dict[str, Float[Array, ""]]]:
    """Update the parameters; bfloat16 parameters and moments are rounded stochastically.

    Args:
        optimizer: optax transformation that made the state.
        gradient: gradient of the parameters, in their dtypes.
        optimizer_state: state of the optimizer.
        trainable: the parameters.
        key: key of this step for the rounding; float32 and float64 parameters ignore it.

    Returns:
        The new parameters, the new state of the optimizer, and the metric ``params/moved_share``,
        the share of the weights that changed; without bfloat16 parameters there is no metric.
    """
    # Optax raises floats to integer powers, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        if not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trainable)):
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, trainable)
            return optax.apply_updates(trainable, updates), optimizer_state, {}
        wide = jax.tree.map(_to_float32, (gradient, optimizer_state, trainable))
        updates, new_state = optimizer.update(*wide)
        new = optax.apply_updates(wide[2], updates), new_state
        old = trainable, optimizer_state
        rounded = _round_like(new, old, key)
        changed = jax.tree.map(lambda a, b: jnp.sum(a != b), rounded[0], trainable)
        count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
        moved = sum(leaf.astype(jnp.float32) for leaf in jax.tree.leaves(changed))
        return *rounded, {"params/moved_share": jnp.asarray(moved / count)}


def stochastic_round(values: Float[Array, "..."], key: PRNGKeyArray) -> Float[Array, "..."]:
    """Round float32 values to bfloat16, up or down at random, without bias.

    Args:
        values: float32 values.
        key: key of the random numbers. They depend on the position in the array only, not on how
            the array is sharded.

    Returns:
        One of the two nearest bfloat16 numbers of each value. The probability of each makes the
        expected result equal to the value; a bfloat16 number stays as it is.

    Examples:
        >>> values = jnp.full(4, 1.0 + 2**-10, jnp.float32)  # an eighth of the way to the next
        >>> sorted(set(stochastic_round(values, jax.random.key(0)).tolist()) | {1.0})[0]
        1.0
    """
    # bfloat16 is the upper half of float32: adding 16 random bits carries into it or not.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    noise = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    upper = (bits + noise) >> jnp.uint32(16)
    rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(values), rounded, values.astype(jnp.bfloat16))


def _to_float32(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _round_like(values: Any, like: Any, key: PRNGKeyArray) -> Any:
    """Round each leaf to the dtype of the other tree, with a key of its own."""
    leaves, structure = jax.tree.flatten(values)
    rounded = [
        stochastic_round(leaf, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16 else leaf
        for i, (leaf, dtype) in enumerate(
            zip(leaves, [leaf.dtype for leaf in jax.tree.leaves(like)], strict=True)
        )
    ]
    return jax.tree.unflatten(structure, rounded)
