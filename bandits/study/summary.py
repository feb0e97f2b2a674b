r"""Summary of a study: means and confidence intervals over the seeds, one row per cell.

A cell is a combination of label, environment, number of comparisons, weights and axes of the
design. A :data:`Summary` maps the names of columns to arrays of equal length:

============================ ====================================================================
column                       meaning
============================ ====================================================================
``label``                    label of the method
``environment``              source of the bandits; figures have one panel per environment
``comparisons``              :math:`N`
``target_coverage``          target :math:`C` of the comparator, nan if the design has none
``eta``, ``beta``            weights of the adversary and of the KL term
``kl``                       :math:`E\,KL(\hat\pi\|\pi_{ref})`, nats
``gap``                      mean over the seeds of :math:`J(\pi) - J(\hat\pi)`
``gap_regularized``          the same for the value minus the KL penalty
``gap_projected``            the same under the reward of the class that explains the labels best,
                             if the true reward is not in the class
``projection_shift``         what the class then misjudges about the comparator
``win_rate``                 probability of winning against the baseline, and its estimates
                             ``win_rate_ips``, ``win_rate_snips``, ``win_rate_dr``
``interval_width``           width of the confidence interval of the value
``interval_covers``          share of the draws whose interval contains the true difference
``true_value``               mean of :math:`J(\hat\pi) - J(\pi_{base})` under :math:`r^\star`
``proxy_value``              the same under the fitted reward
``bound``, ``bound_tight``   bound of Theorem 5.3, corrected, and with the sharpest constants
``bound_regularized``        bound on ``gap_regularized``
``bound_projected``          bound on ``gap_projected``
``NAME_low``, ``NAME_high``  95 % confidence interval of the mean ``NAME``
``seeds``                    number of fits in the cell
============================ ====================================================================

Columns that a figure does not use are optional.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

Summary = Mapping[str, np.ndarray]
"""Columns of a summary by name."""

STANDARD_ERRORS = 1.959963984540054
"""Half the width of a 95 % confidence interval of a mean, in standard errors."""
CELL_COLUMNS = ("label", "environment", "comparisons", "eta_rule", "beta_rule")
"""Columns of the records that identify a cell, together with the axes of the design."""
AVERAGED_COLUMNS = (
    "gap",
    "gap_regularized",
    "gap_projected",
    "true_value",
    "proxy_value",
    "kl",
    "bound",
    "bound_tight",
    "bound_regularized",
    "bound_projected",
    "projection_shift",
    "interval_width",
    "interval_covers",
    "win_rate",
    "win_rate_ips",
    "win_rate_snips",
    "win_rate_dr",
    "eta",
    "beta",
)
"""Columns of the records that are averaged over the seeds."""
BOUND_FORMS = {
    "bound": "gap",
    "bound_tight": "gap",
    "bound_printed": "gap",
    "bound_regularized": "gap_regularized",
    "bound_projected": "gap_projected",
}
"""Columns of the bounds whose violations are counted, with the columns of what they bound."""


def is_summary_column(name: str) -> bool:
    """Return whether summaries and the count of violations use a column of the records.

    Args:
        name: name of the column.

    Examples:
        >>> is_summary_column("gap"), is_summary_column("seed")
        (True, False)
    """
    columns = (*CELL_COLUMNS, *AVERAGED_COLUMNS, "bound_printed", "status")
    return name in columns or name.startswith("design.")


def summarize(records: Iterable[pa.Table]) -> Summary:
    """Compute means and 95 % confidence intervals over the seeds, for every cell of a study.

    Args:
        records: tables with one row per fit, see :mod:`bandits.study.run`. They are read one at a
            time; a cell may extend over several tables.

    Returns:
        One row per cell. A column that has no value in any cell is left out. The interval of a
        cell with one fit is nan.
    """
    moments = pa.concat_tables([_moments(table) for table in records])
    keys = [name for name in moments.column_names if name in CELL_COLUMNS or _is_axis(name)]
    columns = {name: moments[name].to_numpy() for name in moments.column_names}
    cells = list(zip(*(moments[name].to_pylist() for name in keys), strict=True))
    index_of_cell = {cell: index for index, cell in enumerate(dict.fromkeys(cells))}
    cell_index = np.array([index_of_cell[cell] for cell in cells])
    first = np.unique(cell_index, return_index=True)[1]
    summary = {name: columns[name][first] for name in keys}
    summary["seeds"] = seeds = group_sums(columns["count_all"], cell_index)
    for name in AVERAGED_COLUMNS:
        if f"{name}_mean" not in columns:
            continue
        statistics = (columns[f"{name}_{what}"] for what in ("count", "mean", "variance"))
        mean, deviation = pool_moments(*statistics, cell_index)
        if np.isnan(mean).all():
            continue
        summary[name] = mean
        count = group_sums(columns[f"{name}_count"], cell_index)  # fits that have a value
        half_width = STANDARD_ERRORS * deviation / np.sqrt(np.maximum(count, 1))
        summary[name + "_low"], summary[name + "_high"] = mean - half_width, mean + half_width
    for name in ("eta", "beta"):  # a weight that is constant in a cell is free of roundoff
        smallest, largest = np.full(len(seeds), np.inf), np.full(len(seeds), -np.inf)
        np.minimum.at(smallest, cell_index, columns[f"{name}_min"])
        np.maximum.at(largest, cell_index, columns[f"{name}_max"])
        summary[name] = np.where(smallest == largest, smallest, summary[name])
    # The axis is the target; the coverage that each draw has is in the records.
    summary["target_coverage"] = summary["design.target_coverage"]
    return summary


def count_violations(records: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Count the draws in which the gap of a method is above its bound.

    Args:
        records: tables with one row per fit, see :mod:`bandits.study.run`; read one at a time.

    Returns:
        One row for each label with bounds and each form of the bound: ``label``, ``form``, the
        number of ``draws`` and of ``violations``, and the largest ``ratio`` of gap to bound.
    """
    counts: dict[tuple[str, str], dict[str, Any]] = {}
    for table in records:
        for row in _violations(table):
            key = row["label"], row["form"]
            count = counts.setdefault(key, {**row, "draws": 0, "violations": 0})
            count["draws"] += row["draws"]
            count["violations"] += row["violations"]
            count["ratio"] = max(count["ratio"], row["ratio"])
    return list(counts.values())


def _is_axis(name: str) -> bool:
    return name.startswith("design.")


def _moments(table: pa.Table) -> pa.Table:
    """Return counts, means and variances of the cells in one table of records."""
    keys = [*CELL_COLUMNS, *filter(_is_axis, table.column_names)]
    averaged = [name for name in AVERAGED_COLUMNS if name in table.column_names]
    statistics = ("count", "mean", "variance")
    moments: list[Any] = [(name, what) for name in averaged for what in statistics]
    ends: list[Any] = [(name, end) for name in ("eta", "beta") for end in ("min", "max")]
    count: list[Any] = [([], "count_all")]
    grouping = table.select([*keys, *averaged]).group_by(keys, use_threads=False)
    grouped = grouping.aggregate([*count, *moments, *ends])
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in grouped.columns
    ]
    return pa.table(columns, names=grouped.column_names)


def pool_moments(
    n: Int[np.ndarray, " k"],
    mean: Float[np.ndarray, " k"],
    variance: Float[np.ndarray, " k"],
    cell_index: Int[np.ndarray, " k"],
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Return mean and standard deviation of every cell from those of its pieces.

    Args:
        n: number of values of each piece.
        mean: their mean.
        variance: their variance, the mean squared deviation.
        cell_index: cell of each piece.

    Returns:
        One number of each kind per cell; the deviation of a cell with one value is nan.

    Examples:
        >>> pieces = np.array([1, 1]), np.array([0.0, 2.0]), np.zeros(2)
        >>> [values.round(3).tolist() for values in pool_moments(*pieces, np.array([0, 0]))]
        [[1.0], [1.414]]
    """
    n_cell = np.where(group_sums(n, cell_index) > 0, group_sums(n, cell_index), np.nan)
    mean, variance = np.where(n > 0, mean, 0.0), np.where(n > 0, variance, 0.0)
    cell_mean = group_sums(n * mean, cell_index) / n_cell
    # Deviations from the mean of the cell: raw sums of squares would lose small variances. Bounds
    # are infinite at eta = 0; their variance is then nan, as that of the piece.
    deviation = mean - np.where(np.isfinite(mean), cell_mean[cell_index], 0.0)
    squares = group_sums(n * (variance + deviation**2), cell_index)
    return cell_mean, np.sqrt(squares / np.where(n_cell > 1, n_cell - 1, np.nan))


def group_sums(values: np.ndarray, group_index: Int[np.ndarray, " k"]) -> np.ndarray:
    """Return the sum of the values of each group.

    Args:
        values: one number per row.
        group_index: group of each row.

    Examples:
        >>> group_sums(np.array([1, 2, 3]), np.array([0, 1, 0])).tolist()
        [4, 2]
    """
    return np.bincount(group_index, values).astype(values.dtype)


def _violations(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the counts of ``count_violations`` for one table."""
    labels: np.ndarray = table["label"].to_numpy()
    for label in dict.fromkeys(labels.tolist()):
        rows = table.filter(pa.array(labels == label))
        for form, bounded in BOUND_FORMS.items():
            if form not in table.column_names:  # records of an earlier version
                continue
            bound = rows[form].to_numpy()
            is_known = np.isfinite(bound)
            ratio = rows[bounded].to_numpy()[is_known] / bound[is_known]
            if ratio.size:
                yield {
                    "label": label,
                    "form": form,
                    "draws": int(ratio.size),
                    "violations": int(np.sum(ratio > 1.0)),
                    "ratio": float(ratio.max()),
                }
