"""Figures of the study of overoptimization laws by their names, as a whole or in given axes."""

from __future__ import annotations

from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .config import ClassName
from .plots import (
    Coefficient,
    draw_coefficients,
    draw_laws,
    fits_of,
    plot_coefficient,
    plot_gain_curve,
    plot_gains,
    title_of,
)
from .run import LawsResult

COEFFICIENTS = "coefficients"
"""Name of the figure of the coefficients of all laws."""


def laws_figure_kinds(result: LawsResult) -> tuple[str, ...]:
    """Return the names of the figures of a study.

    Args:
        result: a study.

    Returns:
        ``laws_CLASS_N`` for each reward class and number of comparisons, and ``coefficients``.
    """
    return (*_settings(result), COEFFICIENTS)


def draw_laws_figure(result: LawsResult, kind: str, figure: Figure) -> Figure:
    """Draw one figure of a study.

    Args:
        result: a study.
        kind: name of the figure, one of :func:`laws_figure_kinds`.
        figure: an empty figure; its width is kept, its height and layout are set.

    Returns:
        The same figure.

    Raises:
        ValueError: if the study has no such figure.
    """
    _check_kind(result, kind)
    if kind == COEFFICIENTS:
        return draw_coefficients(result, figure)
    reward_class, comparisons = _settings(result)[kind]
    return draw_laws(result, figure, reward_class=reward_class, comparisons=comparisons)


def plot_laws_figure(result: LawsResult, kind: str, ax: Axes, *, panel: str | None = None) -> Axes:
    """Draw one figure of a study, or one of its panels, into given axes.

    Args:
        result: a study.
        kind: name of the figure, one of :func:`laws_figure_kinds`.
        ax: axes to draw into, in a figure of its final size.
        panel: of ``laws_CLASS_N`` the name of a method, whose true gain, proxy gain and fitted law
            are drawn, by default the true gain of all methods; of ``coefficients`` the coefficient
            and the class, such as "gamma, tabular", by default the first.

    Returns:
        The same axes.

    Raises:
        ValueError: if the study has no such figure or panel.
    """
    _check_kind(result, kind)
    if kind == COEFFICIENTS:
        symbols = "alpha", "gamma"
        panels = [f"{name}, {cls}" for cls in result.config.reward_classes for name in symbols]
        chosen = panels[0] if panel is None else panel
        _check_panel(chosen, panels)
        coefficient, _, reward_class = chosen.partition(", ")
        plot_coefficient(result, cast("Coefficient", coefficient), ax, reward_class=reward_class)
        return ax
    reward_class, comparisons = _settings(result)[kind]
    if panel is None:
        return plot_gains(result, ax, reward_class=reward_class, comparisons=comparisons)
    fits = {title_of(fit): fit for fit in fits_of(result, reward_class, comparisons)}
    _check_panel(panel, list(fits))
    return plot_gain_curve(result, fits[panel], ax)


def _settings(result: LawsResult) -> dict[str, tuple[ClassName, int]]:
    """Return the reward class and the number of comparisons of each figure of gains."""
    config = result.config
    return {
        f"laws_{name}_{n}": (name, n) for name in config.reward_classes for n in config.comparisons
    }


def _check_kind(result: LawsResult, kind: str) -> None:
    kinds = laws_figure_kinds(result)
    if kind not in kinds:
        raise ValueError(f"`kind` must be one of {', '.join(kinds)}, got {kind!r}")


def _check_panel(panel: str, panels: list[Any]) -> None:
    if panel not in panels:
        raise ValueError(f"`panel` must be one of {'; '.join(panels)}, got {panel!r}")
