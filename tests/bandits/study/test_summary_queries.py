"""Columns of a summary, and queries on its rows."""

from __future__ import annotations

import numpy as np

from bandits.study.summary import is_summary_column
from bandits.study.summary_queries import has_unique_rows, is_constant, with_most_data

TABLE = {
    "label": np.array(["a", "a", "b", "b"]),
    "comparisons": np.array([10, 100, 10, 100]),
    "gap": np.array([4.0, 1.0, 5.0, 2.0]),
    "eta": np.array([0.1, 0.1, 0.1, 0.1]),
}


def test_closed_form_with_most_data_keeps_the_largest_number_of_comparisons() -> None:
    assert with_most_data(TABLE)["gap"].tolist() == [1.0, 2.0]
    without = {"gap": np.array([3.0])}
    assert with_most_data(without) is without


def test_closed_form_rows_are_unique_only_with_all_their_axes() -> None:
    assert has_unique_rows(TABLE, "comparisons")
    assert not has_unique_rows(TABLE)
    assert has_unique_rows(with_most_data(TABLE))


def test_closed_form_a_missing_column_is_constant() -> None:
    assert is_constant(TABLE, "eta")
    assert is_constant(TABLE, "beta")
    assert not is_constant(TABLE, "gap")


def test_closed_form_summaries_use_only_their_columns_of_the_records() -> None:
    assert all(
        map(
            is_summary_column, ("label", "gap", "bound_printed", "status", "design.target_coverage")
        )
    )
    assert not any(map(is_summary_column, ("certificate", "seed", "gap_baseline")))
