"""Tables of means: rounding, marks of the best, and the three formats agree."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpo.report.study_captions import difference_caption, difference_table, gap_table
from rpo.report.tables import (
    MAX_ROWS,
    CaptionedTable,
    MeanTable,
    best_methods,
    csv_table,
    escape_latex,
    format_mean,
    latex_table,
    markdown_table,
    write_tables,
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
    assert r"a\textbar{}b \& c & 1,000 & $0.200 \pm 0.040$ & $0.300 \pm 0.061$ \\" in text
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


def test_property_a_table_beyond_a_page_becomes_several_with_every_cell_once() -> None:
    n_rows, n_methods = 100, 9
    mean = np.arange(n_rows * n_methods).reshape(n_rows, n_methods) + 1000.0
    table = MeanTable(
        ("N",),
        [(index,) for index in range(n_rows)],
        tuple(f"method {index}" for index in range(n_methods)),
        mean,
        np.full_like(mean, 1.0),
    )
    text = latex_table(table, "Means.", name="wide")
    parts = text.split(r"\begin{table}")[1:]
    assert len(parts) == text.count(r"\end{table}") > 5
    assert all(part.count(r" \\") <= MAX_ROWS + 1 for part in parts)
    assert f"Means. Part 2 of {len(parts)}." in parts[1]
    assert r"\label{tab:wide}" in parts[0]
    assert r"\label{tab:wide-2}" in parts[1]
    shown = [int(number) for number in re.findall(r"(\d{4})\.0[} ]", text)]
    assert sorted(shown) == list(range(1000, 1000 + mean.size))


def summary_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_closed_form_differences_have_the_rows_of_the_gaps_and_no_column_of_the_first() -> None:
    cells = [
        {"label": label, "environment": "e", "comparisons": n, "gap": gap, "seeds": 9}
        for n, gap in ((10, 0.5), (20, 0.25))
        for label in ("rpo", "dpo", "ipo")
    ]
    paired = [
        {"label": label, "environment": "e", "comparisons": n, "pairs": 9, "difference": size * n}
        | {"difference_low": size * n - 0.5, "difference_high": size * n + 0.5}
        for label, size in (("ipo", 0.2), ("dpo", 0.1))
        for n in (20, 10)  # another order than that of the gaps
    ]
    for row in cells + paired:
        row["label"] = row["label"].replace("ipo", "two_stage")  # shown with a plus sign
    paired.append({**paired[0], "label": "kto"})  # left out for its failed fits
    gaps = gap_table(summary_of(cells))
    table = difference_table(summary_of(cells), summary_of(paired), "rpo")
    assert (table.axes, list(table.settings)) == (gaps.axes, list(gaps.settings))
    assert table.methods == ("DPO − RPO", "(two-stage MLE + KL) − RPO")
    np.testing.assert_allclose(table.mean, [[1.0, 2.0], [2.0, 4.0]])
    np.testing.assert_allclose(table.half_width, 0.5)
    assert best_methods(table) == [None, None]
    caption = difference_caption(summary_of(paired), "rpo")
    assert "minus that of RPO on the same bandits and data" in caption
    assert "Means over 9 pairs" in caption
    header, first = csv_table(gaps, table).splitlines()[:2]
    assert header.endswith(
        "two-stage MLE + KL half-width,DPO − RPO mean,DPO − RPO half-width,"
        "(two-stage MLE + KL) − RPO mean,(two-stage MLE + KL) − RPO half-width"
    )
    assert first.endswith(",1.0,0.5,2.0,0.5")


def test_roundtrip_files_hold_all_tables(tmp_path: Path) -> None:
    tables = {"": CaptionedTable(TABLE, "Gaps."), "differences": CaptionedTable(TABLE, "Pairs.")}
    assert write_tables(tables, tmp_path, name="mine") == ["table.tex", "table.csv", "table.md"]
    latex, markdown = ((tmp_path / f"table.{end}").read_text() for end in ("tex", "md"))
    for label in ("mine", "mine-differences"):
        assert rf"\label{{tab:{label}}}" in latex
    assert latex.index("Gaps.") < latex.index("Pairs.")
    assert markdown.count("\n| ---") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_parity_latex_compiles_tables_with_special_characters_within_the_page(
    tmp_path: Path,
) -> None:
    special = '[a]_b 50% & ^~{x} \\y <b> | "q" é'
    greek = "θ, λ ≥ 2 × ∞ √N ± χ’s – − ε"
    table = TABLE._replace(axes=(special, "N"), methods=(greek, special))
    wide = MeanTable(
        ("C",), [(special,)] * 90, (special,) * 8, np.full((90, 8), 0.123), np.full((90, 8), 0.01)
    )
    caption = f"95 % of J(π) − J(π̂) with {special} and {greek}"
    tables = {"": CaptionedTable(table, caption), "wide": CaptionedTable(wide, caption)}
    write_tables(tables, tmp_path, name="a_b")
    text = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}"
    )
    (tmp_path / "paper.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log
    assert "too large" not in log
