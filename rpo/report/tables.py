"""Tables of means with 95 % confidence intervals, as LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rpo_io.atomic import write_atomic

MAX_DECIMALS = 8
MISSING = "–"
TEXT_WIDTH = 345.0
"""Width of the text of LaTeX's class ``article``, points."""
POINTS_PER_CHARACTER = 4.3
POINTS_PER_COLUMN = 8.0
"""Approximate widths of a character and of the space between columns, in small text."""
MAX_ROWS = 42
"""Largest number of rows of a table on a page."""
PACKAGES = r"% Needs \usepackage{booktabs}."
LATEX = {
    "J(π) − J(π̂)": r"$J(\pi) - J(\hat\pi)$",
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]"},  # an option at the start of a row
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "ζ": r"$\zeta$",
    "η": r"$\eta$",
    "θ": r"$\theta$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "ν": r"$\nu$",
    "ξ": r"$\xi$",
    "π": r"$\pi$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "φ": r"$\phi$",
    "χ": r"$\chi$",
    "ψ": r"$\psi$",
    "ω": r"$\omega$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "−": r"$-$",
    "√": r"$\surd$",
    "∞": r"$\infty$",
    "≥": r"$\ge$",
    "–": "--",
    "’": "'",
}
"""Characters and formulas that LaTeX writes differently in text."""
SYMBOLS = ("N", "C")
"""Names of axes that are symbols; LaTeX writes them in italics."""


class MeanTable(NamedTuple):
    """Means of several methods, one row per setting.

    Attributes:
        axes: names of what distinguishes the rows.
        settings: values of the axes, one tuple per row; None for a value that does not apply.
        methods: names of the columns of means.
        mean: the means, shape ``[r, m]``; nan for none.
        half_width: half the widths of their 95 % intervals; nan if unknown.
        marks_best: whether smaller means are better, so that the smallest may be marked.
    """

    axes: tuple[str, ...]
    settings: Sequence[tuple[str | float | None, ...]]
    methods: tuple[str, ...]
    mean: Float[np.ndarray, "r m"]
    half_width: Float[np.ndarray, "r m"]
    marks_best: bool = True


class CaptionedTable(NamedTuple):
    """A table and its caption."""

    table: MeanTable
    caption: str


def write_tables(tables: Mapping[str, CaptionedTable], folder: Path, *, name: str) -> list[str]:
    """Write tables with the same rows as ``table.tex``, ``table.csv`` and ``table.md``.

    LaTeX and Markdown have one table after the other, CSV their columns beside each other.

    Args:
        tables: tables by the end of their label in LaTeX, "" for the name of the study alone.
        folder: folder of the files.
        name: name of the study, for the labels in LaTeX.

    Returns:
        Names of the written files.
    """
    latex = [
        latex_table(table, caption, name="-".join(filter(None, (name, key))))
        for key, (table, caption) in tables.items()
    ]
    markdown = [f"{markdown_table(table)}\n{caption}\n" for table, caption in tables.values()]
    texts = {
        "table.tex": "\n".join([PACKAGES, *latex]),
        "table.csv": csv_table(*(table for table, _ in tables.values())),
        "table.md": "\n".join(markdown),
    }
    for file, text in texts.items():
        write_atomic(folder / file, text.encode())
    return list(texts)


def write_captions(captions: Mapping[str, str], folder: Path) -> str:
    """Write the captions of figures and table as ``captions.json``.

    Args:
        captions: captions by the name of the figure, or "table".
        folder: folder of the file.

    Returns:
        Name of the file.
    """
    text = json.dumps(captions, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "captions.json", text.encode())
    return "captions.json"


def format_mean(mean: float, half_width: float) -> tuple[str, str]:
    """Round a mean and the half-width of its interval to the same decimal.

    Args:
        mean: the mean.
        half_width: half the width of its interval; nan if unknown.

    Returns:
        Both numbers as text: two significant digits of the half-width. The half-width is "" if it
        is unknown, and the mean then has three significant digits; both are "" for no mean.

    Examples:
        >>> format_mean(0.039612, 0.011771), format_mean(0.0396, float("nan"))
        (('0.040', '0.012'), ('0.0396', ''))
    """
    if not math.isfinite(mean):
        return ("", "") if math.isnan(mean) else ("∞" if mean > 0 else "−∞", "")
    if not math.isfinite(half_width):
        return f"{mean + 0.0:#.3g}".rstrip("."), ""
    decimals = 3
    if half_width > 0.0:
        decimals = min(max(1 - math.floor(math.log10(half_width)), 0), MAX_DECIMALS)
        # Rounding up to the next power of ten would leave three digits.
        if round(half_width, decimals) >= 10.0 ** (2 - decimals):
            decimals = max(decimals - 1, 0)
    return f"{round(mean, decimals) + 0.0:.{decimals}f}", f"{half_width:.{decimals}f}"


def best_methods(table: MeanTable) -> list[int | None]:
    """Return the best method of each row, if its interval is below those of all other methods.

    Args:
        table: the means.

    Returns:
        Index of the column; None if intervals overlap or are unknown, or nothing is compared.

    Examples:
        >>> mean, half_width = np.array([[0.1, 0.4], [0.1, 0.2]]), np.full((2, 2), 0.1)
        >>> best_methods(MeanTable(("N",), [(10,), (20,)], ("a", "b"), mean, half_width))
        [0, None]
    """
    best: list[int | None] = []
    for mean, half_width in zip(table.mean, table.half_width, strict=True):
        present = np.flatnonzero(np.isfinite(mean))
        order = present[np.argsort(mean[present], kind="stable")]
        ends = mean[order] - half_width[order]
        is_separate = (
            table.marks_best
            and len(order) > 1
            and mean[order[0]] + half_width[order[0]] < ends[1:].min()
        )
        best.append(int(order[0]) if is_separate else None)
    return best


def latex_table(table: MeanTable, caption: str, *, name: str) -> str:
    r"""Return a table in LaTeX, with the rules of booktabs and its caption.

    A table that is too wide or too high for a page becomes several ones.

    Args:
        table: the means.
        caption: plain text; special characters are escaped.
        name: name of the study; the label is ``tab:NAME``, that of further parts ``tab:NAME-2``.
    """
    parts = [(rows, columns) for rows in _row_groups(table) for columns in _column_groups(table)]
    texts = []
    for number, (rows, columns) in enumerate(parts, start=1):
        part = f" Part {number} of {len(parts)}." if len(parts) > 1 else ""
        label = name if number == 1 else f"{name}-{number}"
        texts.append(_latex_part(table, rows, columns, caption=caption + part, label=label))
    return "\n".join(texts)


def _latex_part(
    table: MeanTable, rows: range, columns: Sequence[int], *, caption: str, label: str
) -> str:
    """Return some rows and columns of a table in LaTeX."""
    heads = [f"${text}$" if text in SYMBOLS else escape_latex(text) for text in table.axes]
    lines = [[*heads, *(escape_latex(table.methods[column]) for column in columns)]]
    best = best_methods(table)
    for index in rows:
        line = [escape_latex(_setting(value)) for value in table.settings[index]]
        texts = _texts(table, index)
        for column in columns:
            mean, half_width = texts[column]
            shown = mean.replace("∞", r"\infty").replace("−", "-")
            shown = rf"\mathbf{{{shown}}}" if column == best[index] else shown
            interval = rf" \pm {half_width}" if half_width else ""
            line.append(f"${shown}{interval}$" if mean else "--")
        lines.append(line)
    head, *body = [f"    {' & '.join(line)} \\\\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            r"  \small",
            r"  \setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{escape_latex(caption)}}}",
            f"  \\label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{'l' * len(table.axes)}{'r' * len(columns)}}}",
            r"    \toprule",
            head,
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _row_groups(table: MeanTable) -> list[range]:
    """Return the indices of the rows of each part, of nearly equal sizes."""
    n_rows = len(table.settings)
    n_parts = max(1, -(-n_rows // MAX_ROWS))
    ends = [round(part * n_rows / n_parts) for part in range(n_parts + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def _column_groups(table: MeanTable) -> list[list[int]]:
    """Return the indices of the columns of means of each part, at least one."""

    def points(texts: Sequence[str]) -> float:
        return POINTS_PER_CHARACTER * max(map(len, texts)) + POINTS_PER_COLUMN

    axes = [
        points([name, *(_setting(setting[index]) for setting in table.settings)])
        for index, name in enumerate(table.axes)
    ]
    rows = [_texts(table, index) for index in range(len(table.settings))]
    groups: list[list[int]] = []
    room = 0.0
    for column, name in enumerate(table.methods):
        cells = [f"{mean} ± {half_width}" for mean, half_width in (row[column] for row in rows)]
        room -= points([name, *cells])
        if room < 0.0:
            groups.append([])
            room = TEXT_WIDTH - sum(axes) - points([name, *cells])
        groups[-1].append(column)
    return groups


def markdown_table(table: MeanTable) -> str:
    """Return a table in Markdown.

    Args:
        table: the means.
    """
    lines = [[*table.axes, *table.methods], ["---"] * (len(table.axes) + len(table.methods))]
    for index, best in enumerate(best_methods(table)):
        row = [_setting(value) for value in table.settings[index]]
        for column, (mean, half_width) in enumerate(_texts(table, index)):
            text = f"{mean} ± {half_width}" if half_width else mean or MISSING
            row.append(f"**{text}**" if column == best else text)
        lines.append(row)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def csv_table(*tables: MeanTable) -> str:
    """Return tables with the same rows as one CSV with all digits.

    Args:
        *tables: the tables.

    Returns:
        The text of the file, with the mean and the half-width of every method of every table; an
        empty field stands for no number.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [name for table in tables for name in table.methods]
    columns = [f"{name} {what}" for name in names for what in ("mean", "half-width")]
    writer.writerow([*tables[0].axes, *columns])
    for index, setting in enumerate(tables[0].settings):
        pairs = [
            np.column_stack((table.mean[index], table.half_width[index])).ravel()
            for table in tables
        ]
        numbers = np.concatenate(pairs).tolist()
        values = ["" if math.isnan(value) else repr(value) for value in numbers]
        writer.writerow(["" if value is None else value for value in setting] + values)
    return buffer.getvalue()


def escape_latex(text: str) -> str:
    r"""Return a text as LaTeX writes it.

    Args:
        text: plain text.

    Examples:
        >>> print(escape_latex("χPO_1, 95 %"))
        $\chi$PO\_1, 95 \%
    """
    longest_first = sorted(LATEX, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda part: LATEX[part[0]], text)


def _texts(table: MeanTable, index: int) -> list[tuple[str, str]]:
    return [
        format_mean(float(mean), float(half_width))
        for mean, half_width in zip(table.mean[index], table.half_width[index], strict=True)
    ]


def _setting(value: str | float | None) -> str:
    """Return the value of an axis as a table shows it."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    is_whole = float(value).is_integer() and abs(value) < 1e15
    return f"{int(value):,}" if is_whole else f"{value:.4g}"
