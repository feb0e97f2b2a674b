"""Figures of studies that are lines: the gap against data, and values against KL divergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from rpo_io.figures import PALETTE

from .summary import Summary, curve, display_name, labels

COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colors, those of the other figures first."""
MARKERS = "osD^vP*X"
LINE = 0.2
"""Height of a line of text, inches."""
SHOWN_GAP = 1e-6
"""Gaps below are drawn here on logarithmic axes."""


def plot_gap(summary: Summary, ax: Axes, *, order: Sequence[str] = ()) -> Axes:
    """Draw the gap against the number of comparisons, with its slope and confidence band.

    Args:
        summary: the table.
        ax: where to draw, both axes logarithmic.
        order: labels of all panels, so that a method looks the same in each.

    Returns:
        The same axes.
    """
    names, heights = [], []
    lines = _styled(summary, order)
    for place, (label, color, marker) in enumerate(lines):
        n, (gap, low, high) = curve(summary, "comparisons", "gap", label)
        under = 0.9 * (len(lines) - 1 - place)  # lines that coincide are all seen
        ax.fill_between(n, np.maximum(low, SHOWN_GAP), high, color=color, alpha=0.18, lw=0)
        ax.plot(
            n,
            np.maximum(gap, SHOWN_GAP),
            marker=marker,
            ms=4.5 + under,
            lw=1.8 + under,
            color=color,
        )
        slope, error = log_log_slope(n, gap, low, high)
        text = f"slope {round(slope, 2) + 0.0:.2f} ± {error:.2f}".replace("-", "−")
        # Without errors the data are exact counts, whose lines bend.
        name = f"{display_name(label)}\n{text}" if error > 0 else display_name(label)
        names.append((name, color))
        heights.append(max(gap[-1], SHOWN_GAP))
    ax.set_xscale("log")
    ax.set_yscale("log")
    _label_ends(ax, names, heights)
    ax.set_xlabel("comparisons N")
    ax.set_ylabel("gap to the best policy (units of reward)")
    ax.set_title("What a method loses, as data grow", loc="left")
    return despine(ax)


def plot_overoptimization(summary: Summary, ax: Axes, *, order: Sequence[str] = ()) -> Axes:
    """Draw the true and the proxy value of policies against the KL divergence they spend.

    Args:
        summary: the table; the rows of a line differ in :math:`\\beta`.
        ax: where to draw.
        order: labels of all panels, so that a method looks the same in each.

    Returns:
        The same axes.
    """
    names, heights = [], []
    for label, color, marker in _styled(summary, order):
        for value, style in (("proxy_value", "--"), ("true_value", "-")):
            kl, (mean, low, high) = curve(summary, "kl", value, label)
            ax.fill_between(kl, low, high, color=color, alpha=0.15, lw=0)
            dot = marker if value == "true_value" else None
            ax.plot(kl, mean, style, marker=dot, ms=4.5, lw=1.8, color=color)
            names.append((f"{display_name(label)}, {'true' if dot else 'believed'}", color))
            heights.append(mean[-1])
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    _label_ends(ax, names, heights)
    ax.set_xlabel("KL divergence spent from the reference (nats)")
    ax.set_ylabel("value above the baseline policy\n(units of reward)")
    ax.set_title("What a policy is worth, and what its own reward says", loc="left")
    return despine(ax)


def log_log_slope(
    n: Float[np.ndarray, " k"],
    gap: Float[np.ndarray, " k"],
    low: Float[np.ndarray, " k"],
    high: Float[np.ndarray, " k"],
) -> tuple[float, float]:
    """Least-squares slope of the log of means on the log of N, with its 95 % interval.

    The interval carries the errors of the means, not the curvature of the line.

    Args:
        n: at least two different numbers.
        gap: means; those that are not positive are left out.
        low: lower ends of their 95 % intervals.
        high: upper ends.

    Returns:
        The slope and the half-width of its interval; ``nan`` without two positive means.

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


def _label_ends(ax: Axes, names: Sequence[tuple[str, str]], heights: Sequence[float]) -> None:
    """Write each line's name beside its end, moved apart where two would overlap."""
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [to_axes.transform((ax.get_xlim()[1], height))[1] for height in heights]
    figure = ax.get_figure(root=True)
    inches = 0.75 * (figure.get_size_inches()[1] if figure else 4.0)
    lines = max(name.count("\n") + 1 for name, _ in names)
    beside = ax.transAxes
    for (name, color), height in zip(names, _apart(wanted, LINE * lines / inches), strict=True):
        ax.text(1.02, height, name, color=color, va="center", size=9, transform=beside)


def _apart(wanted: Sequence[float], least: float) -> Float[np.ndarray, " k"]:
    """Heights near those wanted, in their order, at least so far apart, no sum moved.

    Neighbours that are too close become one block, centred on the mean of what its members want.
    """
    order = np.argsort(wanted, kind="stable")
    blocks: list[list[float]] = []  # centres that members would give the first of their block
    for height in np.asarray(wanted, np.float64)[order]:
        blocks.append([float(height)])
        while len(blocks) > 1 and np.mean(blocks[-1]) < np.mean(blocks[-2]) + least * len(
            blocks[-2]
        ):
            upper = blocks.pop()
            blocks[-1] += [start - least * len(blocks[-1]) for start in upper]
    places = [np.mean(block) + least * i for block in blocks for i in range(len(block))]
    heights = np.empty(len(places))
    heights[order] = places
    return heights


def _styled(summary: Summary, order: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each label with its color and marker."""
    here = labels(summary)
    every = list(order) or here
    places = [every.index(label) for label in here]
    return [
        (label, COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)])
        for label, place in zip(here, places, strict=True)
    ]


def despine(ax: Axes) -> Axes:
    """Axes without a frame on the right and above."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax
