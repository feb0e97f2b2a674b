"""Figures of the theorem show the measured numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bandits.theorem_check.agreement import Agreement
from bandits.theorem_check.negative_controls import NegativeControl
from bandits.theorem_check.plots import (
    FLOOR,
    plot_agreement,
    plot_gap_against_comparisons,
    plot_negative_controls,
    plot_training,
)

TABULAR = Agreement("tabular", 0, 0, 3, 4, 0.5, 0.1, -2.0, 1e-12, 1e-9, 1e-8, 0.01)
BARS = {"duality gap": 1e-10, "Algorithm 1": 1e-6, "RPO loss": 1e-5}


def test_closed_form_every_instance_is_a_point_of_each_measure_and_zeros_are_drawn() -> None:
    records = [TABULAR, TABULAR._replace(family="linear", policy_tv_maximin=0.0)]
    ax: Any = Figure().subplots()
    assert plot_agreement(records, BARS, ax) is ax
    heights = [line.get_ydata()[0] for line in ax.lines]
    relative = [record.relative_gap() for record in records]
    assert heights == [*relative, 1e-9, FLOOR, 1e-8, 1e-8]
    bars = sorted(float(bar.get_segments()[0][0, 1]) for bar in ax.collections)
    assert bars == sorted(BARS.values())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["tabular", "linear"]


def test_closed_form_controls_are_bars_with_their_expected_gaps() -> None:
    controls = [NegativeControl("one", 0.2, 0.21), NegativeControl("two", 0.5, 0.5)]
    ax: Any = plot_negative_controls(controls, Figure().subplots())
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.5]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.21, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    assert [text.get_text() for text in ax.texts] == ["0.200", "0.500"]


def test_closed_form_methods_are_labeled_lines_over_the_comparisons() -> None:
    gaps = {"RPO": [0.3, 0.1], "DPO": [0.4, 0.4]}
    ax: Any = plot_gap_against_comparisons([10, 100], gaps, Figure().subplots())
    assert [list(line.get_ydata()) for line in ax.lines] == list(gaps.values())
    assert [text.get_text() for text in ax.texts] == list(gaps)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_closed_form_training_is_drawn_as_likelihood_and_reward() -> None:
    curves = {"RPO": ([0, 5], [-1.0, -0.5], [0.2, 0.9]), "DPO": ([0, 5], [-1.0, -2.0], [0.2, 0.6])}
    axes: list[Any] = list(Figure().subplots(1, 2))
    assert plot_training(curves, axes) is axes
    for index, ax in enumerate(axes):
        assert [list(line.get_xdata()) for line in ax.lines] == [[0, 5], [0, 5]]
        drawn = [list(line.get_ydata()) for line in ax.lines]
        assert drawn == [curve[1 + index] for curve in curves.values()]
