"""Queries on a summary: labels, curves and intervals, and whether its rows form a grid of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bandits.methods.registry import METHODS

from .summary import Summary

DISPLAY_NAMES = {
    **{name: method.title for name, method in METHODS.items()},
    "four_arms": "four arms",
    "type_i_hacking": "type I hacking",
    "type_ii_hacking": "type II hacking",
    "ghost_arm": "ghost arm",
    "coverage_is_necessary": "coverage is necessary",
}
"""Names of methods and named instances in figures; other labels are shown unchanged."""


class Interval(NamedTuple):
    """Means with the ends of their 95 % confidence intervals.

    Attributes:
        mean: the means, shape ``[k]``.
        low: lower ends, shape ``[k]``.
        high: upper ends, shape ``[k]``.
    """

    mean: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]


def labels(summary: Summary) -> list[str]:
    """Return the different labels in order of appearance.

    Args:
        summary: a summary with the column ``label``.

    Examples:
        >>> labels({"label": np.array(["rpo", "dpo", "rpo"])})
        ['rpo', 'dpo']
    """
    return list(dict.fromkeys(str(label) for label in summary["label"]))


def display_name(label: str) -> str:
    """Return a label as figures show it.

    Args:
        label: label of a method, optionally followed by a comma and its baseline.

    Returns:
        The label with the method's display name, and with spaces for underscores elsewhere.

    Examples:
        >>> display_name("dpop"), display_name("rpo, data_marginal")
        ('DPOP', 'RPO, data marginal')
    """
    method, comma, rest = label.partition(",")
    return DISPLAY_NAMES.get(method, method.replace("_", " ")) + comma + rest.replace("_", " ")


def confidence_interval(summary: Summary, name: str) -> Interval:
    """Return a column of means with the ends of their confidence intervals.

    Args:
        summary: columns of a summary by name.
        name: name of the column with the means.

    Returns:
        Mean, lower and upper end of every row. Unknown ends are replaced by the mean.

    Examples:
        >>> summary = {"gap": np.array([1.0, 2.0]), "gap_low": np.array([0.5, np.nan])}
        >>> [values.tolist() for values in confidence_interval(summary, "gap")]
        [[1.0, 2.0], [0.5, 2.0], [1.0, 2.0]]
    """
    mean = np.asarray(summary[name], np.float64)
    ends = (np.asarray(summary.get(name + end, mean), float) for end in ("_low", "_high"))
    low, high = (np.where(np.isnan(end), mean, end) for end in ends)
    return Interval(mean, low, high)


def curve(
    summary: Summary, x_column: str, y_column: str, label: str
) -> tuple[Float[np.ndarray, " k"], Interval]:
    """Return one column as a function of another, for one label.

    Args:
        summary: columns of a summary by name.
        x_column: name of the column on the horizontal axis.
        y_column: name of the column with the means on the vertical axis.
        label: label of the rows to use.

    Returns:
        The different values of ``x_column`` in ascending order, and mean and interval at each;
        rows with equal values are averaged.

    Examples:
        >>> summary = {"label": np.array(["a"] * 3), "x": np.array([2, 1, 2]), "y": np.arange(3)}
        >>> x, (mean, _, _) = curve(summary, "x", "y", "a")
        >>> x.tolist(), mean.tolist()
        ([1.0, 2.0], [1.0, 1.0])
    """
    rows = np.asarray(summary["label"]) == label
    x, inverse = np.unique(np.asarray(summary[x_column], np.float64)[rows], return_inverse=True)
    size = np.bincount(inverse)
    mean, low, high = (
        np.bincount(inverse, column[rows]) / size
        for column in confidence_interval(summary, y_column)
    )
    return x, Interval(mean, low, high)


def is_crossed(summary: Summary, *axes: str) -> bool:
    """Return whether every label has every combination of the values of the axes.

    Args:
        summary: columns of a summary by name.
        axes: names of columns.

    Returns:
        False also if a column is missing or has a single value.

    Examples:
        >>> summary = {"label": np.array(["a"] * 2), "eta": np.arange(2), "n": np.array([4, 9])}
        >>> is_crossed(summary, "eta"), is_crossed(summary, "eta", "n")
        (True, False)
    """
    if any(name not in summary for name in axes):
        return False
    values = [np.unique(summary[name], return_inverse=True) for name in ("label", *axes)]
    rows = np.stack([inverse for _, inverse in values], axis=1)
    is_full = len(np.unique(rows, axis=0)) == math.prod(len(unique) for unique, _ in values)
    return is_full and all(len(unique) > 1 for unique, _ in values[1:])


def has_unique_rows(summary: Summary, *axes: str) -> bool:
    """Return whether no two rows have the same label and the same values of the axes.

    Args:
        summary: columns of a summary by name.
        axes: names of columns.

    Examples:
        >>> has_unique_rows({"label": np.array(["a", "a"]), "n": np.array([1, 2])}, "n")
        True
    """
    names = ("label", *axes)
    rows = np.stack([np.unique(summary[name], return_inverse=True)[1] for name in names], axis=1)
    return len(np.unique(rows, axis=0)) == len(rows)


def is_constant(summary: Summary, name: str) -> bool:
    """Return whether a column is missing or has a single value.

    Args:
        summary: columns of a summary by name.
        name: name of the column.

    Examples:
        >>> is_constant({"eta": np.array([0.1, 0.1])}, "eta")
        True
    """
    return name not in summary or len(np.unique(summary[name])) == 1


def by_environment(summary: Summary) -> dict[str, Summary]:
    """Split a summary by environment.

    Args:
        summary: columns of a summary by name.

    Returns:
        The summary of each environment, in order of appearance; the whole summary under the name
        "" if it has no column ``environment``.

    Examples:
        >>> summary = {"environment": np.array(["b", "a", "b"]), "gap": np.arange(3)}
        >>> by_environment(summary)["b"]["gap"].tolist()
        [0, 2]
    """
    if "environment" not in summary:
        return {"": summary}
    column = np.asarray(summary["environment"])
    return {
        str(name): {key: np.asarray(values)[column == name] for key, values in summary.items()}
        for name in dict.fromkeys(column.tolist())
    }


def with_most_data(summary: Summary) -> Summary:
    """Return the rows with the largest number of comparisons.

    Args:
        summary: a summary; without the column ``comparisons`` it is returned unchanged.

    Examples:
        >>> summary = {"comparisons": np.array([10, 99]), "gap": np.array([0.5, 0.1])}
        >>> with_most_data(summary)["gap"].tolist()
        [0.1]
    """
    if "comparisons" not in summary:
        return summary
    n = np.asarray(summary["comparisons"])
    return {name: np.asarray(column)[n == n.max()] for name, column in summary.items()}


def without_labels(summary: Summary, left_out: Sequence[str]) -> Summary:
    """Return the rows of a summary without those of some labels.

    Args:
        summary: columns of a summary by name.
        left_out: labels whose rows are dropped.

    Examples:
        >>> summary = {"label": np.array(["a", "b"]), "gap": np.array([0.5, 0.1])}
        >>> without_labels(summary, ["a"])["gap"].tolist()
        [0.1]
    """
    kept = ~np.isin(np.asarray(summary["label"]).astype(str), list(left_out))
    return {name: np.asarray(column)[kept] for name, column in summary.items()}
