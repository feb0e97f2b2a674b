"""Captions of a study's figures, and the table of its gaps: numbers of seeds and intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .tables import MeanTable

if TYPE_CHECKING:
    from bandits.study.figures import FigureKind
    from bandits.study.summary import Summary

GAP = "Suboptimality gap J(π) − J(π̂), in units of reward"
WHAT: dict[str, str] = {
    "gap_against_comparisons": f"{GAP}, against the number of comparisons N on logarithmic axes.",
    "phase_coverage": f"{GAP}, by coverage coefficient C and number of comparisons N.",
    "phase_eta": f"{GAP}, by weight of the adversary η and number of comparisons N.",
    "overoptimization": (
        "Value above that of the baseline policy under the true reward (solid) and under the "
        "reward that the method fits (dashed), in units of reward, against the KL divergence "
        "E KL(π̂ || π_ref) in nats."
    ),
    "bound_against_gap": (
        "Bound of Theorem 5.3 against the measured suboptimality gap, both in units of reward and "
        "as means. One point stands for one setting; a point in the shaded area violates the bound."
    ),
    "method_comparison": f"{GAP}, at N = {{most}} comparisons.",
    "regularized_gap": (
        "Gap in value minus the KL penalty, in units of reward, against the number of comparisons "
        "N on logarithmic axes."
    ),
    "interval_width": (
        "Width of each fit's confidence interval for the value above that of the baseline policy, "
        "in units of reward, against the number of comparisons N on logarithmic axes."
    ),
    "gap_along_design": f"{GAP}, at N = {{most}} comparisons.",
}
"""What each kind of figure shows; ``{most}`` stands for the largest number of comparisons."""
BANDS = (
    "overoptimization",
    "gap_against_comparisons",
    "regularized_gap",
    "gap_along_design",
    "interval_width",
)
LOG_LOG = "gap_against_comparisons", "regularized_gap", "interval_width"
AXES = {
    "environment": "environment",
    "design.target_coverage": "C",
    "eta_rule": "η",
    "beta_rule": "β",
    "comparisons": "N",
}
"""Columns of a summary that distinguish its cells, with their names in tables."""


def figure_caption(summary: Summary, kind: FigureKind, left_out: Sequence[str] = ()) -> str:
    """Return the caption of a figure.

    Args:
        summary: the summary that is drawn.
        kind: kind of the figure.
        left_out: labels of methods without a policy in some fits, which no figure shows.
    """
    most = f"{int(np.max(summary['comparisons'])):,}"
    sentences = [WHAT[kind].replace("{most}", most), _seeds(summary)]
    if _has_intervals(summary):
        interval = "95 % confidence intervals of the mean (mean ± 1.96 standard errors over seeds)"
        if kind in BANDS:
            sentences.append(f"Shaded bands are {interval}.")
        elif kind == "method_comparison":
            sentences.append(f"Bars are {interval}.")
        elif kind != "bound_against_gap":
            widest = float(np.nanmax((summary["gap_high"] - summary["gap_low"]) / 2.0))
            rule = f"at most {widest:.2g}"
            sentences.append(f"The half-widths of the {interval} are {rule}.")
        if kind in LOG_LOG:
            sentences.append(
                "Slopes, if shown, are least-squares fits on the logarithms, ± 95 % intervals."
            )
    return " ".join([*sentences, *_left_out(left_out)])


def table_caption(summary: Summary, left_out: Sequence[str] = ()) -> str:
    """Return the caption of the table of gaps.

    Args:
        summary: the summary.
        left_out: labels of methods without a policy in some fits, which the table leaves out.
    """
    sentences = [f"{GAP}.", _seeds(summary)]
    if _has_intervals(summary):
        sentences += [
            "± is the half-width of the 95 % confidence interval of the mean (1.96 standard errors "
            "over seeds).",
            "Bold: the smallest mean of a row, where its interval is below all others.",
        ]
    return " ".join([*sentences, *_left_out(left_out)])


def difference_caption(paired: Summary, first: str, left_out: Sequence[str] = ()) -> str:
    """Return the caption of the table of paired differences.

    Args:
        paired: the paired differences.
        first: label of the method that the others are compared with.
        left_out: labels of methods without a policy in some fits, which the table leaves out.
    """
    from bandits.study.summary_queries import display_name

    reference = display_name(first)
    low, high = int(np.min(paired["pairs"])), int(np.max(paired["pairs"]))
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    pairs = "pair" if high == 1 else "pairs"
    sentences = [
        f"Suboptimality gap minus that of {reference} on the same bandits and data, in units of "
        f"reward: below 0 a method is better than {reference}.",
        f"Means over {number} {pairs} of fits per method and setting.",
    ]
    if np.isfinite(paired["difference_low"]).any():
        sentences.append(
            "± is the half-width of the 95 % confidence interval of the mean difference (1.96 "
            "standard errors over pairs)."
        )
    return " ".join([*sentences, *_left_out(left_out)])


def gap_table(summary: Summary) -> MeanTable:
    """Return the mean gaps of a study, one row per setting and one column per method.

    Args:
        summary: a summary of the study.

    Returns:
        The table; axes with a single value are left out.
    """
    from bandits.study.summary_queries import labels

    methods = labels(summary)
    names = tuple(map(_name, methods))
    return _mean_table(summary, summary, "gap", methods)._replace(methods=names)


def difference_table(summary: Summary, paired: Summary, first: str) -> MeanTable:
    """Return the mean differences of the gaps from those of one method, on the same draws.

    Args:
        summary: a summary of the study, whose settings are the rows.
        paired: the paired differences, from :func:`bandits.study.paired.paired_differences`.
        first: label of the method that the others are compared with.

    Returns:
        The table, one row per setting and one column per other method.
    """
    from bandits.study.summary_queries import labels

    methods = [label for label in labels(summary) if label != first]
    names = tuple(f"{_operand(label)} − {_operand(first)}" for label in methods)
    table = _mean_table(summary, paired, "difference", methods)
    return table._replace(methods=names, marks_best=False)


def _mean_table(
    settings: Summary, cells: Summary, column: str, methods: Sequence[str]
) -> MeanTable:
    """Return the means of a column of cells, one row per setting of another summary."""
    from bandits.study.summary_queries import is_constant

    *others, comparisons = AXES
    designs = [name for name in settings if name.startswith("design.") and name not in AXES]
    columns = [name for name in (*others, *designs, comparisons) if not is_constant(settings, name)]
    rows = {cell: index for index, cell in enumerate(dict.fromkeys(_cells(settings, columns)))}
    mean = np.full((len(rows), len(methods)), np.nan)
    half_width = mean.copy()
    for index, cell in enumerate(_cells(cells, columns)):
        label = str(cells["label"][index])
        if label not in methods or cell not in rows:
            continue
        cell_index = rows[cell], methods.index(label)
        mean[cell_index] = cells[column][index]
        if f"{column}_high" in cells:
            ends = cells[f"{column}_low"][index], cells[f"{column}_high"][index]
            half_width[cell_index] = (ends[1] - ends[0]) / 2.0
    names = [AXES.get(name, name.removeprefix("design.").replace("_", " ")) for name in columns]
    return MeanTable(tuple(names), list(rows), tuple(methods), mean, half_width)


def _cells(summary: Summary, columns: Sequence[str]) -> list[tuple[str | float | None, ...]]:
    """Return the values of columns in each row of a summary."""
    if not columns:
        return [()] * len(summary["label"])
    values = [np.asarray(summary[name]).tolist() for name in columns]
    return [tuple(map(_plain, cell)) for cell in zip(*values, strict=True)]


def _name(label: str) -> str:
    """Return the name of a method in a table, on one line."""
    from bandits.study.summary_queries import display_name

    return " ".join(display_name(label).split())


def _operand(label: str) -> str:
    """Return the name of a method as a part of a difference."""
    name = _name(label)
    return f"({name})" if re.search(r" [+−-] ", name) else name


def _seeds(summary: Summary) -> str:
    """Return the sentence about the number of seeds, which is exact."""
    low, high = int(np.min(summary["seeds"])), int(np.max(summary["seeds"]))
    if low != high:
        return f"Means over {low:,} to {high:,} seeds per method and setting."
    if low == 1:
        return "One seed per method and setting, without intervals."
    return f"Means over {low:,} seeds per method and setting."


def _has_intervals(summary: Summary) -> bool:
    return "gap_low" in summary and bool(np.isfinite(summary["gap_low"]).any())


def _left_out(left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    return [f"Left out, for fits without a policy: {', '.join(dict.fromkeys(left_out))}."]


def _plain(value: str | float | None) -> str | float | None:
    """Return None for nan, which is not equal to itself."""
    return None if isinstance(value, float) and np.isnan(value) else value
