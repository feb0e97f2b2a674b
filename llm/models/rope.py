r"""Rotary positions: queries and keys turn by an angle proportional to their position.

The first and second half of a head are the two coordinates of :math:`K/2` planes; plane :math:`i`
turns by :math:`\omega_i = b^{-2i/K}` a position (the "half-split" layout of Hugging Face weights).
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


class Turn(NamedTuple):
    """Cosine and sine of the angles, shape ``[... K/2]``; a leading axis where bases differ."""

    cosine: Array
    sine: Array


def frequencies(architecture: Architecture) -> np.ndarray:
    r"""Angle per position of every plane.

    Args:
        architecture: its bases, scaling and head size count.

    Returns:
        :math:`\omega_i`, radians; row 0 for layers that see everything, and row 1 for local ones if
        they have a base of their own, shape ``[1 or 2, K/2]``.

    Examples:
        >>> size = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> frequencies(Architecture(**size)).tolist()
        [[1.0, 0.01]]
    """
    exponents = np.arange(0, architecture.head_dim, 2) / architecture.head_dim
    everywhere = architecture.rope_theta**-exponents
    if architecture.rope_scaling is not None:
        everywhere = _scaled(everywhere, architecture.rope_scaling)
    if architecture.rope_local_base_freq is None:
        return everywhere[None]
    return np.stack([everywhere, architecture.rope_local_base_freq**-exponents])


def turns(architecture: Architecture, positions: Int[ArrayLike, "r T"], dtype: DTypeLike) -> Turn:
    """Angles of all tokens, once for all layers.

    Args:
        architecture: see :func:`frequencies`.
        positions: of the tokens.
        dtype: to compute in, float32 or wider.

    Returns:
        Cosines and sines, shape ``[1 or 2, r, T, K/2]``.
    """
    omega = jnp.asarray(frequencies(architecture), dtype)
    angles = jnp.asarray(positions).astype(dtype)[None, :, :, None] * omega[:, None, None]
    return Turn(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "r T H K"], turn: Turn) -> Float[Array, "r T H K"]:
    """Turn every head by its token's angles.

    Args:
        x: queries or keys.
        turn: of one base, shape ``[r T K/2]``.

    Returns:
        The same, turned, in the dtype of ``x``.
    """
    cosine, sine = (part[:, :, None].astype(x.dtype) for part in turn)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _scaled(omega: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    slow = omega / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    n_turns = scaling.original_max_position_embeddings * omega / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((n_turns - low) / (high - low), 0, 1)
    return kept * omega + (1 - kept) * slow
