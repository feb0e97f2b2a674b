r"""Losses that score each response by itself: KTO, NCA, BCO, SPPO and APO.

With the log-ratios :math:`u_a=\log(\pi(a|x)/\pi_{ref}(a|x))` they are sums of a function of
:math:`u_w` and one of :math:`u_l`, up to one term of APO. So, unlike DPO, they fix the level of the
log-ratios and not only their difference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, keep, log_ratios, zero_unless
from ..types import ArrayLike


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


def nca_pair(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the noise-contrastive loss of pairs, in which the reference is the noise.

    .. math:: -\log\sigma(\beta u_w) - \tfrac12\log\sigma(-\beta u_w)
              - \tfrac12\log\sigma(-\beta u_l)

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: scale of the reward :math:`\beta u`, :math:`\beta > 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, above 0. The minimum in :math:`u_w` is at :math:`\beta u_w=\log 2`.

    References:
        `chen:24`, eq. 9 with two responses.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(nca_pair(same, same, beta=0.1)[0]), 4)  # 2 log 2
        1.3863
    """
    chosen, rejected = _rewards(policy, reference, beta, where)
    noise = 0.5 * (jax.nn.softplus(chosen) + jax.nn.softplus(rejected))
    return zero_unless(where, jax.nn.softplus(-chosen) + noise)


def bco_pair(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    shift: Float[ArrayLike, ""] | float = 0.0,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the loss of a binary classifier of chosen and rejected responses.

    .. math:: -\log\sigma(\beta u_w - \delta) - \log\sigma(-\beta u_l + \delta)

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: scale of the reward :math:`\beta u`, :math:`\beta > 0`.
        shift: :math:`\delta`, an average of past rewards in the paper, through which no gradient
            flows; 0 in TRL.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, above 0.

    References:
        `jung:24`, eq. 10.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(bco_pair(same, same, beta=0.1)[0]), 4)  # 2 log 2
        1.3863
    """
    chosen, rejected = _rewards(policy, reference, beta, where)
    level = jax.lax.stop_gradient(jnp.asarray(shift, chosen.dtype))
    loss = jax.nn.softplus(level - chosen) + jax.nn.softplus(rejected - level)
    return zero_unless(where, loss)


def sppo_hard(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the SPPO loss with hard labels: log-ratios are fitted to :math:`\pm1/(2\beta)`.

    .. math:: \Big(u_w - \frac1{2\beta}\Big)^2 + \Big(u_l + \frac1{2\beta}\Big)^2

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: :math:`\beta > 0`, the inverse of :math:`\eta` in the paper.
        where: mask of the examples to include; all if None.

    Returns:
        Squared nats, at least 0.

    References:
        `wu:24`, eq. 4.7 with probabilities of winning 1 and 0.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> sppo_hard(same, same, beta=0.5).tolist()
        [2.0]
    """
    chosen, rejected = _rewards(policy, reference, 1.0, where)
    target = 0.5 / beta
    return zero_unless(where, jnp.square(chosen - target) + jnp.square(rejected + target))


def apo_zero(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the APO-zero loss, for chosen responses that are better than those of the policy.

    .. math:: -\sigma(\beta u_w) + \sigma(\beta u_l) + 1

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: scale of the reward :math:`\beta u`, :math:`\beta > 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Numbers in (0, 2).

    References:
        `doosterlinck:24`, eq. 7, plus 1.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> apo_zero(same, same, beta=0.1).tolist()
        [1.0]
    """
    chosen, rejected = _rewards(policy, reference, beta, where)
    return zero_unless(where, jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected))


def apo_down(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the APO-down loss, for chosen responses that are worse than those of the policy.

    .. math:: \sigma(\beta u_w) - \sigma(\beta[u_w-u_l]) + 1

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: scale of the reward :math:`\beta u`, :math:`\beta > 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Numbers in (0, 2).

    References:
        `doosterlinck:24`, eq. 8, plus 1.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> apo_down(same, same, beta=0.1).tolist()
        [1.0]
    """
    chosen, rejected = _rewards(policy, reference, beta, where)
    return zero_unless(where, jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen))


def _rewards(
    policy: PairLogProbs,
    reference: PairLogProbs,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return the scaled log-ratios of chosen and rejected responses."""
    ratio = log_ratios(policy, reference, where)
    return jnp.asarray(beta * ratio.chosen), jnp.asarray(beta * ratio.rejected)
