r"""Optimality identities S1 to S4 of the RPO loss, as residuals.

For tabular rewards without bounds the derivative of the loss in :math:`r(x,a)` vanishes. With
:math:`W_{xwl}` wins among :math:`N` comparisons and :math:`d = r(x,w) - r(x,l)` this is S1:

.. math:: \hat\pi(a|x) = \pi_{base}(a|x) + \frac{1}{\eta N d_0(x)}
          \Big[\sum_{\text{wins of }a}\sigma(-d) - \sum_{\text{losses of }a}\sigma(-d)\Big]:

The policy is the baseline plus the remaining evidence of the data for each response. A choice from
a set adds the evidence :math:`1\{a\text{ chosen}\} - e^{r_a}/\sum_{b\in S}e^{r_b}`, a ranking that
of each of its choices, and a tie the derivative of its log-likelihood; :math:`N` counts every
observation once.

======== ===================================================================================
identity statement
======== ===================================================================================
S1       policy minus baseline equals the evidence above
S2       since :math:`\sigma\in[0,1]`, wins and losses bound the distance from the baseline
S3       with the chosen responses as baseline, a response that never wins has probability 0
S4       for linear rewards S1 holds in the mean of the features
======== ===================================================================================

S1 to S3 concern contexts with :math:`\eta d_0(x) > 0`; in others their residuals are 0.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .observations import n_observations, outcome_counts, winner_counts
from .preference import evidence
from .types import ArrayLike, Problem


def s1_residual(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return left minus right side of identity S1, zero at the optimum over all rewards.

    Args:
        problem: preference data, policies and weights.
        policy: :math:`\hat\pi(a|x)`.
        reward: :math:`\hat r(x,a)` whose Gibbs policy is :math:`\hat\pi`; ``-inf`` where the
            infimum is not attained.

    Returns:
        Signed differences of probabilities; the rows sum to zero.

    References:
        Stationarity of `liu:24`, eq. 4.4, in the reward.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> s1_residual(problem, even, jnp.zeros((1, 2))).tolist()
        [[-0.5, 0.5]]
    """
    shift = _over_weight(problem, evidence(problem, reward))
    residual = jnp.asarray(policy) - jnp.asarray(problem.baseline_policy) - shift
    return jnp.where(_adversarial(problem), residual, 0.0)


def s2_violation(problem: Problem, policy: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
    r"""Return the distance of a policy from the interval that the counts allow, identity S2.

    .. math:: \pi_{base}(a) - \frac{L_a}{\eta N d_0(x)} \le \hat\pi(a)
              \le \pi_{base}(a) + \frac{W_a}{\eta N d_0(x)}

    It needs no reward, so any policy can be checked.

    Args:
        problem: preference data, policies and weights.
        policy: :math:`\hat\pi(a|x)`.

    Returns:
        Distances in probability; 0 inside the interval.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=4.0)
        >>> s2_violation(problem, jnp.array([[1.0, 0.0]])).tolist()
        [[0.25, 0.25]]
    """
    policy, baseline = jnp.asarray(policy), jnp.asarray(problem.baseline_policy)
    counts = outcome_counts(problem)
    upper = baseline + _over_weight(problem, counts.won)
    lower = baseline - _over_weight(problem, counts.lost)
    outside = jnp.maximum(jnp.maximum(policy - upper, lower - policy), 0.0)
    return jnp.where(_adversarial(problem), outside, 0.0)


def s3_violation(problem: Problem, policy: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
    r"""Return the excess of a policy over the bound of identity S3.

    With the distribution of the winners as baseline and :math:`n_x` comparisons in the context,

    .. math:: \hat\pi(a|x) \le \frac{W_{xa}}{n_x} + \frac{W_{xa}}{\eta N d_0(x)}:

    a response that never wins has probability zero. For rankings and choices the first term is the
    share of first places, and the second counts the wins at every place. A tie counts half in the
    first term.

    Args:
        problem: preference data, policies and weights. The bound need not hold for another
            baseline.
        policy: :math:`\hat\pi(a|x)`.

    Returns:
        Excess probabilities, at least 0; 0 for contexts without data.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=4.0)
        >>> s3_violation(problem, even).tolist()
        [[0.0, 0.5]]
    """
    policy, ties = jnp.asarray(policy), problem.ties
    tie_counts = None if ties is None else ties.counts
    winners = winner_counts(problem.wins, problem.choices, tie_counts)
    n_data = winners.sum(axis=1, keepdims=True)
    chosen = winners / jnp.where(n_data > 0, n_data, 1.0)
    upper = chosen + _over_weight(problem, outcome_counts(problem).won)
    compared = _adversarial(problem) & (n_data > 0)
    return jnp.where(compared, jnp.maximum(policy - upper, 0.0), 0.0)


def s4_residual(
    problem: Problem,
    features: Float[ArrayLike, "x a d"],
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, " d"]:
    r"""Return left minus right side of identity S4, zero at the optimum over linear rewards.

    .. math:: E_{d_0}[E_{\hat\pi}\phi - E_{\pi_{base}}\phi]
              = \frac{1}{\eta N}\sum_i \sigma(-d_i)(\phi_w - \phi_l)

    Args:
        problem: preference data, policies and weights.
        features: :math:`\phi(x,a)`.
        policy: :math:`\hat\pi(a|x)`.
        reward: :math:`\hat r = \langle\hat\theta,\phi\rangle`, with :math:`\hat\theta` inside the
            ball.

    Returns:
        One number per feature, in its units; 0 for :math:`\eta = 0`.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> s4_residual(problem, jnp.eye(2)[None], even, jnp.zeros((1, 2))).tolist()
        [-0.5, 0.5]
    """
    n_data, features = n_observations(problem), jnp.asarray(features)
    data = evidence(problem, reward) / jnp.where(n_data > 0, n_data, 1.0)
    difference = jnp.asarray(policy) - jnp.asarray(problem.baseline_policy)
    excess = jnp.asarray(problem.context_weights)[:, None] * difference
    eta = jnp.asarray(problem.eta)
    residual = excess - data / jnp.where(eta > 0, eta, 1.0)
    return jnp.where(eta > 0, jnp.einsum("xa,xad->d", residual, features), 0.0)


def _over_weight(problem: Problem, counts: Float[Array, "x #a"]) -> Float[Array, "x #a"]:
    r"""Return counts divided by :math:`\eta N d_0(x)`, or 0 where this divisor is 0."""
    per_comparison = problem.eta * jnp.asarray(problem.context_weights)[:, None]
    weight = per_comparison * n_observations(problem)
    return jnp.where(weight > 0, counts / jnp.where(weight > 0, weight, 1.0), 0.0)


def _adversarial(problem: Problem) -> Bool[Array, "x 1"]:
    """Return which contexts have an adversarial term."""
    return jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)[:, None] > 0
