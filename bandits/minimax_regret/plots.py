"""Figures of a study of minimax regret.

The ``plot_`` functions take and return axes; :func:`draw_minimax_figure` fills a whole figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from rpo_io.figures import MARGIN, PALETTE, axes_inches, tidy_axes
from rpo_io.legends import fit_height, share_legend
from rpo_io.line_plots import NamedLine, draw_lines
from rpo_io.log_ticks import label_values

from .config import worlds_of
from .run import MinimaxRegretResult

MinimaxFigureKind = Literal["regret_by_world", "worst_case_against_comparisons"]
"""Names of the figures of a study of minimax regret."""

PANELS: Mapping[str, tuple[str, ...]] = {
    "regret_by_world": ("regret", "prior"),
    "worst_case_against_comparisons": (),
}
"""Names of the panels of each figure; none for a figure with one."""
BEST = "best possible"
"""Name of the minimax rule in figures."""
COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00")
"""Colors of the methods, those of Okabe and Ito; the minimax rule is black."""
MARKERS = "osD^vP*X"
WORLD_LABEL = "true reward difference r(1)\u00a0−\u00a0r(0) (units of reward)"
"""Label of the horizontal axis of the worlds with two actions."""
MIN_SHOWN = 1e-6
"""Smaller values are drawn at this one on logarithmic axes."""


def minimax_figure_kinds(result: MinimaxRegretResult) -> tuple[MinimaxFigureKind, ...]:
    """Return the kinds of figures that a study allows.

    Args:
        result: result of the study.

    Returns:
        Kinds; a figure against the number of comparisons needs at least two of them.
    """
    kinds = get_args(MinimaxFigureKind)
    return kinds if len(result.config.comparisons) > 1 else kinds[:1]


def draw_minimax_figure(
    result: MinimaxRegretResult, kind: str, figure: Figure, *, comparisons: int | None = None
) -> Figure:
    """Draw one figure of a study of minimax regret.

    Args:
        result: result of the study.
        kind: kind of the figure, one of :func:`minimax_figure_kinds`.
        figure: an empty figure; its width is kept, its height and layout are set.
        comparisons: number of comparisons of ``regret_by_world``; None for the middle one.

    Returns:
        The same figure.

    Raises:
        ValueError: if the study does not allow this kind or has not this number of comparisons.
    """
    _check_kind(result, kind)
    shown = _number_shown(result, comparisons)
    figure.set_layout_engine("constrained")
    width = figure.get_figwidth()
    if kind == "regret_by_world":
        height = max(3.8, 0.74 * width)
        figure.set_figheight(height)
        grid = {"height_ratios": (3, 1)}
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw=grid)
        plot_expected_gaps(result, upper, comparisons=shown)
        plot_least_favorable_prior(result, lower, comparisons=shown)
        upper.set_xlabel("")
        share_legend(figure)
    else:
        height = max(2.4, 0.62 * width)
        figure.set_figheight(height)
        plot_worst_case(result, figure.subplots())
    fit_height(figure, height)
    return figure


def plot_minimax_figure(
    result: MinimaxRegretResult,
    kind: str,
    ax: Axes,
    *,
    panel: str | None = None,
    comparisons: int | None = None,
) -> Axes:
    """Draw one figure of a study of minimax regret, or one of its panels, into given axes.

    Args:
        result: result of the study.
        kind: kind of the figure, one of :func:`minimax_figure_kinds`.
        ax: axes to draw into, in a figure of its final size.
        panel: of ``regret_by_world`` "regret" or "prior", by default the regret.
        comparisons: number of comparisons of ``regret_by_world``; None for the middle one.

    Returns:
        The same axes.

    Raises:
        ValueError: if the study does not allow this kind, or has no such panel or number.
    """
    _check_kind(result, kind)
    panels = PANELS[kind]
    if panel not in (None, *panels):
        rule = f"must be one of {', '.join(panels)}" if panels else "must be left out"
        raise ValueError(f"`panel` of {kind} {rule}, got {panel!r}")
    if kind != "regret_by_world":
        return plot_worst_case(result, ax)
    shown = _number_shown(result, comparisons)
    plot = plot_least_favorable_prior if panel == "prior" else plot_expected_gaps
    return plot(result, ax, comparisons=shown)


def plot_expected_gaps(result: MinimaxRegretResult, ax: Axes, *, comparisons: int) -> Axes:
    """Draw the regret of every method and of the minimax rule in every world.

    With two actions the horizontal axis is the difference of their rewards, else the index of the
    world.

    Args:
        result: result of the study.
        ax: axes to draw into.
        comparisons: number of comparisons, one of the study's.

    Returns:
        The same axes.
    """
    order, x, label = _horizontal(result)
    curves = {BEST: _value(result.optima, comparisons, "regret")}
    for name in _labels(result):
        curves[name] = _value(result.records, comparisons, "regret", name)
    lines = [
        NamedLine(_wrapped(name), x, np.asarray(values)[order], color, marker)
        for (name, values), (color, marker) in zip(curves.items(), _styles(result), strict=True)
    ]
    ax.set_ylim(0.0, 1.05 * max(max(values) for values in curves.values()))
    ax.set_xlabel(label)
    draw_lines(lines, ax)
    ax.set_ylabel("regret (units of reward)")
    ax.set_title(f"Exact regret in every world, N = {comparisons:,}", loc="left")
    return tidy_axes(ax)


def plot_least_favorable_prior(result: MinimaxRegretResult, ax: Axes, *, comparisons: int) -> Axes:
    """Draw the prior over the worlds against which no rule is better than the minimax rule.

    Args:
        result: result of the study.
        ax: axes to draw into.
        comparisons: number of comparisons, one of the study's.

    Returns:
        The same axes.
    """
    order, x, label = _horizontal(result)
    prior = np.asarray(_value(result.optima, comparisons, "least_favorable_prior"))[order]
    ax.vlines(x, 0.0, prior, color="black", lw=3.0)
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8)
    ax.set_ylim(0.0, 1.15 * prior.max())
    ax.set_xlabel(label)
    ax.set_ylabel("probability")
    ax.set_title("Least favorable prior over the worlds", loc="left")
    return tidy_axes(ax)


def plot_worst_case(result: MinimaxRegretResult, ax: Axes) -> Axes:
    """Draw the worst-case regret of every method and the minimax regret against N.

    Args:
        result: result of the study, with at least two numbers of comparisons.
        ax: axes to draw into; both scales are set to logarithmic.

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    ax.set_yscale("log")
    n = sorted(result.config.comparisons)
    curves = {BEST: [_value(result.optima, number, "minimax_regret") for number in n]}
    for name in _labels(result):
        column = "worst_case_regret"
        curves[name] = [_value(result.records, number, column, name) for number in n]
    lines = [
        NamedLine(_wrapped(name), n, np.maximum(values, MIN_SHOWN), color, marker)
        for (name, values), (color, marker) in zip(curves.items(), _styles(result), strict=True)
    ]
    ax.set_xlabel("comparisons N")
    draw_lines(lines, ax)
    label_values(ax.xaxis, n, axes_inches(ax)[0] - MARGIN)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_ylabel("worst-case regret (units of reward)")
    ax.set_title("Regret in the worst world against the amount of data", loc="left")
    return tidy_axes(ax)


def _check_kind(result: MinimaxRegretResult, kind: str) -> None:
    kinds = minimax_figure_kinds(result)
    if kind not in kinds:
        allowed = ", ".join(kinds)
        raise ValueError(f"`kind` must be one that the study allows, {allowed}, got {kind!r}")


def _number_shown(result: MinimaxRegretResult, comparisons: int | None) -> int:
    """Return a number of comparisons of the study, by default the middle one."""
    numbers = sorted(result.config.comparisons)
    shown = numbers[len(numbers) // 2] if comparisons is None else comparisons
    if shown not in numbers:
        raise ValueError(f"`comparisons` must be one of {numbers}, got {shown}")
    return shown


def _labels(result: MinimaxRegretResult) -> list[str]:
    return [method.display_label for method in result.config.methods]


def _styles(result: MinimaxRegretResult) -> list[tuple[str, str]]:
    """Return color and marker of the minimax rule and of every method, in this order."""
    indices = range(len(result.config.methods))
    named = [(COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]) for index in indices]
    return [("black", ""), *named]


def _value(table: pa.Table, comparisons: int, column: str, label: str | None = None) -> Any:
    """Return the value of a column in the row of a number of comparisons and a label."""
    wanted = {"comparisons": comparisons} | ({} if label is None else {"label": label})
    (row,) = [
        row
        for row in table.select([*wanted, column]).to_pylist()
        if all(row[name] == value for name, value in wanted.items())
    ]
    return row[column]


def _horizontal(
    result: MinimaxRegretResult,
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"], str]:
    """Return the order of the worlds along the horizontal axis, their positions and its label."""
    rewards = worlds_of(result.config, 1).rewards
    if rewards.shape[1] == 2:
        margins = rewards[:, 1] - rewards[:, 0]
        order = np.argsort(margins, kind="stable")
        return order, margins[order], WORLD_LABEL
    return np.arange(len(rewards)), np.arange(len(rewards), dtype=np.float64), "index of the world"


def _wrapped(label: str) -> str:
    """Return a label in at most two rows, for the margin of a figure: cut after the last comma."""
    return ",\n".join(label.rsplit(", ", 1))
