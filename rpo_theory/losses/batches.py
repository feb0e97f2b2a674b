r"""Losses of a whole batch: AOT compares distributions over the batch, not single pairs.

Sorting is over the last axis, which must hold the *global* batch: parts of a batch have other
quantiles than the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, log_ratios, masked_pair, zero_unless
from ..types import ArrayLike


def aot(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    label_smoothing: float = 0.0,
    where: Bool[ArrayLike, "*m n"] | None = None,
) -> Float[Array, "*m n"]:
    r"""Return the AOT loss: the policy's margins must exceed the reference's in every quantile.

    With :math:`g_{(i)}` the sorted margins :math:`\log\pi(w)-\log\pi(l)` of the batch and
    :math:`g^{ref}_{(i)}` those of the reference it is, for every rank :math:`i`,

    .. math:: -\log\sigma\big(\beta[g_{(i)} - g^{ref}_{(i)}]\big).

    Args:
        policy: log-probabilities under :math:`\pi`; the last axis is the batch.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        label_smoothing: probability in [0, 1/2) that a label is flipped.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0: one loss for each *rank*, in increasing order. After the ranks of the
        included examples follow zeros.

    References:
        `melnyk:24`, eq. 6.

    Examples:
        >>> policy = PairLogProbs(jnp.array([-1.0, -3.0]), jnp.array([-1.0, -2.0]))
        >>> reference = PairLogProbs(jnp.array([-3.0, -1.0]), jnp.array([-2.0, -1.0]))
        >>> [round(float(loss), 4) for loss in aot(policy, reference, beta=1.0)]  # equal quantiles
        [0.6931, 0.6931]
    """
    policy, reference = masked_pair(policy, where), masked_pair(reference, where)
    first = jnp.asarray(policy.chosen) - jnp.asarray(policy.rejected)
    second = jnp.asarray(reference.chosen) - jnp.asarray(reference.rejected)
    return _quantile_loss(first, second, beta, label_smoothing, where)


def aot_unpaired(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    label_smoothing: float = 0.0,
    where: Bool[ArrayLike, "*m n"] | None = None,
) -> Float[Array, "*m n"]:
    r"""Return the unpaired AOT loss: chosen log-ratios must exceed rejected ones in every quantile.

    .. math:: -\log\sigma\big(\beta[u^w_{(i)} - u^l_{(i)}]\big)

    Args:
        policy: log-probabilities under :math:`\pi`; the last axis is the batch.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        label_smoothing: probability in [0, 1/2) that a label is flipped.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0: one loss for each *rank*, as :func:`aot` returns them.

    References:
        `melnyk:24`, eq. 7.

    Examples:
        >>> policy = PairLogProbs(jnp.array([-1.0, -3.0]), jnp.array([-3.0, -1.0]))
        >>> zero = PairLogProbs(jnp.zeros(2), jnp.zeros(2))
        >>> [round(float(loss), 4) for loss in aot_unpaired(policy, zero, beta=1.0)]
        [0.6931, 0.6931]
    """
    chosen, rejected = map(jnp.asarray, log_ratios(policy, reference, where))
    return _quantile_loss(chosen, rejected, beta, label_smoothing, where)


def _quantile_loss(
    first: Float[Array, "*m n"],
    second: Float[Array, "*m n"],
    beta: Float[ArrayLike, ""] | float,
    label_smoothing: float,
    where: Bool[ArrayLike, "*m n"] | None,
) -> Float[Array, "*m n"]:
    """Return the logistic loss of the difference of two sorted samples."""
    kept = jnp.ones(first.shape, bool) if where is None else jnp.asarray(where)
    scaled = beta * (_sorted(first, kept) - _sorted(second, kept))
    loss = jax.nn.softplus(-scaled) + label_smoothing * scaled
    ranks = jnp.arange(first.shape[-1]) < kept.sum(axis=-1, keepdims=True)
    return zero_unless(ranks, loss)


def _sorted(values: Float[Array, "*m n"], kept: Bool[Array, "*m n"]) -> Float[Array, "*m n"]:
    """Sort the included values; those of masked examples, which are 0, come last."""
    keys = jax.lax.stop_gradient(jnp.where(kept, values, jnp.inf))
    order = jnp.argsort(keys, axis=-1, stable=True)
    return jnp.take_along_axis(values, order, axis=-1)
