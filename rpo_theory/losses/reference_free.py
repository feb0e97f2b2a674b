r"""Losses without a reference policy: CPO, SimPO, ORPO, SLiC and POWER.

``weights`` of the responses are the inverses of their lengths for average log-probabilities.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, masked_pair, zero_unless
from ..types import ArrayLike


def cpo(
    policy: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    sft_weight: Float[ArrayLike, ""] | float = 1.0,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the CPO loss: DPO with a uniform reference, plus SFT on the chosen response.

    .. math:: -\log\sigma\big(\beta[\log\pi(w) - \log\pi(l)]\big) - \lambda\log\pi(w)

    Args:
        policy: log-probabilities under :math:`\pi`.
        beta: scale of the reward :math:`\beta\log\pi`, :math:`\beta > 0`.
        sft_weight: weight :math:`\lambda \ge 0` of the SFT loss; 1 in the paper.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `xu:24`, eqs. 3 to 5.

    Examples:
        >>> even = PairLogProbs(jnp.array([-1.0]), jnp.array([-1.0]))
        >>> round(float(cpo(even, beta=0.1)[0]), 4)
        1.6931
    """
    policy = masked_pair(policy, where)
    chosen = jnp.asarray(policy.chosen)
    scaled = beta * (chosen - jnp.asarray(policy.rejected))
    return zero_unless(where, jax.nn.softplus(-scaled) - sft_weight * chosen)


def slic(
    policy: PairLogProbs,
    *,
    delta: Float[ArrayLike, ""] | float,
    sft_weight: Float[ArrayLike, ""] | float = 1.0,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the SLiC-HF loss: a hinge on log-probabilities, plus SFT on the chosen response.

    .. math:: \max\big(0, \delta - \log\pi(w) + \log\pi(l)\big) - \lambda\log\pi(w)

    Args:
        policy: log-probabilities under :math:`\pi`.
        delta: target :math:`\delta > 0` of the margin of log-probabilities, nats.
        sft_weight: weight :math:`\lambda \ge 0` of the SFT loss.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `zhao:23`, eq. 1, with the chosen response as target of the regularizer.

    Examples:
        >>> even = PairLogProbs(jnp.array([-1.0]), jnp.array([-1.0]))
        >>> slic(even, delta=1.0).tolist()
        [2.0]
    """
    policy = masked_pair(policy, where)
    chosen = jnp.asarray(policy.chosen)
    short = jax.nn.relu(delta - (chosen - jnp.asarray(policy.rejected)))
    return zero_unless(where, short - sft_weight * chosen)


def simpo(
    policy: PairLogProbs,
    weights: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    gamma: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the SimPO loss: average log-probabilities replace the log-ratios to a reference.

    .. math:: -\log\sigma\big(\beta[w_w\log\pi(w) - w_l\log\pi(l)] - \gamma\big)

    Args:
        policy: log-probabilities under :math:`\pi`.
        weights: positive weights of the responses; the inverse of their lengths in the paper, 1 for
            responses of one token such as those of a table.
        beta: scale of the reward :math:`\beta\,w\log\pi`, :math:`\beta > 0`.
        gamma: target :math:`\gamma \ge 0` of the reward margin.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `meng:24`, eq. 6.

    Examples:
        >>> even = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> one = PairLogProbs(jnp.ones(1), jnp.ones(1))
        >>> round(float(simpo(even, one, beta=2.0, gamma=1.0)[0]), 4)
        1.3133
    """
    policy, weights = masked_pair(policy, where), masked_pair(weights, where)
    difference = weights.chosen * policy.chosen - weights.rejected * policy.rejected
    return zero_unless(where, jax.nn.softplus(jnp.asarray(gamma - beta * difference)))


def orpo(
    policy: PairLogProbs,
    weights: PairLogProbs,
    *,
    penalty: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the ORPO loss: SFT on the chosen response plus the odds ratio of both responses.

    .. math:: -w_w\log\pi(w) - \lambda\log\sigma\Big(\log\frac{odds(w)}{odds(l)}\Big), \qquad
              odds(a) = \frac{\pi(a)^{w_a}}{1-\pi(a)^{w_a}}

    Args:
        policy: log-probabilities under :math:`\pi`, below 0.
        weights: positive weights of the responses; the inverse of their lengths in the paper, 1 for
            responses of one token such as those of a table.
        penalty: weight :math:`\lambda \ge 0` of the odds ratio; 0 gives SFT.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `hong:24`, eqs. 6 and 7.

    Examples:
        >>> pair = PairLogProbs(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))
        >>> one = PairLogProbs(jnp.ones(1), jnp.ones(1))
        >>> round(float(jnp.exp(orpo(pair, one, penalty=1.0)[0])), 4)  # 2 (1 + 1/4)
        2.5
    """
    # A probability of e^-1 stands for those of masked examples, so that their odds are finite.
    policy, weights = masked_pair(policy, where, -1.0), masked_pair(weights, where, 1.0)
    chosen, rejected = weights.chosen * policy.chosen, weights.rejected * policy.rejected
    log_ratio = _log_odds(chosen) - _log_odds(rejected)
    return zero_unless(
        where, jnp.asarray(penalty) * jax.nn.softplus(-log_ratio) - jnp.asarray(chosen)
    )


def power(
    policy: PairLogProbs,
    weights: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    eta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the base loss of POWER-DL: weighted entropy replaces the KL term and the reference.

    .. math:: -\log\sigma(\beta[w_w\log\pi(w) - w_l\log\pi(l) + w_w - w_l])
              - \eta\beta\, w_w\log\pi(w)

    Args:
        policy: log-probabilities under :math:`\pi`.
        weights: positive weights of the responses, usually the inverse of their lengths.
        beta: weight of the KL term, :math:`\beta > 0`.
        eta: weight of the SFT term, :math:`\eta \ge 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Nats.

    References:
        `rashidinejad:24`; the SFT weight assumes that ``weights`` is constant for each prompt.

    Examples:
        >>> even = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> one = PairLogProbs(jnp.ones(1), jnp.ones(1))
        >>> round(float(power(even, one, beta=1.0, eta=1.0)[0]), 4)
        0.6931
    """
    policy, weights = masked_pair(policy, where), masked_pair(weights, where)
    chosen = weights.chosen * policy.chosen
    difference = chosen - weights.rejected * policy.rejected + weights.chosen - weights.rejected
    return zero_unless(where, jax.nn.softplus(-beta * difference) - eta * beta * chosen)


def _log_odds(log_probs: Float[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    log_probs = jnp.asarray(log_probs)
    return log_probs - jnp.log(-jnp.expm1(log_probs))
