r"""Worlds on one prompt, and the outcomes of :math:`N` comparisons with their exact probabilities.

A world is one possible true reward. A comparison is of the unordered pair :math:`\{a, a'\}` with
probability :math:`\mu_D(a,a')+\mu_D(a',a)`, and :math:`a` wins with probability
:math:`\sigma(r(a)-r(a'))`. A comparison of an action with itself says nothing about the reward, but
is one of the :math:`N`. An outcome is a table of win counts, a sufficient statistic; its
probability in each world is multinomial.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, log_expit

MAX_OUTCOMES = 100_000
"""Largest number of outcomes that are enumerated."""
MAX_PROBABILITIES = 50_000_000
"""Largest number of worlds times outcomes; each is eight bytes."""


class Worlds(NamedTuple):
    r"""Finitely many possible true rewards on one prompt, and how data are drawn in them.

    Attributes:
        rewards: true reward :math:`r_i(a)` in world :math:`i`, shape ``[m a]``.
        pair_distribution: :math:`\mu_D(a^1, a^0)`, which sums to one, shape ``[a a]``. The diagonal
            holds the comparisons of an action with itself.
        comparisons: number :math:`N` of comparisons, at least 1.
    """

    rewards: Float[np.ndarray, "m a"]
    pair_distribution: Float[np.ndarray, "a a"]
    comparisons: int


class Outcomes(NamedTuple):
    """Every outcome of the comparisons, and its probability in every world.

    Attributes:
        wins: number of wins of each action against each other; the diagonal counts the comparisons
            of an action with itself. Shape ``[o a a]``.
        log_probability: log-probabilities in nats, shape ``[m o]``.
    """

    wins: Float[np.ndarray, "o a a"]
    log_probability: Float[np.ndarray, "m o"]


def rewards_from_margins(
    margins: Float[np.ndarray, " k"], n_actions: int
) -> Float[np.ndarray, "m a"]:
    """Return the worlds in which one action is better than all others by a margin.

    Args:
        margins: differences of reward, greater than 0.
        n_actions: number of actions, at least 2.

    Returns:
        Rewards, 0 or a margin: one row for each pair of a best action and a margin. The margin
        varies fastest.

    Examples:
        >>> rewards_from_margins(np.array([0.5, 2.0]), 2).tolist()
        [[0.5, 0.0], [2.0, 0.0], [0.0, 0.5], [0.0, 2.0]]
    """
    best = np.eye(n_actions)[:, None, :]
    return (best * np.asarray(margins, np.float64)[:, None]).reshape(-1, n_actions)


def action_gaps(rewards: Float[np.ndarray, "m a"]) -> Float[np.ndarray, "m a"]:
    r"""Return the gap of every action in every world, :math:`\max_{a'} r_i(a') - r_i(a)`.

    Args:
        rewards: true reward of each action in each world.

    Returns:
        Units of reward, at least 0.

    Examples:
        >>> action_gaps(np.array([[0.0, 2.0, 1.5]])).tolist()
        [[2.0, 0.0, 0.5]]
    """
    return rewards.max(axis=1, keepdims=True) - rewards


def count_outcomes(pair_distribution: Float[np.ndarray, "a a"], comparisons: int) -> int:
    """Return the number of outcomes, without enumerating them.

    Args:
        pair_distribution: probability of each ordered pair, including an action with itself.
        comparisons: number of comparisons.

    Returns:
        The number of ways to divide the comparisons among the labeled pairs that can occur.

    Examples:
        >>> count_outcomes(np.array([[0.75, 0.25], [0.0, 0.0]]), 20)
        231
    """
    n_cells = len(_cells(pair_distribution)[0])
    return math.comb(comparisons + n_cells - 1, n_cells - 1)


def enumerate_outcomes(worlds: Worlds) -> Outcomes:
    r"""Enumerate the outcomes of the comparisons, with their probability in every world.

    .. math:: \log p_i(o) = \log N! + \sum_c \left[ o_c \log q_{ic} - \log o_c! \right]

    Here :math:`c` runs over the labeled pairs that can occur and :math:`q_{ic}` is the probability
    that one comparison of world :math:`i` is such a pair.

    Args:
        worlds: the worlds and the distribution of their data.

    Returns:
        The outcomes. Every outcome has a positive probability in every world.

    Raises:
        ValueError: if there are more than :data:`MAX_OUTCOMES` outcomes.

    Examples:
        >>> pairs = np.array([[0.0, 1.0], [0.0, 0.0]])
        >>> outcomes = enumerate_outcomes(Worlds(np.zeros((1, 2)), pairs, 2))
        >>> np.exp(outcomes.log_probability).round(3).tolist()
        [[0.25, 0.5, 0.25]]
    """
    rewards, pairs, comparisons = worlds
    n_outcomes = count_outcomes(pairs, comparisons)
    if n_outcomes > MAX_OUTCOMES:
        raise ValueError(
            f"`comparisons` must have at most {MAX_OUTCOMES:,} outcomes, got {n_outcomes:,} with "
            f"N = {comparisons}: use fewer comparisons, or compare fewer pairs of actions"
        )
    winners, losers, masses = _cells(pairs)
    counts = _compositions(comparisons, len(winners))
    is_label = winners != losers
    log_cells = np.log(masses) + np.where(
        is_label, log_expit(rewards[:, winners] - rewards[:, losers]), 0.0
    )
    arrangements = gammaln(comparisons + 1.0) - gammaln(counts + 1.0).sum(axis=1)
    wins = np.zeros((n_outcomes, *pairs.shape))
    wins[:, winners, losers] = counts
    return Outcomes(wins, arrangements + log_cells @ counts.T)


def _cells(
    pairs: Float[np.ndarray, "a a"],
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, " c"]]:
    """Return winner, loser and probability of the pair, of every labeled pair that can occur."""
    masses = pairs + pairs.T
    np.fill_diagonal(masses, np.diag(pairs))
    winners, losers = np.nonzero(masses)
    return winners, losers, masses[winners, losers]


def _compositions(number: int, n_parts: int) -> Float[np.ndarray, "o c"]:
    """Return every way to write a number as an ordered sum of whole numbers of at least 0."""
    rows, left = np.zeros((1, 0)), np.array([number])
    for _ in range(n_parts - 1):
        repeats = left + 1
        first = np.concatenate([[0], np.cumsum(repeats)[:-1]])
        part = np.arange(repeats.sum()) - np.repeat(first, repeats)
        rows = np.hstack([np.repeat(rows, repeats, axis=0), part[:, None]])
        left = np.repeat(left, repeats) - part
    return np.hstack([rows, left[:, None]])
