r"""The RPO loss of Algorithm 2: DPO plus an SFT loss, which is the adversarial regularizer.

.. math:: -\log\sigma(\beta h) - \eta\beta\log\pi(a^0|x), \qquad a^0\sim\pi_{base}
"""

from __future__ import annotations

from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, keep
from ..types import ArrayLike
from .margins import dpo


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
