"""Figures of overoptimization: gains against the distance from the reference, and coefficients.

The ``plot_`` functions take and return axes; the ``draw_`` functions fill a whole figure.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandits.methods.registry import find_method
from rpo_io.figures import MARGIN, PALETTE, axes_inches, text_size, tidy_axes, title_size
from rpo_io.legends import fit_height, legend_below, share_legend, text_inches
from rpo_io.line_plots import NamedLine, draw_lines
from rpo_io.log_ticks import label_log_axis

from .fitting import BEST_OF_N
from .laws import law_terms
from .run import CurveKeys, LawsResult

COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
STANDARD_ERRORS = 1.959963984540054
"""Half the width of a 95 % confidence interval of a mean, in standard errors."""
COLUMNS = 3
"""Largest number of panels side by side."""
MIN_PANEL_INCHES = 1.55
"""Smallest width of a panel."""

DISTANCE = "distance from the reference, √KL (√nats)"
GAIN = "gain over the reference (units of reward)"
COEFFICIENT_LABELS = {
    "alpha": "coefficient α (units of reward)",
    "gamma": "overoptimization γ (units of reward)",
    "initial_slope": "slope at the reference (units of reward)",
}

Coefficient = Literal["alpha", "gamma", "initial_slope"]
"""Columns of the fits that :func:`plot_coefficient` can draw."""


class _MeanCurve(NamedTuple):
    """Means over the seeds at each point of a curve, from the reference outwards."""

    sqrt_kl: Float[np.ndarray, " p"]
    true_gain: Float[np.ndarray, " p"]
    half_width: Float[np.ndarray, " p"]
    proxy_gain: Float[np.ndarray, " p"]
    law: Float[np.ndarray, " p"]


def plot_gain_curve(result: LawsResult, fit: dict[str, Any], ax: Axes) -> Axes:
    r"""Draw one curve: true gain (solid), proxy gain (dashed), and the fitted law (dotted).

    The band is the 95 % interval of the mean true gain over the seeds. A legend is below the axes.

    Args:
        result: a study.
        fit: the row of ``result.fits`` whose curve is drawn, as a dictionary.
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    curve = _mean_curve(result, fit)
    d, color = curve.sqrt_kl, PALETTE["blue"]
    low, high = curve.true_gain - curve.half_width, curve.true_gain + curve.half_width
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    ax.plot(d, curve.proxy_gain, "--", color=PALETTE["orange"], lw=1.8)
    ax.fill_between(d, low, high, color=color, alpha=0.2, lw=0)
    ax.plot(d, curve.true_gain, "o-", ms=3, color=color, lw=1.8)
    ax.plot(d, curve.law, ":", color="black", lw=1.6)
    ax.set_title(title_of(fit), loc="left")
    ax.margins(x=0.02)
    ax.set_xlabel(DISTANCE)
    ax.set_ylabel(GAIN)
    handles = _gain_handles()
    legend_below(ax, handles, [str(handle.get_label()) for handle in handles])
    return tidy_axes(ax)


def plot_gains(result: LawsResult, ax: Axes, *, reward_class: str, comparisons: int) -> Axes:
    """Draw the true gain of every method against the distance from the reference.

    Bands are 95 % intervals of the means over the seeds.

    Args:
        result: a study.
        ax: axes to draw into.
        reward_class: one of the reward classes of the study.
        comparisons: one of its numbers of comparisons.

    Returns:
        The same axes.

    Raises:
        ValueError: if the study has no such curves.
    """
    lines = []
    for index, fit in enumerate(fits_of(result, reward_class, comparisons)):
        curve, color = _mean_curve(result, fit), COLORS[index % len(COLORS)]
        low, high = curve.true_gain - curve.half_width, curve.true_gain + curve.half_width
        ax.fill_between(curve.sqrt_kl, low, high, color=color, alpha=0.15, lw=0)
        marker = MARKERS[index % len(MARKERS)]
        lines.append(NamedLine(title_of(fit), curve.sqrt_kl, curve.true_gain, color, marker))
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    ax.set_xlabel(DISTANCE)
    draw_lines(lines, ax)
    ax.set_ylabel(GAIN.replace("gain", "true gain"))
    ax.set_title(f"True gain, {reward_class} rewards, N\u00a0=\u00a0{comparisons:,}", loc="left")
    return tidy_axes(ax)


def draw_laws(result: LawsResult, figure: Figure, *, reward_class: str, comparisons: int) -> Figure:
    r"""Draw the gain of every method against :math:`d`, one panel for each curve.

    Methods with equal curves, as DPO and two-stage RLHF in one class, share a panel.

    Args:
        result: a study.
        figure: an empty figure; its width is kept, its height and layout are set.
        reward_class: one of the reward classes of the study.
        comparisons: one of its numbers of comparisons.

    Returns:
        The same figure.

    Raises:
        ValueError: if the study has no such curves.
    """
    fits, titles = _merge_equal(fits_of(result, reward_class, comparisons))
    width = figure.get_figwidth()
    n_columns = max(1, min(COLUMNS, len(fits), int(width / MIN_PANEL_INCHES)))
    n_rows = -(-len(fits) // n_columns)
    figure.set_figheight(0.9 + n_rows * max(1.7, 0.86 * width / n_columns))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    room = axes_inches(grid[0, 0])[0] - 0.4 * MARGIN
    notes = _coefficients(fits, room)
    for fit, title, note, ax in zip(fits, titles, notes, grid.flat, strict=False):
        plot_gain_curve(result, fit, ax)
        if legend := ax.get_legend():
            legend.remove()
        ax.set_xlabel("")
        ax.set_ylabel("")
        ax.set_title(title, loc="left")
        tidy_axes(ax)
        style = {"transform": ax.transAxes, "va": "top", "size": min(8.0, text_size())}
        ax.text(0.03, 0.97, note, **style)
    for index in range(len(fits), grid.size):
        grid.flat[index].set_visible(False)
        grid.flat[index - n_columns].xaxis.set_tick_params(labelbottom=True)
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(low, high + 0.25 * (high - low))  # room for the coefficients
    figure.supxlabel(DISTANCE, size=text_size())
    figure.supylabel(GAIN, size=text_size())
    seeds = result.config.seeds
    title = f"{reward_class} rewards, N = {comparisons:,}, {seeds:,} seeds"
    figure.legend(
        handles=_gain_handles(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=text_size(),
        title=title[0].upper() + title[1:],
        title_fontsize=title_size(),
    )
    return figure


def plot_coefficient(
    result: LawsResult, coefficient: Coefficient, ax: Axes, *, reward_class: str
) -> Axes:
    r"""Draw a coefficient of every method against the number of comparisons.

    Args:
        result: a study.
        coefficient: "alpha" or "gamma" of the fitted law, with their intervals, or
            "initial_slope", the slope at the reference.
        ax: axes to draw into; the horizontal scale is set to logarithmic.
        reward_class: reward class of the study.

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    fits = [fit for fit in result.fits.to_pylist() if fit["reward_class"] == reward_class]
    lines = []
    for index, name in enumerate(dict.fromkeys(map(title_of, fits))):
        rows = sorted((f for f in fits if title_of(f) == name), key=lambda f: f["comparisons"])
        n, value = ([row[key] for row in rows] for key in ("comparisons", coefficient))
        color = COLORS[index % len(COLORS)]
        if coefficient != "initial_slope":
            low, high = ([row[f"{coefficient}_{end}"] for row in rows] for end in ("low", "high"))
            ax.fill_between(n, low, high, color=color, alpha=0.12, lw=0)
        lines.append(NamedLine(name, n, value, color, MARKERS[index % len(MARKERS)]))
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    ax.set_xlabel("comparisons N")
    draw_lines(lines, ax)
    label_log_axis(ax.xaxis, axes_inches(ax)[0] - MARGIN)
    ax.set_ylabel(COEFFICIENT_LABELS[coefficient])
    ax.set_title(f"{reward_class} rewards".capitalize(), loc="left")
    return tidy_axes(ax)


def draw_coefficients(result: LawsResult, figure: Figure) -> Figure:
    r"""Draw :math:`\alpha` and :math:`\gamma` of every method against :math:`N`, by reward class.

    Args:
        result: a study with several numbers of comparisons.
        figure: an empty figure; its width is kept, its height and layout are set.

    Returns:
        The same figure.
    """
    classes = result.config.reward_classes
    shown: tuple[Coefficient, ...] = ("alpha", "gamma")
    panels: list[tuple[str, Coefficient]] = [
        (reward_class, coefficient) for reward_class in classes for coefficient in shown
    ]
    n_columns = 2 if figure.get_figwidth() >= 5.0 else 1
    n_rows = len(panels) // n_columns
    height = 0.3 + n_rows * max(1.9, 0.6 * figure.get_figwidth() / n_columns)
    figure.set_figheight(height)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax, (reward_class, coefficient) in zip(grid.flat, panels, strict=True):
        plot_coefficient(result, coefficient, ax, reward_class=reward_class)
    for ax in grid[:-1].flat:
        ax.set_xlabel("")
    share_legend(figure)
    fit_height(figure, height)
    return figure


def fits_of(result: LawsResult, reward_class: str, comparisons: int) -> list[dict[str, Any]]:
    """Return the rows of the fits of one setting.

    Args:
        result: a study.
        reward_class: one of the reward classes of the study.
        comparisons: one of its numbers of comparisons.

    Raises:
        ValueError: if the study has no such curves.
    """
    fits = [
        fit
        for fit in result.fits.to_pylist()
        if fit["reward_class"] == reward_class and fit["comparisons"] == comparisons
    ]
    if not fits:
        rule = "must be a reward class and a number of comparisons of the study"
        got = f"{reward_class!r} and {comparisons}"
        raise ValueError(f"`reward_class` and `comparisons` {rule}, got {got}")
    return fits


def title_of(fit: dict[str, Any]) -> str:
    """Return the name of the curve of a fit: the method, and its weight if it has one.

    Args:
        fit: a row of the fits of a study.

    Examples:
        >>> title_of({"method": "rpo", "eta": 0.1}), title_of({"method": "dpo", "eta": math.nan})
        ('RPO, η = 0.1', 'DPO')
    """
    method = fit["method"]
    name = "best-of-n" if method == BEST_OF_N else find_method(method).title
    return name if math.isnan(fit["eta"]) else f"{name}, η = {fit['eta']:g}"


def _gain_handles() -> list[Line2D]:
    """Return what the legend of gains shows."""
    return [
        Line2D([], [], color=PALETTE["blue"], marker="o", ms=3, lw=1.8, label="true gain"),
        Line2D([], [], color=PALETTE["orange"], ls="--", lw=1.8, label="proxy gain"),
        Line2D([], [], color="black", ls=":", lw=1.6, label="fitted law"),
    ]


def _mean_curve(result: LawsResult, fit: dict[str, Any]) -> _MeanCurve:
    """Return the means over the seeds, and the means of the fitted law at the same points."""
    rows = _rows(result.records, fit)
    n_seeds = result.config.seeds

    def column(name: str) -> Float[np.ndarray, "s p"]:
        return rows[name].to_numpy().reshape(n_seeds, -1)

    d, true_gain = column("sqrt_kl"), column("true_gain")
    first, second = law_terms(fit["law"], d)
    deviation = np.nanstd(true_gain, axis=0, ddof=1) if n_seeds > 1 else np.full(d.shape[1], np.nan)
    return _MeanCurve(
        sqrt_kl=np.nanmean(d, axis=0),
        true_gain=np.nanmean(true_gain, axis=0),
        half_width=STANDARD_ERRORS * deviation / math.sqrt(n_seeds),
        proxy_gain=np.nanmean(column("proxy_gain"), axis=0),
        law=np.nanmean(fit["alpha"] * first + fit["gamma"] * second, axis=0),
    )


def _rows(records: pa.Table, fit: dict[str, Any]) -> pa.Table:
    """Return the records of one curve."""
    keep = np.ones(records.num_rows, bool)
    for key in CurveKeys._fields:
        value = fit[key]
        is_nan = isinstance(value, float) and math.isnan(value)
        column = records[key].to_numpy()
        keep &= np.isnan(column) if is_nan else column == value
    return records.filter(pa.array(keep))


def _merge_equal(fits: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the fits that differ, and the names of the methods that have each of them."""
    merged: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for fit in fits:
        numbers = (round(fit[name], 9) for name in ("alpha", "gamma", "residual"))
        merged.setdefault((fit["law"], *numbers), []).append(fit)
    titles = [" = ".join(map(title_of, group)) for group in merged.values()]
    titles = [title.replace(" + ", "\u00a0+\u00a0") for title in titles]  # lines break elsewhere
    return [group[0] for group in merged.values()], titles


def _coefficients(fits: list[dict[str, Any]], inches: float) -> list[str]:
    """Return the coefficients of fits, with their intervals if there is room for all."""

    def row(fit: dict[str, Any], name: str, *, with_interval: bool) -> str:
        low, high = fit[f"{name}_low"], fit[f"{name}_high"]
        ends = f" [{low:.2f}, {high:.2f}]" if with_interval and not math.isnan(low) else ""
        symbol = "α" if name == "alpha" else "γ"
        return f"{symbol} = {fit[name]:.2f}{ends}".replace("-", "−")

    def texts(*, with_interval: bool) -> list[str]:
        names = "alpha", "gamma"
        return [
            "\n".join(row(fit, name, with_interval=with_interval) for name in names) for fit in fits
        ]

    wide = texts(with_interval=True)
    longest = max(text_inches(line) for text in wide for line in text.split("\n"))
    return wide if longest <= inches else texts(with_interval=False)
