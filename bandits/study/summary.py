r"""The table that a study's figures are drawn from: a column a name, a row a cell of the grid.

============================ ====================================================================
column                       meaning
============================ ====================================================================
``label``                    what a line is called: the method, with its baseline if there are many
``environment``              what was drawn: a figure has a panel for each
``comparisons``              :math:`N`
``target_coverage``          target :math:`C` of the comparator, nan where none was asked for
``eta``, ``beta``            weights of the adversary and of the KL term
``kl``                       :math:`E\,KL(\hat\pi\|\pi_{ref})`, nats
``gap``                      mean over the seeds of :math:`J(\pi) - J(\hat\pi)`
``true_value``               mean of :math:`J(\hat\pi) - J(\pi_{base})` under :math:`r^\star`
``proxy_value``              the same under the learned reward
``bound``, ``bound_tight``   Theorem 5.3, corrected, and with the sharpest constants
``NAME_low``, ``NAME_high``  95 % confidence interval of the mean ``NAME``
============================ ====================================================================

A column that a figure does not use may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

Summary = Mapping[str, np.ndarray]
Interval = tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]
"""A mean and the ends of its 95 % interval."""

STANDARD_ERRORS = 1.959963984540054
"""Half the width of a 95 % confidence interval of a mean, in standard errors."""

NAMES = {
    "rpo": "RPO",
    "rpo_maximin": "RPO, Algorithm 1",
    "rpo_policy": "RPO, policy descent",
    "dpo": "DPO",
    "two_stage": "two-stage MLE + KL",
    "greedy_mle": "greedy MLE",
    "behavior_cloning": "behavior cloning",
    "pessimistic_mle": "pessimistic MLE",
    "freehand": "FREEHAND",
    "spac": "SPAC",
    "vpo": "VPO",
    "ipo": "IPO",
    "dpop": "DPOP",
    "chi_po": "χPO",
    "power": "POWER",
    "four_arms": "four arms",
    "type_i_hacking": "type I hacking",
    "type_ii_hacking": "type II hacking",
    "ghost_arm": "ghost arm",
    "coverage_is_necessary": "coverage is necessary",
}
"""How figures write methods and instances; other labels are written as they are."""


KEYS = ("label", "environment", "comparisons", "eta_rule", "beta_rule")
"""Columns that tell a cell of the grid, together with the axes of the design."""
MEANS = ("gap", "true_value", "proxy_value", "kl", "bound", "bound_tight", "eta", "beta")
"""Columns of records that a summary has the means of."""


def is_summary_column(name: str) -> bool:
    """Whether a column of records is one that a summary and its findings are made of."""
    return name in (*KEYS, *MEANS, "bound_printed", "status") or name.startswith("design.")


def summarize(records: Iterable[pa.Table]) -> Summary:
    """Mean and 95 % confidence interval of every cell of a study's grid.

    Args:
        records: tables of a row a fit, see :mod:`bandits.study.run`; one at a time is in memory.

    Returns:
        The table that figures are drawn from, with ``seeds``, the number of fits in each cell. A
        column that is nowhere known is left out; an interval of a single fit is nan.
    """
    grouped = pa.concat_tables([_moments(part) for part in records])
    cell = [name for name in grouped.column_names if name in KEYS or name.startswith("design.")]
    columns = {name: grouped[name].to_numpy() for name in grouped.column_names}
    cells = list(zip(*(grouped[name].to_pylist() for name in cell), strict=True))
    places = {each: place for place, each in enumerate(dict.fromkeys(cells))}
    where = np.array([places[each] for each in cells])
    first = np.unique(where, return_index=True)[1]
    summary = {name: columns[name][first] for name in cell}
    summary["seeds"] = seeds = _sums(columns["count_all"], where)
    for name in MEANS:
        if f"{name}_mean" not in columns:
            continue
        n, mean, spread = (columns[f"{name}_{what}"] for what in ("count", "mean", "variance"))
        mean, spread = _together(n, mean, spread, where)
        if np.isnan(mean).all():
            continue
        summary[name] = mean
        half = STANDARD_ERRORS * spread / np.sqrt(seeds)
        summary[name + "_low"], summary[name + "_high"] = mean - half, mean + half
    for name in ("eta", "beta"):  # a number that is the same for all is that number
        least, most = np.full(len(seeds), np.inf), np.full(len(seeds), -np.inf)
        np.minimum.at(least, where, columns[f"{name}_min"])
        np.maximum.at(most, where, columns[f"{name}_max"])
        summary[name] = np.where(least == most, least, summary[name])
    # The axis is what was asked for; what came of it, seed by seed, is in the records.
    summary["target_coverage"] = summary["design.target_coverage"]
    return summary


def _moments(part: pa.Table) -> pa.Table:
    """Counts, means and variances of the cells in a part of the records."""
    axes = [name for name in part.column_names if name.startswith("design.")]
    wanted = [name for name in MEANS if name in part.column_names]
    known: list[Any] = [(name, what) for name in wanted for what in ("count", "mean", "variance")]
    ends: list[Any] = [(name, end) for name in ("eta", "beta") for end in ("min", "max")]
    every: list[Any] = [([], "count_all"), *known, *ends]
    keyed = part.select([*KEYS, *axes, *wanted])
    grouped = keyed.group_by([*KEYS, *axes], use_threads=False).aggregate(every)
    words = [pa.types.is_dictionary(field.type) for field in grouped.schema]
    columns = [
        column.cast(column.type.value_type) if word else column
        for column, word in zip(grouped.columns, words, strict=True)
    ]
    return pa.table(columns, names=grouped.column_names)


def _together(
    n: Int[np.ndarray, " k"],
    mean: Float[np.ndarray, " k"],
    variance: Float[np.ndarray, " k"],
    where: Int[np.ndarray, " k"],
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Means and standard deviations of cells, of those of the parts that they lie in."""
    total = np.where(_sums(n, where) > 0, _sums(n, where), np.nan)
    mean, variance = np.where(n > 0, mean, 0.0), np.where(n > 0, variance, 0.0)
    overall = _sums(n * mean, where) / total
    # About the mean of the cell: sums of squares would lose the digits of small variances.
    apart = _sums(n * (variance + (mean - overall[where]) ** 2), where)
    return overall, np.sqrt(apart / np.where(total > 1, total - 1, np.nan))


def _sums(values: np.ndarray, where: Int[np.ndarray, " k"]) -> np.ndarray:
    return np.bincount(where, values).astype(values.dtype)


def count_violations(records: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Count the draws in which a method's gap is above its bound.

    Args:
        records: tables of a row a fit, see :mod:`bandits.study.run`; one at a time is in memory.

    Returns:
        For each label with bounds and each form of the bound: the number of ``draws``, of
        ``violations``, and the largest ``ratio`` of gap to bound.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in records:
        for row in _violations(part):
            key = row["label"], row["form"]
            known = found.setdefault(key, {**row, "draws": 0, "violations": 0})
            known["draws"] += row["draws"]
            known["violations"] += row["violations"]
            known["ratio"] = max(known["ratio"], row["ratio"])
    return list(found.values())


def _violations(part: pa.Table) -> Iterator[dict[str, Any]]:
    every = _plain(part["label"])
    for label in dict.fromkeys(every.tolist()):
        rows = part.filter(pa.array(every == label))
        for form in ("bound", "bound_tight", "bound_printed"):
            bound = rows[form].to_numpy()
            known = np.isfinite(bound)
            ratio = rows["gap"].to_numpy()[known] / bound[known]
            if ratio.size:
                count, largest = int(np.sum(ratio > 1.0)), float(ratio.max())
                told = {"draws": int(ratio.size), "violations": count, "ratio": largest}
                yield {"label": label, "form": form, **told}


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def labels(summary: Summary) -> list[str]:
    """Labels in the order in which they first occur.

    Examples:
        >>> labels({"label": np.array(["rpo", "dpo", "rpo"])})
        ['rpo', 'dpo']
    """
    return list(dict.fromkeys(str(label) for label in summary["label"]))


def display_name(label: str) -> str:
    """A label with its method written out: ``rpo, chosen`` is RPO, chosen."""
    method, comma, rest = label.partition(",")
    return NAMES.get(method, method) + comma + rest.replace("_", " ")


def interval(summary: Summary, name: str) -> Interval:
    """A mean and the ends of its interval, which are the mean itself if there are none.

    Args:
        summary: the table.
        name: of the mean's column.

    Returns:
        Mean, lower and upper end, of every row.

    Examples:
        >>> table = {"gap": np.array([1.0, 2.0]), "gap_low": np.array([0.5, np.nan])}
        >>> [each.tolist() for each in interval(table, "gap")]
        [[1.0, 2.0], [0.5, 2.0], [1.0, 2.0]]
    """
    mean = np.asarray(summary[name], np.float64)
    ends = (np.asarray(summary.get(name + end, mean), float) for end in ("_low", "_high"))
    low, high = (np.where(np.isnan(end), mean, end) for end in ends)
    return mean, low, high


def curve(
    summary: Summary, across: str, name: str, label: str
) -> tuple[Float[np.ndarray, " k"], Interval]:
    """A line of a figure.

    Args:
        summary: the table.
        across: the column of its places.
        name: the column of its heights.
        label: which line.

    Returns:
        The places in order, and mean and interval there; rows at equal places are averaged.

    Examples:
        >>> table = {"label": np.array(["a"] * 3), "x": np.array([2, 1, 2]), "y": np.arange(3)}
        >>> places, (mean, _, _) = curve(table, "x", "y", "a")
        >>> places.tolist(), mean.tolist()
        ([1.0, 2.0], [1.0, 1.0])
    """
    rows = np.asarray(summary["label"]) == label
    places, which = np.unique(np.asarray(summary[across], np.float64)[rows], return_inverse=True)
    size = np.bincount(which)
    mean, low, high = (
        np.bincount(which, column[rows]) / size for column in interval(summary, name)
    )
    return places, (mean, low, high)


def is_crossed(summary: Summary, *axes: str) -> bool:
    """Whether every label has every combination of several values of each axis.

    Args:
        summary: the table.
        axes: names of columns.

    Returns:
        False where a column is missing, has one value, or follows another.

    Examples:
        >>> table = {"label": np.array(["a", "a"]), "eta": np.array([1, 2]), "n": np.array([4, 9])}
        >>> is_crossed(table, "eta"), is_crossed(table, "eta", "n")
        (True, False)
    """
    if any(name not in summary for name in axes):
        return False
    values = [np.unique(summary[name], return_inverse=True) for name in ("label", *axes)]
    rows = np.stack([place for _, place in values], axis=1)
    full = len(np.unique(rows, axis=0)) == math.prod(len(unique) for unique, _ in values)
    return full and all(len(unique) > 1 for unique, _ in values[1:])


def by_environment(summary: Summary) -> dict[str, Summary]:
    """The table of each environment, in the order in which they first occur.

    Args:
        summary: the table.

    Returns:
        One table named "" where there is no such column.

    Examples:
        >>> table = {"environment": np.array(["b", "a", "b"]), "gap": np.arange(3)}
        >>> by_environment(table)["b"]["gap"].tolist()
        [0, 2]
    """
    if "environment" not in summary:
        return {"": summary}
    column = np.asarray(summary["environment"])
    return {
        str(name): {key: np.asarray(values)[column == name] for key, values in summary.items()}
        for name in dict.fromkeys(column.tolist())
    }


def has_unique_rows(summary: Summary, *axes: str) -> bool:
    """Whether a label and a value of each axis leave one row."""
    names = ("label", *axes)
    rows = np.stack([np.unique(summary[name], return_inverse=True)[1] for name in names], axis=1)
    return len(np.unique(rows, axis=0)) == len(rows)


def with_most_data(summary: Summary) -> Summary:
    """The rows of the largest number of comparisons."""
    if "comparisons" not in summary:
        return summary
    n = np.asarray(summary["comparisons"])
    return {name: np.asarray(column)[n == n.max()] for name, column in summary.items()}


def is_constant(summary: Summary, name: str) -> bool:
    """Whether a column has one value, or is missing."""
    return name not in summary or len(np.unique(summary[name])) == 1
