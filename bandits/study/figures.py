"""Figures of simulation studies, drawn from a summary (:mod:`bandits.study.summary`).

The ``plot_`` functions take and return axes; :func:`draw_figure` fills a whole figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import NullFormatter

from rpo_io.figures import MARGIN, axes_inches, text_size, title_size, wrap_text
from rpo_io.legends import fit_height, share_legend, text_inches
from rpo_io.log_ticks import log_tick_values

from .lines import MIN_SHOWN_GAP, plot_gap, plot_gap_along, plot_overoptimization
from .panels import LONGEST_GAP, plot_bound, plot_methods, plot_phase
from .summary import Summary
from .summary_queries import (
    by_environment,
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
MIN_PANEL_INCHES = 1.5
"""Smallest width of a panel; narrower figures have one panel per row."""
MIN_NAMED_PANEL_INCHES = 2.4
"""Smallest width of a panel with the names of methods at the left."""
MIN_COLOR_RANGE = 2.0
"""Smallest ratio of the ends of a color scale, so that colors do not show noise."""
BAR_INCHES = 0.12
"""Height of a color bar."""
PHASE_COLUMNS = {"phase_coverage": "target_coverage", "phase_eta": "eta"}
"""Columns on the horizontal axes of the phase diagrams."""
TITLES: Mapping[str, str] = {
    "gap_against_comparisons": "Suboptimality gap against the amount of data",
    "phase_coverage": "Suboptimality gap by coverage and amount of data",
    "phase_eta": "Suboptimality gap by weight of the adversary and amount of data",
    "overoptimization": "Value under the true reward and under the method's own",
    "method_comparison": "Mean gap and 95 % interval at the largest number of comparisons",
    "regularized_gap": "Regularized gap against the amount of data",
    "interval_width": "Width of confidence intervals against the amount of data",
}
"""Titles of figures with several panels."""
AXIS_NAMES = {"target_coverage": "coverage coefficient C", "eta": "weight of the adversary η"}
GAP_LABEL = "gap to the best policy (units of reward)"


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
        figure: an empty figure; its width is kept, its height and layout are set.

    Returns:
        The same figure.

    Raises:
        ValueError: if the axes of the study do not allow this kind.
    """
    check_kind(summary, kind)
    figure.set_layout_engine("constrained")
    if kind in PHASE_COLUMNS:
        return _draw_phase_diagrams(summary, PHASE_COLUMNS[kind], figure)
    panels = by_environment(summary)
    width = figure.get_figwidth()
    has_names = kind == "method_comparison"
    smallest = MIN_NAMED_PANEL_INCHES if has_names else MIN_PANEL_INCHES
    n_columns = min(len(panels), MAX_COLUMNS, max(1, int(width / smallest)))
    n_rows = -(-len(panels) // n_columns)
    order = labels(summary)
    plot = partial(_plot_panel, kind=kind, order=order)
    height = n_rows * _panel_height(kind, width / n_columns, len(order))
    figure.set_figheight(height)
    grid = {"nrows": n_rows, "ncols": n_columns, "squeeze": False}
    axes = figure.subplots(**grid).flat
    limits = None if has_names else _common_limits(plot, panels)
    for index, ((environment, panel), ax) in enumerate(zip(panels.items(), axes, strict=False)):
        if limits:
            ax.set_ylim(limits)  # the names of lines are written where the lines end
        plot(panel, ax)
        if len(panels) > 1:
            name = environment.partition(":")[2] or environment
            ax.set_title(display_name(name), loc="left", size=title_size())
        if limits:
            ax.tick_params(labelleft=index % n_columns == 0)
        if limits and index + n_columns < len(panels):
            ax.set_xlabel("")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if len(panels) > 1:
        _set_title(figure, kind)
        share_legend(figure)
        if limits:
            _share_label(figure, height)
    fit_height(figure, height)
    return figure


def plot_figure(summary: Summary, kind: str, ax: Axes) -> Axes:
    """Draw one figure of a study into given axes.

    Args:
        summary: a summary of the study, with one environment, and for the kinds "phase_coverage"
            and "phase_eta" with one label.
        kind: kind of the figure, one of :func:`figure_kinds`.
        ax: axes to draw into, in a figure of its final size.

    Returns:
        The same axes.

    Raises:
        ValueError: if the axes of the study do not allow this kind, or one panel does not have
            everything.
    """
    check_kind(summary, kind)
    environments, shown = list(by_environment(summary)), labels(summary)
    if len(environments) > 1:
        raise ValueError(f"`environment` must be one of {', '.join(environments)}, got None")
    if kind not in PHASE_COLUMNS:
        return _plot_panel(summary, ax, kind=kind, order=shown)
    if len(shown) > 1:
        raise ValueError(f"`label` must be one of {', '.join(shown)}, got None")
    column = PHASE_COLUMNS[kind]
    mesh = plot_phase(summary, column, shown[0], ax, limits=_gap_limits(summary))
    ax.set_xlabel(AXIS_NAMES[column])
    ax.set_ylabel("comparisons N")
    inches = axes_inches(ax)[1] - MARGIN
    _add_color_bar(mesh, [ax], inches, {"location": "right"})
    return ax


def check_kind(summary: Summary, kind: str) -> None:
    """Refuse a kind of figure that the axes of a study do not allow.

    Args:
        summary: a summary of the study.
        kind: name of the kind.

    Raises:
        ValueError: if the kind is unknown or the study does not allow it.
    """
    if kind not in figure_kinds(summary):
        allowed = ", ".join(figure_kinds(summary)) or "none"
        rule = f"must be one that the study's axes allow, {allowed}"
        raise ValueError(f"`kind` {rule}, got {kind!r}")


def _plot_panel(summary: Summary, ax: Axes, *, kind: str, order: Sequence[str]) -> Axes:
    """Draw the panel of one environment."""
    match kind:
        case "overoptimization":
            return plot_overoptimization(summary, ax, order=order)
        case "bound_against_gap":
            return plot_bound(summary, ax)
        case "method_comparison":
            return plot_methods(summary, ax)
        case "regularized_gap":
            return plot_gap(summary, ax, order=order, column="gap_regularized")
        case "interval_width":
            return plot_gap(summary, ax, order=order, column="interval_width")
        case "gap_along_design":
            return plot_gap_along(summary, ax, order=order, axis=_design_axis(summary) or "")
    return plot_gap(summary, ax, order=order)


def _panel_height(kind: str, width: float, n_labels: int) -> float:
    """Return the height of a panel of a width without its legend, inches."""
    if kind == "method_comparison":
        return (9.0 + 2.4 * n_labels) * text_size() / 72.0
    return max(1.9, 0.9 + 0.46 * width)


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


def _common_limits(
    plot: Callable[[Summary, Axes], Axes], panels: Mapping[str, Summary]
) -> tuple[float, float] | None:
    """Return the vertical limits that show every panel; None for a single panel."""
    if len(panels) == 1:
        return None
    limits = [plot(panel, Figure().subplots()).get_ylim() for panel in panels.values()]
    return min(low for low, _ in limits), max(high for _, high in limits)


def _set_title(figure: Figure, kind: str) -> None:
    """Write the title of a figure with several panels, which have titles of their own."""
    size = FontProperties(size=title_size()).get_size_in_points()
    text = wrap_text(TITLES[kind], figure.get_figwidth(), size)
    figure.suptitle(text, x=0.01, ha="left", size=size)


def _share_label(figure: Figure, height: float) -> None:
    """Write the label of the vertical axes once, at the left of all panels."""
    labels = [ax.get_ylabel().replace("\n", " ") for ax in figure.axes if ax.get_visible()]
    for ax in figure.axes:
        ax.set_ylabel("")
    size = text_size()
    figure.supylabel(wrap_text(labels[0], height - MARGIN, size), size=size)


def _gap_limits(summary: Summary) -> tuple[float, float]:
    """Return the smallest and the largest gap, moved apart if they are nearly equal."""
    gap = np.maximum(np.asarray(summary["gap"], np.float64), MIN_SHOWN_GAP)
    low, high = float(gap.min()), float(gap.max())
    apart = max(1.0, np.sqrt(MIN_COLOR_RANGE * low / high))
    return low / apart, high * apart


def _draw_phase_diagrams(summary: Summary, x_column: str, figure: Figure) -> Figure:
    """Draw one phase diagram per method, with one color scale."""
    shown = labels(summary)
    n_cells = len(np.unique(summary[x_column])), len(np.unique(summary["comparisons"]))
    width, size = figure.get_figwidth(), text_size()
    cell_inches = text_inches(LONGEST_GAP)
    fitting = int((width - MARGIN) / (n_cells[0] * cell_inches + 0.1))
    n_columns = min(len(shown), MAX_COLUMNS, max(1, fitting))
    n_rows = -(-len(shown) // n_columns)
    # In narrow cells numbers are turned.
    is_narrow = (width / n_columns - MARGIN) / n_cells[0] < cell_inches
    panel_height = (3.2 + (3.6 if is_narrow else 2.2) * n_cells[1]) * size / 72.0
    panel_height += MARGIN if is_narrow else 0.0
    figure.set_figheight(n_rows * panel_height + 10.0 * size / 72.0)
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    limits = _gap_limits(summary)
    meshes = [
        plot_phase(summary, x_column, label, ax, limits=limits)
        for label, ax in zip(shown, axes.flat, strict=False)
    ]
    for index in range(len(shown), axes.size):
        axes.flat[index].set_visible(False)
        axes.flat[index - n_columns].xaxis.set_tick_params(labelbottom=True)
    for ax in axes.flat[max(0, len(shown) - n_columns) : len(shown)]:
        ax.set_xlabel(AXIS_NAMES[x_column])
    for ax in axes[:, 0]:
        ax.set_ylabel("comparisons N")
    _set_title(figure, "phase_coverage" if x_column == "target_coverage" else "phase_eta")
    inches = width - MARGIN
    share = BAR_INCHES / (n_rows * panel_height)
    position = {"location": "bottom", "aspect": inches / BAR_INCHES, "fraction": share}
    _add_color_bar(meshes[-1], list(axes.flat), inches, position)
    return figure


def _add_color_bar(
    mesh: QuadMesh, axes: Sequence[Axes], inches: float, position: dict[str, Any]
) -> None:
    """Add a color bar of a length, labeled with powers of ten or numbers that do not touch."""
    label = wrap_text(GAP_LABEL, inches, text_size())
    bar = axes[0].figure.colorbar(mesh, ax=axes, label=label, **position)
    bar.outline.set_visible(False)
    is_horizontal = position["location"] == "bottom"
    axis = bar.ax.xaxis if is_horizontal else bar.ax.yaxis
    axis.set_minor_formatter(NullFormatter())  # its labels would overlap
    values = log_tick_values(*mesh.get_clim(), inches, is_horizontal=is_horizontal)
    if values:
        bar.set_ticks(values, labels=[f"{value:g}" for value in values])
