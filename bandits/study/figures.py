"""Figures of simulation studies, drawn from a summary (:mod:`bandits.study.summary`).

The ``plot_`` functions take and return axes; :func:`draw_figure` fills a whole figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from rpo_io.figures import PALETTE, TEXT_SIZE, tidy_axes

from .lines import MIN_SHOWN_GAP, plot_gap, plot_gap_along, plot_overoptimization
from .summary import Summary
from .summary_queries import (
    by_environment,
    confidence_interval,
    display_name,
    has_unique_rows,
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
    "regularized_gap",
    "gap_along_design",
    "interval_width",
]
"""Names of the figures of a study."""

KINDS_WITH_PANELS = (
    "gap_against_comparisons",
    "overoptimization",
    "method_comparison",
    "regularized_gap",
    "interval_width",
)
"""Figures that have one panel per environment; the others need a single environment."""
MAX_COLUMNS = 2
"""Largest number of panels side by side, so that they are legible in a column of text."""


class Requirements(NamedTuple):
    """Columns and axes that a summary must have for a figure.

    Attributes:
        columns: columns that the figure shows.
        axes: columns that vary; every label must have every combination of their values.
        constant: columns that must not vary.
    """

    columns: tuple[str, ...]
    axes: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()


REQUIREMENTS: Mapping[FigureKind, Requirements] = {
    "gap_against_comparisons": Requirements(("gap",), ("comparisons",), ("target_coverage",)),
    "phase_coverage": Requirements(("gap",), ("target_coverage", "comparisons")),
    "phase_eta": Requirements(("gap",), ("eta", "comparisons")),
    "overoptimization": Requirements(
        ("true_value", "proxy_value", "kl"), ("beta",), ("comparisons", "target_coverage", "eta")
    ),
    "bound_against_gap": Requirements(("gap", "bound")),
    "method_comparison": Requirements(("gap",)),
    # At a fixed weight of the penalty: the theorem's falls with N.
    "regularized_gap": Requirements(
        ("gap_regularized",), ("comparisons",), ("target_coverage", "beta")
    ),
    "gap_along_design": Requirements(("gap",)),
    "interval_width": Requirements(("interval_width",), ("comparisons",), ("target_coverage",)),
}


def figure_kinds(summary: Summary) -> tuple[FigureKind, ...]:
    """Return the kinds of figures that the axes of a study allow.

    Args:
        summary: a summary of the study.

    Returns:
        Kinds in the order of :data:`FigureKind`.

    Examples:
        >>> figure_kinds({"label": np.array(["a", "b"]), "gap": np.array([0.1, 0.2])})
        ('method_comparison',)
    """

    def is_allowed(kind: FigureKind) -> bool:
        panels = by_environment(summary)
        if len(panels) > 1 and kind not in KINDS_WITH_PANELS:
            return False
        return all(fits_panel(panel, kind) for panel in panels.values())

    def fits_panel(panel: Summary, kind: FigureKind) -> bool:
        columns, axes, constant = REQUIREMENTS[kind]
        if not all(name in panel for name in (*columns, "label")):
            return False
        if not all(is_constant(panel, name) for name in constant):
            return False
        if not is_crossed(panel, *axes):
            return False
        match kind:
            case "method_comparison":
                return len(labels(panel)) > 1 and has_unique_rows(with_most_data(panel))
            case "bound_against_gap":
                return True
            case "gap_along_design":
                axis = _design_axis(panel)
                return axis is not None and has_unique_rows(with_most_data(panel), axis)
            case "regularized_gap" if not np.isfinite(panel["gap_regularized"]).all():
                return False
        return has_unique_rows(panel, *axes)

    return tuple(kind for kind in get_args(FigureKind) if is_allowed(kind))


def draw_figure(summary: Summary, kind: str, figure: Figure) -> Figure:
    """Draw one figure of a study.

    Args:
        summary: a summary of the study.
        kind: kind of the figure, one of :func:`figure_kinds`.
        figure: an empty figure; its size and layout are set.

    Returns:
        The same figure.

    Raises:
        ValueError: if the axes of the study do not allow this kind.
    """
    if kind not in figure_kinds(summary):
        allowed = ", ".join(figure_kinds(summary)) or "none"
        rule = f"must be one that the study's axes allow, {allowed}"
        raise ValueError(f"`kind` {rule}, got {kind!r}")
    if kind in ("phase_coverage", "phase_eta"):
        x_column = "target_coverage" if kind == "phase_coverage" else "eta"
        return _draw_phase_diagrams(summary, x_column, figure)
    order = labels(summary)
    plots: Mapping[str, tuple[Callable[[Summary, Axes], Axes], tuple[float, float]]] = {
        "gap_against_comparisons": (partial(plot_gap, order=order), (6.4, 4.0)),
        "overoptimization": (partial(plot_overoptimization, order=order), (6.4, 4.0)),
        "bound_against_gap": (plot_bound, (5.6, 4.4)),
        "method_comparison": (plot_methods, (6.4, 1.3 + 0.32 * len(order))),
        "regularized_gap": (
            partial(plot_gap, order=order, column="gap_regularized"),
            (6.4, 4.0),
        ),
        "interval_width": (
            partial(plot_gap, order=order, column="interval_width"),
            (6.4, 4.0),
        ),
        "gap_along_design": (
            partial(plot_gap_along, order=order, axis=_design_axis(summary) or ""),
            (6.4, 4.0),
        ),
    }
    plot, (width, height) = plots[kind]
    panels = by_environment(summary)
    n_columns = min(len(panels), MAX_COLUMNS)
    n_rows = -(-len(panels) // n_columns)
    scale = 0.7 if n_columns > 1 else 1.0
    figure.set_size_inches(width * scale * n_columns, height * (0.8 if n_rows > 1 else 1) * n_rows)
    figure.set_layout_engine("constrained")
    grid = {"nrows": n_rows, "ncols": n_columns, "squeeze": False}
    axes = figure.subplots(**grid).flat
    limits = _common_limits(plot, panels) if kind != "method_comparison" else None
    for index, ((environment, panel), ax) in enumerate(zip(panels.items(), axes, strict=False)):
        if limits:
            ax.set_ylim(limits)  # the names of lines are written where the lines end
        plot(panel, ax)
        if len(panels) > 1:
            name = environment.partition(":")[2] or environment
            ax.set_title(display_name(name), loc="left", size=TEXT_SIZE + 1)
        if limits and index % n_columns:
            ax.set_ylabel("")
        if limits and index + n_columns < len(panels):
            ax.set_xlabel("")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return figure


def _design_axis(summary: Summary) -> str | None:
    """Return the only axis of the design, if it is numerical, has three values or more, else None.

    The target coverage has figures of its own.
    """
    varying = [
        name for name in summary if name.startswith("design.") and not is_constant(summary, name)
    ]
    if len(varying) != 1 or varying[0] == "design.target_coverage":
        return None
    values = np.asarray(summary[varying[0]])
    return varying[0] if values.dtype.kind in "if" and len(np.unique(values)) > 2 else None


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
    for (row, column), gap in np.ndenumerate(table):
        color = "white" if gap > middle else "black"
        text = f"{gap:#.2g}".removeprefix("0")
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=8, color=color)
    ax.set_xticks(np.arange(len(x)) + 0.5, [f"{value:.3g}" for value in x])
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
    series = {"bound": ("corrected bound", "o", PALETTE["orange"])}
    series |= {"bound_tight": ("with tight constants", "s", PALETTE["blue"])}
    drawn = []
    for name, (text, marker, color) in series.items():
        if name not in summary:
            continue
        bound = np.asarray(summary[name], np.float64)
        shown = np.isfinite(bound) & np.isfinite(gap)
        if not shown.any():
            continue
        ax.plot(gap[shown], bound[shown], marker, ms=5, alpha=0.75, color=color, mec="none")
        drawn.append((text, color, gap[shown], bound[shown]))
    low = min([gap.min(), *(bound.min() for *_, bound in drawn)]) / 2.0
    high = max([1.0, *(bound.max() for *_, bound in drawn)]) * 3.0
    ax.plot([low, high], [low, high], color="black", lw=1.2)
    ax.fill_between([low, high], [low, high], low, color=PALETTE["gray"], alpha=0.12, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, gap.max() * 8.0)
    ax.set_ylim(low, high)
    for text, color, xs, ys in drawn:
        last = np.argmax(xs)
        ax.annotate(
            text,
            (xs[last], ys[last]),
            (6, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    note = {"ha": "right", "color": PALETTE["gray"], "transform": ax.transAxes}
    ax.text(0.97, 0.05, "bound violated", **note)
    ax.set_xlabel("measured gap (units of reward)")
    ax.set_ylabel("bound on the gap (units of reward)")
    ax.set_title("Bound of the theorem against the measured gap", loc="left")
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
        ax.plot(gap, height, "o", ms=6, color=PALETTE["blue"])
        ax.text(high, height, f"  {gap:.3f}", va="center", size=TEXT_SIZE)
    ax.set_yticks(range(len(rows)), [display_name(row[0]) for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlim(min(0.0, *(row[2] for row in rows)), 1.15 * max(row[3] for row in rows))
    ax.set_xlabel("gap to the best policy (units of reward)")
    n_text = f", N = {most['comparisons'][0]:,.0f}" if "comparisons" in most else ""
    ax.set_title(f"Mean and 95 % interval{n_text}", loc="left")
    ax.grid(axis="x", alpha=0.3)
    return tidy_axes(ax)


def _common_limits(
    plot: Callable[[Summary, Axes], Axes], panels: Mapping[str, Summary]
) -> tuple[float, float] | None:
    """Return the vertical limits that show every panel; None for a single panel."""
    if len(panels) == 1:
        return None
    limits = [plot(panel, Figure().subplots()).get_ylim() for panel in panels.values()]
    return min(low for low, _ in limits), max(high for _, high in limits)


def _draw_phase_diagrams(summary: Summary, x_column: str, figure: Figure) -> Figure:
    """Draw one phase diagram per method, with one color scale."""
    shown = labels(summary)
    width = len(np.unique(summary[x_column]))
    height = len(np.unique(summary["comparisons"]))
    n_columns = min(len(shown), MAX_COLUMNS)
    n_rows = -(-len(shown) // n_columns)
    figure.set_size_inches(
        1.5 + n_columns * max(2.2, 0.5 * width), 1.0 + n_rows * (0.5 + 0.36 * height)
    )
    figure.set_layout_engine("constrained")
    gap = np.maximum(np.asarray(summary["gap"], np.float64), MIN_SHOWN_GAP)
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    names = {"target_coverage": "coverage coefficient C", "eta": "weight of the adversary η"}
    limits = (float(gap.min()), float(gap.max()))
    meshes = [
        plot_phase(summary, x_column, label, ax, limits=limits)
        for label, ax in zip(shown, axes.flat, strict=False)
    ]
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    figure.supylabel("comparisons N", size=TEXT_SIZE)
    figure.supxlabel(names[x_column], size=TEXT_SIZE)
    bar = figure.colorbar(meshes[-1], ax=list(axes.flat))
    bar.set_label("gap (units of reward)", size=TEXT_SIZE)
    bar.outline.set_visible(False)
    return figure


def _with_unit_prefix(number: float) -> str:
    """Return a number in few characters, with k for thousands and M for millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
