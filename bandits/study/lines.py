"""Figures of studies with one line per method: the gap against N, and values against KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from rpo_io.figures import MARGIN, PALETTE, axes_inches, line_colors, tidy_axes
from rpo_io.line_plots import NamedLine, draw_lines
from rpo_io.log_ticks import label_log_axis

from .summary import Summary
from .summary_queries import confidence_interval, curve, display_name, labels, with_most_data

MARKERS = "osD^vP*X"
GAP_TEXTS = {
    "gap": (
        "Suboptimality gap against the amount of data",
        "gap to the best policy (units of reward)",
    ),
    "gap_regularized": (
        "Regularized gap against the amount of data",
        "regularized gap (units of reward)",
    ),
    "interval_width": (
        "Width of confidence intervals against the amount of data",
        "width of the interval (units of reward)",
    ),
}
"""Title and label of the vertical axis for each column."""
DESIGN_AXES = {
    "design.label_noise": "probability of a flipped label",
    "design.missing_edges": "probability of a missing pair",
    "design.misspecification": "misspecification (units of reward)",
    "design.prompts_shift": "shift of the prompts (log ratio)",
    "design.rare": "number of rare responses",
    "design.rare_comparisons": "comparisons of a rare response",
    "design.reward_max": "largest reward R_max (units of reward)",
}
"""Axes of a design in figures; the others are named by their key."""
MIN_SHOWN_GAP = 1e-6
"""Smaller gaps are drawn at this value on logarithmic axes."""


def plot_gap(
    summary: Summary,
    ax: Axes,
    *,
    order: Sequence[str] = (),
    column: Literal["gap", "gap_regularized", "interval_width"] = "gap",
) -> Axes:
    """Draw the gap of every method against the number of comparisons, with confidence bands.

    Each line is named with the slope of its logarithm and the 95 % interval of the slope.

    Args:
        summary: a summary with the columns ``label``, ``comparisons`` and that of the gap.
        ax: axes to draw into; both scales are set to logarithmic.
        order: labels of all panels of the figure, so that a method has one color in all of them;
            by default the labels of this summary.
        column: "gap" for the gap in value, "gap_regularized" for that in value minus the KL
            penalty, "interval_width" for the width of confidence intervals.

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    ax.set_yscale("log")
    lines = []
    for label, color, marker in _styled_labels(summary, order):
        n, (gap, low, high) = curve(summary, "comparisons", column, label)
        ax.fill_between(n, np.maximum(low, MIN_SHOWN_GAP), high, color=color, alpha=0.18, lw=0)
        note = _slope_note(*log_log_slope(n, gap, low, high))
        shown = np.maximum(gap, MIN_SHOWN_GAP)
        lines.append(NamedLine(display_name(label), n, shown, color, marker, note))
    intervals = confidence_interval(summary, column)
    if ax.get_autoscaley_on() and intervals.low.min() <= MIN_SHOWN_GAP:
        # Bands that reach zero would stretch the logarithmic axis.
        lowest = max(MIN_SHOWN_GAP, intervals.mean.min() / 3.0)
        ax.set_ylim(lowest, 1.5 * max(intervals.high.max(), MIN_SHOWN_GAP))
    ax.set_xlabel("comparisons N")
    draw_lines(lines, ax)
    # A band that reaches zero has no lower end here; it must not set the scale of the lines.
    if ax.get_autoscaley_on():  # limits that are set are those of all panels
        lowest = min(float(np.min(line.y)) for line in lines)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], lowest / 4.0))
    for axis, inches in zip((ax.xaxis, ax.yaxis), axes_inches(ax), strict=True):
        label_log_axis(axis, inches - MARGIN)
    title, y_label = GAP_TEXTS[column]
    ax.set_ylabel(y_label)
    ax.set_title(title, loc="left")
    return tidy_axes(ax)


def plot_gap_along(summary: Summary, ax: Axes, *, axis: str, order: Sequence[str] = ()) -> Axes:
    """Draw the gap of every method against a numerical axis of the design, at the largest N.

    Args:
        summary: a summary with the columns ``label``, ``gap`` and ``axis``.
        ax: axes to draw into.
        axis: name of the column of the axis, such as "design.misspecification".
        order: labels of all panels of the figure, as in :func:`plot_gap`.

    Returns:
        The same axes.
    """
    shown = with_most_data(summary)
    lines = []
    for label, color, marker in _styled_labels(shown, order):
        x, (gap, low, high) = curve(shown, axis, "gap", label)
        ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        lines.append(NamedLine(display_name(label), x, gap, color, marker))
    name = axis.removeprefix("design.").replace("_", " ")
    ax.set_xlabel(DESIGN_AXES.get(axis, name))
    draw_lines(lines, ax)
    ax.set_ylabel(GAP_TEXTS["gap"][1])
    n = f", N = {int(shown['comparisons'][0]):,}" if "comparisons" in shown else ""
    ax.set_title(f"Suboptimality gap against {name}{n}", loc="left")
    return tidy_axes(ax)


def plot_overoptimization(summary: Summary, ax: Axes, *, order: Sequence[str] = ()) -> Axes:
    r"""Draw the true and the proxy value of every method against its KL from the reference.

    Args:
        summary: a summary with the columns ``label``, ``kl``, ``true_value`` and ``proxy_value``;
            the rows of one label differ in :math:`\beta`.
        ax: axes to draw into.
        order: labels of all panels of the figure, as in :func:`plot_gap`.

    Returns:
        The same axes.
    """
    lines = []
    for label, color, marker in _styled_labels(summary, order):
        for value, name in (("proxy_value", "proxy"), ("true_value", "true")):
            kl, (mean, low, high) = curve(summary, "kl", value, label)
            ax.fill_between(kl, low, high, color=color, alpha=0.15, lw=0)
            is_proxy = value == "proxy_value"
            text = f"{display_name(label)}, {name}"
            dot = "" if is_proxy else marker
            lines.append(NamedLine(text, kl, mean, color, dot, dashed=is_proxy))
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    ax.set_xlabel("KL divergence from the reference (nats)")
    draw_lines(lines, ax)
    ax.set_ylabel("value above the baseline (units of reward)")
    ax.set_title("Value under the true reward and under the method's own", loc="left")
    return tidy_axes(ax)


def log_log_slope(
    n: Float[np.ndarray, " k"],
    gap: Float[np.ndarray, " k"],
    low: Float[np.ndarray, " k"],
    high: Float[np.ndarray, " k"],
) -> tuple[float, float]:
    """Fit the slope of the log of mean gaps against log N by least squares.

    Args:
        n: numbers of comparisons.
        gap: mean gaps; means that are not positive are left out.
        low: lower ends of their 95 % intervals.
        high: upper ends of their 95 % intervals.

    Returns:
        The slope and the half-width of its 95 % interval, propagated from the intervals of the
        means; the curvature of the line is not part of it. Both are nan if fewer than two
        different N have a positive mean.

    Examples:
        >>> n = np.array([10.0, 100.0, 1000.0])
        >>> slope, error = log_log_slope(n, n**-0.5, 0.9 * n**-0.5, 1.1 * n**-0.5)
        >>> round(slope, 3), round(error, 3)
        (-0.5, 0.031)
    """
    shown = gap > 0
    x, y = np.log(n[shown]), np.log(gap[shown])
    if len(np.unique(x)) < 2:
        return float("nan"), float("nan")
    weight = (x - x.mean()) / np.sum(np.square(x - x.mean()))
    error = (high[shown] - low[shown]) / (2.0 * gap[shown])
    return float(weight @ y), float(np.sqrt(np.sum(np.square(weight * error))))


def _slope_note(slope: float, error: float) -> str:
    """Return a slope with the half-width of its interval, to one digit of the latter or more.

    It is empty for exact expected counts, which have no errors, and whose lines are curved.
    """
    if not error > 1e-9:
        return ""
    decimals = min(max(2, math.ceil(-math.log10(error))), 4)
    return f"slope {round(slope, decimals) + 0.0:.{decimals}f} ± {error:.{decimals}f}".replace(
        "-", "−"
    )


def _styled_labels(summary: Summary, order: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each label of a summary with its color and marker, by its index in ``order``."""
    shown, colors = labels(summary), line_colors()
    indices = [(list(order) or shown).index(label) for label in shown]
    return [
        (label, colors[index % len(colors)], MARKERS[index % len(MARKERS)])
        for label, index in zip(shown, indices, strict=True)
    ]
