"""Activations of the hidden units of an MLP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .architecture import Activation


def activate(x: Float[Array, "..."], kind: Activation) -> Float[Array, "..."]:
    """Apply the activation of the MLP's gate.

    Args:
        x: input, of any shape.
        kind: ``silu``, ``gelu``, or ``gelu_pytorch_tanh``, the tanh approximation of ``gelu``.

    Returns:
        The activations, of the same shape and dtype.

    Examples:
        >>> round(float(activate(jnp.array(1.0), "silu")), 4)
        0.7311
    """
    if kind == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=kind == "gelu_pytorch_tanh")


def clamped_swiglu(
    gate: Float[Array, "..."], up: Float[Array, "..."], alpha: float, limit: float
) -> Float[Array, "..."]:
    r"""Return the hidden units of an MLP from its clamped gate and up projection (gpt-oss).

    .. math:: (u + 1)\, g\, \sigma(\alpha g),\qquad g = \min(\text{gate}, c),\quad
              u = \max(-c, \min(\text{up}, c))

    Args:
        gate: gate projection.
        up: up projection, of the same shape.
        alpha: the factor :math:`\alpha` of the sigmoid.
        limit: the bound :math:`c`.

    Returns:
        The hidden units.

    Examples:
        >>> float(clamped_swiglu(jnp.array(0.0), jnp.array(9.0), 1.7, 7.0))
        0.0
    """
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return (up + 1) * gate * jax.nn.sigmoid(alpha * gate)
