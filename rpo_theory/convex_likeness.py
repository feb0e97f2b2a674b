r"""Convex-likeness of a finite reward class: how far it is from Assumption 5.5 of `liu:24`.

Theorem 5.6 needs a class that is *convex-like* (Fan): for all members :math:`r_1, r_2` and all
:math:`\alpha\in[0,1]` there is a member :math:`r_3` with
:math:`\phi(\pi,r_3)\le\alpha\phi(\pi,r_1)+(1-\alpha)\phi(\pi,r_2)` for every policy.
:func:`witness` decides it. :func:`meter` measures the lack of it by one number :math:`\delta`:

.. math:: \delta = \min_{r_3}\Big\{\eta E_{d_0}\big[\max_{a\in\mathrm{supp}\,\pi_{ref}}(r_3-\bar r)
          - E_{\pi_{base}}(r_3-\bar r)\big] + L_D(r_3) - \sum_k\lambda_k L_D(r_k)\Big\},
          \qquad \bar r = \sum_k\lambda_k r_k,

where :math:`\lambda` is the adversary's mixture in Algorithm 1. **Then**
:math:`0\le\min_r\max_\pi\phi-\max_\pi\min_r\phi\le\delta`, **and both are zero together.**

*Proof.* The mixture :math:`\sum_k\lambda_k\phi(\pi,r_k)` depends on the policy as
:math:`\phi(\pi,\bar r)` does. Its maximum over policies is :math:`v=\max_\pi\min_r\phi`, attained
at :math:`\pi_{\bar r}`. For any member and policy

.. math:: \phi(\pi,r_3) = \sum_k\lambda_k\phi(\pi,r_k)
          + \eta E_{d_0}[(\pi-\pi_{base})(r_3-\bar r)] + L_D(r_3) - \sum_k\lambda_k L_D(r_k).

The first term is at most :math:`v`, and an average over :math:`\pi` is at most the maximum over its
support. Hence :math:`\min_r\max_\pi\phi\le\max_\pi\phi(\pi,r_3)\le v+\delta`.
If the gap is zero, a member has :math:`\max_\pi\phi(\pi,r_3)=v\le\phi(\pi_{\bar r},r_3)`. The
maximizer of :math:`\phi(\cdot,r_3)` is unique (Lemma B.3), so :math:`\pi_{r_3}=\pi_{\bar r}` where
:math:`\eta d_0>0`. There :math:`r_3-\bar r` is constant on the support, the maximum equals the
average, both inequalities are equalities, and :math:`\delta=0`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from . import maximin
from .certificate import mixture_gap
from .objectives import minimax_objective, saddle_objective
from .preference import data_loss
from .problems import normalize
from .rewards import FiniteClass
from .types import ArrayLike, Problem

ROUNDING = 1e-12
"""Excess over a mixture, in nats, that counts as rounding in :func:`witness`."""


class ConvexLikeness(NamedTuple):
    r"""How far a finite class is from being convex-like.

    Attributes:
        delta: the meter :math:`\delta`, nats, plus the accuracy to which Algorithm 1 was solved.
            It is never below ``gap``, up to rounding.
        gap: :math:`\min_r\max_\pi\phi-\max_\pi\min_r\phi`, nats.
        minimax_value: :math:`\min_r\max_\pi\phi`, nats.
        maximin_value: :math:`\max_\pi\min_r\phi`, nats.
        mixture: the adversary's probabilities :math:`\lambda` of the members, shape ``[k]``.
        member: index of the member that attains the minimum in :math:`\delta`.
    """

    delta: Float[ArrayLike, ""]
    gap: Float[ArrayLike, ""]
    minimax_value: Float[ArrayLike, ""]
    maximin_value: Float[ArrayLike, ""]
    mixture: Float[ArrayLike, " k"]
    member: Int[ArrayLike, ""]


class Witness(NamedTuple):
    r"""Mixture of two members below which no member lies: a proof that a class is not convex-like.

    Attributes:
        first: index of :math:`r_1`.
        second: index of :math:`r_2`.
        share: :math:`\alpha`, the share of the first.
    """

    first: int
    second: int
    share: float


def meter(problem: Problem, reward_class: FiniteClass) -> ConvexLikeness:
    """Measure how far a finite class is from being convex-like.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: the members.

    Returns:
        The meter beside the gap that it bounds, as float64 NumPy numbers.

    Raises:
        ValueError: if an argument is invalid.

    References:
        `liu:24`, Assumption 5.5 and Lemma B.1.

    Examples:
        >>> base, wins = np.array([[0.0, 0.0, 1.0]]), np.zeros((1, 3, 3))
        >>> problem = Problem(np.ones(1), np.full((1, 3), 1 / 3), base, wins, beta=0.5, eta=1.0)
        >>> two = np.array([[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]])
        >>> found = meter(problem, FiniteClass(two))
        >>> round(float(found.gap), 3), round(float(found.delta), 3)
        (0.145, 0.5)
    """
    solution = maximin.solve(problem, reward_class, throw=False)
    with jax.enable_x64(True):
        arguments = (normalize(problem), reward_class, solution.policy, solution.stats["mixture"])
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments)
        return jax.tree.map(np.asarray, _measure(*arguments))


def excess_over_mixture(
    problem: Problem, reward_class: FiniteClass, mixture: Float[ArrayLike, " k"]
) -> Float[Array, " k"]:
    r"""Return the excess of each member over a mixture of all, for the worst policy.

    .. math:: \max_\pi\big[\phi(\pi,r_3)-\sum_k\lambda_k\phi(\pi,r_k)\big]

    Args:
        problem: preference data, policies and weights, as arrays.
        reward_class: the members.
        mixture: probabilities :math:`\lambda` of the members.

    Returns:
        Nats for each member as :math:`r_3`. The class is convex-like if, for every mixture of two,
        one is at most zero.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> pair = FiniteClass(jnp.array([[[1.0, 0.0]], [[0.0, 0.0]]]))
        >>> excess_over_mixture(problem, pair, jnp.array([0.5, 0.5])).tolist()
        [0.25, 0.25]
    """
    rewards, mixture = jnp.asarray(reward_class.rewards), jnp.asarray(mixture)
    support = jnp.asarray(problem.reference_policy) > 0
    difference = rewards - jnp.einsum("k,kxa->xa", mixture, rewards)
    highest = jnp.where(support, difference, -jnp.inf).max(axis=-1)
    average = jnp.einsum("xa,kxa->kx", jnp.asarray(problem.baseline_policy), difference)
    losses = jax.vmap(lambda reward: data_loss(problem, reward))(rewards)
    weights = jnp.asarray(problem.context_weights) * problem.eta
    return (highest - average) @ weights + losses - mixture @ losses


def witness(
    problem: Problem, reward_class: FiniteClass, *, tolerance: float = ROUNDING
) -> Witness | None:
    r"""Find a mixture of two members that has no member below it, in the sense of Fan.

    For two members and a third, the excess of :func:`excess_over_mixture` is convex and piecewise
    linear in the share, so the third lies below the mixture on an interval of shares. The class is
    convex-like if, for each two members, these intervals cover [0, 1].

    Args:
        problem: preference data, policies and weights.
        reward_class: the members.
        tolerance: excess in nats that counts as none.

    Returns:
        A witness that the class is not convex-like; None if it is.

    Examples:
        >>> base, wins = np.array([[0.0, 0.0, 1.0]]), np.zeros((1, 3, 3))
        >>> problem = Problem(np.ones(1), np.full((1, 3), 1 / 3), base, wins, beta=0.5, eta=1.0)
        >>> two = [[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]]
        >>> witness(problem, FiniteClass(np.array(two)))
        Witness(first=0, second=1, share=0.5)
        >>> witness(problem, FiniteClass(np.array([*two, [[0.0, 0.0, 0.6]]]))) is None
        True
    """
    problem = normalize(problem)
    rewards = np.asarray(reward_class.rewards, np.float64)
    with jax.enable_x64(True):
        losses = np.array([float(data_loss(problem, jnp.asarray(reward))) for reward in rewards])
    weights = np.asarray(problem.context_weights) * float(problem.eta)
    support = np.asarray(problem.reference_policy) > 0
    for first in range(len(rewards)):
        for second in range(first):
            covered = [
                _shares_below(
                    rewards[third] - rewards[second],
                    rewards[first] - rewards[second],
                    losses[third] - losses[second],
                    losses[first] - losses[second],
                    weights=weights,
                    support=support,
                    baseline=np.asarray(problem.baseline_policy),
                    tolerance=tolerance,
                )
                for third in range(len(rewards))
            ]
            share = _uncovered([interval for interval in covered if interval is not None])
            if share is not None:
                return Witness(second, first, 1.0 - share)
    return None


@jax.jit
def _measure(
    problem: Problem,
    reward_class: FiniteClass,
    policy: Float[Array, "x a"],
    mixture: Float[Array, " k"],
) -> ConvexLikeness:
    rewards = jnp.asarray(reward_class.rewards)
    excess = excess_over_mixture(problem, reward_class, mixture)
    highest = jax.vmap(lambda reward: minimax_objective(problem, reward))(rewards).min()
    lowest = jax.vmap(lambda reward: saddle_objective(problem, policy, reward))(rewards).min()
    accuracy = mixture_gap(problem, reward_class, policy, mixture)
    return ConvexLikeness(
        delta=excess.min() + accuracy,
        gap=highest - lowest,
        minimax_value=highest,
        maximin_value=lowest,
        mixture=mixture,
        member=excess.argmin(),
    )


def _shares_below(
    start: Float[np.ndarray, "x a"],
    direction: Float[np.ndarray, "x a"],
    loss: float,
    loss_direction: float,
    *,
    weights: Float[np.ndarray, " x"],
    support: np.ndarray,
    baseline: Float[np.ndarray, "x a"],
    tolerance: float,
) -> tuple[float, float] | None:
    r"""Return the interval of shares at which a member lies below the mixture; None if it is empty.

    ``start`` and ``direction`` are :math:`r_3-r_2` and :math:`r_1-r_2`.
    """

    def excess(share: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        difference = start - share[:, None, None] * direction
        highest = np.where(support, difference, -np.inf).max(axis=2)
        average = (baseline * difference).sum(axis=2)
        return (highest - average) @ weights + loss - share * loss_direction

    lines = np.where(support, start, np.nan), np.where(support, direction, np.nan)
    rise = lines[0][:, :, None] - lines[0][:, None, :]
    run = lines[1][:, :, None] - lines[1][:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = (rise / run).ravel()
    kinks = kinks[(kinks > 0.0) & (kinks < 1.0)]
    shares = np.unique(np.concatenate([[0.0, 1.0], kinks]))
    values = excess(shares) - tolerance
    below = np.flatnonzero(values <= 0.0).tolist()
    if not below:
        return None
    return (
        _crossing(shares, values, below[0], below[0] - 1),
        _crossing(shares, values, below[-1], below[-1] + 1),
    )


def _crossing(
    shares: Float[np.ndarray, " s"], values: Float[np.ndarray, " s"], inside: int, outside: int
) -> float:
    """Return where the linear piece between two shares crosses zero, or the end of the range."""
    if not 0 <= outside < len(shares):
        return float(shares[inside])
    part = values[inside] / (values[inside] - values[outside])
    return float(shares[inside] + part * (shares[outside] - shares[inside]))


def _uncovered(intervals: list[tuple[float, float]]) -> float | None:
    """Return the middle of the first part of [0, 1] outside all intervals; None without one."""
    end = 0.0
    for lower, upper in sorted(intervals):
        if lower > end:
            return 0.5 * (end + lower)
        end = max(end, upper)
    return None if end >= 1.0 else 0.5 * (end + 1.0)
