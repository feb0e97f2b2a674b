r"""Preference losses as functions of log-probabilities.

Every function takes per-example log-probabilities of whole responses (sums over tokens, nats) and
returns per-example losses in nats; nothing is reduced inside. The bandit solvers and the
language-model trainer call these same functions. With the log-ratios
:math:`\log(\pi/\pi_{ref})` of the two responses and their difference, the *margin*
:math:`h = \log\frac{\pi(w|x)}{\pi_{ref}(w|x)} - \log\frac{\pi(l|x)}{\pi_{ref}(l|x)}`, the loss of
Algorithm 2 (`liu:24`, eq. 4.8) is

.. math:: -\log\sigma(\beta h) - \eta\beta\log\pi(a^0|x), \qquad a^0\sim\pi_{base}.

Masked examples (``where=False``) have zero loss *and* zero gradient, whatever their values are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ._log_probs import PairLogProbs, keep, masked_pair, zero_unless
from .losses_beyond_dpo import kto, orpo, simpo
from .types import ArrayLike

__all__ = [
    "PairLogProbs",
    "chi_po",
    "dpo",
    "dpop",
    "ipo",
    "kto",
    "margin",
    "orpo",
    "plackett_luce",
    "power",
    "rpo",
    "sft",
    "simpo",
]


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
    policy, reference = masked_pair(policy, where), masked_pair(reference, where)
    chosen = jnp.asarray(policy.chosen) - jnp.asarray(reference.chosen)
    return chosen - (jnp.asarray(policy.rejected) - jnp.asarray(reference.rejected))


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


def sft(
    log_probs: Float[ArrayLike, "*n"], *, where: Bool[ArrayLike, "*n"] | None = None
) -> Float[Array, "*n"]:
    r"""Return the SFT loss :math:`-\log\pi(a|x)` of whole responses, summed over tokens.

    Args:
        log_probs: log-probabilities, summed over tokens.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0 for probabilities.

    References:
        `liu:24`, eq. 4.8.

    Examples:
        >>> sft(jnp.array([-3.0])).tolist()
        [3.0]
    """
    return -keep(log_probs, where)


def rpo(
    policy: PairLogProbs,
    reference: PairLogProbs,
    baseline: Float[ArrayLike, "*n"],
    *,
    beta: Float[ArrayLike, ""] | float,
    eta: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the RPO loss of Algorithm 2: DPO plus :math:`\eta\beta` times SFT on the baseline.

    .. math:: -\log\sigma(\beta h) - \eta\beta\log\pi(a^0|x)

    Its minimizer is the policy of the adversarial max-min problem. With
    ``baseline=policy.chosen`` the SFT term is on the chosen responses. The offline loss of VPO is
    this loss with its calibration policy as baseline.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        baseline: :math:`\log\pi(a^0|x)` of a response drawn from :math:`\pi_{base}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        eta: weight of the adversarial term, :math:`\eta \ge 0`; 0 gives DPO.
        where: mask of the examples to include; all if None.

    Returns:
        Nats.

    References:
        `liu:24`, eq. 4.8 and Theorem 5.6.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(rpo(same, same, jnp.array([-2.0]), beta=0.5, eta=1.0)[0]), 4)
        1.6931
    """
    regularizer = eta * beta * sft(baseline, where=where)
    return dpo(policy, reference, beta=beta, where=where) + regularizer


def plackett_luce(
    policy: Float[ArrayLike, "*n k"],
    reference: Float[ArrayLike, "*n k"],
    baseline: Float[ArrayLike, "*n"] | None = None,
    *,
    beta: Float[ArrayLike, ""] | float,
    eta: Float[ArrayLike, ""] | float = 0.0,
    ranked: int | None = None,
    where: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the K-wise DPO or RPO loss of rankings under the Plackett-Luce model.

    With the implicit rewards :math:`s_k=\beta\log\frac{\pi(a_k|x)}{\pi_{ref}(a_k|x)}` of responses
    :math:`a_1,\dots,a_K` in order from best to worst it is

    .. math:: -\sum_k\Big[s_k - \log\sum_{j\ge k}e^{s_j}\Big] - \eta\beta\log\pi(a^0|x).

    For two responses it equals :func:`dpo`, or :func:`rpo` with a baseline response.

    Args:
        policy: log-probabilities under :math:`\pi` of the responses from best to worst.
        reference: log-probabilities under :math:`\pi_{ref}` of the same responses.
        baseline: log-probability under :math:`\pi` of a response drawn from the baseline policy;
            None for the DPO loss.
        beta: weight of the KL term, :math:`\beta > 0`.
        eta: weight of the SFT term, :math:`\eta \ge 0`.
        ranked: number of places that the data order: 1 for the choice of the best of a set; all if
            None.
        where: mask of the responses to include, for rankings of different lengths; all if None. An
            example without responses has no loss.

    Returns:
        Nats; at least 0 without a baseline.

    References:
        `plackett:75`; `rafailov:23`, appendix A.3, for DPO.

    Examples:
        >>> same = jnp.zeros((1, 3))
        >>> float(jnp.exp(plackett_luce(same, same, beta=0.1))[0].round(4))
        6.0
    """
    ratio = keep(policy, where) - keep(reference, where)
    n_ranks = ratio.shape[-1]
    rank = jnp.arange(n_ranks)
    kept = jnp.ones(ratio.shape, bool) if where is None else jnp.asarray(where)
    rivals = (rank[:, None] <= rank) & kept[..., :, None] & kept[..., None, :]
    lead = -(beta * (ratio[..., :, None] - ratio[..., None, :]))
    # The largest term of each sum is taken out; for two responses this is softplus, bit for bit.
    largest = jnp.argmax(jnp.where(rivals, lead, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.take_along_axis(lead, largest, axis=-1)
    smaller = rivals & (rank != largest)
    below = jnp.where(smaller, jnp.exp(jnp.where(smaller, lead - top, 0.0)), 0.0)
    losses = top[..., 0] + jnp.log1p(below.sum(axis=-1))
    counted = kept if ranked is None else kept & (jnp.cumsum(kept, axis=-1) <= ranked)
    loss = jnp.sum(jnp.where(counted, losses, 0.0), axis=-1)
    if baseline is None:
        return loss
    present = None if where is None else kept.any(axis=-1)
    return loss + eta * beta * sft(baseline, where=present)


def ipo(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    tau: float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the IPO loss :math:`(h - \frac{1}{2\tau})^2`.

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        tau: regularization :math:`\tau > 0`; the target of the margin is :math:`1/2\tau`.
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
    loss = jnp.square(margin(policy, reference, where=where) - 0.5 / tau)
    return zero_unless(where, loss)


def dpop(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    penalty: Float[ArrayLike, ""] | float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the DPO-positive loss, DPO with a penalty if the chosen log-probability falls.

    .. math:: -\log\sigma\big(\beta h - \beta\lambda\max(0, \log\tfrac{\pi_{ref}(w)}{\pi(w)})\big)

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        penalty: weight :math:`\lambda \ge 0` of the penalty.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0.

    References:
        `pal:24`, eq. 3.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(dpop(same, same, beta=0.1, penalty=5.0)[0]), 4)
        0.6931
    """
    lost = jax.nn.relu(keep(reference.chosen, where) - keep(policy.chosen, where))
    scaled = beta * (margin(policy, reference, where=where) - penalty * lost)
    return zero_unless(where, jax.nn.softplus(-scaled))


def chi_po(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    reward_max: float,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the loss of chi-squared preference optimization: DPO with link :math:`u(z)=z+\log z`.

    .. math:: -\log\sigma\Big(\mathrm{clip}_{2R}\,\beta\big[u(\tfrac{\pi(w)}{\pi_{ref}(w)})
              - u(\tfrac{\pi(l)}{\pi_{ref}(l)})\big]\Big)

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the KL term, :math:`\beta > 0`.
        reward_max: :math:`R`; the difference is clipped to :math:`[-2R, 2R]`.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0; the gradient vanishes where the difference is clipped.

    References:
        `huang:24`, Algorithm 1.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(chi_po(same, same, beta=0.1, reward_max=1.0)[0]), 4)
        0.6931
    """
    policy, reference = masked_pair(policy, where), masked_pair(reference, where)
    bound = 2.0 * reward_max
    chosen = policy.chosen - reference.chosen
    rejected = policy.rejected - reference.rejected
    # Factor out the larger ratio. Above the ceiling the difference is clipped in any case, and exp
    # must not overflow.
    larger = jax.lax.stop_gradient(jnp.maximum(chosen, rejected))
    ceiling = 0.5 * jnp.log(jnp.finfo(chosen.dtype).max)
    factor = jnp.exp(jnp.minimum(larger, ceiling))
    ratio_gap = factor * (jnp.exp(chosen - larger) - jnp.exp(rejected - larger))
    difference = jnp.clip(beta * (ratio_gap + chosen - rejected), -bound, bound)
    return zero_unless(where, jax.nn.softplus(-difference))


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
