r"""Random halves of preference data, drawn from counts.

A confidence set by universal inference fits a reward to one half of the data and evaluates it on
the other (:mod:`rpo_theory.intervals`). The data of every pair of actions, and of every set of
actions, are halved separately. Which outcomes enter a half is a hypergeometric draw of counts, so
the cost does not grow with the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .array_checks import InvalidProblemError
from .types import ArrayLike, Problem

N_SPLITS = 10
"""Default number of splits: the ends of an interval then vary little with the seed."""
MIN_OBSERVATIONS = 2
"""Smallest number of observations that can be split."""
_MAX_POPULATION = 10**9 - 1  # largest population of NumPy's hypergeometric distribution
_MAX_COUNT = 2**53  # largest count up to which float64 represents all whole numbers


class Counts(NamedTuple):
    """Counts of preference data: the part of a problem that is split.

    Attributes:
        wins: win counts, indexed by context, winner and loser.
        ties: counts of ties, shape ``[x a a]``; None for a model without ties.
        choices: counts of choices, shape ``[m a]``; None without choices.
    """

    wins: Float[ArrayLike, "*k x a a"]
    ties: Float[ArrayLike, "*k x a a"] | None = None
    choices: Float[ArrayLike, "*k m a"] | None = None

    @classmethod
    def of(cls, problem: Problem) -> Counts:
        """Return the counts of a problem."""
        ties = None if problem.ties is None else problem.ties.counts
        choices = None if problem.choices is None else problem.choices.wins
        return cls(problem.wins, ties, choices)

    def replace_in(self, problem: Problem) -> Problem:
        """Return the problem with these counts instead of its own."""
        problem = problem._replace(wins=self.wins)
        if problem.ties is not None and self.ties is not None:
            problem = problem._replace(ties=problem.ties._replace(counts=self.ties))
        if problem.choices is not None and self.choices is not None:
            problem = problem._replace(choices=problem.choices._replace(wins=self.choices))
        return problem


class DataSplits(NamedTuple):
    """Splits of the data into two parts, with a leading axis of the splits.

    Attributes:
        fitting: counts to which a reward is fitted, :math:`D_1`.
        evaluation: counts on which it is evaluated, :math:`D_0`.
    """

    fitting: Counts
    evaluation: Counts


def split_data(problem: Problem, n_splits: int = N_SPLITS, *, seed: int = 0) -> DataSplits:
    r"""Split the data of a problem at random into halves.

    Of a pair with an odd number of comparisons, one half gets one more. Every second split is the
    preceding one with its halves exchanged (cross-fitting). Comparisons of an action with itself
    say nothing about rewards and are left out.

    Args:
        problem: preference data; every count a whole number.
        n_splits: number of splits, at least 1.
        seed: seed of the draw, at least 0.

    Returns:
        Counts of both parts of every split, float64.

    Raises:
        ValueError: if the counts cannot be split, or an argument is out of range; the message
            names it.

    Examples:
        >>> problem = Problem.from_wins(np.array([[[0, 5], [3, 0]]]), beta=1.0, eta=1.0)
        >>> split_data(problem, 2).evaluation.wins.sum(axis=(1, 2, 3)).tolist()
        [4.0, 4.0]
    """
    for name, number, least in (("n_splits", n_splits, 1), ("seed", seed, 0)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, got {number!r}")
    counts = _informative_counts(problem)
    generator = np.random.default_rng(int(seed))
    evaluation = []
    for k in range(int(n_splits)):
        last = evaluation[-1] if k % 2 else None
        evaluation.append(_map(np.subtract, counts, last) if last else _half(counts, generator))
    evaluation = _map(lambda *tables: np.stack(tables), *evaluation)
    return DataSplits(_map(np.subtract, counts, evaluation), evaluation)


def _map(function: Callable[..., Any], *counts: Counts) -> Counts:
    """Apply a function to every table of counts."""
    columns = zip(*counts, strict=True)
    fields: list[Any] = [None if tables[0] is None else function(*tables) for tables in columns]
    return Counts(*fields)


def _informative_counts(problem: Problem) -> Counts:
    """Return the counts that say something about rewards, after checks that they can be split."""
    counts = _map(lambda table: np.asarray(table, np.float64), Counts.of(problem))
    fields = ("wins", "ties.counts", "choices.wins")
    for field, table in zip(fields, counts, strict=True):
        if table is None:
            continue
        wrong = (table != np.floor(table)) | (table > _MAX_COUNT)
        if wrong.any():
            index = tuple(int(axis[0]) for axis in np.nonzero(wrong))
            rule = "must be a whole number, at most 2^53, to split the data for an interval"
            raise InvalidProblemError(field, index, f"{rule}, got {table[index]:.9g}")
    if problem.choices is not None and not np.asarray(problem.choices.first).all():
        rule = (
            "must not hold rankings of more than two actions for an interval: the later choices of "
            "a ranking cannot be split from its first; give each first choice as a choice"
        )
        raise InvalidProblemError("choices", (), rule)
    between = 1.0 - np.eye(counts.wins.shape[-1])
    counts = counts._replace(wins=counts.wins * between)
    if counts.ties is not None:
        counts = counts._replace(ties=counts.ties * between)
    n_data = sum(float(table.sum()) for table in counts if table is not None)
    if n_data < MIN_OBSERVATIONS:
        rule = (
            f"must hold at least {MIN_OBSERVATIONS} comparisons of different actions, one for each "
            f"half of the data of an interval, got {n_data:g}"
        )
        raise InvalidProblemError("wins", (), rule)
    return counts


def _half(counts: Counts, generator: np.random.Generator) -> Counts:
    """Draw one half of the counts."""
    n_actions = counts.wins.shape[-1]
    first, second = np.triu_indices(n_actions, 1)
    outcomes = [counts.wins[:, first, second], counts.wins[:, second, first]]
    if counts.ties is not None:
        outcomes += [counts.ties[:, first, second], counts.ties[:, second, first]]
    pairs = np.stack(outcomes, axis=-1)
    tables = [pairs.reshape(-1, len(outcomes))]
    if counts.choices is not None:
        tables.append(np.asarray(counts.choices))
    width = max(table.shape[-1] for table in tables)
    rows = np.concatenate([np.pad(t, ((0, 0), (0, width - t.shape[-1]))) for t in tables])
    drawn = _half_of_rows(rows.astype(np.int64), generator).astype(np.float64)

    pairs = drawn[: len(tables[0]), : len(outcomes)].reshape(pairs.shape)
    wins = np.zeros_like(counts.wins)
    wins[:, first, second], wins[:, second, first] = pairs[..., 0], pairs[..., 1]
    ties = choices = None
    if counts.ties is not None:
        ties = np.zeros_like(counts.ties)
        ties[:, first, second], ties[:, second, first] = pairs[..., 2], pairs[..., 3]
    if counts.choices is not None:
        choices = drawn[len(tables[0]) :, : counts.choices.shape[-1]]
    return Counts(wins, ties, choices)


def _half_of_rows(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw half of the observations of each row, whose columns count the outcomes.

    The size of the half depends on the number of observations alone: a part is independent of the
    outcomes of the other. Half of the rows with an odd number give their extra observation.
    """
    sizes = rows.sum(axis=1)
    wanted = sizes // 2
    odd = generator.permutation(np.flatnonzero(sizes % 2))
    wanted[odd[: (len(odd) + generator.integers(2)) // 2]] += 1
    drawn = np.zeros_like(rows)
    large = sizes > _MAX_POPULATION
    left = np.where(large, 0, sizes)
    missing = np.where(large, 0, wanted)
    for j, column in enumerate(np.where(large[:, None], 0, rows).T):
        drawn[:, j] = generator.hypergeometric(column, left - column, missing)
        left, missing = left - column, missing - drawn[:, j]
    # A fair coin for each observation splits populations beyond the limit.
    drawn[large] = generator.binomial(rows[large], 0.5)
    return drawn
