"""Sizes of text and colors of lines under the style in force, and legends below axes."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from cycler import cycler
from matplotlib.figure import Figure

from rpo_io.figures import LINE_COLORS, axes_inches, line_colors, text_size, title_size
from rpo_io.legends import fit_height, legend_below, share_legend, text_inches


def test_property_text_and_colors_follow_the_style_in_force() -> None:
    with mpl.rc_context({"font.size": 7.0, "axes.titlesize": 11.0}):
        assert (text_size(), title_size()) == (7.0, 11.0)
    with mpl.rc_context({"axes.prop_cycle": cycler(color=["#111111", "#222222"])}):
        assert line_colors() == ("#111111", "#222222")
    with mpl.rc_context(dict(mpl.rcParamsDefault)):
        assert line_colors() == LINE_COLORS
        assert title_size() == text_size() + 1.0


def test_property_a_longer_row_is_wider() -> None:
    assert text_inches("") == 0.0
    assert text_inches("aaaa") == pytest.approx(2 * text_inches("aa"))


def test_property_panels_share_their_figure() -> None:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert axes_inches(left)[0] < 6.0
    assert axes_inches(left) == axes_inches(right)


def test_property_equal_legends_of_panels_become_one() -> None:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    for ax in figure.subplots(1, 2):
        (line,) = ax.plot([0.0, 1.0])
        legend = legend_below(ax, [line], ["a method"])
        assert [text.get_text() for text in legend.get_texts()] == ["a method"]
    share_legend(figure)
    assert [ax.get_legend() for ax in figure.axes] == [None, None]
    assert len(figure.legends) == 1


def test_property_a_legend_adds_its_rows_to_the_height_and_breaks_long_texts() -> None:
    heights = []
    for text in ("a method", "a method with a name, slope 0.50, that is wider than the figure"):
        figure = Figure(figsize=(3.25, 2.0), layout="constrained")
        ax = figure.subplots()
        fit_height(figure, 2.0)
        assert figure.get_figheight() == 2.0
        lines = ax.plot([0.0, 1.0]) + ax.plot([1.0, 0.0])
        legend = legend_below(ax, lines, [text, text])
        assert max(text_inches(row) for row in legend.get_texts()[0].get_text().split("\n")) < 3.0
        fit_height(figure, 2.0)
        heights.append(figure.get_figheight())
    assert 2.0 < heights[0] < heights[1]
