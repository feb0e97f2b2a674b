r"""True gain and proxy gain of policies, against their distance from the reference policy.

The gain of a policy under a reward is :math:`E_{d_0}[E_\pi r-E_{\pi_{ref}}r]`, and its distance is
:math:`d=\sqrt{E_{d_0}KL(\pi\|\pi_{ref})}`. A curve of policies starts at the reference: Gibbs
policies :math:`\pi_{ref}e^{\hat r/\beta}/Z` at :math:`\beta\to\infty`, best-of-n at :math:`n\to1`.

Let :math:`\pi_t=\pi_{ref}(1+t\,s+o(t))` with a score :math:`s(x,a)` of mean 0 in each context. Then
the gain is :math:`t\,E_{d_0}Cov_{ref}(r,s)+o(t)` and :math:`d^2=\frac{t^2}2E_{d_0}Var_{ref}(s)
+o(t^2)`, so that every curve leaves the reference with the slope

.. math:: \lim_{d\to0}\frac{\text{gain}}{d}
          = \frac{\sqrt2\,E_{d_0}Cov_{ref}(r,s)}{\sqrt{E_{d_0}Var_{ref}(s)}}

(:func:`initial_slope`). Covariance and variance are averaged over the contexts before the ratio is
taken. A factor or a constant per context in :math:`s` that is common to all responses does not
matter if it is the same in all contexts. Gibbs policies and chi-PO have :math:`s\propto\hat r`;
best-of-n has the score of :func:`bandits.methods.best_of_n.best_of_n_score`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bandits.methods.best_of_n import best_of_n_policy
from rpo_theory.policies import gibbs_policy, kl_divergence
from rpo_theory.types import ArrayLike


class GainCurve(NamedTuple):
    r"""Gains along a curve of policies.

    Attributes:
        kl: :math:`E_{d_0}KL(\pi\|\pi_{ref})`, nats.
        sqrt_kl: :math:`d`, its square root.
        true_gain: gain under the true reward.
        proxy_gain: gain under the proxy reward.
    """

    kl: Float[Array, "*p"]
    sqrt_kl: Float[Array, "*p"]
    true_gain: Float[Array, "*p"]
    proxy_gain: Float[Array, "*p"]


def policy_gain(
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
) -> Float[Array, ""]:
    r"""Return the gain :math:`E_{d_0}[E_\pi r-E_{\pi_{ref}}r]` of a policy over the reference.

    Args:
        policy: :math:`\pi(a|x)`.
        reward: :math:`r(x,a)`; infinite only where both policies have the same probability.
        reference: :math:`\pi_{ref}(a|x)`.
        context_weights: :math:`d_0(x)`.

    Returns:
        Units of reward.

    Examples:
        >>> even, best = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> float(policy_gain(best, jnp.array([[0.0, 3.0]]), even, jnp.ones(1)))
        1.5
    """
    change = jnp.asarray(policy) - jnp.asarray(reference)
    finite = jnp.where(change == 0, 0.0, jnp.asarray(reward))
    return jnp.asarray(context_weights) @ jnp.sum(change * finite, axis=-1)


def measure_gain(
    policy: Float[ArrayLike, "x a"],
    proxy: Float[ArrayLike, "x a"],
    true_reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
) -> GainCurve:
    r"""Measure one policy: both gains, and its distance from the reference.

    Args:
        policy: :math:`\pi(a|x)`.
        proxy: proxy reward :math:`\hat r(x,a)`; NaN gives a NaN proxy gain.
        true_reward: :math:`r^\star(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        context_weights: :math:`d_0(x)`.

    Returns:
        Scalars.

    Examples:
        >>> even, best = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> measured = measure_gain(best, 2.0 * best, best, even, jnp.ones(1))
        >>> float(measured.true_gain), float(measured.proxy_gain)
        (0.5, 1.0)
    """
    kl = jnp.asarray(context_weights) @ kl_divergence(policy, reference)
    return GainCurve(
        kl=kl,
        sqrt_kl=jnp.sqrt(kl),
        true_gain=policy_gain(policy, true_reward, reference, context_weights),
        proxy_gain=policy_gain(policy, proxy, reference, context_weights),
    )


def gibbs_curve(
    proxy: Float[ArrayLike, "x a"],
    true_reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    betas: Float[ArrayLike, " p"],
) -> GainCurve:
    r"""Measure the Gibbs policies of a proxy reward along :math:`\beta`.

    Args:
        proxy: proxy reward :math:`\hat r(x,a)`.
        true_reward: :math:`r^\star(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        context_weights: :math:`d_0(x)`.
        betas: weights of the KL term, greater than 0.

    Returns:
        Arrays with one entry for each weight.

    References:
        `gao:23`; `liu:24`, Lemma 4.1.

    Examples:
        >>> even, reward = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> curve = gibbs_curve(reward, reward, even, jnp.ones(1), jnp.array([1e3]))
        >>> round(float(curve.true_gain[0] / curve.sqrt_kl[0]), 6)  # sqrt(2) sd
        0.707107
    """

    def at(beta: Float[Array, ""]) -> GainCurve:
        policy = gibbs_policy(proxy, reference, beta)
        return measure_gain(policy, proxy, true_reward, reference, context_weights)

    return jax.vmap(at)(jnp.asarray(betas))


def best_of_n_curve(
    proxy: Float[ArrayLike, "x a"],
    true_reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    ns: Float[ArrayLike, " p"],
    *,
    tie_tolerance: Float[ArrayLike, ""] | float = 0.0,
) -> GainCurve:
    r"""Measure the best-of-n policies of a proxy reward along :math:`n`.

    Args:
        proxy: proxy reward :math:`\hat r(x,a)`.
        true_reward: :math:`r^\star(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        context_weights: :math:`d_0(x)`.
        ns: numbers of responses, real numbers of at least 1.
        tie_tolerance: see :func:`bandits.methods.best_of_n.best_of_n_policy`.

    Returns:
        Arrays with one entry for each :math:`n`.

    References:
        `gao:23`.

    Examples:
        >>> even, reward = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> best_of_n_curve(reward, reward, even, jnp.ones(1), jnp.array([2.0])).true_gain.tolist()
        [0.25]
    """

    def at(n: Float[Array, ""]) -> GainCurve:
        policy = best_of_n_policy(proxy, reference, n, tie_tolerance=tie_tolerance)
        return measure_gain(policy, proxy, true_reward, reference, context_weights)

    return jax.vmap(at)(jnp.asarray(ns))


def initial_slope(
    score: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
) -> Float[Array, ""]:
    r"""Return the slope of the gain in :math:`d` at which a curve leaves the reference.

    .. math:: \alpha = \frac{\sqrt2\,E_{d_0}Cov_{ref}(r,s)}{\sqrt{E_{d_0}Var_{ref}(s)}}

    By the Cauchy-Schwarz inequality it is at most :math:`\sqrt{2E_{d_0}Var_{ref}(r)}`, which is the
    slope of :math:`s=r`.

    Args:
        score: :math:`s(x,a)`, the direction of the curve: the proxy reward for Gibbs policies and
            chi-PO, :func:`bandits.methods.best_of_n.best_of_n_score` for best-of-n.
        reward: reward :math:`r(x,a)` that the gain is measured under.
        reference: :math:`\pi_{ref}(a|x)`.
        context_weights: :math:`d_0(x)`.

    Returns:
        Units of reward; NaN if the score is constant in every context, since the curve then stays
        at the reference.

    Examples:
        >>> even, reward = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> round(float(initial_slope(-3.0 * reward, reward, even, jnp.ones(1))), 6)
        -0.707107
    """
    reference, weights = jnp.asarray(reference), jnp.asarray(context_weights)
    centered_score = _centered(jnp.asarray(score), reference)
    centered_reward = _centered(jnp.asarray(reward), reference)
    covariance = weights @ jnp.sum(reference * centered_score * centered_reward, axis=-1)
    variance = weights @ jnp.sum(reference * centered_score**2, axis=-1)
    # A constant score is left with its rounding.
    rounding = 16.0 * jnp.finfo(centered_score.dtype).eps * jnp.abs(jnp.asarray(score)).max()
    moves = variance > rounding**2
    return jnp.where(
        moves, jnp.sqrt(2.0) * covariance / jnp.sqrt(jnp.where(moves, variance, 1.0)), jnp.nan
    )


def _centered(table: Float[Array, "x a"], reference: Float[Array, "x a"]) -> Float[Array, "x a"]:
    supported = jnp.where(reference > 0, table, 0.0)
    return supported - jnp.sum(reference * supported, axis=-1, keepdims=True)
