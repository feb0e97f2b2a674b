r"""Rotary position embeddings (RoPE).

The first and second half of a head are the two coordinates of :math:`K/2` planes. A query or key at
position :math:`p` is rotated in plane :math:`i` by the angle :math:`p\,\omega_i` with
:math:`\omega_i = \theta^{-2i/K}`. This is the half-split layout of Hugging Face weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from rpo_theory.types import ArrayLike

from .architecture import Architecture, RopeScaling


class RopeAngles(NamedTuple):
    """Cosines and sines of rotation angles, by token and plane.

    Attributes:
        cosine: shape ``[... r T K/2]``, with a leading axis where local layers differ.
        sine: of the same shape.
    """

    cosine: Array
    sine: Array


def rope_frequencies(architecture: Architecture) -> np.ndarray:
    r"""Return the rotation angle per position of every plane.

    Args:
        architecture: model with the bases, the scaling and the head size.

    Returns:
        :math:`\omega_i` in radians, shape ``[1 or 2, K/2]``: row 0 for layers with global
        attention, row 1 for local layers if they have a base of their own.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
        >>> rope_frequencies(Architecture(**sizes, num_attention_heads=2)).tolist()
        [[1.0, 0.01]]
    """
    exponents = np.arange(0, architecture.head_dim, 2) / architecture.head_dim
    frequencies = architecture.rope_theta**-exponents
    if architecture.rope_scaling is not None:
        frequencies = _scale(frequencies, architecture)
    if architecture.rope_local_base_freq is None:
        return frequencies[None]
    return np.stack([frequencies, architecture.rope_local_base_freq**-exponents])


def rope_angles(
    architecture: Architecture, positions: Int[ArrayLike, "r T"], dtype: DTypeLike
) -> RopeAngles:
    """Compute the rotation angles of all tokens, once for all layers.

    Args:
        architecture: model with the frequencies, see :func:`rope_frequencies`.
        positions: positions of the tokens in their sequences.
        dtype: dtype to compute in, float32 or wider.

    Returns:
        Cosines and sines, shape ``[1 or 2, r, T, K/2]``.
    """
    omega = jnp.asarray(rope_frequencies(architecture), dtype)
    angles = jnp.asarray(positions).astype(dtype)[None, :, :, None] * omega[:, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    scaling = architecture.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return RopeAngles(cosine, sine)
    # Local layers, if they have a base of their own, are not scaled.
    factors = jnp.asarray([_attention_factor(scaling), 1.0][: len(omega)], dtype)
    return RopeAngles(*(part * factors[:, None, None, None] for part in (cosine, sine)))


def apply_rope(x: Float[Array, "r T H K"], angles: RopeAngles) -> Float[Array, "r T H K"]:
    """Rotate every head by the angles of its token.

    Args:
        x: queries or keys.
        angles: cosines and sines, shape ``[r T K/2]``.

    Returns:
        The rotated queries or keys, in the dtype of ``x``.
    """
    cosine, sine = (part[:, :, None].astype(x.dtype) for part in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _scale(omega: np.ndarray, architecture: Architecture) -> np.ndarray:
    scaling = architecture.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return omega  # dynamic scaling begins beyond `max_position_embeddings`
    slow = omega / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    if scaling.rope_type == "yarn":
        unscaled_share = _yarn_unscaled_share(architecture, scaling)
    else:
        revolutions = scaling.original_max_position_embeddings * omega / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        unscaled_share = np.clip((revolutions - low) / (high - low), 0, 1)
    return unscaled_share * omega + (1 - unscaled_share) * slow


def _yarn_unscaled_share(architecture: Architecture, scaling: RopeScaling) -> np.ndarray:
    """Return the ramp of YaRN over the planes, with the rounded bounds of ``transformers``."""
    size, base = architecture.head_dim, architecture.rope_theta

    def plane(revolutions: float) -> float:
        ratio = scaling.original_max_position_embeddings / (revolutions * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(base))

    first = max(math.floor(plane(scaling.beta_fast or 32.0)), 0)
    last = min(math.ceil(plane(scaling.beta_slow or 1.0)), size - 1)
    width = last - first if last != first else 0.001
    return 1 - np.clip((np.arange(size // 2) - first) / width, 0, 1)


def _attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0
