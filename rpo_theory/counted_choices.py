"""Choices from sets and rankings, summed into counts: the sufficient statistic of K-wise data."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float

from .array_checks import InvalidProblemError, at_least_zero, numbers
from .preference_data import Choices

_Key = tuple[int, bool, tuple[int, ...]]
"""Context, whether the choices are first choices, and the actions of the set in order."""


def count_choices(
    rankings: Iterable[Any] = (),
    choices: Iterable[Any] = (),
    *,
    shape: tuple[int, int],
) -> Choices | None:
    """Sum rankings and choices into counts, the sufficient statistic of Plackett-Luce data.

    Args:
        rankings: rows ``(context, actions from best to worst, count)`` with indices from 0; an
            action that is not listed was not compared. Counts may be fractional.
        choices: rows ``(context, set of actions, chosen action, count)``.
        shape: number of contexts and number of actions.

    Returns:
        The counts, with one row per set, in float64; equal rows add up. None without observations.

    Raises:
        ValueError: if an index is out of range or repeated, a set has one action, the chosen action
            is not in its set, or a count is negative; the message names the row.

    References:
        `plackett:75`.

    Examples:
        >>> counts = count_choices([(0, [2, 0, 1], 5)], shape=(1, 3))
        >>> counts.subsets.tolist(), counts.wins.tolist()
        ([[True, True, True], [True, True, False]], [[0.0, 0.0, 5.0], [5.0, 0.0, 0.0]])
    """
    wins: dict[_Key, np.ndarray] = {}

    def add(key: _Key, winner: int, count: float) -> None:
        if count > 0:
            wins.setdefault(key, np.zeros(shape[1]))[winner] += count

    for i, row in enumerate(rankings):
        context, ranking, count = _checked_row("rankings", i, row, 3, shape)
        for rank in range(len(ranking) - 1):
            key = (context, rank == 0, tuple(sorted(ranking[rank:])))
            add(key, ranking[rank], count)
    for i, row in enumerate(choices):
        context, subset, count = _checked_row("choices", i, row, 4, shape)
        winner = _index("choices", (i, 2), "the index of an action", row[2], shape[1])
        if winner not in subset:
            rule = f"must be in the set of the choice, got {winner}: add it, or correct it"
            raise InvalidProblemError("choices", (i, 2), rule)
        add((context, True, tuple(sorted(subset))), winner, count)
    if not wins:
        return None
    keys = sorted(wins, key=lambda key: (key[0], not key[1], key[2]))
    subsets = np.zeros((len(keys), shape[1]), bool)
    for row, (_, _, members) in enumerate(keys):
        subsets[row, list(members)] = True
    return Choices(
        contexts=np.array([context for context, _, _ in keys], np.int64),
        subsets=subsets,
        wins=np.stack([wins[key] for key in keys]),
        first=np.array([first for _, first, _ in keys]),
    )


def fold_pairs(
    wins: Float[np.ndarray, "x a a"], choices: Choices
) -> tuple[Float[np.ndarray, "x a a"], Choices | None]:
    """Move choices from sets of two into the win counts, where they are comparisons.

    Args:
        wins: win counts.
        choices: choices and rankings.

    Returns:
        The win counts, and the choices that are left; None if none are. The last choice of a longer
        ranking stays, because it is not an observation of its own.

    Examples:
        >>> pair = count_choices([(0, [1, 0], 5)], shape=(1, 2))
        >>> fold_pairs(np.zeros((1, 2, 2)), pair)[0].tolist()
        [[[0.0, 0.0], [5.0, 0.0]]]
    """
    subsets, counts = np.asarray(choices.subsets, bool), np.asarray(choices.wins, np.float64)
    is_pair = np.asarray(choices.first, bool) & (subsets.sum(axis=1) == 2)
    contexts = np.asarray(choices.contexts)[is_pair].astype(np.int64)
    pairs = np.nonzero(subsets[is_pair])[1].reshape(-1, 2)
    folded = np.array(wins, np.float64)
    rows = np.arange(len(pairs))
    for winner, loser in ((0, 1), (1, 0)):
        won = counts[is_pair][rows, pairs[:, winner]]
        np.add.at(folded, (contexts, pairs[:, winner], pairs[:, loser]), won)
    if is_pair.all():
        return folded, None
    return folded, Choices(*(np.asarray(field)[~is_pair] for field in choices))


def _checked_row(
    field: str, i: int, row: Any, length: int, shape: tuple[int, int]
) -> tuple[int, list[int], float]:
    """Return the context, the actions and the count of a row; raise if one is wrong."""
    form = "[context, [best, ..., worst], count]"
    if field == "choices":
        form = "[context, [actions of the set], chosen action, count]"
    if isinstance(row, str | bytes) or not isinstance(row, Sequence | np.ndarray):
        raise InvalidProblemError(field, (i,), f"must be {form}, got {reprlib.repr(row)}")
    if len(row) != length:
        raise InvalidProblemError(field, (i,), f"must be {form}, got {reprlib.repr(row)}")
    context = _index(field, (i, 0), "the index of a context", row[0], shape[0])
    listed = row[1]
    if isinstance(listed, str | bytes) or not isinstance(listed, Sequence | np.ndarray | set):
        rule = f"must be a list of actions, got {reprlib.repr(listed)}"
        raise InvalidProblemError(field, (i, 1), rule)
    actions: list[int] = []
    for k, action in enumerate(listed):
        actions.append(_index(field, (i, 1, k), "the index of an action", action, shape[1]))
        if actions[k] in actions[:k]:
            rule = f"must not repeat an action, got {action} twice: list each action once"
            raise InvalidProblemError(field, (i, 1, k), rule)
    if len(actions) < 2:
        rule = f"must have at least two actions, got {len(actions)}"
        raise InvalidProblemError(field, (i, 1), rule)
    last = (i, length - 1)
    try:
        count = numbers(field, np.asarray(row[-1]), ())
        at_least_zero(field, count)
    except InvalidProblemError as error:
        raise InvalidProblemError(field, last, error.rule) from None
    return context, actions, float(count)


def _index(field: str, index: tuple[int, ...], kind: str, value: Any, bound: int) -> int:
    """Return an index; raise unless it is a whole number in its range."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not is_whole or not 0 <= int(value) < bound:
        rule = f"must be {kind}, a whole number from 0 to {bound - 1}, got {reprlib.repr(value)}"
        raise InvalidProblemError(field, index, rule)
    return int(value)
