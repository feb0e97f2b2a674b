"""Checks of choices and ties, the preference data beyond win counts."""

from __future__ import annotations

import numpy as np

from .array_checks import (
    at_least_zero,
    numbers,
    refuse_where,
    scalar_shape,
    shape_with_free_axis,
)
from .preference_data import Choices, Ties


def validate_choices(
    choices: Choices, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
) -> None:
    """Raise if choices are invalid.

    A row without actions and without wins is valid: it fills up a batch of problems whose numbers
    of sets differ.

    Args:
        choices: choices from sets of actions.
        shape: number of contexts and of actions.
        lead: batch shape of the arrays.
        finite: whether to refuse numbers that are not finite.

    Raises:
        InvalidProblemError: if a shape is wrong, a count is negative, an index is out of range, a
            set has one action, or the winner is not in the set.
    """
    n_contexts, n_actions = shape
    rows = shape_with_free_axis("choices.subsets", choices.subsets, (*lead, "m", n_actions))
    subsets = numbers("choices.subsets", choices.subsets, rows, finite=finite)
    wins = numbers("choices.wins", choices.wins, rows, finite=finite)
    contexts = numbers("choices.contexts", choices.contexts, rows[:-1], finite=finite)
    first = numbers("choices.first", choices.first, rows[:-1], finite=finite)
    out_of_range = ~np.isin(contexts, np.arange(n_contexts)) & np.isfinite(contexts)
    rule = f"must be an index from 0 to {n_contexts - 1}"
    refuse_where("choices.contexts", contexts, out_of_range, rule)
    for field, flags in (("choices.subsets", subsets), ("choices.first", first)):
        neither = ~np.isin(flags, (0, 1)) & np.isfinite(flags)
        refuse_where(field, flags, neither, "must be true or false")
    sizes = np.where(np.isfinite(subsets), subsets, 1).sum(axis=-1)
    refuse_where("choices.subsets", sizes, sizes == 1, "must have at least two actions, or none")
    at_least_zero("choices.wins", wins)
    outside = (wins > 0) & (subsets == 0)
    refuse_where("choices.wins", wins, outside, "must be 0 for an action that is not in the set")


def validate_ties(
    ties: Ties, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
) -> None:
    """Raise if ties are invalid.

    Args:
        ties: ties under one of the two models.
        shape: number of contexts and of actions.
        lead: batch shape of the arrays.
        finite: whether to refuse numbers that are not finite.

    Raises:
        InvalidProblemError: if a shape is wrong, a count is negative, an action ties with itself,
            or the parameter is out of range.
    """
    wanted = (*lead, *shape, shape[1])
    counts = numbers("ties.counts", ties.counts, wanted, finite=finite)
    at_least_zero("ties.counts", counts)
    itself = (counts > 0) & np.eye(shape[1], dtype=bool)
    refuse_where("ties.counts", counts, itself, "must be 0: an action cannot tie with itself")
    size = scalar_shape(ties.parameter, lead)
    parameter = numbers("ties.parameter", ties.parameter, size, finite=finite)
    rule = f"must be greater than {ties.lower_limit:g} for {type(ties).__name__}"
    refuse_where("ties.parameter", parameter, parameter <= ties.lower_limit, rule)
