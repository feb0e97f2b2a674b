r"""Log-probabilities and masks that a preference loss is a function of."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float

from rpo_theory.losses import PairLogProbs


class RankingInputs(NamedTuple):
    """Ranked responses of a batch, from best to worst.

    Attributes:
        policy: log-probabilities of the responses under the policy, nats.
        reference: log-probabilities under the reference, nats.
        where: which responses each row has.
    """

    policy: Float[Array, "n k"]
    reference: Float[Array, "n k"]
    where: Bool[Array, "n k"]


class PairInputs(NamedTuple):
    r"""What a preference loss is a function of.

    Attributes:
        policy: log-probabilities of the responses under the policy, nats.
        reference: log-probabilities under the reference; zeros if the loss needs none.
        weights: inverses of the numbers of scored tokens.
        where: mask of the pairs that are present.
        log_sum_squares: :math:`\sum_t\log\sum_v\pi(v)^2` of the responses; None unless the loss
            has the token statistic ``"sum_squares"``.
        desirable: whether the first response of each unpaired row is desirable; the second one
            belongs to another prompt. None for pairs.
        ranking: all responses of ranked rows, of which the pair is the first two. None for pairs.
    """

    policy: PairLogProbs
    reference: PairLogProbs
    weights: PairLogProbs
    where: Bool[Array, " n"]
    log_sum_squares: PairLogProbs | None = None
    desirable: Bool[Array, " n"] | None = None
    ranking: RankingInputs | None = None
