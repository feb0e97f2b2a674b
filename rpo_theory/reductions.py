r"""From per-example losses to one number: sums and weights, divided once over the whole batch.

The SFT term has been reduced in three ways by different trainers, and confusing them is the most
common mistake: the theorem's (`liu:24`, eq. 4.8) is the token sum. Totals and weights of parts of a
batch add up, so the result does not depend on how the batch was split.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .types import ArrayLike

SftReduction = Literal["sum", "sequence_mean", "pooled_mean"]


class WeightedSum(NamedTuple):
    """A weighted sum that has not been divided yet, so that parts of a batch add up exactly.

    Attributes:
        sum: the weighted sum.
        weight: the sum of the weights.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """The weighted mean; 0 where the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.sum / jnp.where(empty, 1.0, self.weight))


def reduce_mean(
    losses: Float[ArrayLike, "*n"], weights: Float[ArrayLike, "*n"] | None = None
) -> WeightedSum:
    """Sum of per-example losses and of their weights, to be divided once over the whole batch.

    Args:
        losses: per-example losses.
        weights: how often each example counts (0 for a masked one); one each if None.

    Returns:
        The reduction; add the fields of several parts before :meth:`WeightedSum.mean`.

    Examples:
        >>> float(reduce_mean(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])).mean())
        1.5
    """
    losses = jnp.asarray(losses)
    weights = jnp.ones_like(losses) if weights is None else jnp.asarray(weights)
    return WeightedSum(jnp.sum(losses * weights), jnp.sum(weights))


def reduce_sft(
    losses: Float[ArrayLike, "*n"],
    tokens: Float[ArrayLike, "*n"],
    *,
    reduction: SftReduction = "sum",
    weights: Float[ArrayLike, "*n"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> WeightedSum:
    r"""SFT losses of a batch under one of the reductions in use; ``"sum"`` is the theorem's.

    * ``"sum"``: mean over responses of the token-summed loss (eq. 4.8).
    * ``"sequence_mean"``: mean over responses of each response's mean token loss.
    * ``"pooled_mean"``: mean over all tokens of the batch.

    Args:
        losses: token-summed losses of :func:`rpo_theory.losses.sft`.
        tokens: lengths of the responses, at least 1 where they count.
        reduction: which.
        weights: how often each response counts; one each if None.
        where: examples that count; all if None.

    Returns:
        The reduction, normalised over whatever parts are added up before dividing.

    References:
        `liu:24`, eq. 4.8, for ``"sum"``.

    Examples:
        >>> losses, tokens = jnp.array([2.0, 6.0]), jnp.array([2.0, 2.0])
        >>> [float(reduce_sft(losses, tokens, reduction=r).mean()) for r in ("sum", "pooled_mean")]
        [4.0, 2.0]
    """
    losses, tokens = jnp.asarray(losses), jnp.asarray(tokens)
    kept = jnp.ones(losses.shape, bool) if where is None else jnp.asarray(where)
    counts = jnp.ones_like(losses) if weights is None else jnp.asarray(weights)
    losses, counts = jnp.where(kept, losses, 0.0), jnp.where(kept, counts, 0.0)
    tokens = jnp.where(kept, tokens, 1.0)
    if reduction == "sum":
        return WeightedSum(jnp.sum(counts * losses), counts.sum())
    if reduction == "sequence_mean":
        return WeightedSum(jnp.sum(counts * losses / tokens), counts.sum())
    if reduction == "pooled_mean":
        return WeightedSum(jnp.sum(counts * losses), jnp.sum(counts * tokens))
    raise ValueError(
        f"`reduction` must be 'sum', 'sequence_mean' or 'pooled_mean', got {reduction!r}"
    )


def weight_per_token(
    *, eta: float, beta: float, mean_tokens: float, reduction: SftReduction = "sum"
) -> float:
    r"""Weight of one chosen token's log-probability in the loss of one pair.

    The number in which trainers that name their SFT coefficient differently can be compared:
    :math:`\eta\beta` for the token sum, :math:`\eta\beta` over the mean length for the means.

    Args:
        eta: :math:`\eta`.
        beta: :math:`\beta`.
        mean_tokens: mean length of the responses in tokens.
        reduction: which.

    Returns:
        Weight per token.

    Examples:
        >>> weight_per_token(eta=0.5, beta=0.5, mean_tokens=10.0, reduction="pooled_mean")
        0.025
    """
    return eta * beta if reduction == "sum" else eta * beta / mean_tokens
