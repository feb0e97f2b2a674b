r"""RPO loss of a tabular policy, as a function of the reward in its logits.

The loss is built from :mod:`rpo_theory.losses`, as in a trainer: the DPO loss of every observed
pair, weighted by its count, plus :math:`\eta\beta` times the SFT loss of every response, weighted
by :math:`d_0\pi_{base}`. Choices and ties take the likelihood loss of the implicit reward. The
policy has logits :math:`\log\pi_{ref} + r/\beta`.

A response with reference probability zero has no log-probability. Its log-ratio to the reference,
on which alone the loss depends, has the limit :math:`r/\beta - \log Z`; its reference
log-probability is therefore set to 0.
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
from .preference import data_loss
from .reductions import reduce_mean
from .types import ArrayLike, Problem


def loss(
    problem: Problem,
    reward: Float[ArrayLike, "*x a"],
    *,
    comparisons: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    r"""Return the RPO loss of the policy with logits :math:`\log\pi_{ref} + r/\beta`.

    Args:
        problem: preference data, policies and weights; or one context without the context axis.
        reward: :math:`r(x,a)`.
        comparisons: number :math:`N` of comparisons that the DPO losses are averaged over; the sum
            of the win counts if None.

    Returns:
        Nats.

    References:
        `liu:24`, eq. 4.8.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> float(loss(problem, jnp.zeros((1, 2))) / jnp.log(2.0))
        2.0
    """
    log_probs, log_reference = log_policy(problem, jnp.asarray(reward))
    data = _data_loss(problem, log_probs, log_reference, comparisons)
    weights = _baseline_weights(problem)
    likelihood = reduce_mean(sft(log_probs, where=weights > 0), weights)
    return data + problem.eta * problem.beta * likelihood.sum


def adversarial_value(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""Return the loss plus its constant, which is :math:`F` of the reward, without :math:`\log Z`.

    .. math:: F(r) = \eta\beta E_{d_0,\pi_{base}}[\log\pi_{ref} - \log\pi_r]
              + L_D(\beta\log(\pi_r/\pi_{ref}))

    Args:
        problem: preference data, policies and weights.
        reward: :math:`r(x,a)`.

    Returns:
        Worst-case objective of the policy, nats.

    References:
        `liu:24`, eqs. 4.4 and 4.5.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> float(adversarial_value(problem, jnp.zeros((1, 2))) / jnp.log(2.0))
        1.0
    """
    scaled = scaled_below_max(reward, problem.reference_policy, problem.beta)[1]
    log_ratio = scaled - log_partition_scaled(scaled, problem.reference_policy)[..., None]
    weights = _baseline_weights(problem)
    data = _data_loss(problem, log_ratio, jnp.zeros_like(log_ratio))
    likelihood = reduce_mean(sft(log_ratio, where=weights > 0), weights)
    return data + problem.eta * problem.beta * likelihood.sum


def log_policy(
    problem: Problem, reward: Float[ArrayLike, "*x a"]
) -> tuple[Float[Array, "*x a"], Float[Array, "*x a"]]:
    """Return the log-probabilities under the policy and under the reference policy.

    Args:
        problem: preference data, policies and weights; or one context of them.
        reward: :math:`r(x,a)`.

    Returns:
        Both in nats. Where the reference probability is zero, 0 for the reference and the
        log-ratio for the policy.

    Examples:
        >>> reference, reward = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
        >>> wins = jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), reference, reference, wins, beta=1.0, eta=1.0)
        >>> [log_probs.tolist() for log_probs in log_policy(problem, reward)]
        [[[0.0, 2.0]], [[0.0, 0.0]]]
    """
    reference = jnp.asarray(problem.reference_policy)
    supported = reference > 0
    log_reference = jnp.log(jnp.where(supported, reference, 1.0))
    logits = log_reference + scaled_below_max(reward, reference, problem.beta)[1]
    return logits - logsumexp(logits, axis=-1, where=supported, keepdims=True), log_reference


def policy(problem: Problem, reward: Float[ArrayLike, "*x a"]) -> Float[Array, "*x a"]:
    """Return the policy, which is exactly 0 where the reference policy is."""
    log_probs, _ = log_policy(problem, reward)
    return jnp.where(jnp.asarray(problem.reference_policy) > 0, jnp.exp(log_probs), 0.0)


def scale(problem: Problem, comparisons: Float[Array, ""]) -> Float[Array, ""]:
    r"""Return the sum of the weights in the loss, by which its gradients are of order one.

    Args:
        problem: preference data, policies and weights; or one context of them.
        comparisons: number :math:`N` of comparisons that the DPO losses are averaged over.

    Returns:
        :math:`\eta\sum_x d_0(x)` plus the share of the comparisons; 1 if both are 0.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=0.25)
        >>> float(scale(problem, jnp.array(8.0)))
        0.75
    """
    adversarial = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights).sum()
    data = jnp.asarray(problem.wins).sum() / positive_or_one(comparisons)
    return positive_or_one(adversarial + data)


def hessian_weights(
    problem: Problem, reward: Float[Array, "*x a"], comparisons: Float[Array, ""]
) -> Float[Array, "*x a a"]:
    """Return the Hessian of the loss in the reward as the edge weights of a graph Laplacian.

    Args:
        problem: preference data, policies and weights; or one context of them.
        reward: :math:`r(x,a)`.
        comparisons: number :math:`N` of comparisons that the DPO losses are averaged over.

    Returns:
        Symmetric weights with zero diagonal. The Hessian has their row sums on its diagonal and
        minus the weights off it, so it is never a difference of large numbers.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> hessian_weights(problem, jnp.zeros((1, 2)), jnp.array(1.0)).tolist()
        [[[0.0, 0.5], [0.5, 0.0]]]
    """
    probability, wins = policy(problem, reward), jnp.asarray(problem.wins)
    margin = reward[..., :, None] - reward[..., None, :]
    variance = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin) / positive_or_one(comparisons)
    weight = (problem.eta / problem.beta * jnp.asarray(problem.context_weights))[..., None, None]
    policy_part = weight * probability[..., :, None] * probability[..., None, :]
    off_diagonal = 1.0 - jnp.eye(wins.shape[-1], dtype=wins.dtype)
    return off_diagonal * (policy_part + variance * (wins + wins.mT))


def pairs(log_probs: Float[Array, "*x a"]) -> PairLogProbs:
    """Return the log-probabilities of all ordered pairs of responses.

    Args:
        log_probs: log-probabilities of the responses, nats.

    Returns:
        Tables indexed by ``[x, chosen, rejected]``.

    Examples:
        >>> table = pairs(jnp.array([-1.0, -2.0]))
        >>> table.chosen.tolist(), table.rejected.tolist()
        ([[-1.0, -1.0], [-2.0, -2.0]], [[-1.0, -2.0], [-1.0, -2.0]])
    """
    chosen, rejected = log_probs[..., :, None], log_probs[..., None, :]
    return PairLogProbs(*jnp.broadcast_arrays(chosen, rejected))


def _data_loss(
    problem: Problem,
    log_probs: Float[Array, "*x a"],
    log_reference: Float[Array, "*x a"],
    comparisons: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    """Return the average likelihood loss of the implicit reward: the DPO loss for comparisons."""
    if problem.choices is not None or problem.ties is not None:
        return data_loss(problem, problem.beta * (log_probs - log_reference))
    wins = jnp.asarray(problem.wins)
    losses = dpo(pairs(log_probs), pairs(log_reference), beta=problem.beta, where=wins > 0)
    data = reduce_mean(losses, wins)
    if comparisons is not None:
        data = data._replace(weight=jnp.asarray(comparisons))
    return data.mean()


def _baseline_weights(problem: Problem) -> Float[Array, "*x a"]:
    weights = jnp.asarray(problem.context_weights)[..., None]
    return weights * jnp.asarray(problem.baseline_policy)
