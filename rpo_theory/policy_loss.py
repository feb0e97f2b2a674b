r"""The RPO loss of a policy, as a function of the reward behind its logits.

Put together from :mod:`rpo_theory.losses` alone, as a trainer would: the DPO loss of every observed
pair, weighted by its count, plus :math:`\eta\beta` times the SFT loss of every response, weighted
by :math:`d_0\pi_{base}`. The policy has logits :math:`\log\pi_{ref} + r/\beta`.

A response that the reference never gives has no log-probability, but its log-ratio to the
reference, which is all that the data see, has the limit :math:`r/\beta - \log Z`: its reference
log-probability stands as 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from .losses import PairLogProbs, dpo, sft
from .numerics.projected_newton import positive_or_one
from .policies import log_partition_scaled, scaled_below_max
from .reductions import reduce_mean
from .types import ArrayLike, Problem


def loss(
    problem: Problem,
    reward: Float[ArrayLike, "*x a"],
    *,
    comparisons: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    r"""RPO loss of the policy with logits :math:`\log\pi_{ref} + r/\beta`.

    Args:
        problem: the instance, or one prompt of it without the context axis.
        reward: :math:`r(x,a)`.
        comparisons: number :math:`N` that the DPO losses are averaged over; the sum of the win
            counts if None.

    Returns:
        Nats.

    References:
        `liu:24`, eq. 4.8.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> float(loss(problem, jnp.zeros((1, 2))) / jnp.log(2.0))
        2.0
    """
    log_probs, log_reference = log_policy(problem, jnp.asarray(reward))
    wins = jnp.asarray(problem.wins)
    pair_losses = dpo(pairs(log_probs), pairs(log_reference), beta=problem.beta, where=wins > 0)
    data = reduce_mean(pair_losses, wins)
    if comparisons is not None:
        data = data._replace(weight=jnp.asarray(comparisons))
    weights = _baseline_weights(problem)
    likelihood = reduce_mean(sft(log_probs, where=weights > 0), weights)
    return data.mean() + problem.eta * problem.beta * likelihood.sum


def adversarial_value(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""The loss plus its constant: :math:`F` of the reward, measured without :math:`\log Z`.

    .. math:: F(r) = \eta\beta E_{d_0,\pi_{base}}[\log\pi_{ref} - \log\pi_r]
              + L_D(\beta\log(\pi_r/\pi_{ref}))

    Args:
        problem: the instance.
        reward: :math:`r(x,a)`.

    Returns:
        The adversarial value of the policy, nats.

    References:
        `liu:24`, eqs. 4.4 and 4.5.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> float(adversarial_value(problem, jnp.zeros((1, 2))) / jnp.log(2.0))
        1.0
    """
    scaled = scaled_below_max(reward, problem.reference_policy, problem.beta)[1]
    log_ratio = scaled - log_partition_scaled(scaled, problem.reference_policy)[..., None]
    wins, weights = jnp.asarray(problem.wins), _baseline_weights(problem)
    ratios = pairs(log_ratio)
    level = PairLogProbs(*(jnp.zeros_like(side) for side in ratios))
    data = reduce_mean(dpo(ratios, level, beta=problem.beta, where=wins > 0), wins)
    likelihood = reduce_mean(sft(log_ratio, where=weights > 0), weights)
    return data.mean() + problem.eta * problem.beta * likelihood.sum


def log_policy(
    problem: Problem, reward: Float[ArrayLike, "*x a"]
) -> tuple[Float[Array, "*x a"], Float[Array, "*x a"]]:
    """Log-probabilities under the policy and under the reference.

    Args:
        problem: the instance, or one prompt of it.
        reward: :math:`r(x,a)`.

    Returns:
        Both in nats; where the reference is zero, 0 for it and the log-ratio for the policy.

    Examples:
        >>> law, reward = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
        >>> one, wins = jnp.array(1.0), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), law, law, wins, one, one)
        >>> [side.tolist() for side in log_policy(problem, reward)]
        [[[0.0, 2.0]], [[0.0, 0.0]]]
    """
    reference = jnp.asarray(problem.reference_policy)
    supported = reference > 0
    log_reference = jnp.log(jnp.where(supported, reference, 1.0))
    logits = log_reference + scaled_below_max(reward, reference, problem.beta)[1]
    return logits - logsumexp(logits, axis=-1, where=supported, keepdims=True), log_reference


def policy(problem: Problem, reward: Float[ArrayLike, "*x a"]) -> Float[Array, "*x a"]:
    """The policy itself: exactly 0 where the reference is."""
    log_probs, _ = log_policy(problem, reward)
    return jnp.where(jnp.asarray(problem.reference_policy) > 0, jnp.exp(log_probs), 0.0)


def scale(problem: Problem, comparisons: Float[Array, ""]) -> Float[Array, ""]:
    r"""Sum of the weights of the terms of the loss: divided by it, gradients are of order one.

    Args:
        problem: the instance, or one prompt of it.
        comparisons: number :math:`N` that the DPO losses are averaged over.

    Returns:
        :math:`\eta\sum_x d_0(x)` and the share of the comparisons; 1 where there are neither.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(0.25))
        >>> float(scale(problem, jnp.array(8.0)))
        0.75
    """
    adversarial = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights).sum()
    data = jnp.asarray(problem.wins).sum() / positive_or_one(comparisons)
    return positive_or_one(adversarial + data)


def hessian_weights(
    problem: Problem, reward: Float[Array, "*x a"], comparisons: Float[Array, ""]
) -> Float[Array, "*x a a"]:
    """Hessian of the loss in the reward, a graph Laplacian, as the weights of its graph.

    Args:
        problem: the instance, or one prompt of it.
        reward: :math:`r(x,a)`.
        comparisons: number :math:`N` that the DPO losses are averaged over.

    Returns:
        Symmetric weights, zero diagonal: the Hessian has their row sums on its diagonal and minus
        them off it, so that it is never a difference of large numbers.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> hessian_weights(problem, jnp.zeros((1, 2)), jnp.array(1.0)).tolist()
        [[[0.0, 0.5], [0.5, 0.0]]]
    """
    probability, wins = policy(problem, reward), jnp.asarray(problem.wins)
    margin = reward[..., :, None] - reward[..., None, :]
    variance = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin) / positive_or_one(comparisons)
    weight = (problem.eta / problem.beta * jnp.asarray(problem.context_weights))[..., None, None]
    drawn_together = weight * probability[..., :, None] * probability[..., None, :]
    between = 1.0 - jnp.eye(wins.shape[-1], dtype=wins.dtype)
    return between * (drawn_together + variance * (wins + wins.mT))


def pairs(log_probs: Float[Array, "*x a"]) -> PairLogProbs:
    """Every ordered pair of responses, the chosen one first.

    Args:
        log_probs: of the responses, nats.

    Returns:
        Both of each pair, ``[x, chosen, rejected]``.

    Examples:
        >>> every = pairs(jnp.array([-1.0, -2.0]))
        >>> every.chosen.tolist(), every.rejected.tolist()
        ([[-1.0, -1.0], [-2.0, -2.0]], [[-1.0, -2.0], [-1.0, -2.0]])
    """
    chosen, rejected = log_probs[..., :, None], log_probs[..., None, :]
    return PairLogProbs(*jnp.broadcast_arrays(chosen, rejected))


def _baseline_weights(problem: Problem) -> Float[Array, "*x a"]:
    weights = jnp.asarray(problem.context_weights)[..., None]
    return weights * jnp.asarray(problem.baseline_policy)
