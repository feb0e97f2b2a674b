"""Paired differences against NumPy by hand: pieces, missing fits, axes without values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bandits.study import paired_differences, summarize

SEEDS = 40
LABELS = ("rpo", "dpo", "ipo")


def records() -> list[dict[str, Any]]:
    """Return fits of three methods in two cells, with a difficulty that each draw has."""
    rng = np.random.default_rng(3)
    rows = []
    for comparisons, coverage in ((100, 2.0), (1000, None)):
        difficulty = rng.exponential(size=SEEDS)
        for index, label in enumerate(LABELS):
            gaps = difficulty + 0.1 * index + 0.05 * rng.normal(size=SEEDS)
            rows += [
                {
                    "label": label,
                    "environment": "design",
                    "comparisons": comparisons,
                    "eta_rule": "0.1",
                    "beta_rule": "theorem",
                    "design.target_coverage": coverage,
                    "seed": seed,
                    "gap": float(gaps[seed]),
                    "eta": 0.1,
                    "beta": 0.1,
                }
                for seed in range(SEEDS)
            ]
    return rows


def tables(rows: list[dict[str, Any]], size: int) -> list[pa.Table]:
    whole = pa.Table.from_pylist(rows)
    return [
        pa.table(
            {
                name: part[name].dictionary_encode() if name == "label" else part[name]
                for name in part.column_names
            }
        )
        for part in (whole.slice(start, size) for start in range(0, len(rows), size))
    ]


@pytest.mark.parametrize("size", [1000, 17])
def test_parity_the_difference_is_that_of_numpy_in_any_pieces(size: int) -> None:
    rows = records()
    paired = paired_differences(tables(rows, size), "rpo", ["dpo", "ipo"])
    assert sorted(zip(paired["label"], paired["comparisons"], strict=True)) == [
        (label, n) for label in ("dpo", "ipo") for n in (100, 1000)
    ]
    for i, (label, n) in enumerate(zip(paired["label"], paired["comparisons"], strict=True)):
        gaps = [
            np.array([r["gap"] for r in rows if (r["label"], r["comparisons"]) == (name, n)])
            for name in (label, "rpo")
        ]
        difference = gaps[0] - gaps[1]
        half = 1.959963984540054 * difference.std(ddof=1) / np.sqrt(SEEDS)
        assert paired["pairs"][i] == SEEDS
        expected = [difference.mean(), difference.mean() - half, difference.mean() + half]
        columns = ("difference", "difference_low", "difference_high")
        np.testing.assert_allclose([paired[name][i] for name in columns], expected, atol=1e-14)


def test_property_the_interval_is_narrower_than_that_of_unpaired_means() -> None:
    rows = records()
    paired = paired_differences(tables(rows, 50), "rpo", "dpo")
    summary = summarize(tables(rows, 50))
    of_cell = {
        (label, n): high - low
        for label, n, low, high in zip(
            *(summary[name] for name in ("label", "comparisons", "gap_low", "gap_high")),
            strict=True,
        )
    }
    widths = paired["difference_high"] - paired["difference_low"]
    for n, width in zip(paired["comparisons"], widths, strict=True):
        assert width < 0.2 * np.hypot(of_cell["rpo", n], of_cell["dpo", n])


def test_extreme_failed_fits_and_draws_of_one_method_are_left_out() -> None:
    rows = [row for row in records() if row["comparisons"] == 100]
    kept = [row for row in rows if (row["label"], row["seed"]) != ("dpo", 3)]
    failed = [row | {"gap": None} if row["seed"] == 5 else row for row in kept]
    paired = paired_differences(tables(failed, 30), "rpo", "dpo")
    assert paired["pairs"].tolist() == [SEEDS - 2]
    gaps = {(row["label"], row["seed"]): row["gap"] for row in rows}
    seeds = [seed for seed in range(SEEDS) if seed not in (3, 5)]
    expected = np.mean([gaps["dpo", seed] - gaps["rpo", seed] for seed in seeds])
    assert paired["difference"][0] == pytest.approx(expected, abs=1e-14)


def test_limit_a_study_of_one_method_has_no_differences() -> None:
    assert paired_differences(tables(records(), 1000), "rpo", []) == {}
