r"""Policies on finitely many actions: the Gibbs policy, its inverse, and baselines from data.

Lemma 4.1 of `liu:24` links rewards and policies: the maximizer of
:math:`E_\pi r - \beta KL(\pi\|\pi_{ref})` is :math:`\pi_r \propto \pi_{ref}\exp(r/\beta)`. Its
inverse, the implicit reward, is determined up to a constant per context.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .types import ArrayLike


def log_partition(
    reward: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "*x"]:
    r"""Return the log-partition function :math:`\log Z_r(x) = \log E_{\pi_{ref}} e^{r/\beta}`.

    Args:
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`; actions with probability zero have no effect.
        beta: :math:`\beta > 0`.

    Returns:
        Nats per context; :math:`\beta\log Z_r` is the value of the inner maximum (Lemma 4.1).

    References:
        `liu:24`, Lemma 4.1.

    Examples:
        >>> float(log_partition(jnp.ones((1, 2)), jnp.full((1, 2), 0.5), 1.0)[0])
        1.0
    """
    top, scaled = scaled_below_max(reward, reference, beta)
    above = jax.scipy.special.logsumexp(scaled, axis=-1, b=jnp.asarray(reference))
    return top[..., 0] / beta + above


def log_gibbs_policy(
    reward: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "*x a"]:
    r"""Return the log of the Gibbs policy, :math:`\log\pi_{ref} + r/\beta - \log Z_r`.

    Args:
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta > 0`.

    Returns:
        Log-probabilities, ``-inf`` where the reference policy is zero.

    References:
        `liu:24`, Lemma 4.1.

    Examples:
        >>> log_gibbs_policy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), 1.0).tolist()
        [[0.0, -inf]]
    """
    reference = jnp.asarray(reference)
    _, scaled = scaled_below_max(reward, reference, beta)
    log_z = jax.scipy.special.logsumexp(scaled, axis=-1, b=reference, keepdims=True)
    # The derivative of log 0 would be infinite: an action outside of the support stays outside.
    supported = reference > 0
    log_reference = jnp.where(supported, jnp.log(jnp.where(supported, reference, 1.0)), -jnp.inf)
    return log_reference + (scaled - log_z)


def log_partition_scaled(
    scaled: Float[Array, "*x a"], reference: Float[ArrayLike, "*x a"]
) -> Float[Array, "*x"]:
    r"""Return the log-partition function of scaled rewards that are at most 0.

    Args:
        scaled: rewards divided by :math:`\beta`, the second result of :func:`scaled_below_max`.
        reference: :math:`\pi_{ref}(a|x)`; a sum within rounding of one counts as one.

    Returns:
        Nats per context, at most 0, with small relative error even near 0: the result may be
        multiplied by a large :math:`\beta`.

    Examples:
        >>> scaled, even = jnp.array([[-1e-9, 0.0]]), jnp.full((1, 2), 0.5)
        >>> float(log_partition_scaled(scaled, even)[0])
        -4.99999999875e-10
    """
    reference = jnp.asarray(reference)
    scaled = jnp.where(reference > 0, scaled, 0.0)
    excess = reference.sum(axis=-1) - 1.0
    rounding = reference.shape[-1] * jnp.finfo(reference.dtype).eps
    change = (reference * jnp.expm1(scaled)).sum(axis=-1)
    change = change + jnp.where(jnp.abs(excess) <= rounding, 0.0, excess)
    near = change > -0.5
    far = jax.scipy.special.logsumexp(scaled, axis=-1, b=reference)
    return jnp.where(near, jnp.log1p(jnp.where(near, change, 0.0)), far)


def scaled_below_max(
    reward: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> tuple[Float[Array, "*x 1"], Float[Array, "*x a"]]:
    r"""Return the highest reward in the support of the reference, and :math:`(r-r_{top})/\beta`.

    The maximum is subtracted before the division, because :math:`r/\beta` may be so large that its
    last digit is a nat.

    Args:
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta > 0`.

    Returns:
        The maximum per context, and scaled rewards, at most 0 in the support of the reference.

    Examples:
        >>> reward, even = jnp.array([[1e16, 1e16 + 2.0]]), jnp.full((1, 2), 0.5)
        >>> _, scaled = scaled_below_max(reward, even, 1.0)
        >>> scaled.tolist()
        [[-2.0, 0.0]]
    """
    reward = jnp.asarray(reward)
    known = jnp.where(jnp.asarray(reference) > 0, reward, -jnp.inf)
    top = jax.lax.stop_gradient(known.max(axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return top, (reward - top) / beta


def gibbs_policy(
    reward: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "*x a"]:
    r"""Return the Gibbs policy :math:`\pi_r(a|x) \propto \pi_{ref}(a|x) e^{r(x,a)/\beta}`.

    Args:
        reward: :math:`r(x,a)`; a constant added to the rewards of a context changes nothing.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta > 0`.

    Returns:
        Probabilities, rows sum to one.

    References:
        `liu:24`, Lemma 4.1 (unique by Lemma B.3).

    Examples:
        >>> gibbs_policy(jnp.zeros((1, 2)), jnp.full((1, 2), 0.5), 1.0).tolist()
        [[0.5, 0.5]]
    """
    return jnp.exp(log_gibbs_policy(reward, reference, beta))


def implicit_reward(
    policy: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "*x a"]:
    r"""Return the implicit reward :math:`\beta\log(\pi/\pi_{ref})` of a policy.

    Args:
        policy: :math:`\pi(a|x)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta > 0`.

    Returns:
        Reward whose Gibbs policy is ``policy`` and for which :math:`Z_r = 1`; 0 where both policies
        are zero.

    References:
        `liu:24`, eq. 4.5.

    Examples:
        >>> implicit_reward(jnp.full((1, 2), 0.5), jnp.full((1, 2), 0.5), 2.0).tolist()
        [[0.0, 0.0]]
    """
    policy, reference = jnp.asarray(policy), jnp.asarray(reference)
    excluded = reference == 0
    safe_reference = jnp.where(excluded, 1.0, reference)
    log_ratio = jnp.log(jnp.where(excluded, 1.0, policy)) - jnp.log(safe_reference)
    return log_ratio * beta


def kl_divergence(
    policy: Float[ArrayLike, "*x a"], reference: Float[ArrayLike, "*x a"]
) -> Float[Array, "*x"]:
    r"""Return the KL divergence :math:`KL(\pi(\cdot|x)\|\pi_{ref}(\cdot|x))` of each context.

    Args:
        policy: :math:`\pi(a|x)`.
        reference: :math:`\pi_{ref}(a|x)`.

    Returns:
        Nats, at least 0; ``inf`` if the policy leaves the support of the reference policy.

    Examples:
        >>> float(kl_divergence(jnp.full((1, 2), 0.5), jnp.full((1, 2), 0.5))[0])
        0.0
    """
    policy, reference = jnp.asarray(policy), jnp.asarray(reference)
    return _bregman_terms(policy, reference).sum(axis=-1)


def kl_to_gibbs(
    policy: Float[ArrayLike, "*x a"],
    reward: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "*x"]:
    r"""Return the divergence :math:`KL(\pi\|\pi_r)` from a Gibbs policy, even if that underflows.

    Args:
        policy: :math:`\pi(a|x)`.
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta > 0`.

    Returns:
        Nats, at least 0, with small relative error; exactly 0 for the Gibbs policy itself.

    References:
        `liu:24`, Lemma B.3.

    Examples:
        >>> reward, even = jnp.zeros((1, 2)), jnp.full((1, 2), 0.5)
        >>> float(kl_to_gibbs(even, reward, even, 1.0)[0])
        0.0
    """
    policy = jnp.asarray(policy)
    log_best = log_gibbs_policy(reward, reference, beta)
    best = jnp.exp(log_best)
    underflows = best < jnp.finfo(best.dtype).tiny
    log_policy = jnp.log(jnp.where(policy > 0, policy, 1.0))
    far = jnp.where(policy > 0, policy * (log_policy - log_best - 1.0), 0.0)
    return jnp.where(underflows, far, _bregman_terms(policy, best)).sum(axis=-1)


def _bregman_terms(
    policy: Float[Array, "*x a"], reference: Float[Array, "*x a"]
) -> Float[Array, "*x a"]:
    """Return p log(p / q) - p + q: non-negative terms with the same sum, without cancellation."""
    safe = jnp.where(reference > 0, reference, 1.0)
    change = (policy - reference) / safe
    near = jnp.abs(change) < 1e-3
    small = jnp.where(near, change, 0.0)
    series = safe * small**2 * (1 / 2 + small * (-1 / 6 + small * (1 / 12 - small / 20)))
    # `jax.scipy.special.kl_div` is accurate to ten digits only in newer versions of JAX.
    middle = (reference > 0) & (jnp.abs(change) < 0.5) & ~near
    moderate = jnp.where(middle, change, 0.0)
    by_ratio = safe * ((1.0 + moderate) * jnp.log1p(moderate) - moderate)
    positive = policy > 0
    log_ratio = jnp.log(jnp.where(positive, policy, 1.0)) - jnp.log(safe)
    by_logs = jnp.where(positive, policy * log_ratio, 0.0) - policy + reference
    far = jnp.where(middle, by_ratio, jnp.where(positive & (reference == 0), jnp.inf, by_logs))
    return jnp.where(near & (reference > 0), series, far)


def total_variation(
    first: Float[ArrayLike, "*x a"], second: Float[ArrayLike, "*x a"]
) -> Float[Array, "*x"]:
    r"""Return the total variation distance :math:`\frac12\sum_a|\pi_1-\pi_2|` of each context.

    Args:
        first: :math:`\pi_1(a|x)`.
        second: :math:`\pi_2(a|x)`.

    Returns:
        Distances in [0, 1].

    Examples:
        >>> float(total_variation(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]]))[0])
        0.5
    """
    return 0.5 * jnp.abs(jnp.asarray(first) - jnp.asarray(second)).sum(axis=-1)


def chosen_policy(
    wins: Float[ArrayLike, "x a a"], fallback: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return the baseline "chosen": the empirical distribution of the winners in each context.

    With this baseline the SFT term of the RPO loss is on the chosen responses.

    Args:
        wins: win counts, indexed by context, winner and loser.
        fallback: policy of the contexts without data.

    Returns:
        Probabilities, rows sum to one.

    References:
        `liu:24`, sec. 4.2.

    Examples:
        >>> wins = jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> chosen_policy(wins, jnp.full((1, 2), 0.5)).tolist()
        [[0.75, 0.25]]
    """
    wins = jnp.asarray(wins)
    return counts_to_policy(wins.sum(axis=2), fallback)


def data_marginal_policy(
    wins: Float[ArrayLike, "x a a"], fallback: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return the baseline "data marginal": the distribution of all compared responses.

    A response is drawn uniformly from the two of a uniformly drawn comparison in its context.

    Args:
        wins: win counts, indexed by context, winner and loser.
        fallback: policy of the contexts without data.

    Returns:
        Probabilities, rows sum to one.

    Examples:
        >>> wins = jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> data_marginal_policy(wins, jnp.full((1, 2), 0.5)).tolist()
        [[0.5, 0.5]]
    """
    wins = jnp.asarray(wins)
    return counts_to_policy(wins.sum(axis=1) + wins.sum(axis=2), fallback)


def counts_to_policy(
    counts: Float[ArrayLike, "x a"], fallback: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    """Return the empirical distribution of counts in each context.

    Args:
        counts: counts of the actions.
        fallback: policy of the contexts without counts.

    Returns:
        Probabilities, rows sum to one.

    Examples:
        >>> counts_to_policy(jnp.array([[3.0, 1.0]]), jnp.full((1, 2), 0.5)).tolist()
        [[0.75, 0.25]]
    """
    counts = jnp.asarray(counts)
    sums = counts.sum(axis=-1, keepdims=True)
    return jnp.where(sums > 0, counts / jnp.where(sums > 0, sums, 1.0), jnp.asarray(fallback))
