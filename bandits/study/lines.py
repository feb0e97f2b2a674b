"""Figures of studies with one line per method: the gap against N, and values against KL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from rpo_io.figures import PALETTE

from .summary import Summary
from .summary_queries import curve, display_name, labels

COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colors of lines: those of the other figures first, then others of Okabe and Ito."""
MARKERS = "osD^vP*X"
LINE_HEIGHT = 0.2
"""Height of a line of text, inches."""
MIN_SHOWN_GAP = 1e-6
"""Smaller gaps are drawn at this value on logarithmic axes."""


def plot_gap(summary: Summary, ax: Axes, *, order: Sequence[str] = ()) -> Axes:
    """Draw the gap of every method against the number of comparisons, with confidence bands.

    Each line is named with the slope of its logarithm and the 95 % interval of the slope.

    Args:
        summary: a summary with the columns ``label``, ``comparisons`` and ``gap``.
        ax: axes to draw into; both scales are set to logarithmic.
        order: labels of all panels of the figure, so that a method has one color in all of them;
            by default the labels of this summary.

    Returns:
        The same axes.
    """
    names, heights = [], []
    lines = _styled_labels(summary, order)
    for index, (label, color, marker) in enumerate(lines):
        n, (gap, low, high) = curve(summary, "comparisons", "gap", label)
        extra = 0.9 * (len(lines) - 1 - index)  # earlier lines are wider: coinciding ones show
        ax.fill_between(n, np.maximum(low, MIN_SHOWN_GAP), high, color=color, alpha=0.18, lw=0)
        ax.plot(
            n,
            np.maximum(gap, MIN_SHOWN_GAP),
            marker=marker,
            ms=4.5 + extra,
            lw=1.8 + extra,
            color=color,
        )
        slope, error = log_log_slope(n, gap, low, high)
        text = f"slope {round(slope, 2) + 0.0:.2f} ± {error:.2f}".replace("-", "−")
        # Exact expected counts have no errors, and their lines are curved: no slope is shown.
        name = f"{display_name(label)}\n{text}" if error > 0 else display_name(label)
        names.append((name, color))
        heights.append(max(gap[-1], MIN_SHOWN_GAP))
    ax.set_xscale("log")
    ax.set_yscale("log")
    _label_ends(ax, names, heights)
    ax.set_xlabel("comparisons N")
    ax.set_ylabel("gap to the best policy (units of reward)")
    ax.set_title("Suboptimality gap against the amount of data", loc="left")
    return despine(ax)


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
    names, heights = [], []
    for label, color, marker in _styled_labels(summary, order):
        for value, style in (("proxy_value", "--"), ("true_value", "-")):
            kl, (mean, low, high) = curve(summary, "kl", value, label)
            ax.fill_between(kl, low, high, color=color, alpha=0.15, lw=0)
            dot = marker if value == "true_value" else None
            ax.plot(kl, mean, style, marker=dot, ms=4.5, lw=1.8, color=color)
            names.append((f"{display_name(label)}, {'true' if dot else 'proxy'}", color))
            heights.append(mean[-1])
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    _label_ends(ax, names, heights)
    ax.set_xlabel("KL divergence from the reference (nats)")
    ax.set_ylabel("value above the baseline policy\n(units of reward)")
    ax.set_title("Value under the true reward and under the method's own", loc="left")
    return despine(ax)


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


def despine(ax: Axes) -> Axes:
    """Hide the right and the upper edge of the frame.

    Args:
        ax: axes to change.

    Returns:
        The same axes.
    """
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _label_ends(ax: Axes, names: Sequence[tuple[str, str]], heights: Sequence[float]) -> None:
    """Write the name of each line at its right end, without overlaps."""
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [to_axes.transform((ax.get_xlim()[1], height))[1] for height in heights]
    figure = ax.get_figure(root=True)
    inches = 0.75 * (figure.get_size_inches()[1] if figure else 4.0)
    n_text_lines = max(name.count("\n") + 1 for name, _ in names)
    separated = _separate(wanted, LINE_HEIGHT * n_text_lines / inches)
    for (name, color), height in zip(names, separated, strict=True):
        ax.text(1.02, height, name, color=color, va="center", size=9, transform=ax.transAxes)


def _separate(wanted: Sequence[float], distance: float) -> Float[np.ndarray, " k"]:
    """Move heights to at least ``distance`` from each other, keeping their order and their mean.

    Neighbors that are too close form a block, centered on the mean of the wanted heights.
    """
    order = np.argsort(wanted, kind="stable")
    # Of every member of a block: the height of the block's lowest name that would fit it exactly.
    blocks: list[list[float]] = []
    for height in np.asarray(wanted, np.float64)[order]:
        blocks.append([float(height)])
        while len(blocks) > 1 and np.mean(blocks[-1]) < np.mean(blocks[-2]) + distance * len(
            blocks[-2]
        ):
            upper = blocks.pop()
            blocks[-1] += [start - distance * len(blocks[-1]) for start in upper]
    separated = [np.mean(block) + distance * i for block in blocks for i in range(len(block))]
    heights = np.empty(len(separated))
    heights[order] = separated
    return heights


def _styled_labels(summary: Summary, order: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each label of a summary with its color and marker, by its index in ``order``."""
    shown = labels(summary)
    indices = [(list(order) or shown).index(label) for label in shown]
    return [
        (label, COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)])
        for label, index in zip(shown, indices, strict=True)
    ]
