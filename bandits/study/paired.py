r"""Differences between two methods on the same draws, with 95 % confidence intervals.

All methods of a study see the same bandits and data. The gaps of two methods on one draw are
therefore correlated, and the mean of their differences has a narrower interval than the difference
of their means. Draws are paired by scenario, weights and seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from .summary import CELL_COLUMNS, STANDARD_ERRORS, Summary, group_sums, pool_moments


def is_paired_column(name: str) -> bool:
    """Return whether paired differences use a column of the records.

    Args:
        name: name of the column.

    Examples:
        >>> is_paired_column("seed"), is_paired_column("kl")
        (True, False)
    """
    return name in (*CELL_COLUMNS, "seed", "gap") or name.startswith("design.")


def paired_differences(
    records: Iterable[pa.Table], first: str, others: str | Sequence[str]
) -> Summary:
    """Compute the mean difference of the gaps of methods on the same draws, for every cell.

    Args:
        records: tables with one row per fit, see :mod:`bandits.study.run`. They are read one at a
            time; the fits of one draw may be in several tables.
        first: label of the method that the others are compared with.
        others: labels of the other methods, or one of them.

    Returns:
        One row per cell and label of ``others``: the columns that identify the cell, the number of
        ``pairs``, and the mean ``difference`` of the gap of the label minus that of ``first``, with
        ``difference_low`` and ``difference_high``. Pairs with a failed fit are left out, and so are
        draws that lack one of the methods. The interval of a single pair is nan.

    Examples:
        >>> keys = {"environment": "e", "comparisons": 9, "eta_rule": "1", "beta_rule": "1"}
        >>> rows = [("a", 0, 0.1), ("b", 0, 0.3), ("a", 1, 0.2), ("b", 1, 0.4)]
        >>> rows = [{"label": label, "seed": seed, "gap": gap} | keys for label, seed, gap in rows]
        >>> paired_differences([pa.Table.from_pylist(rows)], "a", "b")["difference"].round(3)
        array([0.2])
    """
    labels = [first, *([others] if isinstance(others, str) else others)]
    cells: dict[tuple, int] = {}
    pieces: list[tuple[int, int, float, float]] = []
    pending = None
    for table in records:
        table = _plain(table.select(list(filter(is_paired_column, table.column_names))))
        joined = table if pending is None else pa.concat_tables([pending, table])
        draws, gaps, pending = _complete_draws(joined, labels)
        pieces.extend(_pieces(draws, gaps, cells, labels[1:]))
    if pending is None or not pieces:
        return {}
    keys = [name for name in pending.column_names if name not in ("label", "seed", "gap")]
    columns = zip(*cells, strict=True)
    summary = {
        name: pa.array(column).to_numpy(zero_copy_only=False)
        for name, column in zip(("label", *keys), columns, strict=True)
    }
    index, count, mean, variance = (np.array(column) for column in zip(*pieces, strict=True))
    mean, deviation = pool_moments(count, mean, variance, index)
    summary["pairs"] = group_sums(count, index)
    half_width = STANDARD_ERRORS * deviation / np.sqrt(np.maximum(summary["pairs"], 1))
    summary["difference"] = mean
    summary["difference_low"], summary["difference_high"] = mean - half_width, mean + half_width
    return summary


def _plain(table: pa.Table) -> pa.Table:
    """Return a table without dictionaries, which may differ from table to table."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _complete_draws(
    table: pa.Table, labels: Sequence[str]
) -> tuple[pa.Table, Float[np.ndarray, "n k"], pa.Table]:
    """Return the draws with a fit of every label, their gaps, and the rows of all other draws."""
    label_index = np.full(table.num_rows, -1)
    row_labels = np.array(table["label"].to_pylist())
    for index, label in enumerate(labels):
        label_index[row_labels == label] = index
    keys = [name for name in table.column_names if name not in ("label", "gap")]
    draw = _codes(table, keys)
    wanted = label_index >= 0
    fits = np.bincount(draw[wanted], minlength=len(draw))
    is_complete = wanted & (fits[draw] == len(labels))
    rows = np.flatnonzero(is_complete)
    rows = rows[np.lexsort((label_index[rows], draw[rows]))].reshape(-1, len(labels))
    gaps = table["gap"].to_numpy().astype(np.float64)[rows]
    return table.take(rows[:, 0]), gaps, table.filter(pa.array(wanted & ~is_complete))


def _codes(table: pa.Table, names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Return an index for each row that equals that of another row if all columns do."""
    codes = np.zeros(table.num_rows, np.int64)
    for name in names:
        column = table[name].combine_chunks().dictionary_encode().indices
        values = column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        # The indices stay small, so that their products do not overflow.
        codes = np.unique(codes * (values.max(initial=0) + 2) + values, return_inverse=True)[1]
    return codes


def _pieces(
    draws: pa.Table,
    gaps: Float[np.ndarray, "n k"],
    cells: dict[tuple, int],
    labels: Sequence[str],
) -> Iterable[tuple[int, int, float, float]]:
    """Yield cell, number, mean and variance of the differences in each cell of one table."""
    keys = [name for name in draws.column_names if name not in ("label", "seed", "gap")]
    code = _codes(draws, keys)
    for group in range(code.max(initial=-1) + 1):
        rows = np.flatnonzero(code == group)
        cell = tuple(draws[name][int(rows[0])].as_py() for name in keys)
        for column, label in enumerate(labels, start=1):
            difference = gaps[rows, column] - gaps[rows, 0]
            difference = difference[np.isfinite(difference)]
            index = cells.setdefault((label, *cell), len(cells))
            if difference.size:
                yield index, difference.size, float(difference.mean()), float(difference.var())
            else:
                yield index, 0, 0.0, 0.0
