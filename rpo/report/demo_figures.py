"""The figures of ``rpo demo``, in a size that is legible on a phone and in a column of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .claims import BARS
from .demo_measurements import COMPARISONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.4, 3.7
"""Size of a figure in inches."""
FIGURES: dict[str, tuple[str, ...]] = {
    "agreement": ("tabular", "linear"),
    "controls": ("controls",),
    "minimax_agreement": ("minimax_agreement",),
    "hacking": ("hacking",),
    "transformer": ("transformer",),
    "coverage": ("coverage",),
}
"""The figures and the experiments that each of them shows."""


def draw_figure(name: str, found: Mapping[str, Any]) -> bytes:
    """Draw one figure of the demonstration.

    Args:
        name: a key of :data:`FIGURES`.
        found: results of the experiments that the figure shows, by name.

    Returns:
        The figure as PNG.
    """
    from matplotlib.figure import Figure

    from rpo_io.figures import png_bytes

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    _DRAW[name](figure, *(found[part] for part in FIGURES[name]))
    return png_bytes(figure)


def _agreement(figure: Figure, tabular: list[Any], linear: list[Any]) -> None:
    from bandits.theorem_check.plots import plot_agreement

    plot_agreement([*tabular, *linear], BARS, figure.subplots())


def _controls(figure: Figure, controls: list[Any]) -> None:
    from bandits.theorem_check.plots import plot_negative_controls

    plot_negative_controls(controls, figure.subplots())


def _minimax_agreement(figure: Figure, curves: Any) -> None:
    from llm.plots import plot_minimax_agreement

    plot_minimax_agreement(curves, figure.subplots())


def _hacking(figure: Figure, gaps: Any) -> None:
    from bandits.theorem_check.plots import plot_gap_against_comparisons

    plot_gap_against_comparisons(COMPARISONS, gaps, figure.subplots())


def _transformer(figure: Figure, curves: Any) -> None:
    from bandits.theorem_check.plots import plot_training

    figure.set_size_inches(WIDTH, 1.35 * HEIGHT)
    plot_training(curves, list(figure.subplots(2, 1)))


def _coverage(figure: Figure, summary: Any) -> None:
    from bandits.study.figures import draw_figure as draw_study_figure

    draw_study_figure(summary, "gap_against_comparisons", figure)
    figure.set_size_inches(WIDTH, HEIGHT)


_DRAW: dict[str, Callable[..., None]] = {
    "agreement": _agreement,
    "controls": _controls,
    "minimax_agreement": _minimax_agreement,
    "hacking": _hacking,
    "transformer": _transformer,
    "coverage": _coverage,
}
