"""Labels of logarithmic axes: two or more round numbers in the range that do not touch."""

from __future__ import annotations

import math
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from rpo_io.legends import text_inches
from rpo_io.log_ticks import label_log_axis, label_values, log_tick_values


@pytest.mark.parametrize("inches", [1.2, 2.5, 5.0])
def test_property_a_range_of_less_than_a_decade_has_labels_that_do_not_touch(
    inches: float,
) -> None:
    rng = np.random.default_rng(0)
    with mpl.rc_context({"font.size": 8.0}):
        for low, ratio in zip(
            10.0 ** rng.uniform(-4, 3, 200), rng.uniform(1.3, 9, 200), strict=True
        ):
            values = log_tick_values(low, low * ratio, inches)
            assert len(values) >= 2
            assert all(low * (1 - 1e-8) <= value <= low * ratio * (1 + 1e-8) for value in values)
            for left, right in pairwise(values):
                distance = inches * math.log(right / left) / math.log(ratio)
                assert distance > (text_inches(f"{left:g}") + text_inches(f"{right:g}")) / 2.0


def test_limit_two_powers_of_ten_keep_the_labels_of_matplotlib() -> None:
    assert log_tick_values(0.09, 1.1, 3.0) == []
    assert log_tick_values(0.11, 9.0, 3.0) == [0.3, 1.0, 3.0]
    figure = Figure()
    ax = figure.subplots()
    ax.set_yscale("log")
    ax.set_ylim(0.3, 0.5)
    label_log_axis(ax.yaxis, 3.0)
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["0.3", "0.35"]
    assert {label.get_text() for label in ax.get_yticklabels(minor=True)} <= {""}


def test_property_values_are_marked_and_labeled_from_the_largest_where_they_fit() -> None:
    ax = Figure().subplots()
    ax.set_xscale("log")
    ax.set_xlim(90, 1100)
    label_values(ax.xaxis, [100, 110, 120, 1000], 3.0)
    assert ax.get_xticks().tolist() == [100, 110, 120, 1000]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["", "", "120", "1,000"]
