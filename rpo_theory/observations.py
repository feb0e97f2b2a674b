"""Counts of the observations of a problem: comparisons, ties, choices and rankings.

The functions are pure JAX. The constructors and the identities of the optimum share them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .preference_data import Choices, Ties
from .types import ArrayLike, Problem


class OutcomeCounts(NamedTuple):
    """Outcomes of each action, each at most the number of its appearances in the data.

    Attributes:
        won: largest evidence for the action that its wins and ties can give, in observations.
        lost: largest evidence against it that its losses and ties can give.
    """

    won: Float[Array, "x a"]
    lost: Float[Array, "x a"]


def n_observations(problem: Problem) -> Float[Array, ""]:
    r"""Return the number :math:`N` of observations: comparisons, ties, choices and rankings.

    Args:
        problem: preference data, policies and weights.

    Returns:
        The number, possibly fractional. A ranking counts once, however long it is.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> float(n_observations(Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)))
        4.0
    """
    number = jnp.asarray(problem.wins).sum()
    if problem.ties is not None:
        number = number + jnp.asarray(problem.ties.counts).sum()
    if problem.choices is not None:
        number = number + _first_wins(problem.choices).sum()
    return number


def winner_counts(
    wins: Float[ArrayLike, "x a a"],
    choices: Choices | None = None,
    tie_counts: Float[ArrayLike, "x a a"] | None = None,
) -> Float[Array, "x a"]:
    """Return how often each action came first; the two actions of a tie share the first place.

    Args:
        wins: win counts.
        choices: choices and rankings; None without them.
        tie_counts: number of ties of each pair; None without them.

    Returns:
        Counts. Those of a context add up to its number of observations.

    Examples:
        >>> wins = jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> winner_counts(wins, tie_counts=jnp.array([[[0.0, 1.0], [0.0, 0.0]]])).tolist()
        [[3.5, 1.5]]
    """
    counts = jnp.asarray(wins).sum(axis=2)
    if tie_counts is not None:
        ties = jnp.asarray(tie_counts)
        counts = counts + 0.5 * (ties.sum(axis=1) + ties.sum(axis=2))
    if choices is not None:
        counts = _added_to_contexts(counts, choices, _first_wins(choices))
    return counts


def compared_pairs(
    wins: Float[ArrayLike, "x a a"], choices: Choices | None = None, ties: Ties | None = None
) -> Float[Array, "x a a"]:
    r"""Return how often each pair was compared: the distribution :math:`\mu_D` times :math:`N`.

    An observation of a set with :math:`K` actions counts as one comparison that is shared equally
    by its :math:`K(K-1)/2` pairs.

    Args:
        wins: win counts.
        choices: choices and rankings; None without them.
        ties: ties; None without them.

    Returns:
        Counts of pairs, with the sum :math:`N`. ``(i, j)`` and ``(j, i)`` are equivalent.

    Examples:
        >>> compared_pairs(jnp.array([[[0.0, 3.0], [1.0, 0.0]]])).tolist()
        [[[0.0, 3.0], [1.0, 0.0]]]
    """
    counts = jnp.asarray(wins)
    if ties is not None:
        counts = counts + jnp.asarray(ties.counts)
    if choices is None:
        return counts
    subsets = _members(choices, counts)
    size = subsets.sum(axis=1)
    n_ordered_pairs = jnp.where(size > 1.0, size * (size - 1.0), 1.0)
    share = _first_wins(choices).sum(axis=1) / n_ordered_pairs
    pairs = share[:, None, None] * subsets[:, :, None] * subsets[:, None, :]
    pairs = jnp.where(jnp.eye(counts.shape[-1], dtype=bool), 0.0, pairs)
    return _added_to_contexts(counts, choices, pairs)


def preferred_counts(problem: Problem) -> Float[Array, "x a a"]:
    r"""Return how often each action was preferred to each other one.

    A choice prefers its action to every other one of the set. A tie counts both ways, with the
    weight of its model: the rate at which its loss grows with the difference of the rewards.

    Args:
        problem: preference data, policies and weights.

    Returns:
        Counts, indexed by context, preferred and other action; the win counts without other data.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> preferred_counts(Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)).tolist()
        [[[0.0, 3.0], [1.0, 0.0]]]
    """
    counts = jnp.asarray(problem.wins)
    if problem.ties is not None:
        ties = jnp.asarray(problem.ties.counts)
        counts = counts + problem.ties.tie_weight * (ties + ties.mT)
    if problem.choices is None:
        return counts
    wins = jnp.asarray(problem.choices.wins)
    pairs = wins[:, :, None] * _members(problem.choices, wins)[:, None, :]
    pairs = jnp.where(jnp.eye(counts.shape[-1], dtype=bool), 0.0, pairs)
    return _added_to_contexts(counts, problem.choices, pairs)


def outcome_counts(problem: Problem) -> OutcomeCounts:
    """Return the bounds on the evidence for and against each action that counts alone give.

    Args:
        problem: preference data, policies and weights.

    Returns:
        Wins and losses in comparisons and at every place of a ranking, and the weight of the ties.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> [counts.tolist() for counts in outcome_counts(problem)]
        [[[3.0, 1.0]], [[1.0, 3.0]]]
    """
    wins = jnp.asarray(problem.wins)
    won, lost = wins.sum(axis=2), wins.sum(axis=1)
    if problem.ties is not None:
        counts = jnp.asarray(problem.ties.counts)
        weight = problem.ties.tie_weight * (counts.sum(axis=1) + counts.sum(axis=2))
        won, lost = won + weight, lost + weight
    if problem.choices is not None:
        chosen = jnp.asarray(problem.choices.wins)
        appearances = chosen.sum(axis=1, keepdims=True) * _members(problem.choices, chosen)
        won = _added_to_contexts(won, problem.choices, chosen)
        lost = _added_to_contexts(lost, problem.choices, appearances - chosen)
    return OutcomeCounts(won, lost)


def _first_wins(choices: Choices) -> Float[Array, "m a"]:
    """Return the choices that are observations of their own or first choices of rankings."""
    first = jnp.asarray(choices.first).astype(bool)
    return jnp.where(first[:, None], jnp.asarray(choices.wins), 0.0)


def _members(choices: Choices, like: Array) -> Float[Array, "m a"]:
    return jnp.asarray(choices.subsets).astype(bool).astype(like.dtype)


def _added_to_contexts(
    table: Float[Array, "x *s"], choices: Choices, rows: Float[Array, "m *s"]
) -> Float[Array, "x *s"]:
    return table.at[jnp.asarray(choices.contexts).astype(jnp.int32)].add(rows)
