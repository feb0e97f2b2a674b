r"""Weights of tokens and of pairs that some objectives take from token statistics.

*WPO* weights every pair by how likely the policy is to sample its responses. *LD-DPO* scales the
log-probabilities of the tokens by which one response is longer than the other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .._log_probs import PairLogProbs, masked_pair, zero_unless
from ..types import ArrayLike


def wpo_weights(
    policy: PairLogProbs,
    log_sum_squares: PairLogProbs,
    weights: PairLogProbs,
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the WPO weights of pairs, through which no gradient flows.

    .. math:: \prod_{a\in\{w,l\}}\exp\Big(\frac1{|a|}\sum_t\log\frac{\pi(a_t|x,a_{<t})}
              {\sum_v\pi(v|x,a_{<t})^2}\Big)

    The denominator is the mean probability of a sampled token, so that the weight of responses
    that the policy samples is 1 on average.

    Args:
        policy: log-probabilities of the responses under :math:`\pi`, summed over tokens.
        log_sum_squares: :math:`\sum_t\log\sum_v\pi(v|x,a_{<t})^2` of the responses.
        weights: inverses of the lengths :math:`|a|` of the responses.
        where: mask of the examples to include; all if None.

    Returns:
        Positive numbers; multiply the loss of each pair by its weight.

    References:
        `zhou:24`, eq. 2 and section 3.2 (sampled alignment).

    Examples:
        >>> uniform = PairLogProbs(jnp.log(jnp.array([0.25])), jnp.log(jnp.array([0.25])))
        >>> one = PairLogProbs(jnp.ones(1), jnp.ones(1))
        >>> wpo_weights(uniform, uniform, one).tolist()  # all tokens are equally likely
        [1.0]
    """
    policy, squares = masked_pair(policy, where), masked_pair(log_sum_squares, where)
    weights = masked_pair(weights, where)
    chosen = weights.chosen * (jnp.asarray(policy.chosen) - jnp.asarray(squares.chosen))
    rejected = weights.rejected * (jnp.asarray(policy.rejected) - jnp.asarray(squares.rejected))
    return zero_unless(where, jax.lax.stop_gradient(jnp.exp(chosen + rejected)))


def length_desensitized_weights(
    positions: Int[ArrayLike, "*t"],
    shared_lengths: Int[ArrayLike, "*t"],
    *,
    alpha: float,
) -> Float[Array, "*t"]:
    r"""Return the weights of tokens under length desensitization.

    With the length :math:`m` of the shorter response of a pair, LD-DPO replaces
    :math:`\log\pi(a)` by

    .. math:: \sum_{t\le m}\log\pi(a_t|a_{<t}) + \alpha\sum_{t>m}\log\pi(a_t|a_{<t}).

    Args:
        positions: position of each token in its response, from 0.
        shared_lengths: :math:`m` for the pair of each token.
        alpha: weight :math:`\alpha` in [0, 1] of the tokens beyond :math:`m`; 1 gives DPO.

    Returns:
        1 for tokens of the shared length, :math:`\alpha` for later ones.

    References:
        `liu-ld:24`, eq. 9.

    Examples:
        >>> length_desensitized_weights(jnp.arange(3), jnp.full(3, 2), alpha=0.5).tolist()
        [1.0, 1.0, 0.5]
    """
    return jnp.where(jnp.asarray(positions) < jnp.asarray(shared_lengths), 1.0, alpha)
