"""Tables of means: rounding, marks of the best, and the three formats agree."""

from __future__ import annotations

import csv
import io
import math
import re

import numpy as np
import pytest

from rpo.report.tables import (
    MeanTable,
    best_methods,
    csv_table,
    escape_latex,
    format_mean,
    latex_table,
    markdown_table,
)

NAN = math.nan
TABLE = MeanTable(
    axes=("environment", "N"),
    settings=[("four_arms", 100), ("a|b & c", 1000), (None, 10_000)],
    methods=("RPO", "χPO_2"),
    mean=np.array([[0.1, 0.4], [0.2, 0.3], [0.05, NAN]]),
    half_width=np.array([[0.0996, 0.15], [0.04, 0.061], [0.001234, NAN]]),
)


@pytest.mark.parametrize(
    ("mean", "half_width", "expected"),
    [
        (0.039612, 0.011771, ("0.040", "0.012")),
        (0.5, 0.0996, ("0.50", "0.10")),
        (123.4, 56.7, ("123", "57")),
        (-0.0001, 0.02, ("0.000", "0.020")),
        (0.25, 0.0, ("0.250", "0.000")),
        (2.0, NAN, ("2.00", "")),
        (NAN, NAN, ("", "")),
        (math.inf, NAN, ("∞", "")),
        (1e-9, 1e-12, ("0.00000000", "0.00000000")),
    ],
)
def test_closed_form_a_mean_has_the_decimals_of_two_digits_of_its_half_width(
    mean: float, half_width: float, expected: tuple[str, str]
) -> None:
    assert format_mean(mean, half_width) == expected


def test_property_the_best_is_marked_only_where_intervals_separate() -> None:
    # 0.0 to 0.2 is below 0.25 to 0.55; 0.16 to 0.24 and 0.239 to 0.361 overlap; one has no rival.
    assert best_methods(TABLE) == [0, None, None]
    unknown = TABLE._replace(half_width=np.full((3, 2), NAN))
    assert best_methods(unknown) == [None, None, None]
    assert best_methods(TABLE._replace(marks_best=False)) == [None, None, None]


def test_closed_form_latex_marks_the_best_and_escapes_what_is_special() -> None:
    text = latex_table(TABLE, "95 % of J(π) − J(π̂)", name="mine")
    assert r"environment & $N$ & RPO & $\chi$PO\_2 \\" in text
    assert r"four\_arms & 100 & $\mathbf{0.10} \pm 0.10$ & $0.40 \pm 0.15$ \\" in text
    assert r"a|b \& c & 1,000 & $0.200 \pm 0.040$ & $0.300 \pm 0.061$ \\" in text
    assert r"-- & 10,000 & $0.0500 \pm 0.0012$ & -- \\" in text
    assert r"\caption{95 \% of $J(\pi) - J(\hat\pi)$}" in text
    assert r"\label{tab:mine}" in text
    assert text.isascii()
    assert text.count("{") == text.count("}")
    assert len(re.findall(r"\\(top|mid|bottom)rule", text)) == 3


def test_closed_form_markdown_has_one_row_per_setting() -> None:
    lines = markdown_table(TABLE).splitlines()
    assert lines[0] == "| environment | N | RPO | χPO_2 |"
    assert lines[2] == "| four_arms | 100 | **0.10 ± 0.10** | 0.40 ± 0.15 |"
    assert lines[3].startswith("| a\\|b & c | 1,000 |")
    assert lines[4] == "| – | 10,000 | 0.0500 ± 0.0012 | – |"


def test_roundtrip_csv_keeps_all_digits() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(TABLE))))
    assert [row["environment"] for row in rows] == ["four_arms", "a|b & c", ""]
    for row, mean, half_width in zip(rows, TABLE.mean, TABLE.half_width, strict=True):
        for name, *numbers in zip(TABLE.methods, mean, half_width, strict=True):
            read = [float(row[f"{name} {what}"] or NAN) for what in ("mean", "half-width")]
            np.testing.assert_array_equal(read, numbers)


def test_extreme_latex_of_every_special_character() -> None:
    assert escape_latex("a\\b~^{}") == r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{\}"
