"""Lines with names: those that coincide are marked, and no two names overlap."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from rpo_io.line_plots import NamedLine, draw_lines

X = np.arange(8.0)
COLORS = ("#ff0000", "#00ff00", "#0000ff", "#000000")


def axes(**size: Any) -> Axes:
    return Figure(**size, layout="constrained").subplots()


def names(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_closed_form_coinciding_lines_share_the_length_and_are_joined_by_an_equals_sign() -> None:
    heights = (X, X + 0.01, X + 3.0)
    lines = [
        NamedLine(name, X, y, color, "o", note="slope 1")
        for name, y, color in zip("abc", heights, COLORS, strict=False)
    ]
    ax = draw_lines(lines, axes())
    assert names(ax) == ["a\nslope 1", "= b", "c\nslope 1"]
    first, second, other = ax.lines
    assert other.get_linestyle() == "-"
    assert first.get_linestyle() == second.get_linestyle() == "--"
    assert (first.get_markevery(), second.get_markevery()) == ((0, 2), (1, 2))


def test_property_every_color_of_coinciding_lines_is_seen_alike() -> None:
    lines = [NamedLine(c, X, X, c) for c in COLORS[:3]]
    figure = Figure(figsize=(6, 4), dpi=100)
    ax = draw_lines(lines, figure.subplots())
    ax.set_axis_off()
    for text in ax.texts:
        text.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    seen = [np.sum(np.abs(pixels - to_rgb(color)).sum(axis=-1) < 0.2) for color in COLORS[:3]]
    assert min(seen) > 0.5 * max(seen) > 100


@pytest.mark.parametrize(
    ("second", "dashed"),
    [(X + 0.2, False), (X[:7], False), (X, True), (X[::-1], False)],
    ids=["higher", "shorter", "dashed", "crossing"],
)
def test_property_lines_that_look_different_stay_solid(second: np.ndarray, dashed: bool) -> None:
    lines = [
        NamedLine("a", X, X, COLORS[0]),
        NamedLine("b", X[: len(second)], second, COLORS[1], dashed=dashed),
    ]
    ax = draw_lines(lines, axes())
    assert names(ax) == ["a", "b"]
    assert ax.lines[0].get_linestyle() == "-"


def test_property_the_scale_decides_which_lines_coincide() -> None:
    lines = [NamedLine(str(y), X, np.full(8, y), COLORS[0]) for y in (1e-6, 1e-3, 1.0)]
    assert names(draw_lines(lines, axes())) == ["1e-06", "= 0.001", "1.0"]
    ax = axes()
    ax.set_yscale("log")
    assert names(draw_lines(lines, ax)) == ["1e-06", "0.001", "1.0"]


@pytest.mark.parametrize("n_lines", [1, 4, 12])
def test_property_names_stay_apart_in_the_order_of_the_ends(n_lines: int) -> None:
    lines = [NamedLine(f"line {i}", X, 0.1 * i * X, "#000000") for i in range(n_lines)]
    ax = draw_lines(lines, axes(figsize=(6, 4)))
    figure = ax.get_figure(root=True)
    assert figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in ax.texts]
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_extreme_lines_without_names_and_a_single_point_are_drawn() -> None:
    assert names(draw_lines([NamedLine("", X, X, "#000000")], axes())) == []
    assert names(draw_lines([NamedLine("a", [1.0], [2.0], "#000000", "o")], axes())) == ["a"]


def test_property_a_line_that_ends_far_from_the_right_is_named_in_a_legend() -> None:
    lines = [
        NamedLine("long", X, X, COLORS[0], "o", note="slope 1"),
        NamedLine("short", X[:4], X[:4], COLORS[1], dashed=True),
    ]
    ax = draw_lines(lines, axes())
    legend = ax.get_legend()
    assert names(ax) == []
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == ["long, slope 1", "short"]
    labels = [handle.get_label() for handle in legend.legend_handles if handle]
    assert labels == ["long", "short"]  # for a shared legend
