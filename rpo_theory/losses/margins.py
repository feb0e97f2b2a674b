r"""Losses of the log-ratio margin of a pair: DPO and its robust, hinge and learned relatives.

With the log-ratios :math:`u_a=\log(\pi(a|x)/\pi_{ref}(a|x))` and the *margin* :math:`h=u_w-u_l`
each is a function of :math:`z=\beta h`, the difference of the implicit rewards of both responses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, log_ratios, masked_pair, zero_unless
from ..types import ArrayLike


def margin(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the log-ratio margin :math:`h`, the implicit reward margin divided by :math:`\beta`.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, positive where the policy prefers the chosen response more than the reference does.

    References:
        `liu:24`, eq. 4.5.

    Examples:
        >>> pair = PairLogProbs(jnp.array([-1.0]), jnp.array([-2.0]))
        >>> margin(pair, PairLogProbs(jnp.array([-2.0]), jnp.array([-2.0]))).tolist()
        [1.0]
    """
    ratio = log_ratios(policy, reference, where)
    return jnp.asarray(ratio.chosen - ratio.rejected)


def dpo(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    label_smoothing: float = 0.0,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the DPO loss :math:`-\log\sigma(\beta h)`, the likelihood of the implicit reward.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        label_smoothing: probability in [0, 1/2) that a label is flipped.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `rafailov:23`; the term :math:`L_D(\beta\log(\pi_\theta/\pi_{ref}))` of `liu:24`, eq. 4.8.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(dpo(same, same, beta=0.1)[0]), 4)
        0.6931
    """
    scaled = beta * margin(policy, reference, where=where)
    loss = jax.nn.softplus(-scaled) + label_smoothing * scaled
    return zero_unless(where, loss)


def ipo(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    tau: Float[ArrayLike, ""] | float,
    weights: PairLogProbs | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the IPO loss :math:`(h - \frac{1}{2\tau})^2`.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        tau: regularization :math:`\tau > 0`; the target of the margin is :math:`1/2\tau`.
        weights: positive weights of the log-ratios, such as the inverse lengths of the responses
            for averages over tokens; 1 if None.
        where: mask of the examples to include; all if None.

    Returns:
        Squared nats, at least 0.

    References:
        `azar:23`, eq. 17.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> ipo(same, same, tau=0.5).tolist()
        [1.0]
    """
    loss = jnp.square(_weighted_margin(policy, reference, weights, where) - 0.5 / tau)
    return zero_unless(where, loss)


def hinge(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the hinge loss :math:`\max(0, 1-\beta h)` of the margin.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Numbers that are at least 0; 0 where the reward margin exceeds 1.

    References:
        `liu-rso:23`, eq. 10.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> hinge(same, same, beta=0.1).tolist()
        [1.0]
    """
    loss = jax.nn.relu(1.0 - beta * margin(policy, reference, where=where))
    return zero_unless(where, loss)


def robust(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    flip_probability: float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the robust DPO loss, which is unbiased when labels are flipped at random.

    .. math:: \frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}
              = -\log\sigma(\beta h) - \frac{\epsilon}{1-2\epsilon}\,\beta h

    Its mean over flipped labels is the DPO loss of the true label.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        flip_probability: probability :math:`\epsilon` in [0, 1/2) that a label is flipped.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, without a lower bound if :math:`\epsilon>0`.

    References:
        `chowdhury:24`, eq. 12.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(robust(same, same, beta=0.1, flip_probability=0.1)[0]), 4)
        0.6931
    """
    scaled = beta * margin(policy, reference, where=where)
    correction = flip_probability / (1.0 - 2.0 * flip_probability)
    return zero_unless(where, jax.nn.softplus(-scaled) - correction * scaled)


def exo_pair(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    label_smoothing: float = 1e-3,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the EXO loss of pairs, the reverse divergence from the smoothed label.

    .. math:: \sigma(z)\log\frac{\sigma(z)}{1-\epsilon} + \sigma(-z)\log\frac{\sigma(-z)}{\epsilon},
              \qquad z=\beta h

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        label_smoothing: probability :math:`\epsilon` in (0, 1/2) that a label is flipped.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0; 0 where :math:`\sigma(z)=1-\epsilon`. It is not convex in the margin.

    References:
        `ji-exo:24`, eq. 16.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(exo_pair(same, same, beta=0.1, label_smoothing=0.1)[0]), 4)
        0.5108
    """
    scaled = beta * margin(policy, reference, where=where)
    smoothed = jnp.log(jnp.array([1.0 - label_smoothing, label_smoothing], scaled.dtype))
    wins = jax.nn.sigmoid(scaled) * (-jax.nn.softplus(-scaled) - smoothed[0])
    losses = jax.nn.sigmoid(-scaled) * (-jax.nn.softplus(scaled) - smoothed[1])
    return zero_unless(where, wins + losses)


def discopop(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    tau: float = 0.05,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the loss that DiscoPOP found: a mixture of the logistic and the exponential loss.

    .. math:: -(1-\sigma(z/\tau))\log\sigma(z) + \sigma(z/\tau)\,e^{-z}, \qquad z=\beta h

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        tau: temperature :math:`\tau` in (0, 1] of the mixture; the loss is bounded by that of DPO
            plus 1.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, above 0. It is not convex in the margin.

    References:
        `lu:24`, eq. 5.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(discopop(same, same, beta=0.1)[0]), 4)  # (1 + log 2) / 2
        0.8466
    """
    scaled = beta * margin(policy, reference, where=where)
    logistic = jax.nn.sigmoid(-scaled / tau) * jax.nn.softplus(-scaled)
    # One exponential: its two factors overflow and underflow together.
    exponential = jnp.exp(-scaled - jax.nn.softplus(-scaled / tau))
    return zero_unless(where, logistic + exponential)


def sigmoid_norm(
    policy: PairLogProbs,
    reference: PairLogProbs,
    weights: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the DPO loss of log-ratios per token, :math:`-\log\sigma(\beta[w_w u_w - w_l u_l])`.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        weights: positive weights of the responses; the inverse of their lengths in the paper, 1 for
            responses of one token such as those of a table.
        beta: scale of the reward, :math:`\beta > 0`.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `lambert:24`, eq. 6.

    Examples:
        >>> same, one = (PairLogProbs(value, value) for value in (jnp.zeros(1), jnp.ones(1)))
        >>> round(float(sigmoid_norm(same, same, one, beta=5.0)[0]), 4)
        0.6931
    """
    difference = _weighted_margin(policy, reference, weights, where)
    return zero_unless(where, jax.nn.softplus(-beta * difference))


def _weighted_margin(
    policy: PairLogProbs,
    reference: PairLogProbs,
    weights: PairLogProbs | None,
    where: Bool[ArrayLike, "*n"] | None,
) -> Float[Array, "*n"]:
    r"""Return :math:`w_w u_w - w_l u_l`, which is :math:`h` without weights."""
    if weights is None:
        return margin(policy, reference, where=where)
    ratio, weights = log_ratios(policy, reference, where), masked_pair(weights, where)
    return jnp.asarray(weights.chosen * ratio.chosen - weights.rejected * ratio.rejected)
