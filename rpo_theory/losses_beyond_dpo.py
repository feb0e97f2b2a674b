r"""SimPO, ORPO and KTO: losses without a reference policy, or of single responses.

They have the conventions of :mod:`rpo_theory.losses`, which exports them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ._log_probs import PairLogProbs, keep, masked_pair, zero_unless
from .types import ArrayLike


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


def kto(
    policy: Float[ArrayLike, "*n"],
    reference: Float[ArrayLike, "*n"],
    desirable: Bool[ArrayLike, "*n"],
    *,
    beta: Float[ArrayLike, ""] | float,
    reference_point: Float[ArrayLike, "*n"] | Float[ArrayLike, ""] | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the KTO loss of single responses, each labeled as desirable or undesirable.

    .. math:: \lambda_y\,\sigma\Big(\mp\beta\Big[\log\frac{\pi(a)}{\pi_{ref}(a)} - z\Big]\Big)

    with a minus for desirable responses. A preference pair is one response of each kind.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        desirable: whether each response is desirable.
        beta: :math:`\beta > 0`; how fast the value of a response saturates.
        reference_point: :math:`z`, nats: an estimate of :math:`KL(\pi\|\pi_{ref})` through which
            no gradient flows, or 0.
        desirable_weight: :math:`\lambda_D`.
        undesirable_weight: :math:`\lambda_U`.
        where: mask of the examples to include; all if None.

    Returns:
        Numbers between 0 and the weight of the response.

    References:
        `ethayarajh:24`, eq. 8.

    Examples:
        >>> labels = jnp.array([True, False])
        >>> kto(jnp.zeros(2), jnp.zeros(2), labels, beta=0.1, reference_point=0.0).tolist()
        [0.5, 0.5]
    """
    point = jax.lax.stop_gradient(jnp.asarray(reference_point))
    scaled = beta * (keep(policy, where) - keep(reference, where) - point)
    gain, loss = desirable_weight * jax.nn.sigmoid(-scaled), jax.nn.sigmoid(scaled)
    return zero_unless(where, jnp.where(desirable, gain, undesirable_weight * loss))


def _log_odds(log_probs: Float[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    log_probs = jnp.asarray(log_probs)
    return log_probs - jnp.log(-jnp.expm1(log_probs))
