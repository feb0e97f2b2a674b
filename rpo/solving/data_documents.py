"""Preference data of problem files: comparisons, rankings, choices and ties.

======================= =======================================================================
key                     value
======================= =======================================================================
``comparisons``         rows ``[context, winner, loser, count]``
``wins``                ``[x][winner][loser]``, a table of the same counts, instead of
                        ``comparisons``
``rankings``            rows ``[context, [best, ..., worst], count]``
``choices``             rows ``[context, [actions of the set], chosen action, count]``
``ties``                rows ``[context, action, action, count]``
``tie_model``           ``"davidson"`` or ``"rao_kupper"``; required with ties
``tie_parameter``       optional: the parameter of the model, greater than 0 for ``"davidson"`` and
                        greater than 1 for ``"rao_kupper"``
======================= =======================================================================

At least one of the first five keys is required. Indices start at 0, equal rows add up, and counts
may be fractions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rpo_io.json_document import Node, describe, is_number
from rpo_theory.counted_choices import count_choices, fold_pairs
from rpo_theory.preference import win_counts
from rpo_theory.preference_data import TIE_MODELS, Choices, Ties
from rpo_theory.problems import InvalidProblemError, PreferenceData

MAX_CELLS = 5 * 10**7
"""Largest table of counts, contexts x actions x actions, or sets x actions: 400 MB."""
MAX_COUNT = 1e15
"""Largest count; sums of a few counts up to here are exact in float64."""
DATA_KEYS = ("comparisons", "wins", "rankings", "choices", "ties")
"""Keys of observations, of which a problem file has at least one."""
TIE_KEYS = ("tie_model", "tie_parameter")
"""Keys of the model of ties."""

_PAIR_ROWS = {
    "comparisons": ("context", "winner", "loser", "count"),
    "ties": ("context", "action", "action", "count"),
}


class Observations(NamedTuple):
    """Preference data of a problem file.

    Attributes:
        data: win counts, choices and ties. Without a given tie parameter that of ``data`` is
            arbitrary.
        fits_tie_parameter: whether the tie parameter is to be estimated.
        numbers: number of observations of each kind that the file has: ``comparisons``,
            ``rankings``, ``choices`` and ``ties``.
    """

    data: PreferenceData
    fits_tie_parameter: bool
    numbers: dict[str, float]


def read_observations(root: Node, keys: dict[str, Node], shape: tuple[int, int]) -> Observations:
    """Read the preference data of a problem file.

    Args:
        root: root of the document.
        keys: its members.
        shape: number of contexts and of actions.

    Returns:
        The data.

    Raises:
        DocumentError: if the data are invalid; the message names line and field.
    """
    if "wins" in keys and "comparisons" in keys:
        keys["wins"].refuse("must not stand beside `comparisons`: give one of them")
    present = [key for key in DATA_KEYS if key in keys]
    if not present:
        root.refuse("is missing", "comparisons")
    _check_size(keys[present[0]], shape)
    pairs = keys.get("wins", keys.get("comparisons"))
    wins = np.zeros((*shape, shape[1])) if pairs is None else _pair_counts(pairs, shape)
    ties, fits = _ties(root, keys, shape)
    choices = _choices(root, keys, shape)
    numbers = {
        "comparisons": float(wins.sum()),
        "rankings": _sum_of_counts(keys, "rankings"),
        "choices": _sum_of_counts(keys, "choices"),
        "ties": 0.0 if ties is None else float(np.sum(ties.counts)),
    }
    if choices is not None and ties is None:
        wins, choices = fold_pairs(wins, choices)
    return Observations(PreferenceData(wins, choices, ties), fits, numbers)


def _check_size(node: Node, shape: tuple[int, int]) -> None:
    n_contexts, n_actions = shape
    if n_contexts * n_actions**2 > MAX_CELLS:
        size = f"{n_contexts} contexts x {n_actions} actions x {n_actions} actions"
        node.refuse(f"count {size}, more than {MAX_CELLS:.0e} cells: split the problem by context")


def _pair_counts(node: Node, shape: tuple[int, int]) -> Float[np.ndarray, "x a a"]:
    """Return the counts of pairs of a table ``wins``, or of rows."""
    if node.path[-1] == "wins":
        wins = node.numbers(3)
        if wins.shape != (*shape, shape[1]):
            node.refuse(f"must have shape {(*shape, shape[1])}, got shape {wins.shape}")
        if wins.max() > MAX_COUNT:
            node.refuse(f"must hold counts of at most {MAX_COUNT:.0e}, got {wins.max():.3g}")
        return wins
    n_contexts, n_actions = shape
    rows = node.items()
    for i, row in enumerate(rows):
        _check_pair_row(node, i, row, (n_contexts, n_actions, n_actions))
    if not rows:
        return np.zeros((n_contexts, n_actions, n_actions))
    contexts, first, second = np.array([row[:3] for row in rows], np.int64).T
    counts = np.array([row[3] for row in rows], np.float64)
    with jax.enable_x64(True):
        return np.asarray(win_counts(contexts, first, second, counts, shape=shape))


def _check_pair_row(node: Node, i: int, row: Any, bounds: tuple[int, int, int]) -> None:
    names = _PAIR_ROWS[str(node.path[-1])]
    if not isinstance(row, list) or len(row) != len(names):
        node.refuse(f"must be [{', '.join(names)}], got {describe(row)}", i)
    for j, bound in enumerate(bounds):
        if type(row[j]) is not int or not 0 <= row[j] < bound:
            article = "an" if names[j][0] in "aeiou" else "a"
            rule = f"must be the index of {article} {names[j]}, a whole number from 0 to"
            node.refuse(f"{rule} {bound - 1}, got {describe(row[j])}", i, j)
    _check_count(node, i, row)


def _check_count(node: Node, i: int, row: list[Any]) -> None:
    """Refuse a row whose last entry is not a count."""
    if not is_number(row[-1]) or not 0 <= row[-1] <= MAX_COUNT:
        rule = f"must be a count, a number from 0 to {MAX_COUNT:.0e}"
        node.refuse(f"{rule}, got {describe(row[-1])}", i, len(row) - 1)


def _choices(root: Node, keys: dict[str, Node], shape: tuple[int, int]) -> Choices | None:
    """Return the counts of rankings and choices."""
    rows: dict[str, list[Any]] = {"rankings": [], "choices": []}
    for key in rows:
        if key in keys:
            rows[key] = keys[key].items()
            for i, row in enumerate(rows[key]):
                if isinstance(row, list) and row:
                    _check_count(keys[key], i, row)
    n_sets = sum(len(row[1]) for row in rows["rankings"] if _has_list(row)) + len(rows["choices"])
    if n_sets * shape[1] > MAX_CELLS:
        rule = f"hold {n_sets} choices from sets of {shape[1]} actions, more than {MAX_CELLS:.0e}"
        keys["rankings" if "rankings" in keys else "choices"].refuse(f"{rule} cells")
    try:
        return count_choices(**rows, shape=shape)
    except InvalidProblemError as error:
        root.refuse(error.rule, error.field, *error.index)


def _ties(root: Node, keys: dict[str, Node], shape: tuple[int, int]) -> tuple[Ties | None, bool]:
    """Return the ties, and whether their parameter is to be estimated."""
    counts = _pair_counts(keys["ties"], shape) if "ties" in keys else np.zeros((*shape, shape[1]))
    itself = np.flatnonzero(np.trace(counts, axis1=1, axis2=2))
    if itself.size:
        rows = keys["ties"].items()
        row = next(i for i, row in enumerate(rows) if row[1] == row[2] and row[3] > 0)
        keys["ties"].refuse("must be another action: an action cannot tie with itself", row, 2)
    if "tie_model" not in keys:
        names = " or ".join(f'"{name}"' for name in TIE_MODELS)
        if "tie_parameter" in keys:
            keys["tie_parameter"].refuse(f"needs `tie_model`, {names}")
        if np.any(counts):
            root.refuse(f"is missing: ties need a model, {names}", "tie_model")
        return None, False
    model = TIE_MODELS[keys["tie_model"].one_of(tuple(TIE_MODELS))]
    if "tie_parameter" not in keys:
        # Without ties the estimate is the model in which ties have probability 0.
        return (model(counts, 2.0), True) if np.any(counts) else (None, False)
    parameter = keys["tie_parameter"].number()
    if not model.lower_limit < parameter < np.inf:
        name = keys["tie_model"].value
        rule = f'must be greater than {model.lower_limit:g} for "{name}", got {parameter:g}'
        keys["tie_parameter"].refuse(rule)
    return model(counts, parameter), False


def _sum_of_counts(keys: dict[str, Node], key: str) -> float:
    return float(sum(row[-1] for row in keys[key].items())) if key in keys else 0.0


def _has_list(row: Any) -> bool:
    return isinstance(row, list) and len(row) > 1 and isinstance(row[1], list)
