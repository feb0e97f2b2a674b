"""Log-probabilities of pairs of responses, and masks over examples."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .types import ArrayLike


class PairLogProbs(NamedTuple):
    r"""Log-probabilities of both responses of a batch of pairs under one policy.

    Attributes:
        chosen: :math:`\log\pi(w|x)`, summed over tokens, nats.
        rejected: :math:`\log\pi(l|x)`, summed over tokens, nats.
    """

    chosen: Float[ArrayLike, "*n"]
    rejected: Float[ArrayLike, "*n"]


def keep(
    values: Float[ArrayLike, "*n"], where: Bool[ArrayLike, "*n"] | None, masked: float = 0.0
) -> Float[Array, "*n"]:
    """Replace masked inputs by a number before any arithmetic, so that no NaN gets a gradient."""
    values = jnp.asarray(values)
    return values if where is None else jnp.where(jnp.asarray(where), values, masked)


def masked_pair(
    pair: PairLogProbs, where: Bool[ArrayLike, "*n"] | None, masked: float = 0.0
) -> PairLogProbs:
    """Replace masked inputs of both responses, see :func:`keep`."""
    return PairLogProbs(keep(pair.chosen, where, masked), keep(pair.rejected, where, masked))


def log_ratios(
    policy: PairLogProbs, reference: PairLogProbs, where: Bool[ArrayLike, "*n"] | None
) -> PairLogProbs:
    """Return the log-ratios of both responses to the reference, 0 for masked examples.

    Args:
        policy: log-probabilities under the policy.
        reference: log-probabilities under the reference.
        where: mask of the examples to include; all if None.

    Examples:
        >>> pairs = [PairLogProbs(jnp.array([x, x]), jnp.zeros(2)) for x in (-1.0, -3.0)]
        >>> log_ratios(*pairs, where=jnp.array([True, False])).chosen.tolist()
        [2.0, 0.0]
    """
    policy, reference = masked_pair(policy, where), masked_pair(reference, where)
    chosen = jnp.asarray(policy.chosen) - jnp.asarray(reference.chosen)
    return PairLogProbs(chosen, jnp.asarray(policy.rejected) - jnp.asarray(reference.rejected))


def zero_unless(
    where: Bool[ArrayLike, "*n"] | None, losses: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Return the losses with zeros for masked examples."""
    return losses if where is None else jnp.where(jnp.asarray(where), losses, 0.0)
