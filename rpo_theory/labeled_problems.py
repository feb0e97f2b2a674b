"""Construction of problems from tables of votes, rankings and choices with labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from .array_checks import at_least_zero, numbers
from .counted_choices import count_choices
from .labels import LabelSpellings
from .preference import win_counts
from .problems import problem_from_wins
from .types import ArrayLike, Problem


def wins_from_votes(
    contexts: Iterable[Hashable],
    winners: Iterable[Hashable],
    losers: Iterable[Hashable],
    counts: Iterable[int | float] | None = None,
    *,
    context_labels: Sequence[Hashable] | None = None,
    action_labels: Sequence[Hashable] | None = None,
) -> Float[np.ndarray, "x a a"]:
    """Count the wins of a table of votes; see :meth:`Problem.from_votes` for the arguments.

    Returns:
        ``wins[x, w, l]``, the number of votes in context ``x`` for ``w`` against ``l``.

    Raises:
        ValueError: if the columns differ in length, a label is unknown or spelled in two ways, a
            count is negative, or an action is compared with itself.
    """
    votes = _Votes(contexts, winners, losers, counts, context_labels, action_labels)
    return votes.counts(np.ones(len(votes.repeats), bool))


def problem_from_votes(
    contexts: Iterable[Hashable],
    winners: Iterable[Hashable],
    losers: Iterable[Hashable],
    counts: Iterable[int | float] | None,
    *,
    tied: Iterable[bool] | None = None,
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
    reference_policy: Float[ArrayLike, "x a"] | None,
    **options: Any,
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_votes`."""
    votes = _Votes(contexts, winners, losers, counts, context_labels, action_labels)
    is_tie = np.zeros(len(votes.repeats), bool)
    if tied is not None:
        is_tie = np.asarray(_entries("tied", tied))
        if is_tie.dtype != bool or is_tie.shape != votes.repeats.shape:
            rule = f"must hold true or false for each of the {len(votes.repeats)} votes"
            got = f"{is_tie.size} entries of type {is_tie.dtype}"
            raise ValueError(f"`tied` {rule}, got {got}")
    return problem_from_wins(
        votes.counts(~is_tie),
        ties=votes.counts(is_tie) if is_tie.any() else None,
        reference_policy=_reference(reference_policy, votes.occurs),
        **options,
    )


def problem_from_rankings(
    contexts: Iterable[Hashable],
    rankings: Iterable[Iterable[Hashable]],
    counts: Iterable[int | float] | None,
    **options: Any,
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_rankings`."""
    columns = _set_columns({"contexts": contexts, "rankings": rankings}, counts)
    return _problem_from_sets("rankings", columns, **options)


def problem_from_choices(
    contexts: Iterable[Hashable],
    subsets: Iterable[Iterable[Hashable]],
    winners: Iterable[Hashable],
    counts: Iterable[int | float] | None,
    **options: Any,
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_choices`."""
    named = {"contexts": contexts, "subsets": subsets, "winners": winners}
    columns = _set_columns(named, counts)
    return _problem_from_sets("choices", columns, **options)


class _Votes:
    """Columns of votes as indices, and which actions occur in which context."""

    def __init__(
        self,
        contexts: Iterable[Hashable],
        winners: Iterable[Hashable],
        losers: Iterable[Hashable],
        counts: Iterable[int | float] | None,
        context_labels: Sequence[Hashable] | None,
        action_labels: Sequence[Hashable] | None,
    ) -> None:
        named = {"contexts": contexts, "winners": winners, "losers": losers}
        columns = [_entries(name, column) for name, column in named.items()]
        self.repeats = _checked_counts(list(named), columns, counts)
        if not columns[0] and (context_labels is None or action_labels is None):
            raise ValueError(
                "`contexts` must have at least one vote, got none: give `context_labels` and "
                "`action_labels` for a problem without data"
            )
        _refuse_spellings(list(named), columns, context_labels, action_labels)
        context_index = _index_of_labels("context_labels", context_labels, columns[0])
        action_index = _index_of_labels("action_labels", action_labels, columns[1] + columns[2])
        indices = (context_index, action_index, action_index)
        self.rows = [
            _indices(name, column, index)
            for name, column, index in zip(named, columns, indices, strict=True)
        ]
        same = np.flatnonzero(self.rows[1] == self.rows[2])
        if same.size:
            rule = f"must differ from the winner of the vote, got {columns[2][same[0]]!r}"
            raise ValueError(f"`losers[{same[0]}]` {rule}")
        self.shape = (len(context_index), len(action_index))
        self.occurs = np.zeros(self.shape, bool)
        for column in self.rows[1:]:
            self.occurs[self.rows[0], column] = True

    def counts(self, included: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "x a a"]:
        """Return the counts of some votes, by context, winner and loser."""
        contexts, winners, losers = (row[included] for row in self.rows)
        repeats = self.repeats[included]
        with jax.enable_x64(True):
            return np.asarray(win_counts(contexts, winners, losers, repeats, shape=self.shape))


def _set_columns(
    named: dict[str, Iterable[Any]], counts: Iterable[int | float] | None
) -> dict[str, list[Any]]:
    """Return the columns as lists, with sets as lists of labels and a column of counts."""
    columns = {name: _entries(name, column) for name, column in named.items()}
    repeats = _checked_counts(list(named), list(columns.values()), counts)
    name = "rankings" if "rankings" in columns else "subsets"
    sets = []
    for row, entry in enumerate(columns[name]):
        if isinstance(entry, str | bytes):
            rule = f"must be a list of labels, got the text {entry!r}"
            raise ValueError(f"`{name}[{row}]` {rule}")
        sets.append(_entries(f"{name}[{row}]", entry))
        _check_set(f"{name}[{row}]", sets[row])
    for row, winner in enumerate(columns.get("winners", [])):
        if winner not in sets[row]:
            raise ValueError(f"`winners[{row}]` must be in the set of the choice, got {winner!r}")
    return {**columns, name: sets, "counts": repeats.tolist()}


def _check_set(field: str, labels: list[Hashable]) -> None:
    """Raise unless there are at least two labels, all different."""
    if len(labels) < 2:
        raise ValueError(f"`{field}` must have at least two actions, got {len(labels)}")
    for rank, label in enumerate(labels):
        if label in labels[:rank]:
            raise ValueError(f"`{field}` must not repeat an action, got {label!r} twice")


def _problem_from_sets(
    kind: str,
    columns: dict[str, list[Any]],
    *,
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
    reference_policy: Float[ArrayLike, "x a"] | None,
    **options: Any,
) -> Problem:
    """Count rankings or choices of labels, and build the problem."""
    name = "rankings" if kind == "rankings" else "subsets"
    contexts, sets = columns["contexts"], columns[name]
    listed = [label for row in sets for label in row]
    if not contexts and (context_labels is None or action_labels is None):
        raise ValueError(f"`contexts` must have at least one of the {kind}, got none")
    row_of_label = [row for row, labels in enumerate(sets) for _ in labels]
    _refuse_spellings(["contexts"], [contexts], context_labels, None)
    _refuse_spellings([name], [listed], action_labels, action_labels, row_of_label)
    context_index = _index_of_labels("context_labels", context_labels, contexts)
    action_index = _index_of_labels("action_labels", action_labels, listed)
    shape = (len(context_index), len(action_index))
    context_rows = _indices("contexts", contexts, context_index)
    set_rows = [
        _indices(f"{name}[{row}]", labels, action_index).tolist() for row, labels in enumerate(sets)
    ]
    rows = [context_rows.tolist(), set_rows]
    if kind == "choices":
        rows.append(_indices("winners", columns["winners"], action_index).tolist())
    rows.append(columns["counts"])
    counted = count_choices(**{kind: list(zip(*rows, strict=True))}, shape=shape)
    occurs = np.zeros(shape, bool)
    for context, members in zip(context_rows, set_rows, strict=True):
        occurs[context, members] = True
    return problem_from_wins(
        np.zeros((*shape, shape[1])),
        choices=counted,
        reference_policy=_reference(reference_policy, occurs),
        **options,
    )


def _reference(
    given: Float[ArrayLike, "x a"] | None, occurs: Bool[np.ndarray, "x a"]
) -> Float[ArrayLike, "x a"]:
    """Return the given policy, or the uniform one over the actions that occur in a context."""
    if given is not None:
        return given
    drawn = occurs | ~occurs.any(axis=1, keepdims=True)
    return drawn / drawn.sum(axis=1, keepdims=True)


def _checked_counts(
    names: list[str], columns: list[list[Any]], counts: Iterable[int | float] | None
) -> Float[np.ndarray, " n"]:
    """Return the number of repeats of each row; raise unless the columns have equal lengths."""
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        listed = ", ".join(map(str, lengths))
        *front, last = (f"`{name}`" for name in names)
        raise ValueError(
            f"{', '.join(front)} and {last} must have one entry per vote, "
            f"got {listed} entries: check the columns"
        )
    repeats = np.ones(lengths[0]) if counts is None else _entries("counts", counts)
    repeats = numbers("counts", np.asarray(repeats), (lengths[0],))
    at_least_zero("counts", repeats)
    return repeats


def _entries(name: str, column: Iterable[Any]) -> list[Any]:
    try:
        return list(column)
    except TypeError as error:
        kind = type(column).__name__
        raise ValueError(f"`{name}` must have one entry per vote, got {kind}") from error


def _refuse_spellings(
    names: list[str],
    columns: list[list[Hashable]],
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
    rows: Sequence[int] | None = None,
) -> None:
    """Refuse two spellings of one name, unless the caller lists the labels."""
    actions = LabelSpellings(fold_case=True)
    contexts = LabelSpellings(fold_case=False)
    for i, entries in enumerate(zip(*columns, strict=True)):
        row = i if rows is None else rows[i]
        for name, label in zip(names, entries, strict=True):
            is_context = name == "contexts"
            known = context_labels if is_context else action_labels
            if known is None and isinstance(label, str):
                seen = contexts if is_context else actions
                seen.check(f"{name}[{row}]", label, f"vote {row}")


def _index_of_labels(
    name: str, labels: Sequence[Hashable] | None, column: list[Hashable]
) -> dict[Hashable, int]:
    """Return the index of each label, in the given order or sorted."""
    if labels is None:
        try:
            labels = sorted(set(column))  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise ValueError(
                f"`{name}` must be given if the labels have no order: {error}"
            ) from error
    index = {label: i for i, label in enumerate(labels)}
    if len(index) != len(labels):
        raise ValueError(
            f"`{name}` must not repeat a label, got {len(labels)} labels of which "
            f"{len(index)} differ: keep one of each"
        )
    return index


def _indices(
    name: str, column: list[Hashable], index: dict[Hashable, int]
) -> Int[np.ndarray, " n"]:
    for row, label in enumerate(column):
        if label not in index:
            raise ValueError(f"`{name}[{row}]` must be one of the given labels, got {label!r}")
    return np.array([index[label] for label in column], np.int64)
