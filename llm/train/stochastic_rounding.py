"""Updates of parameters, with stochastic rounding of bfloat16 parameters and moments.

bfloat16 parameters have 8 bits of precision, so an update of less than about 0.2 % of a weight is
lost by rounding to nearest. :func:`apply_optimizer` therefore computes the update in float32 and
rounds the new parameters and moments stochastically: up or down, with probabilities that make the
expected value exact.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray


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
