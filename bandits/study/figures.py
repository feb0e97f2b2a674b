"""Figures of simulation studies, from their summary (:mod:`bandits.study.summary`).

Every plot takes and returns axes; :func:`draw_figure` fills a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from rpo_io.figures import PALETTE

from .lines import SHOWN_GAP, despine, plot_gap, plot_overoptimization
from .summary import (
    Summary,
    by_environment,
    display_name,
    has_unique_rows,
    interval,
    is_constant,
    is_crossed,
    labels,
    with_most_data,
)

FigureKind = Literal[
    "gap_against_comparisons",
    "phase_coverage",
    "phase_eta",
    "overoptimization",
    "bound_against_gap",
    "method_comparison",
]

PANELLED = ("gap_against_comparisons", "overoptimization", "method_comparison")
"""Figures that have a panel for each environment."""
MAX_PANELS = 4
"""Phase diagrams side by side."""
NEEDS: Mapping[FigureKind, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "gap_against_comparisons": (("gap",), ("comparisons",), ("target_coverage",)),
    "phase_coverage": (("gap",), ("target_coverage", "comparisons"), ()),
    "phase_eta": (("gap",), ("eta", "comparisons"), ()),
    "overoptimization": (
        ("true_value", "proxy_value", "kl"),
        ("beta",),
        ("comparisons", "target_coverage", "eta"),
    ),
    "bound_against_gap": (("gap", "bound"), (), ()),
    "method_comparison": (("gap",), (), ()),
}
"""For each figure the columns that it needs, the axes of its grid, and those that must not vary."""


def figure_kinds(summary: Summary) -> tuple[FigureKind, ...]:
    """Figures that a study's axes allow.

    Args:
        summary: the table.

    Returns:
        Names of figures, in the order of :data:`FigureKind`.

    Examples:
        >>> figure_kinds({"label": np.array(["a", "b"]), "gap": np.array([0.1, 0.2])})
        ('method_comparison',)
    """

    def allowed(kind: FigureKind) -> bool:
        parts = by_environment(summary)
        if len(parts) > 1 and kind not in PANELLED:
            return False
        return all(alone(part, kind) for part in parts.values())

    def alone(summary: Summary, kind: FigureKind) -> bool:
        columns, axes, constant = NEEDS[kind]
        if not all(name in summary for name in (*columns, "label")):
            return False
        if not all(is_constant(summary, name) for name in constant):
            return False
        if not is_crossed(summary, *axes):
            return False
        match kind:
            case "method_comparison":
                return len(labels(summary)) > 1 and has_unique_rows(with_most_data(summary))
            case "bound_against_gap":
                return True
        return has_unique_rows(summary, *axes)

    return tuple(kind for kind in get_args(FigureKind) if allowed(kind))


def draw_figure(summary: Summary, kind: str, figure: Figure) -> Figure:
    """Draw one figure of a study.

    Args:
        summary: the table.
        kind: a name of :func:`figure_kinds`.
        figure: an empty figure; its size is set.

    Returns:
        The same figure.

    Raises:
        ValueError: a kind that the summary does not allow.
    """
    if kind not in figure_kinds(summary):
        rule = (
            f"must be one that the study's axes allow, {', '.join(figure_kinds(summary)) or 'none'}"
        )
        raise ValueError(f"`kind` {rule}, got {kind!r}")
    if kind in ("phase_coverage", "phase_eta"):
        return _draw_phases(
            summary, "target_coverage" if kind == "phase_coverage" else "eta", figure
        )
    plots: Mapping[str, tuple[Callable[[Summary, Axes], Axes], tuple[float, float]]] = {
        "gap_against_comparisons": (partial(plot_gap, order=labels(summary)), (8.2, 4.6)),
        "overoptimization": (partial(plot_overoptimization, order=labels(summary)), (8.2, 4.6)),
        "bound_against_gap": (plot_bound, (6.4, 4.8)),
        "method_comparison": (plot_methods, (7.4, 1.4 + 0.42 * len(labels(summary)))),
    }
    plot, (width, height) = plots[kind]
    parts = by_environment(summary)
    figure.set_size_inches(width * (0.75 * len(parts) if len(parts) > 1 else 1.0), height)
    figure.set_layout_engine("constrained")
    lines = kind != "method_comparison"
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=lines)[0]
    for (environment, part), ax in zip(parts.items(), panels, strict=True):
        plot(part, ax)
        if len(parts) > 1:
            name = environment.partition(":")[2] or environment
            ax.set_title(display_name(name), loc="left")
        if lines and ax is not panels[0]:
            ax.set_ylabel("")
    return figure


def plot_phase(
    summary: Summary, across: str, label: str, ax: Axes, *, limits: tuple[float, float]
) -> QuadMesh:
    """Draw the gap of one method over an axis of the study and the number of comparisons.

    Args:
        summary: the table.
        across: the column on the horizontal axis.
        label: the method.
        ax: where to draw.
        limits: gaps at the ends of the color scale.

    Returns:
        The colored cells, for a color bar.
    """
    rows = np.asarray(summary["label"]) == label
    x, y = (np.unique(np.asarray(summary[name])[rows]) for name in (across, "comparisons"))
    table = np.full((len(y), len(x)), np.nan)
    places = [
        np.searchsorted(values, np.asarray(summary[name])[rows])
        for values, name in ((y, "comparisons"), (x, across))
    ]
    table[places[0], places[1]] = np.asarray(summary["gap"])[rows]
    mesh = ax.pcolormesh(table, cmap="cividis_r", norm="log", vmin=limits[0], vmax=limits[1])
    middle = np.sqrt(limits[0] * limits[1])
    for (row, column), gap in np.ndenumerate(table):
        color = "white" if gap > middle else "black"
        text = f"{gap:#.2g}".removeprefix("0")
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=8, color=color)
    ax.set_xticks(np.arange(len(x)) + 0.5, [f"{value:.3g}" for value in x])
    ax.set_yticks(np.arange(len(y)) + 0.5, [_compact(float(value)) for value in y])
    ax.tick_params(length=0)
    ax.set_title(display_name(label))
    return mesh


def plot_bound(summary: Summary, ax: Axes) -> Axes:
    """Draw the theorem's bound against the measured gap, a point a cell.

    Args:
        summary: the table.
        ax: where to draw, both axes logarithmic; below the diagonal a bound is broken.

    Returns:
        The same axes.
    """
    gap = np.maximum(np.asarray(summary["gap"], np.float64), SHOWN_GAP)
    lines = {"bound": ("corrected bound", "o", PALETTE["orange"])}
    lines |= {"bound_tight": ("with tight constants", "s", PALETTE["blue"])}
    tops = []
    for name, (text, marker, color) in lines.items():
        if name not in summary:
            continue
        bound = np.asarray(summary[name], np.float64)
        shown = np.isfinite(bound) & np.isfinite(gap)
        if not shown.any():
            continue
        ax.plot(gap[shown], bound[shown], marker, ms=5, alpha=0.75, color=color, mec="none")
        tops.append((text, color, gap[shown], bound[shown]))
    low = min([gap.min(), *(bound.min() for *_, bound in tops)]) / 2.0
    high = max([1.0, *(bound.max() for *_, bound in tops)]) * 3.0
    ax.plot([low, high], [low, high], color="black", lw=1.2)
    ax.fill_between([low, high], [low, high], low, color=PALETTE["gray"], alpha=0.12, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, gap.max() * 8.0)
    ax.set_ylim(low, high)
    for text, color, xs, ys in tops:
        last = np.argmax(xs)
        ax.annotate(
            text,
            (xs[last], ys[last]),
            (6, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    ax.text(0.97, 0.05, "bound broken", transform=ax.transAxes, ha="right", color=PALETTE["gray"])
    ax.set_xlabel("measured gap (units of reward)")
    ax.set_ylabel("bound on the gap (units of reward)")
    ax.set_title("The guarantee and what happens", loc="left")
    return despine(ax)


def plot_methods(summary: Summary, ax: Axes) -> Axes:
    """Draw the gap of every method with its confidence interval, the best on top.

    Args:
        summary: the table; the rows of the most comparisons count.
        ax: where to draw.

    Returns:
        The same axes.
    """
    most = with_most_data(summary)
    rows = list(zip(map(str, most["label"]), *interval(most, "gap"), strict=True))
    rows.sort(key=lambda row: -row[1])
    for place, (_, gap, low, high) in enumerate(rows):
        ax.plot([low, high], [place, place], lw=5, color=PALETTE["blue"], alpha=0.3)
        ax.plot(gap, place, "o", ms=6, color=PALETTE["blue"])
        ax.text(high, place, f"  {gap:.3f}", va="center", size=9)
    ax.set_yticks(range(len(rows)), [display_name(row[0]) for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlim(min(0.0, *(row[2] for row in rows)), 1.15 * max(row[3] for row in rows))
    ax.set_xlabel("gap to the best policy (units of reward)")
    where = f", N = {most['comparisons'][0]:,.0f}" if "comparisons" in most else ""
    ax.set_title(f"Mean and 95 % interval{where}", loc="left")
    ax.grid(axis="x", alpha=0.3)
    return despine(ax)


def _draw_phases(summary: Summary, across: str, figure: Figure) -> Figure:
    """One phase diagram a method, on one color scale."""
    shown = labels(summary)[:MAX_PANELS]
    width = len(np.unique(summary[across]))
    height = len(np.unique(summary["comparisons"]))
    figure.set_size_inches(1.6 + len(shown) * max(2.4, 0.62 * width), 1.6 + 0.42 * height)
    figure.set_layout_engine("constrained")
    gap = np.maximum(np.asarray(summary["gap"], np.float64), SHOWN_GAP)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    names = {"target_coverage": "coverage coefficient C", "eta": "weight of the adversary η"}
    limits = (float(gap.min()), float(gap.max()))
    meshes = [
        plot_phase(summary, across, label, ax, limits=limits)
        for label, ax in zip(shown, panels, strict=True)
    ]
    panels[0].set_ylabel("comparisons N")
    figure.supxlabel(names[across], size="medium")
    bar = figure.colorbar(meshes[-1], ax=list(panels), label="gap (units of reward)")
    bar.outline.set_visible(False)
    return figure


def _compact(number: float) -> str:
    """A number of comparisons in few characters."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
