r"""Options of attention logits, and the soft cap of attention and output logits."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


class AttentionSettings(NamedTuple):
    """Options that turn products of queries and keys into logits.

    Attributes:
        soft_cap: soft cap of the logits; None for no cap.
        scale: factor of the products, applied before the cap.
    """

    soft_cap: float | None
    scale: float


def apply_soft_cap(logits: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    r"""Bound logits smoothly.

    .. math:: z \mapsto c \tanh(z / c)

    Args:
        logits: any logits.
        cap: the bound :math:`c`; None leaves the logits as they are.

    Returns:
        Logits in :math:`(-c, c)`.

    Examples:
        >>> apply_soft_cap(jnp.array([0.0, 100.0]), 5.0).tolist()
        [0.0, 5.0]
    """
    return logits if cap is None else cap * jnp.tanh(logits / cap)
