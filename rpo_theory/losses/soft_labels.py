r"""The loss of a pair whose label is a probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, keep, zero_unless
from ..types import ArrayLike


def expected_over_labels(
    loss: Callable[..., Float[Array, "*n"]],
    label: Float[ArrayLike, "*n"],
    *pairs: PairLogProbs,
    where: Bool[ArrayLike, "*n"] | None = None,
    **options: Any,
) -> Float[Array, "*n"]:
    r"""Return the expected loss of pairs whose first response is better with a given probability.

    .. math:: p\,\ell(w, l) + (1-p)\,\ell(l, w)

    For the DPO loss this is the cross-entropy between the label and the model. A pair that won
    :math:`W` and lost :math:`L` votes counts as :math:`W+L` pairs with :math:`p=W/(W+L)`.

    Args:
        loss: a loss of pairs, such as :func:`rpo_theory.losses.dpo`.
        label: probability :math:`p` in [0, 1] that the chosen response is the better one.
        *pairs: positional arguments of the loss, whose two sides are exchanged.
        where: mask of the examples to include; all if None.
        **options: options of the loss.

    Returns:
        Losses in the unit of ``loss``.

    References:
        `rafailov:23`, eq. 7, with the expectation over labels.

    Examples:
        >>> from rpo_theory.losses import dpo
        >>> zero, half = PairLogProbs(jnp.zeros(1), jnp.zeros(1)), jnp.array([0.5])
        >>> policy = PairLogProbs(jnp.ones(1), jnp.zeros(1))
        >>> round(float(expected_over_labels(dpo, half, policy, zero, beta=2.0)[0]), 4)
        1.1269
    """
    probability = keep(label, where)
    exchanged = [PairLogProbs(pair.rejected, pair.chosen) for pair in pairs]
    right, wrong = loss(*pairs, where=where, **options), loss(*exchanged, where=where, **options)
    # A certain label must not multiply an infinite loss by 0.
    right = jnp.where(probability > 0, probability * right, 0.0)
    wrong = jnp.where(probability < 1, (1.0 - probability) * wrong, 0.0)
    return zero_unless(where, right + wrong)
