r"""What holds exactly at the optimum of the RPO loss: four identities, as residuals.

For tabular rewards without bounds the derivative of the loss in :math:`r(x,a)` vanishes. With
:math:`W_{xwl}` wins among :math:`N` comparisons and :math:`d = r(x,w) - r(x,l)` that says (S1)

.. math:: \hat\pi(a|x) = \pi_{base}(a|x) + \frac{1}{\eta N d_0(x)}
          \Big[\sum_{\text{wins of }a}\sigma(-d) - \sum_{\text{losses of }a}\sigma(-d)\Big]:

the policy is the baseline, moved by what the data still say in favour of a response. As
:math:`\sigma` lies in [0, 1], wins and losses bound how far (S2); with the chosen responses as
baseline, a response that never wins gets probability zero (S3). Linear rewards satisfy the
identity in the mean of their features (S4). S1 to S3 speak of prompts with
:math:`\eta d_0(x) > 0`; elsewhere their residuals are 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .policies import chosen_policy
from .types import ArrayLike, Problem


def s1_residual(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Left minus right side of identity S1: zero at the optimum over all rewards.

    Args:
        problem: the instance.
        policy: :math:`\hat\pi(a|x)`.
        reward: :math:`\hat r(x,a)`, of which :math:`\hat\pi` is the Gibbs policy; ``-inf`` where
            the infimum is not attained.

    Returns:
        Probabilities, signed; the rows sum to zero.

    References:
        Stationarity of `liu:24`, eq. 4.4, in the reward.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> s1_residual(problem, even, jnp.zeros((1, 2))).tolist()
        [[-0.5, 0.5]]
    """
    pull = _over_weight(problem, _pull(problem, jnp.asarray(reward)))
    residual = jnp.asarray(policy) - jnp.asarray(problem.baseline_policy) - pull
    return jnp.where(_adversarial(problem), residual, 0.0)


def s2_violation(problem: Problem, policy: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
    r"""How far a policy is outside of what the win and loss counts allow, S2.

    .. math:: \pi_{base}(a) - \frac{L_a}{\eta N d_0(x)} \le \hat\pi(a)
              \le \pi_{base}(a) + \frac{W_a}{\eta N d_0(x)}

    Args:
        problem: the instance.
        policy: :math:`\hat\pi(a|x)`.

    Returns:
        Probabilities: 0 within the bounds, else the distance to them. It needs no reward: any
        policy can be judged.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(4.0))
        >>> s2_violation(problem, jnp.array([[1.0, 0.0]])).tolist()
        [[0.25, 0.25]]
    """
    policy, baseline = jnp.asarray(policy), jnp.asarray(problem.baseline_policy)
    wins = jnp.asarray(problem.wins)
    upper = baseline + _over_weight(problem, wins.sum(axis=2))
    lower = baseline - _over_weight(problem, wins.sum(axis=1))
    outside = jnp.maximum(jnp.maximum(policy - upper, lower - policy), 0.0)
    return jnp.where(_adversarial(problem), outside, 0.0)


def s3_violation(problem: Problem, policy: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
    r"""How far a policy exceeds :math:`(1 + n_x/(\eta N d_0(x)))` times the chosen law, S3.

    With the law of the winners as baseline, :math:`n_x` comparisons at the prompt and one prompt,
    :math:`\hat\pi(a) \le (1 + 1/\eta)\,W_a/N`: a response that never wins gets nothing.

    Args:
        problem: the instance; where its baseline is not the chosen law the bound need not hold.
        policy: :math:`\hat\pi(a|x)`.

    Returns:
        Probabilities, at least 0; 0 for prompts without data, which have no chosen law.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(4.0))
        >>> s3_violation(problem, even).tolist()
        [[0.0, 0.5]]
    """
    policy, wins = jnp.asarray(policy), jnp.asarray(problem.wins)
    at_prompt = wins.sum(axis=(1, 2))[:, None]
    most = (1.0 + _over_weight(problem, at_prompt)) * chosen_policy(wins, policy)
    compared = _adversarial(problem) & (at_prompt > 0)
    return jnp.where(compared, jnp.maximum(policy - most, 0.0), 0.0)


def s4_residual(
    problem: Problem,
    features: Float[ArrayLike, "x a d"],
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, " d"]:
    r"""Left minus right side of identity S4: zero at the optimum over all linear rewards.

    .. math:: E_{d_0}[E_{\hat\pi}\phi - E_{\pi_{base}}\phi]
              = \frac{1}{\eta N}\sum_i \sigma(-d_i)(\phi_w - \phi_l)

    Args:
        problem: the instance.
        features: :math:`\phi(x,a)`.
        policy: :math:`\hat\pi(a|x)`.
        reward: :math:`\hat r = \langle\hat\theta,\phi\rangle`, with :math:`\hat\theta` inside the
            ball.

    Returns:
        One number a feature, in its units; 0 for :math:`\eta = 0`.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> s4_residual(problem, jnp.eye(2)[None], even, jnp.zeros((1, 2))).tolist()
        [-0.5, 0.5]
    """
    total, features = jnp.asarray(problem.wins).sum(), jnp.asarray(features)
    data = _pull(problem, jnp.asarray(reward)) / jnp.where(total > 0, total, 1.0)
    difference = jnp.asarray(policy) - jnp.asarray(problem.baseline_policy)
    excess = jnp.asarray(problem.context_weights)[:, None] * difference
    eta = jnp.asarray(problem.eta)
    residual = excess - data / jnp.where(eta > 0, eta, 1.0)
    return jnp.where(eta > 0, jnp.einsum("xa,xad->d", residual, features), 0.0)


def _pull(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
    """Surprise at the wins of each response less the surprise at its losses, in comparisons."""
    wins = jnp.asarray(problem.wins)
    disadvantage = reward[:, None, :] - reward[:, :, None]
    # Between two rewards of minus infinity wins and losses balance by themselves.
    surprise = jnp.where(jnp.isnan(disadvantage), 0.0, jax.nn.sigmoid(disadvantage))
    flow = wins * surprise
    return flow.sum(axis=2) - flow.sum(axis=1)


def _over_weight(problem: Problem, counts: Float[Array, "x #a"]) -> Float[Array, "x #a"]:
    r"""Comparisons over :math:`\eta N d_0(x)`; 0 where that is 0."""
    per_comparison = problem.eta * jnp.asarray(problem.context_weights)[:, None]
    weight = per_comparison * jnp.asarray(problem.wins).sum()
    return jnp.where(weight > 0, counts / jnp.where(weight > 0, weight, 1.0), 0.0)


def _adversarial(problem: Problem) -> Bool[Array, "x 1"]:
    return jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)[:, None] > 0
