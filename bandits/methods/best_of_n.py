r"""Best-of-n policy of a proxy reward, exactly on finitely many responses.

Best-of-n draws :math:`n` responses from the reference policy and keeps the one with the highest
proxy reward :math:`\hat r`. With the distribution function of the proxy under the reference,

.. math:: F(v) = \pi_{ref}(\hat r\le v), \qquad F_-(v) = \pi_{ref}(\hat r<v),

the level :math:`v` is kept with probability :math:`F(v)^n-F_-(v)^n`. Responses of one level share
it in proportion to the reference. The formula makes sense for every real :math:`n\ge1`, and is
differentiable in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlog1py
from jaxtyping import Float, Int

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.policies import kl_divergence
from rpo_theory.rewards import RewardClass
from rpo_theory.types import ArrayLike, Problem

from .base import FitContext, FitResult, Method
from .options import MethodOptions, check_number
from .saddle_methods import TIE_TOLERANCE, two_stage

GROUP = 8192  # entries of the win counts whose policies are computed at a time

ResponseCount: TypeAlias = Float[ArrayLike, ""] | Int[ArrayLike, ""] | float | int
"""Number of responses, a whole or real number of at least 1."""


@dataclass(frozen=True, kw_only=True)
class BestOfNOptions(MethodOptions):
    r"""Options of best-of-n.

    Attributes:
        best_of_n_responses: number :math:`n\ge1` of responses; 1 gives the reference.

    Raises:
        ValueError: if an option is out of range.
    """

    best_of_n_responses: float = 16.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("best_of_n_responses", self.best_of_n_responses, least=1.0)


def best_of_n(
    problem: Problem, reward_class: RewardClass, options: BestOfNOptions, context: FitContext
) -> FitResult:
    r"""Fit the maximum likelihood reward, and return the best of n responses under it.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies, exactly. Rewards that differ by at most 1e-6 of the largest one tie. The
        certificate is that of the reward.

    References:
        `gao:23`, sec. 2.
    """
    fit = two_stage(problem, reward_class, options, context)
    responses = np.asarray(options.best_of_n_responses, np.float64)
    choose = partial(_best_of_n_policies, responses)
    size = group_size(problem, GROUP)
    policy = map_in_groups(choose, fit.reward, problem.reference_policy, size=size)
    return fit._replace(policy=policy)


def best_of_n_policy(
    proxy: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    n: ResponseCount,
    *,
    tie_tolerance: Float[ArrayLike, ""] | float = 0.0,
) -> Float[Array, "*x a"]:
    r"""Return the distribution of the best of :math:`n` responses under a proxy reward.

    .. math:: \pi_n(a) = \pi_{ref}(a)\,\frac{F(v)^n-F_-(v)^n}{F(v)-F_-(v)}, \qquad v=\hat r(a)

    Args:
        proxy: proxy reward :math:`\hat r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`; each row sums to one.
        n: number of responses, a real number of at least 1; 1 gives the reference.
        tie_tolerance: neighboring levels of the proxy whose distance is at most this count as
            one; 0 for exact ties only.

    Returns:
        Probabilities; each row sums to one. A context whose proxy is NaN within the support of the
        reference has NaN.

    References:
        `gao:23`, sec. 2; `beirami:24`, Lemma 1.

    Examples:
        >>> even = jnp.full((1, 2), 0.5)
        >>> best_of_n_policy(jnp.array([[0.0, 1.0]]), even, 3).round(6).tolist()
        [[0.125, 0.875]]
    """
    reference = jnp.asarray(reference)
    n = jnp.asarray(n, reference.dtype)
    levels = _levels(jnp.asarray(proxy), reference, tie_tolerance)
    lowest = levels.share >= 1.0
    # The derivative of n log 0 would be NaN.
    log_below = jnp.log1p(-jnp.where(lowest, 0.5, levels.share))
    kept = jnp.where(lowest, 1.0, -jnp.expm1(n * log_below))
    # F^n - F_-^n = F^n (1 - (1 - p/F)^n) has a small relative error at every n.
    policy = reference / levels.mass * jnp.exp(n * levels.log_at_most) * kept
    return jnp.where(levels.known, policy, jnp.nan)


def best_of_n_kl(
    proxy: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    n: ResponseCount,
    *,
    tie_tolerance: Float[ArrayLike, ""] | float = 0.0,
) -> Float[Array, "*x"]:
    r"""Return the exact divergence of best-of-n from the reference policy in each context.

    Args:
        proxy: proxy reward :math:`\hat r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`; each row sums to one.
        n: number of responses, a real number of at least 1.
        tie_tolerance: see :func:`best_of_n_policy`.

    Returns:
        Nats, at most :func:`best_of_n_kl_bound`.

    References:
        `beirami:24`.

    Examples:
        >>> even, proxy = jnp.full((1, 2), 0.5), jnp.array([[0.0, 1.0]])
        >>> round(float(best_of_n_kl(proxy, even, 1e6)[0]), 6)  # log 2
        0.693147
    """
    policy = best_of_n_policy(proxy, reference, n, tie_tolerance=tie_tolerance)
    return kl_divergence(policy, reference)


def best_of_n_kl_bound(n: Float[ArrayLike, "*s"] | float | int) -> Float[Array, "*s"]:
    r"""Return :math:`\log n-(n-1)/n`, the divergence of best-of-n if no two responses tie.

    It is attained by a proxy with a continuous distribution under the reference. A proxy with atoms
    merges levels of a continuous one, so the inequality of data processing makes it an upper bound,
    for every real :math:`n\ge1`.

    Args:
        n: number of responses, at least 1.

    Returns:
        Nats.

    References:
        `beirami:24`, Theorem 1.

    Examples:
        >>> round(float(best_of_n_kl_bound(2.0)), 6)
        0.193147
    """
    n = jnp.asarray(n, float)
    return jnp.log(n) - (n - 1.0) / n


def best_of_n_score(
    proxy: Float[ArrayLike, "*x a"],
    reference: Float[ArrayLike, "*x a"],
    *,
    tie_tolerance: Float[ArrayLike, ""] | float = 0.0,
) -> Float[Array, "*x a"]:
    r"""Return the direction in which best-of-n leaves the reference.

    .. math:: s(a) = \frac{d}{dn}\log\pi_n(a)\Big|_{n=1} = \frac{F\log F-F_-\log F_-}{F-F_-}

    Best-of-n depends on the ranks of the proxy alone, so its direction is this function of the
    ranks, where a Gibbs policy moves along the proxy itself.

    Args:
        proxy: proxy reward :math:`\hat r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`; each row sums to one.
        tie_tolerance: see :func:`best_of_n_policy`.

    Returns:
        Numbers of at most 1, with mean 0 under the reference.

    Examples:
        >>> score = best_of_n_score(jnp.array([[0.0, 1.0]]), jnp.full((1, 2), 0.5))
        >>> bool(jnp.allclose(score, jnp.log(2.0) * jnp.array([-1.0, 1.0])))
        True
    """
    levels = _levels(jnp.asarray(proxy), jnp.asarray(reference), tie_tolerance)
    below = xlog1py(1.0 - levels.share, -levels.share) / levels.share
    return jnp.where(levels.known, levels.log_at_most - below, jnp.nan)


class _Levels(NamedTuple):
    """Level of each response in the distribution of the proxy under the reference.

    Attributes:
        mass: probability of the level; 1 where it has none.
        log_at_most: log of the probability of this level and those below it.
        share: share of the level in that probability, in (0, 1]; 1 for the lowest level.
        known: whether the proxy of the context is free of NaN.
    """

    mass: Float[Array, "*x a"]
    log_at_most: Float[Array, "*x a"]
    share: Float[Array, "*x a"]
    known: Array


def _levels(
    proxy: Float[Array, "*x a"],
    reference: Float[Array, "*x a"],
    tie_tolerance: Float[ArrayLike, ""] | float,
) -> _Levels:
    rank = _rank(proxy, tie_tolerance)
    here, other = rank[..., :, None], rank[..., None, :]
    mass = jnp.sum(jnp.where(other == here, reference[..., None, :], 0.0), axis=-1)
    below = jnp.sum(jnp.where(other < here, reference[..., None, :], 0.0), axis=-1)
    above = jnp.sum(jnp.where(other > here, reference[..., None, :], 0.0), axis=-1)
    at_most = below + mass
    empty = mass <= 0
    # The complement keeps the digits of a probability near one.
    is_high = above < 0.5
    log_at_most = jnp.where(
        is_high,
        jnp.log1p(-jnp.where(is_high, above, 0.0)),
        jnp.log(jnp.where(at_most > 0, at_most, 1.0)),
    )
    return _Levels(
        mass=jnp.where(empty, 1.0, mass),
        log_at_most=log_at_most,
        share=jnp.where(empty, 1.0, mass / jnp.where(empty, 1.0, at_most)),
        known=~jnp.any(jnp.isnan(proxy) & (reference > 0), axis=-1, keepdims=True),
    )


def _rank(proxy: Float[Array, "*x a"], tie_tolerance: Float[ArrayLike, ""] | float) -> Array:
    """Return the index of each response's level, from 0 for the lowest."""
    order = jnp.argsort(proxy, axis=-1)
    ascending = jnp.take_along_axis(proxy, order, axis=-1)
    # Two infinite proxies differ by NaN, which is no step.
    steps = ascending[..., 1:] - ascending[..., :-1] > tie_tolerance
    level = jnp.concatenate(
        [jnp.zeros((*proxy.shape[:-1], 1), jnp.int32), jnp.cumsum(steps, axis=-1, dtype=jnp.int32)],
        axis=-1,
    )
    return jnp.take_along_axis(level, jnp.argsort(order, axis=-1), axis=-1)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def _best_of_n_policies(
    responses: Float[Array, ""], proxy: Float[Array, "x a"], reference: Float[Array, "x a"]
) -> Float[Array, "x a"]:
    largest = jnp.where(reference > 0, jnp.abs(proxy), 0.0).max()
    tolerance = TIE_TOLERANCE * jnp.maximum(1.0, largest)
    return best_of_n_policy(proxy, reference, responses, tie_tolerance=tolerance)


METHODS = (
    Method("best_of_n", best_of_n, "best of n", BestOfNOptions, uses_eta=False, uses_beta=False),
)
"""Methods of this module."""
