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
from rpo_io.figures import PALETTE, text_size, tidy_axes, title_size
from rpo_io.line_plots import NamedLine, draw_lines, share_legend

from .fitting import BEST_OF_N
from .laws import law_terms
from .run import KEYS, LawsResult

COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
STANDARD_ERRORS = 1.959963984540054
"""Half the width of a 95 % confidence interval of a mean, in standard errors."""
COLUMNS = 3
"""Largest number of panels side by side."""
MIN_PANEL_INCHES = 1.55
"""Smallest width of a panel."""

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

    The band is the 95 % interval of the mean true gain over the seeds.

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
    ax.set_title(_title(fit), loc="left")
    ax.margins(x=0.02)
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
    fits = [
        fit
        for fit in result.fits.to_pylist()
        if fit["reward_class"] == reward_class and fit["comparisons"] == comparisons
    ]
    fits, titles = _merge_equal(fits)
    if not fits:
        rule = "must be a reward class and a number of comparisons of the study"
        got = f"{reward_class!r} and {comparisons}"
        raise ValueError(f"`reward_class` and `comparisons` {rule}, got {got}")
    width = figure.get_figwidth()
    n_columns = max(1, min(COLUMNS, len(fits), int(width / MIN_PANEL_INCHES)))
    n_rows = -(-len(fits) // n_columns)
    figure.set_figheight(0.9 + n_rows * max(1.7, 0.86 * width / n_columns))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for fit, title, ax in zip(fits, titles, grid.flat, strict=False):
        plot_gain_curve(result, fit, ax)
        ax.set_title(title, loc="left")
        tidy_axes(ax)
        ax.text(
            0.03,
            0.97,
            _coefficients(fit),
            transform=ax.transAxes,
            va="top",
            size=min(8.0, text_size()),
        )
    for index in range(len(fits), grid.size):
        grid.flat[index].set_visible(False)
        grid.flat[index - n_columns].xaxis.set_tick_params(labelbottom=True)
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(low, high + 0.25 * (high - low))  # room for the coefficients
    figure.supxlabel("distance from the reference, √KL (√nats)", size=text_size())
    figure.supylabel("gain over the reference (units of reward)", size=text_size())
    seeds = result.config.seeds
    handles = [
        Line2D([], [], color=PALETTE["blue"], marker="o", ms=3, lw=1.8, label="true gain"),
        Line2D([], [], color=PALETTE["orange"], ls="--", lw=1.8, label="proxy gain"),
        Line2D([], [], color="black", ls=":", lw=1.6, label="fitted law"),
    ]
    title = f"{reward_class} rewards, N = {comparisons:,}, {seeds:,} seeds"
    figure.legend(
        handles=handles,
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
    for index, name in enumerate(dict.fromkeys(map(_title, fits))):
        rows = sorted((f for f in fits if _title(f) == name), key=lambda f: f["comparisons"])
        n, value = ([row[key] for row in rows] for key in ("comparisons", coefficient))
        color = COLORS[index % len(COLORS)]
        if coefficient != "initial_slope":
            low, high = ([row[f"{coefficient}_{end}"] for row in rows] for end in ("low", "high"))
            ax.fill_between(n, low, high, color=color, alpha=0.12, lw=0)
        lines.append(NamedLine(name, n, value, color, MARKERS[index % len(MARKERS)]))
    ax.axhline(0.0, color=PALETTE["gray"], lw=0.8, zorder=0)
    draw_lines(lines, ax)
    symbols = {
        "alpha": "coefficient α",
        "gamma": "overoptimization γ",
        "initial_slope": "slope at the reference",
    }
    ax.set_xlabel("comparisons N")
    ax.set_ylabel(f"{symbols[coefficient]} (units of reward)")
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
    figure.set_figheight(0.9 + n_rows * max(2.1, 0.75 * figure.get_figwidth() / n_columns))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax, (reward_class, coefficient) in zip(grid.flat, panels, strict=True):
        plot_coefficient(result, coefficient, ax, reward_class=reward_class)
        title = f"{reward_class} rewards"
        ax.set_title(title[0].upper() + title[1:], loc="left", size=title_size())
    share_legend(figure)
    return figure


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
    for key in KEYS:
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
    titles = [" = ".join(map(_title, group)) for group in merged.values()]
    return [group[0] for group in merged.values()], titles


def _title(fit: dict[str, Any]) -> str:
    method = fit["method"]
    name = "best-of-n" if method == BEST_OF_N else find_method(method).title
    return name if math.isnan(fit["eta"]) else f"{name}, η = {fit['eta']:g}"


def _coefficients(fit: dict[str, Any]) -> str:
    """Return the coefficients with their intervals, in two rows."""

    def row(symbol: str, name: str) -> str:
        low, high = fit[f"{name}_low"], fit[f"{name}_high"]
        ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        return f"{symbol} = {fit[name]:.2f}{ends}".replace("-", "−")

    return f"{row('α', 'alpha')}\n{row('γ', 'gamma')}"
