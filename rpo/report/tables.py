"""Tables of means with 95 % confidence intervals, as LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rpo_io.atomic import write_atomic

MAX_DECIMALS = 8
MISSING = "–"
LATEX = {
    "J(π) − J(π̂)": r"$J(\pi) - J(\hat\pi)$",
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "π": r"$\pi$",
    "χ": r"$\chi$",
    "±": r"$\pm$",
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


def write_table(table: MeanTable, caption: str, folder: Path, *, name: str) -> list[str]:
    """Write a table as ``table.tex``, ``table.csv`` and ``table.md``.

    Args:
        table: the means.
        caption: caption in LaTeX and text under the table in Markdown.
        folder: folder of the files.
        name: name of the study, for the label in LaTeX.

    Returns:
        Names of the written files.
    """
    texts = {
        "table.tex": latex_table(table, caption, name=name),
        "table.csv": csv_table(table),
        "table.md": f"{markdown_table(table)}\n{caption}\n",
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

    Args:
        table: the means.
        caption: plain text; special characters are escaped.
        name: name of the study; the label is ``tab:NAME``.
    """
    heads = [f"${text}$" if text in SYMBOLS else escape_latex(text) for text in table.axes]
    rows = [[*heads, *map(escape_latex, table.methods)]]
    for index, best in enumerate(best_methods(table)):
        row = [escape_latex(_setting(value)) for value in table.settings[index]]
        for column, (mean, half_width) in enumerate(_texts(table, index)):
            shown = mean.replace("∞", r"\infty").replace("−", "-")
            shown = rf"\mathbf{{{shown}}}" if column == best else shown
            interval = rf" \pm {half_width}" if half_width else ""
            row.append(f"${shown}{interval}$" if mean else "--")
        rows.append(row)
    head, *body = [f"    {' & '.join(row)} \\\\" for row in rows]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{escape_latex(caption)}}}",
            f"  \\label{{tab:{name}}}",
            rf"  \begin{{tabular}}{{{'l' * len(table.axes)}{'r' * len(table.methods)}}}",
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


def csv_table(table: MeanTable) -> str:
    """Return a table as CSV with all digits: per method a mean and a half-width.

    Args:
        table: the means.

    Returns:
        The text of the file; an empty field stands for no number.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{name} {what}" for name in table.methods for what in ("mean", "half-width")]
    writer.writerow([*table.axes, *columns])
    for setting, *numbers in zip(table.settings, table.mean, table.half_width, strict=True):
        pairs = np.column_stack(numbers).ravel().tolist()
        values = ["" if math.isnan(value) else repr(value) for value in pairs]
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
