r"""Off-policy evaluation: the win rate of a policy against a baseline, from logged comparisons.

The win rate of :math:`\pi` against :math:`\pi_{base}` is

.. math:: V = \sum_{x,i,j} q(x,i,j)\,P(i\succ j|x), \qquad
          q(x,i,j) = d_0(x)\,\pi(i|x)\,\pi_{base}(j|x),

where a response against itself counts one half. The log holds comparisons of ordered pairs that
were drawn from another distribution :math:`\mu(x,a^1,a^0)`, each with the label :math:`y`, 1 if the
first response won. With weights :math:`w=q/\mu` and a model :math:`m` of the labels,

.. math::
    \text{IPS:}\quad & \tfrac1N\textstyle\sum_n w_n y_n \\
    \text{SNIPS:}\quad & \textstyle\sum_n w_n y_n\,/\sum_n w_n \\
    \text{doubly robust:}\quad & \textstyle\sum q\,m + \tfrac1N\sum_n w_n(y_n-m_n)

estimate the part of :math:`V` with :math:`i\ne j`, whose mass :math:`Q=\sum_{i\ne j}q` is known
(SNIPS is multiplied by it). The rest, :math:`\frac12(1-Q)`, needs no data.

**Both orders of a pair.** If a label does not depend on the order in which the two responses were
shown, :math:`P(i\succ j)=1-P(j\succ i)`, then a comparison of :math:`i` and :math:`j` is evidence
about both :math:`q(i,j)` and :math:`q(j,i)`, and the order carries no information. The conditional
mean of the estimate given the pair and its winner :math:`i` replaces :math:`w_n y_n` by

.. math:: \frac{q(x,i,j)}{\mu(x,i,j)+\mu(x,j,i)},

since the pair was shown as :math:`(i,j)` with probability :math:`\mu(i,j)/(\mu(i,j)+\mu(j,i))`.
By Rao and Blackwell the estimate stays unbiased and its variance does not grow. It depends on the
data through the win counts alone, and needs a pair in one of its orders only. It is wrong under a
position bias; then use ``both_orders=False``.

An estimate is NaN if :math:`\pi` and :math:`\pi_{base}` can draw a pair that the log never shows:
no estimator is consistent then, see :meth:`WinRateEstimate.refusal`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rpo_theory.preference import preference_probability
from rpo_theory.types import ArrayLike

UNCOVERED_TOLERANCE = 1e-12
"""Mass of pairs outside of the log that is accepted: it moves an estimate by less than this."""


class LoggedPairs(NamedTuple):
    r"""Counts of logged comparisons, and the distribution that they were drawn from.

    Attributes:
        first_wins: ``first_wins[x, i, j]``, number of comparisons shown as ``(i, j)`` that ``i``
            won. With both orders, the win counts ``wins[x, winner, loser]`` may stand here alone.
        first_losses: number of those that ``j`` won, in the same order.
        pair_distribution: :math:`\mu(x,a^1,a^0)`, sums to one.
    """

    first_wins: Float[ArrayLike, "x a a"]
    first_losses: Float[ArrayLike, "x a a"]
    pair_distribution: Float[ArrayLike, "x a a"]

    @classmethod
    def from_wins(
        cls, wins: Float[ArrayLike, "x a a"], pair_distribution: Float[ArrayLike, "x a a"]
    ) -> LoggedPairs:
        r"""Return the log of a table of win counts, for estimates that use both orders.

        Args:
            wins: ``wins[x, winner, loser]``.
            pair_distribution: :math:`\mu(x,a^1,a^0)`, sums to one.

        Returns:
            The log.

        Examples:
            >>> wins = jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
            >>> float(LoggedPairs.from_wins(wins, wins / 4).first_losses.sum())
            0.0
        """
        wins = jnp.asarray(wins)
        return cls(wins, jnp.zeros_like(wins), jnp.asarray(pair_distribution))


class WinRateEstimate(NamedTuple):
    r"""Estimated win rate, its standard error, and how well the log overlaps with the policies.

    Attributes:
        win_rate: estimate of the probability that the policy wins; NaN if it is refused. IPS and
            doubly robust estimates may lie outside of [0, 1].
        standard_error: its estimated standard error; NaN without data.
        effective_sample_size: :math:`(\sum_n w_n)^2/\sum_n w_n^2` of the logged comparisons, at
            most their number; 0 if all weights are 0.
        largest_weight: largest weight :math:`w` of a pair that the log can show.
        uncovered_mass: probability that policy and baseline draw a pair of different responses
            that the log never shows; the estimate is refused above
            :data:`UNCOVERED_TOLERANCE`.
    """

    win_rate: Float[Array, ""]
    standard_error: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    largest_weight: Float[Array, ""]
    uncovered_mass: Float[Array, ""]

    def refusal(self) -> str | None:
        """Return why there is no estimate, in words, or None if there is one.

        Returns:
            One sentence; None if the win rate is a number.

        Examples:
            >>> nan, zero = jnp.array(jnp.nan), jnp.array(0.0)
            >>> WinRateEstimate(nan, nan, zero, zero, jnp.array(0.25)).refusal()
            'the log never shows pairs that the two policies draw with probability 0.25'
            >>> WinRateEstimate(nan, nan, zero, zero, zero).refusal()
            'the log has no comparison that the two policies can draw'
        """
        if not jnp.isnan(self.win_rate):
            return None
        missing = float(self.uncovered_mass)
        if missing > UNCOVERED_TOLERANCE:
            return (
                "the log never shows pairs that the two policies draw with probability "
                f"{missing:.3g}"
            )
        return "the log has no comparison that the two policies can draw"


def ips_win_rate(
    log: LoggedPairs,
    policy: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    *,
    both_orders: bool = True,
) -> WinRateEstimate:
    r"""Estimate a win rate by inverse propensity scores: unbiased.

    Args:
        log: logged comparisons.
        policy: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        both_orders: whether a comparison counts for both orders of its pair, which assumes that
            labels do not depend on the order.

    Returns:
        The estimate.

    References:
        `dudik:11`.

    Examples:
        >>> wins, pairs = jnp.array([[[0.0, 3.0], [1.0, 0.0]]]), jnp.array([[[0.0, 1], [0, 0]]])
        >>> first, second = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
        >>> float(ips_win_rate(LoggedPairs.from_wins(wins, pairs), first, second, jnp.ones(1))[0])
        0.75
    """
    view = _view(log, policy, baseline, context_weights, both_orders)
    won = view.weights
    payoff = _Payoff(won, jnp.zeros_like(won))
    mean, error = _mean_and_error(view, payoff)
    return _estimate(view, view.certain + mean, error)


def snips_win_rate(
    log: LoggedPairs,
    policy: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    *,
    both_orders: bool = True,
) -> WinRateEstimate:
    r"""Estimate a win rate by self-normalized scores: in [0, 1], with a bias that falls like 1/N.

    Args:
        log: logged comparisons.
        policy: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        both_orders: see :func:`ips_win_rate`.

    Returns:
        The estimate; its standard error is that of the linearized ratio.

    References:
        `swaminathan:15`.

    Examples:
        >>> wins, pairs = jnp.array([[[0.0, 3.0], [1.0, 0.0]]]), jnp.array([[[0.0, 1], [0, 0]]])
        >>> first, second = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
        >>> log = LoggedPairs.from_wins(wins, pairs)
        >>> float(snips_win_rate(log, first, second, jnp.ones(1)).win_rate)
        0.75
    """
    view = _view(log, policy, baseline, context_weights, both_orders)
    won = view.weights
    numerator, _ = _mean_and_error(view, _Payoff(won, jnp.zeros_like(won)))
    denominator, _ = _mean_and_error(view, _Payoff(won, won))
    drawn = view.mass > 0
    safe = jnp.where(denominator > 0, denominator, 1.0)
    ratio = jnp.where(denominator > 0, numerator / safe, jnp.where(drawn, jnp.nan, 0.0))
    _, error = _mean_and_error(view, _Payoff(won * (1.0 - ratio), -won * ratio))
    return _estimate(view, view.certain + view.mass * ratio, view.mass * error / safe)


def doubly_robust_win_rate(
    log: LoggedPairs,
    policy: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    reward: Float[ArrayLike, "x a"],
    *,
    both_orders: bool = True,
) -> WinRateEstimate:
    r"""Estimate a win rate by a reward model, and correct it by the weighted errors of the model.

    The model is :math:`m(x,i,j)=\sigma(r(x,i)-r(x,j))`. The estimate is unbiased for every reward
    that does not depend on the log, and its variance falls as the model approaches the labels.

    Args:
        log: logged comparisons.
        policy: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        reward: :math:`r(x,a)` of the model, fitted to other data.
        both_orders: see :func:`ips_win_rate`.

    Returns:
        The estimate.

    References:
        `dudik:11`.

    Examples:
        >>> wins, pairs = jnp.array([[[0.0, 3.0], [1.0, 0.0]]]), jnp.array([[[0.0, 1], [0, 0]]])
        >>> first, second = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
        >>> log, reward = LoggedPairs.from_wins(wins, pairs), jnp.array([[2.0, 0.0]])
        >>> round(float(doubly_robust_win_rate(log, first, second, jnp.ones(1), reward)[0]), 6)
        0.75
    """
    view = _view(log, policy, baseline, context_weights, both_orders)
    reward = jnp.asarray(reward)
    model = preference_probability(reward[:, :, None], reward[:, None, :])
    payoff = _Payoff(view.weights * (1.0 - model), -view.weights * model)
    mean, error = _mean_and_error(view, payoff)
    return _estimate(view, view.certain + jnp.sum(view.target * model) + mean, error)


class _View(NamedTuple):
    """Log as an estimator sees it, for ordered pairs of different responses.

    Attributes:
        target: probability q of the pair under policy and baseline; 0 on the diagonal.
        weights: importance weight of the pair.
        combine: turns the payoffs of an ordered pair into those of one comparison.
        first_wins: number of comparisons that the first response won.
        first_losses: number of comparisons that it lost.
        n_comparisons: number of comparisons, those of a response with itself included.
        mass: sum of ``target``.
        certain: win rate of the pairs of a response with itself.
        uncovered: mass of the pairs that the log never shows.
    """

    target: Float[Array, "x a a"]
    weights: Float[Array, "x a a"]
    combine: Callable[[_Payoff], _Payoff]
    first_wins: Float[Array, "x a a"]
    first_losses: Float[Array, "x a a"]
    n_comparisons: Float[Array, ""]
    mass: Float[Array, ""]
    certain: Float[Array, ""]
    uncovered: Float[Array, ""]


class _Payoff(NamedTuple):
    """What a comparison of an ordered pair adds to an estimate.

    Attributes:
        if_won: if the first response won.
        if_lost: if it lost.
    """

    if_won: Float[Array, "x a a"]
    if_lost: Float[Array, "x a a"]


def _view(
    log: LoggedPairs,
    policy: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    both_orders: bool,
) -> _View:
    first_wins, first_losses, density = (jnp.asarray(table) for table in log)
    target = jnp.einsum("x,xi,xj->xij", *map(jnp.asarray, (context_weights, policy, baseline)))
    differs = ~jnp.eye(target.shape[-1], dtype=bool)
    certain = 0.5 * jnp.sum(jnp.where(differs, 0.0, target))
    target = jnp.where(differs, target, 0.0)
    n_comparisons = jnp.sum(first_wins + first_losses)
    if both_orders:
        first_wins, first_losses = first_wins + first_losses.mT, jnp.zeros_like(first_wins)
        density = density + density.mT
    shown = density > 0
    return _View(
        target=target,
        weights=jnp.where(shown, target / jnp.where(shown, density, 1.0), 0.0),
        combine=_of_both_orders if both_orders else _of_one_order,
        first_wins=first_wins,
        first_losses=first_losses,
        n_comparisons=n_comparisons,
        mass=jnp.sum(target),
        certain=certain,
        uncovered=jnp.sum(jnp.where(shown, 0.0, target)),
    )


def _of_one_order(payoff: _Payoff) -> _Payoff:
    return payoff


def _of_both_orders(payoff: _Payoff) -> _Payoff:
    """Add what the comparison says about the pair in its other order, with the other label."""
    return _Payoff(payoff.if_won + payoff.if_lost.mT, payoff.if_lost + payoff.if_won.mT)


def _mean_and_error(view: _View, payoff: _Payoff) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean payoff of a comparison and the standard error of this mean."""
    payoff = view.combine(payoff)
    # Without data there is no mean, unless no comparison is needed.
    n = jnp.where(
        view.n_comparisons > 0, view.n_comparisons, jnp.where(view.mass > 0, jnp.nan, 1.0)
    )

    def mean(power: int) -> Float[Array, ""]:
        won = view.first_wins * payoff.if_won**power
        return jnp.sum(won + view.first_losses * payoff.if_lost**power) / n

    variance = jnp.maximum(mean(2) - mean(1) ** 2, 0.0)
    return mean(1), jnp.sqrt(variance / jnp.maximum(n - 1.0, 1.0))


def _estimate(
    view: _View, win_rate: Float[Array, ""], standard_error: Float[Array, ""]
) -> WinRateEstimate:
    weight = view.combine(_Payoff(view.weights, view.weights)).if_won
    count = view.first_wins + view.first_losses
    squares = jnp.sum(count * weight**2)
    size = jnp.sum(count * weight) ** 2 / jnp.where(squares > 0, squares, 1.0)
    refused = view.uncovered > UNCOVERED_TOLERANCE
    return WinRateEstimate(
        win_rate=jnp.where(refused, jnp.nan, win_rate),
        standard_error=jnp.where(refused, jnp.nan, standard_error),
        effective_sample_size=size,
        largest_weight=weight.max(),
        uncovered_mass=view.uncovered,
    )
