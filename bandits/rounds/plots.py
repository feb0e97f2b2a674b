"""Figures of a study in rounds.

The ``plot_`` functions take and return axes; :func:`draw_rounds_figure` fills a whole figure.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rpo_io.figures import PALETTE, tidy_axes
from rpo_io.legends import fit_height
from rpo_io.line_plots import NamedLine, draw_lines

from .growth import labels, mean_curve, measure_growth
from .run import RoundsResult

COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colors of lines: those of the other figures first, then others of Okabe and Ito."""
UNITS = {
    "cumulative_regret": "cumulative regret (units of reward)",
    "cumulative_gap": "cumulative gap to the best policy\n(units of reward)",
}
"""Label of the axis of every column that can be drawn."""


KINDS = ("cumulative_regret", "cumulative_regret_growth")
"""Names of the figures of a study in rounds."""


def rounds_figure_kinds(result: RoundsResult) -> tuple[str, ...]:
    """Return the names of the figures of a study.

    Args:
        result: a study.

    Returns:
        The names; a figure of the growth needs at least two rounds.
    """
    return KINDS if result.growth else KINDS[:1]


def draw_rounds_figure(result: RoundsResult, kind: str, figure: Figure) -> Figure:
    """Draw one figure of a study.

    Args:
        result: a study.
        kind: name of the figure, one of :func:`rounds_figure_kinds`.
        figure: an empty figure; its width is kept, its height and layout are set.

    Returns:
        The same figure.

    Raises:
        ValueError: if the study has no such figure.
    """
    height = max(2.4, 0.9 + 0.46 * figure.get_figwidth())
    figure.set_figheight(height)
    figure.set_layout_engine("constrained")
    plot_rounds_figure(result, kind, figure.subplots())
    fit_height(figure, height)
    return figure


def plot_rounds_figure(result: RoundsResult, kind: str, ax: Axes) -> Axes:
    """Draw one figure of a study into given axes.

    Args:
        result: a study.
        kind: name of the figure, one of :func:`rounds_figure_kinds`.
        ax: axes to draw into, in a figure of its final size.

    Returns:
        The same axes.

    Raises:
        ValueError: if the study has no such figure.
    """
    kinds = rounds_figure_kinds(result)
    if kind not in kinds:
        raise ValueError(f"`kind` must be one of {', '.join(kinds)}, got {kind!r}")
    if kind == "cumulative_regret":
        return plot_cumulative_regret(result.records, ax)
    return plot_cumulative_regret_growth(result.records, ax)


def plot_cumulative_regret(records: pa.Table, ax: Axes, column: str = "cumulative_regret") -> Axes:
    """Draw the cumulative regret of every method against the rounds, with 95 % intervals.

    Args:
        records: records of a study in rounds.
        ax: axes to draw into.
        column: "cumulative_regret" or "cumulative_gap".

    Returns:
        The same axes.
    """
    lines = []
    for label, color in zip(labels(records), cycle(COLORS), strict=False):
        curve = mean_curve(records, label, column)
        ax.fill_between(curve.rounds, curve.low, curve.high, color=color, alpha=0.18, lw=0)
        lines.append(NamedLine(label.replace(", ", ",\n"), curve.rounds, curve.mean, color))
    ax.set_xlabel("round t")
    ax.set_xlim(0, records["round"].to_numpy().max())
    draw_lines(lines, ax)
    ax.set_ylim(bottom=0.0)
    ax.set_ylabel(UNITS[column])
    ax.set_title("Cumulative regret over the rounds")
    return tidy_axes(ax)


def plot_cumulative_regret_growth(
    records: pa.Table, ax: Axes, column: str = "cumulative_regret"
) -> Axes:
    """Draw the cumulative regret on logarithmic axes, with the slope of every method.

    A slope of 1 is linear regret. The dotted line has slope 1; slopes are fitted over the last
    factor of ten of the rounds, and their 95 % intervals are bootstrap intervals over the seeds.

    Args:
        records: records of a study in rounds, at least two.
        ax: axes to draw into; both scales are set to logarithmic.
        column: "cumulative_regret" or "cumulative_gap".

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    ax.set_yscale("log")
    lines, largest = [], 0.0
    for growth, color in zip(measure_growth(records, column), cycle(COLORS), strict=False):
        curve = mean_curve(records, growth.label, column)
        shown = curve.mean > 0
        low = np.maximum(curve.low, 0.5 * curve.mean)  # an interval may reach below zero
        ax.fill_between(
            curve.rounds[shown], low[shown], curve.high[shown], color=color, alpha=0.18, lw=0
        )
        note = f"slope {growth.slope:.2f} [{growth.low:.2f}, {growth.high:.2f}]"
        name = growth.label.replace(", ", ",\n")
        lines.append(NamedLine(name, curve.rounds[shown], curve.mean[shown], color, note=note))
        largest = max(largest, growth.final)
    ax.set_xlabel("round t")
    draw_lines(lines, ax)
    rounds = records["round"].to_numpy().max() * np.array([0.1, 1.0])
    ax.plot(rounds, largest * np.array([0.16, 1.6]), ":", color=PALETTE["gray"], lw=1.2)
    ax.annotate(
        "slope 1", (rounds[0], 0.16 * largest), ha="right", va="center", color=PALETTE["gray"]
    )
    ax.set_ylabel(UNITS[column])
    ax.set_title("Growth of the cumulative regret")
    return tidy_axes(ax)
