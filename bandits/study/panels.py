"""Single panels of studies: the gap as colors, against its bound, and one row per method."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from rpo_io.figures import MARGIN, PALETTE, axes_inches, text_size, tidy_axes
from rpo_io.legends import legend_below, text_inches
from rpo_io.log_ticks import label_log_axis

from .lines import MIN_SHOWN_GAP
from .summary import Summary
from .summary_queries import confidence_interval, display_name, with_most_data

LONGEST_GAP = ".0000"
"""A gap of the greatest length that is written into cells, in two digits."""


def plot_phase(
    summary: Summary, x_column: str, label: str, ax: Axes, *, limits: tuple[float, float]
) -> QuadMesh:
    """Draw the gap of one method as colors, over an axis of the study and the amount of data.

    Args:
        summary: a summary with the columns ``label``, ``comparisons``, ``gap`` and ``x_column``.
        x_column: name of the column on the horizontal axis.
        label: label of the method.
        ax: axes to draw into.
        limits: gaps at the two ends of the logarithmic color scale.

    Returns:
        The colored cells, from which a color bar can be made.
    """
    rows = np.asarray(summary["label"]) == label
    x, y = (np.unique(np.asarray(summary[name])[rows]) for name in (x_column, "comparisons"))
    table = np.full((len(y), len(x)), np.nan)
    row_index, column_index = (
        np.searchsorted(values, np.asarray(summary[name])[rows])
        for values, name in ((y, "comparisons"), (x, x_column))
    )
    table[row_index, column_index] = np.asarray(summary["gap"])[rows]
    mesh = ax.pcolormesh(table, cmap="cividis_r", norm="log", vmin=limits[0], vmax=limits[1])
    middle = np.sqrt(limits[0] * limits[1])
    inches = axes_inches(ax)
    width, height = (inches[0] - MARGIN) / len(x), (inches[1] - MARGIN) / len(y)
    size, needed = min(8.0, text_size()), text_inches(LONGEST_GAP)
    names = [_without_zero(f"{value:.3g}") for value in x]
    for (row, column), gap in np.ndenumerate(table):
        if max(width, height) < needed:
            break  # there is no room for numbers
        color, text = "white" if gap > middle else "black", _without_zero(f"{gap:#.2g}")
        style = {"ha": "center", "va": "center", "rotation": 0.0 if width >= needed else 90.0}
        ax.text(column + 0.5, row + 0.5, text, size=size, color=color, **style)
    is_narrow = max(map(text_inches, names)) + 0.4 * size / 72.0 > width
    ax.set_xticks(np.arange(len(x)) + 0.5, names, rotation=90.0 if is_narrow else 0.0)
    ax.set_yticks(np.arange(len(y)) + 0.5, [_with_unit_prefix(float(value)) for value in y])
    ax.tick_params(length=0)
    ax.set_title(display_name(label))
    tidy_axes(ax)
    return mesh


def plot_bound(summary: Summary, ax: Axes) -> Axes:
    """Draw the bounds of the theorem against the measured gap, one point per cell.

    Points in the shaded area below the diagonal violate the bound.

    Args:
        summary: a summary with the columns ``gap`` and ``bound``, and optionally ``bound_tight``.
        ax: axes to draw into; both scales are set to logarithmic.

    Returns:
        The same axes.
    """
    gap = np.maximum(np.asarray(summary["gap"], np.float64), MIN_SHOWN_GAP)
    series = {"bound": ("Theorem 5.3, corrected", "o", PALETTE["orange"])}
    series |= {"bound_tight": ("with the sharpest constants", "s", PALETTE["blue"])}
    handles, bounds = [], []
    for name, (text, marker, color) in series.items():
        if name not in summary:
            continue
        bound = np.asarray(summary[name], np.float64)
        shown = np.isfinite(bound) & np.isfinite(gap)
        if not shown.any():
            continue
        style = {"ms": 5, "alpha": 0.75, "color": color, "mec": "none"}
        handles += ax.plot(gap[shown], bound[shown], marker, label=text, **style)
        bounds.append(bound[shown])
    low = min([gap.min(), *(bound.min() for bound in bounds)]) / 2.0
    high = max([1.0, *(bound.max() for bound in bounds)]) * 3.0
    ax.plot([low, high], [low, high], color="black", lw=1.2)
    ax.fill_between([low, high], [low, high], low, color=PALETTE["gray"], alpha=0.12, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, gap.max() * 3.0)
    ax.set_ylim(low, high)
    for axis, inches in zip((ax.xaxis, ax.yaxis), axes_inches(ax), strict=True):
        label_log_axis(axis, inches - MARGIN)
    note = {"ha": "right", "color": PALETTE["gray"], "transform": ax.transAxes}
    ax.text(0.97, 0.05, "bound violated", **note)
    ax.set_xlabel("measured gap (units of reward)")
    ax.set_ylabel("bound on the gap (units of reward)")
    ax.set_title("Bound of the theorem against the measured gap", loc="left")
    if handles:
        legend_below(ax, handles, [str(handle.get_label()) for handle in handles])
    return tidy_axes(ax)


def plot_methods(summary: Summary, ax: Axes) -> Axes:
    """Draw the gap of every method with its confidence interval, the smallest on top.

    Args:
        summary: a summary with the columns ``label`` and ``gap``; of ``comparisons`` only the
            largest value is drawn.
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    most = with_most_data(summary)
    rows = list(zip(map(str, most["label"]), *confidence_interval(most, "gap"), strict=True))
    rows.sort(key=lambda row: -row[1])
    for height, (_, gap, low, high) in enumerate(rows):
        ax.plot([low, high], [height, height], lw=5, color=PALETTE["blue"], alpha=0.3)
        ax.plot(gap, height, "o", ms=6, color=PALETTE["blue"], clip_on=False, zorder=3)
        ax.text(high, height, f"  {gap:#.3g}", va="center", size=text_size())
    names = [display_name(row[0]) for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    width = max(axes_inches(ax)[0] - text_inches(max(names, key=len)), 1.0)
    longest = max((text.get_text() for text in ax.texts), key=len)
    room = min(0.5, text_inches(f"{longest} ") / width)  # for the numbers at the right
    right = max(row[3] for row in rows) / (1.0 - room)
    ax.set_xlim(min(0.0, *(row[2] for row in rows)), right if right > 0.0 else 1.0)
    ax.set_xlabel("gap to the best policy (units of reward)")
    n_text = f", N\u00a0=\u00a0{most['comparisons'][0]:,.0f}" if "comparisons" in most else ""
    ax.set_title(f"Mean gap and 95\u00a0% interval{n_text}", loc="left")
    ax.grid(axis="x", alpha=0.3)
    return tidy_axes(ax)


def _without_zero(number: str) -> str:
    """Return a number below 1 without its zero before the decimal point."""
    return number[1:] if number.startswith("0.") else number


def _with_unit_prefix(number: float) -> str:
    """Return a number in few characters, with k for thousands and M for millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
