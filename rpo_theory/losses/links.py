r"""DPO with another implicit reward: a penalty for lost probability, or another divergence.

The reward of a response is a function of its log-ratio :math:`u=\log(\pi/\pi_{ref})` other than
:math:`\beta u`. For an f-divergence in place of KL it is :math:`\beta f'(e^u)`.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import PairLogProbs, keep, log_ratios, zero_unless
from ..types import ArrayLike
from .margins import margin

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
"""Divergence of the policy from the reference, by the names of TRL."""


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
    chosen, rejected = map(jnp.asarray, log_ratios(policy, reference, where))
    bound = 2.0 * reward_max
    ratio_gap = _exp_difference(chosen, rejected)
    difference = jnp.clip(beta * (ratio_gap + chosen - rejected), -bound, bound)
    return zero_unless(where, jax.nn.softplus(-difference))


def f_dpo(
    policy: PairLogProbs,
    reference: PairLogProbs,
    *,
    beta: Float[ArrayLike, ""] | float,
    divergence: Divergence = "reverse_kl",
    alpha: float = 0.5,
    where: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "*n"]:
    r"""Return the DPO loss with an f-divergence in place of the KL divergence.

    .. math:: -\log\sigma\big(\beta[f'(e^{u_w}) - f'(e^{u_l})]\big)

    =====================  ==================================
    ``divergence``         :math:`f'(t)`
    =====================  ==================================
    ``reverse_kl``         :math:`\log t`, which is DPO
    ``forward_kl``         :math:`1-1/t`
    ``js_divergence``      :math:`\log\frac{2t}{1+t}`
    ``alpha_divergence``   :math:`\frac{t^{\alpha-1}-1}{\alpha-1}`
    =====================  ==================================

    Args:
        policy: log-probabilities under :math:`\pi`.
        reference: log-probabilities under :math:`\pi_{ref}`.
        beta: weight of the divergence, :math:`\beta > 0`.
        divergence: name of the divergence.
        alpha: order :math:`\alpha` of ``"alpha_divergence"``; 1 gives DPO, 2 the chi-squared
            divergence.
        where: mask of the examples to include; all if None.

    Returns:
        Nats, at least 0. Beyond the square root of the largest number, ratios are cut off.

    Raises:
        ValueError: if the divergence is unknown.

    References:
        `wang:23`, Theorem 1 and Table 1.

    Examples:
        >>> same = PairLogProbs(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(f_dpo(same, same, beta=0.1, divergence="js_divergence")[0]), 4)
        0.6931
    """
    if divergence not in get_args(Divergence):
        names = ", ".join(map(repr, get_args(Divergence)))
        raise ValueError(f"`divergence` must be one of {names}, got {divergence!r}")
    chosen, rejected = map(jnp.asarray, log_ratios(policy, reference, where))
    order = {"forward_kl": 0.0, "alpha_divergence": alpha}.get(divergence, 1.0) - 1.0
    if divergence == "js_divergence":
        difference = jax.nn.softplus(-rejected) - jax.nn.softplus(-chosen)
    elif order == 0.0:
        difference = chosen - rejected
    elif divergence == "forward_kl":
        difference = _exp_difference(-rejected, -chosen)
    else:
        difference = _exp_difference(order * chosen, order * rejected) / order
    return zero_unless(where, jax.nn.softplus(-beta * difference))


def _exp_difference(first: Float[Array, "*n"], second: Float[Array, "*n"]) -> Float[Array, "*n"]:
    r"""Return :math:`e^a - e^b`, cut off at the square root of the largest number."""
    # Factor out the larger exponential: the gradient keeps its sign where the value is cut off.
    larger = jax.lax.stop_gradient(jnp.maximum(first, second))
    ceiling = 0.5 * jnp.log(jnp.finfo(first.dtype).max)
    factor = jnp.exp(jnp.minimum(larger, ceiling))
    return factor * (jnp.exp(first - larger) - jnp.exp(second - larger))
