r"""Reductions of per-example losses: sums and weights, divided once over the whole batch.

Trainers reduce the SFT term in three ways, and confusing them is the most common mistake. The
theorem (`liu:24`, eq. 4.8) uses the token sum. Sums and weights of the parts of a batch add up, so
the result does not depend on how the batch was split.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .types import ArrayLike

SftReduction = Literal["sum", "sequence_mean", "pooled_mean"]


class WeightedSum(NamedTuple):
    """Weighted sum before the division by its weight; the parts of a batch add up exactly.

    Attributes:
        sum: sum of the values times their weights.
        weight: sum of the weights.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """Return the weighted mean, or 0 if the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.sum / jnp.where(empty, 1.0, self.weight))


def reduce_mean(
    losses: Float[ArrayLike, "*n"], weights: Float[ArrayLike, "*n"] | None = None
) -> WeightedSum:
    """Sum per-example losses and their weights, to be divided once over the whole batch.

    Args:
        losses: per-example losses.
        weights: weight of each example (0 masks it); 1 each if None.

    Returns:
        The weighted sum. Add the fields of all parts of a batch before :meth:`WeightedSum.mean`.

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
    r"""Reduce the SFT losses of a batch; ``"sum"`` is the reduction of the theorem.

    * ``"sum"``: mean over responses of the token-summed loss (eq. 4.8).
    * ``"sequence_mean"``: mean over responses of each response's mean token loss.
    * ``"pooled_mean"``: mean over all tokens of the batch.

    Args:
        losses: token-summed losses of :func:`rpo_theory.losses.sft`.
        tokens: lengths of the responses in tokens, at least 1 where ``where`` is true.
        reduction: one of the three above.
        weights: weight of each response; 1 each if None.
        where: mask of the examples to include; all if None.

    Returns:
        The weighted sum. Add the fields of all parts of a batch before :meth:`WeightedSum.mean`.

    Raises:
        ValueError: if the name of the reduction is unknown.

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
    raise _unknown_reduction(reduction)


def weight_per_token(
    *, eta: float, beta: float, mean_tokens: float, reduction: SftReduction = "sum"
) -> float:
    r"""Return the weight of the log-probability of one chosen token in the loss of one pair.

    It makes the SFT coefficients of different trainers comparable: :math:`\eta\beta` for the token
    sum, and :math:`\eta\beta` divided by the mean length for the two means.

    Args:
        eta: weight :math:`\eta` of the adversarial term.
        beta: weight :math:`\beta` of the KL term.
        mean_tokens: mean length of the responses in tokens.
        reduction: reduction of the SFT loss; see :func:`reduce_sft`.

    Returns:
        Weight per token.

    Raises:
        ValueError: if the reduction is unknown or the mean length is not greater than 0.

    Examples:
        >>> weight_per_token(eta=0.5, beta=0.5, mean_tokens=10.0, reduction="pooled_mean")
        0.025
    """
    if reduction not in get_args(SftReduction):
        raise _unknown_reduction(reduction)
    if not mean_tokens > 0:
        raise ValueError(f"`mean_tokens` must be greater than 0, got {mean_tokens}")
    return eta * beta if reduction == "sum" else eta * beta / mean_tokens


def _unknown_reduction(name: str) -> ValueError:
    return ValueError(f"`reduction` must be 'sum', 'sequence_mean' or 'pooled_mean', got {name!r}")
