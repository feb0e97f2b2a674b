r"""Adam whose two moments take 8 bits each.

A moment is kept on a logarithmic grid with eight steps an octave, relative to the largest absolute
value of its row (of the last axis). Level :math:`n` of :math:`N` stands for

.. math:: x_n = s\,2^{(n-N)/8},\qquad s = \max_{row}|x|,\qquad x_0 = 0.

The first moment has a sign and 127 levels, 16 octaves; the second one has 255 levels, 32 octaves.
A decay rate of 0.999 changes the second moment by less than a step of the grid, so that rounding to
the nearest level would keep it forever. Moments are therefore rounded up or down at random, with
probabilities that make the expected value exact. The random numbers depend on the number of the
step and on the position in the array alone, so that a resumed run repeats them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int8, PRNGKeyArray, UInt8

STEPS_PER_OCTAVE = 8
FIRST_LEVELS, SECOND_LEVELS = 127, 255


class ScaleByAdam8bitState(NamedTuple):
    """State of :func:`scale_by_adam_8bit`.

    Attributes:
        step: number of updates made.
        mu: first moments, as int8 codes.
        nu: second moments, as uint8 codes.
        mu_scale: largest absolute value of each row of the first moments.
        nu_scale: largest value of each row of the second moments.
    """

    step: Array
    mu: optax.Updates
    nu: optax.Updates
    mu_scale: optax.Updates
    nu_scale: optax.Updates


def scale_by_adam_8bit(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescale updates as ``optax.scale_by_adam`` does, with moments of 8 bits.

    The update of a step uses the exact new moments; only what is kept for the next is rounded.

    Args:
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
        eps: added to the root of the second moment.

    Returns:
        The gradient transformation.

    References:
        `dettmers:22` for moments in 8 bits.

    Examples:
        >>> adam = scale_by_adam_8bit()
        >>> parameters = {"weight": jnp.ones((2, 3))}
        >>> update, state = adam.update(parameters, adam.init(parameters))
        >>> update["weight"].round(3).tolist()[0], state.nu["weight"].dtype.name
        ([1.0, 1.0, 1.0], 'uint8')
    """

    def init(params: optax.Params) -> ScaleByAdam8bitState:
        def zeros(dtype: Any) -> optax.Updates:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)

        def scales() -> optax.Updates:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[:-1], jnp.float32), params)

        codes = zeros(jnp.int8), zeros(jnp.uint8)
        return ScaleByAdam8bitState(jnp.zeros((), jnp.int32), *codes, scales(), scales())

    def update(
        updates: optax.Updates, state: ScaleByAdam8bitState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdam8bitState]:
        del params
        step = state.step + 1
        power = step.astype(jnp.float32)
        step_key = jax.random.fold_in(jax.random.key(0), step)
        gradients, structure = jax.tree.flatten(updates)
        old = (jax.tree.leaves(tree) for tree in state[1:])
        results = []
        for index, (gradient, mu, nu, mu_scale, nu_scale) in enumerate(
            zip(gradients, *old, strict=True)
        ):
            mu_key, nu_key = jax.random.split(jax.random.fold_in(step_key, index))
            g = gradient.astype(jnp.float32)
            first = b1 * decode_moment(mu, mu_scale) + (1 - b1) * g
            second = b2 * decode_moment(nu, nu_scale) + (1 - b2) * jnp.square(g)
            first_hat, second_hat = first / (1 - b1**power), second / (1 - b2**power)
            scaled = (first_hat / (jnp.sqrt(second_hat) + eps)).astype(gradient.dtype)
            codes = encode_first(first, mu_key), encode_second(second, nu_key)
            results.append((scaled, codes[0][0], codes[1][0], codes[0][1], codes[1][1]))
        scaled, *moments = (
            jax.tree.unflatten(structure, leaves) for leaves in zip(*results, strict=True)
        )
        return scaled, ScaleByAdam8bitState(step, *moments)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def encode_first(
    values: Float[Array, "*r D"], key: PRNGKeyArray
) -> tuple[Int8[Array, "*r D"], Float[Array, "*r"]]:
    """Round first moments to their grid, without bias.

    Args:
        values: the moments.
        key: key of the random numbers.

    Returns:
        The codes, whose sign is that of the value, and the scales of the rows.

    Examples:
        >>> codes, scale = encode_first(jnp.array([[4.0, -2.0, 0.0]]), jax.random.key(0))
        >>> codes.tolist(), scale.tolist()
        ([[127, -119, 0]], [4.0])
    """
    levels, scale = _levels(jnp.abs(values), key, FIRST_LEVELS)
    return jnp.where(values < 0, -levels, levels).astype(jnp.int8), scale


def encode_second(
    values: Float[Array, "*r D"], key: PRNGKeyArray
) -> tuple[UInt8[Array, "*r D"], Float[Array, "*r"]]:
    """Round second moments to their grid, without bias down to the lowest level.

    Args:
        values: the moments, at least 0.
        key: key of the random numbers.

    Returns:
        The codes and the scales of the rows. A positive moment never becomes 0, by whose root an
        update would be divided.

    Examples:
        >>> codes, _ = encode_second(jnp.array([[4.0, 2.0, 1e-20, 0.0]]), jax.random.key(0))
        >>> codes.tolist()
        [[255, 247, 1, 0]]
    """
    levels, scale = _levels(values, key, SECOND_LEVELS)
    return jnp.where(values > 0, jnp.maximum(levels, 1), 0).astype(jnp.uint8), scale


def decode_moment(
    codes: Int8[Array, "*r D"] | UInt8[Array, "*r D"], scale: Float[Array, "*r"]
) -> Float[Array, "*r D"]:
    """Return the moments that codes and scales stand for.

    Args:
        codes: codes of :func:`encode_first` if they are int8, of :func:`encode_second` if they are
            uint8.
        scale: scales of the rows.

    Returns:
        The moments, in float32.

    Examples:
        >>> scale = jnp.array([4.0], jnp.float32)
        >>> decode_moment(jnp.array([[127, -119, 0]], jnp.int8), scale).tolist()
        [[4.0, -2.0, 0.0]]
    """
    most = FIRST_LEVELS if codes.dtype == jnp.int8 else SECOND_LEVELS
    levels = codes.astype(jnp.float32)
    size = jnp.exp2((jnp.abs(levels) - most) / STEPS_PER_OCTAVE)
    return jnp.sign(levels) * size * scale[..., None]


def _levels(sizes: Array, key: PRNGKeyArray, most: int) -> tuple[Array, Array]:
    """Return levels of the grid, rounded at random, and the largest size of each row."""
    sizes = sizes.astype(jnp.float32)
    scale = jnp.max(sizes, axis=-1)
    unit = sizes / jnp.where(scale > 0, scale, 1)[..., None]
    exact = most + STEPS_PER_OCTAVE * jnp.log2(unit)
    low = jnp.clip(jnp.floor(exact), 0, most)

    def size_of(level: Array) -> Array:
        return jnp.where(level > 0, jnp.exp2((level - most) / STEPS_PER_OCTAVE), 0)

    below, above = size_of(low), size_of(low + 1)
    share = (unit - below) / (above - below)
    # 8 random bits decide between two levels; half a unit centers their threshold.
    noise = (jax.random.bits(key, sizes.shape, jnp.uint8).astype(jnp.float32) + 0.5) / 256
    return jnp.minimum(jnp.where(noise < share, low + 1, low), most), scale
