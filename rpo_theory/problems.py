"""Construction of problems from preference data, and their normalization.

The constructors validate what they are given, see :mod:`rpo_theory.validation`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from .labels import LabelSpellings
from .policies import chosen_policy
from .preference import win_counts
from .rewards import Unbounded
from .types import ArrayLike, Problem
from .validation import (
    PROBABILITY_TOLERANCE,
    InvalidProblemError,
    at_least_zero,
    numbers,
    plain_array,
    validate,
    validate_policy,
    validate_reward,
)

__all__ = [
    "PROBABILITY_TOLERANCE",
    "InvalidProblemError",
    "normalize",
    "problem_from_votes",
    "problem_from_wins",
    "validate",
    "validate_policy",
    "validate_reward",
    "wins_from_votes",
]


def normalize(problem: Problem) -> Problem:
    """Convert a problem to float64 and divide its distributions by their sums.

    Args:
        problem: a valid problem, possibly with a leading batch axis on every array.

    Returns:
        The same problem as NumPy arrays; distributions sum to one up to the last digit.

    Examples:
        >>> policy, wins = np.array([[0.4999999, 0.5]]), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), policy, policy, wins, beta=1.0, eta=0.0)
        >>> float(np.sum(normalize(problem).reference_policy))
        1.0
    """
    arrays = jax.tree.map(lambda field: np.asarray(field, np.float64), problem)
    return arrays._replace(
        context_weights=_divided_by_sum(arrays.context_weights),
        reference_policy=_divided_by_sum(arrays.reference_policy),
        baseline_policy=_divided_by_sum(arrays.baseline_policy),
    )


def problem_from_wins(
    wins: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"],
    *,
    beta: Float[ArrayLike, ""] | float,
    eta: Float[ArrayLike, ""] | float,
    context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
    reference_policy: Float[ArrayLike, "x a"] | None = None,
    baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_wins`."""
    wins = plain_array("wins", wins)
    if wins.ndim != 3 or wins.shape[1] != wins.shape[2] or 0 in wins.shape:
        rule = "must have shape (contexts, actions, actions), indexed by context, winner and loser"
        raise InvalidProblemError("wins", (), f"{rule}, got shape {wins.shape}")
    wins = numbers("wins", wins, wins.shape)
    at_least_zero("wins", wins)
    context, winner, loser = np.nonzero(wins)
    if np.any(winner == loser):
        index = tuple(int(axis[winner == loser][0]) for axis in (context, winner, loser))
        rule = f"must be 0, got {wins[index]:.9g}: an action cannot be compared with itself"
        raise InvalidProblemError("wins", index, rule)
    shape = wins.shape[:2]
    reference = np.full(shape, 1.0 / shape[1])
    if reference_policy is not None:
        reference = plain_array("reference_policy", reference_policy)
        validate_policy("reference_policy", reference, shape)
    problem = Problem(
        context_weights=_context_weights(context_weights, wins),
        reference_policy=reference,
        baseline_policy=_baseline_policy(baseline_policy, reference, wins),
        wins=wins,
        beta=beta,
        eta=eta,
    )
    validate(problem, Unbounded())
    return normalize(problem)


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
    return _count_votes(contexts, winners, losers, counts, context_labels, action_labels)[0]


def problem_from_votes(
    contexts: Iterable[Hashable],
    winners: Iterable[Hashable],
    losers: Iterable[Hashable],
    counts: Iterable[int | float] | None,
    *,
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
    reference_policy: Float[ArrayLike, "x a"] | None,
    **options: Any,
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_votes`."""
    labels = (context_labels, action_labels)
    wins, occurs = _count_votes(contexts, winners, losers, counts, *labels)
    if reference_policy is None:
        occurs |= ~occurs.any(axis=1, keepdims=True)
        reference_policy = occurs / occurs.sum(axis=1, keepdims=True)
    return problem_from_wins(wins, reference_policy=reference_policy, **options)


def _count_votes(
    contexts: Iterable[Hashable],
    winners: Iterable[Hashable],
    losers: Iterable[Hashable],
    counts: Iterable[int | float] | None,
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
) -> tuple[Float[np.ndarray, "x a a"], Bool[np.ndarray, "x a"]]:
    """Return the win counts, and whether an action occurs in the votes of a context."""
    named = {"contexts": contexts, "winners": winners, "losers": losers}
    columns = [_entries(name, column) for name, column in named.items()]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        listed = ", ".join(map(str, lengths))
        raise ValueError(
            "`contexts`, `winners` and `losers` must have one entry per vote, "
            f"got {listed} entries: check the columns"
        )
    if not lengths[0] and (context_labels is None or action_labels is None):
        raise ValueError(
            "`contexts` must have at least one vote, got none: give `context_labels` and "
            "`action_labels` for a problem without data"
        )
    repeats = np.ones(lengths[0]) if counts is None else _entries("counts", counts)
    repeats = numbers("counts", np.asarray(repeats), (lengths[0],))
    at_least_zero("counts", repeats)
    _refuse_spellings(columns, context_labels, action_labels)
    context_index = _index_of_labels("context_labels", context_labels, columns[0])
    action_index = _index_of_labels("action_labels", action_labels, columns[1] + columns[2])
    rows = [
        _indices(name, column, index)
        for name, column, index in zip(
            ("contexts", "winners", "losers"),
            columns,
            (context_index, action_index, action_index),
            strict=True,
        )
    ]
    same = np.flatnonzero(np.asarray(rows[1]) == np.asarray(rows[2]))
    if same.size:
        label = columns[2][same[0]]
        raise ValueError(
            f"`losers[{same[0]}]` must differ from the winner of the vote, got {label!r}"
        )
    shape = (len(context_index), len(action_index))
    occurs = np.zeros(shape, bool)
    occurs[rows[0], rows[1]] = occurs[rows[0], rows[2]] = True
    with jax.enable_x64(True):
        return np.asarray(win_counts(rows[0], rows[1], rows[2], repeats, shape=shape)), occurs


def _entries(name: str, column: Iterable[Any]) -> list[Any]:
    try:
        return list(column)
    except TypeError as error:
        kind = type(column).__name__
        raise ValueError(f"`{name}` must have one entry per vote, got {kind}") from error


def _refuse_spellings(
    columns: list[list[Hashable]],
    context_labels: Sequence[Hashable] | None,
    action_labels: Sequence[Hashable] | None,
) -> None:
    """Refuse two spellings of one name, unless the caller lists the labels."""
    known = (context_labels, action_labels, action_labels)
    spellings = [LabelSpellings(fold_case=False), *[LabelSpellings(fold_case=True)] * 2]
    names = ("contexts", "winners", "losers")
    for row in range(len(columns[0])):
        for name, column, labels, seen in zip(names, columns, known, spellings, strict=True):
            if labels is None and isinstance(label := column[row], str):
                seen.check(f"{name}[{row}]", label, f"vote {row}")


def _context_weights(
    option: Literal["comparisons", "uniform"] | ArrayLike, wins: Float[np.ndarray, "x a a"]
) -> np.ndarray:
    """Return the prompt distribution that a name or an array stands for."""
    if not isinstance(option, str):
        return numbers("context_weights", option, wins.shape[:1])
    comparisons = wins.sum(axis=(1, 2))
    match option:
        case "uniform":
            return np.full(len(wins), 1.0 / len(wins))
        case "comparisons" if comparisons.sum() > 0:
            return comparisons / comparisons.sum()
        case "comparisons":
            rule = "must be 'uniform' or an array if there are no comparisons"
        case _:
            rule = "must be 'comparisons', 'uniform' or an array"
    raise InvalidProblemError("context_weights", (), f"{rule}, got {option!r}")


def _baseline_policy(
    option: Literal["chosen", "reference"] | ArrayLike,
    reference: np.ndarray,
    wins: Float[np.ndarray, "x a a"],
) -> np.ndarray:
    """Return the baseline policy that a name or an array stands for."""
    if not isinstance(option, str):
        return plain_array("baseline_policy", option)
    match option:
        case "reference":
            return reference
        case "chosen":
            with jax.enable_x64(True):
                return np.asarray(jax.jit(chosen_policy)(wins, np.asarray(reference, np.float64)))
        case _:
            rule = f"must be 'chosen', 'reference' or an array, got {option!r}"
            raise InvalidProblemError("baseline_policy", (), rule)


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


def _divided_by_sum(distribution: ArrayLike) -> np.ndarray:
    distribution = np.asarray(distribution)
    sums = distribution.sum(axis=-1, keepdims=True)
    # A sum within rounding of one is left alone, so that normalizing twice changes nothing.
    within = np.abs(sums - 1.0) <= distribution.shape[-1] * np.finfo(np.float64).eps
    return distribution / np.where(within, 1.0, sums)
