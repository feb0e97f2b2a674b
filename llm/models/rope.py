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
from jaxtyping import Bool, Float, Int

from rpo_theory.types import ArrayLike

from .architecture import Architecture, RopeScaling


class RopeAngles(NamedTuple):
    """Cosines and sines of rotation angles, by token and plane.

    Attributes:
        cosine: shape ``[... r T K/2]``, with a leading axis of sets, see :func:`rope_rows`.
        sine: of the same shape.
    """

    cosine: Array
    sine: Array


def rope_frequencies(architecture: Architecture, *, long: bool = False) -> np.ndarray:
    r"""Return the rotation angle per position of every plane.

    Args:
        architecture: model with the bases, the scaling and the size of the rotated part of a head.
        long: whether ``longrope`` has its factors for long sequences.

    Returns:
        :math:`\omega_i` in radians, shape ``[sets, K/2]``: row 0 for layers with global attention,
        then a row for local layers if they have a base of their own, then a row of zeros if some
        layers are not rotated.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
        >>> rope_frequencies(Architecture(**sizes, num_attention_heads=2)).tolist()
        [[1.0, 0.01]]
    """
    exponents = np.arange(0, architecture.rotary_dim, 2) / architecture.rotary_dim
    frequencies = architecture.rope_theta**-exponents
    if architecture.rope_scaling is not None:
        frequencies = _scale(frequencies, architecture, long)
    rows = [frequencies]
    if architecture.rope_local_base_freq is not None:
        rows.append(architecture.rope_local_base_freq**-exponents)
    if architecture.rope_layers:
        rows.append(np.zeros_like(exponents))
    return np.stack(rows)


def rope_rows(architecture: Architecture) -> np.ndarray:
    """Return which row of :func:`rope_frequencies` each layer uses.

    Args:
        architecture: the model.

    Returns:
        One index per layer.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2)
        >>> rope_rows(Architecture(**sizes, num_attention_heads=2, rope_layers=(False, True)))
        array([1, 0])
    """
    has_local_base = architecture.rope_local_base_freq is not None
    n_layers = architecture.num_hidden_layers
    local = np.array(architecture.local_layers or [False] * n_layers)
    rotated = np.array(architecture.rope_layers or [True] * n_layers)
    return np.where(rotated, (local & has_local_base).astype(int), 1 + has_local_base)


def rope_angles(
    architecture: Architecture,
    positions: Int[ArrayLike, "r T"],
    dtype: DTypeLike,
    *,
    is_long: Bool[ArrayLike, ""] | bool = False,
) -> RopeAngles:
    """Compute the rotation angles of all tokens, once for all layers.

    Args:
        architecture: model with the frequencies, see :func:`rope_frequencies`.
        positions: positions of the tokens in their sequences.
        dtype: dtype to compute in, float32 or wider.
        is_long: whether ``longrope`` has its factors for long sequences.

    Returns:
        Cosines and sines, shape ``[sets, r, T, K/2]``.
    """
    omega = jnp.asarray(rope_frequencies(architecture), dtype)
    scaling = architecture.rope_scaling
    if scaling is not None and scaling.rope_type == "longrope":
        long = jnp.asarray(rope_frequencies(architecture, long=True), dtype)
        omega = jnp.where(is_long, long, omega)
    angles = jnp.asarray(positions).astype(dtype)[None, :, :, None] * omega[:, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if scaling is None or scaling.angle_scale == 1.0:
        return RopeAngles(cosine, sine)
    # Local layers with a base of their own, and layers that are not rotated, are not scaled.
    factors = jnp.ones(len(omega), dtype).at[0].set(scaling.angle_scale)[:, None, None, None]
    return RopeAngles(cosine * factors, sine * factors)


def apply_rope(x: Float[Array, "r T H K"], angles: RopeAngles) -> Float[Array, "r T H K"]:
    """Rotate every head, or the first part of it, by the angles of its token.

    Args:
        x: queries or keys.
        angles: cosines and sines, shape ``[r T K/2]``; fewer planes than ``K/2`` rotate only the
            first features of a head.

    Returns:
        The rotated queries or keys, in the dtype of ``x``.
    """
    cosine, sine = (part[:, :, None].astype(x.dtype) for part in angles)
    planes = cosine.shape[-1]
    first, second, rest = jnp.split(x, (planes, 2 * planes), axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1
    )


def _scale(omega: np.ndarray, architecture: Architecture, long: bool) -> np.ndarray:
    scaling = architecture.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return omega  # dynamic scaling begins beyond `max_position_embeddings`
    if scaling.rope_type == "longrope":
        return omega / np.asarray(scaling.long_factor if long else scaling.short_factor)
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
    size, base = architecture.rotary_dim, architecture.rope_theta

    def plane(revolutions: float) -> float:
        ratio = scaling.original_max_position_embeddings / (revolutions * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(base))

    first, last = plane(scaling.beta_fast or 32.0), plane(scaling.beta_slow or 1.0)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = last - first if last != first else 0.001
    return 1 - np.clip((np.arange(size // 2) - first) / width, 0, 1)
