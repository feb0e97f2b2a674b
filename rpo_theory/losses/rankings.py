r"""Losses of whole rankings: the K-wise DPO and RPO loss under the Plackett-Luce model."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .._log_probs import keep
from ..types import ArrayLike
from .regularized import sft


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
