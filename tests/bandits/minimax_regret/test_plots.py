"""Figures of minimax regret show the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from bandits.minimax_regret import (
    MinimaxRegretConfig,
    MinimaxRegretResult,
    RuleConfig,
    draw_minimax_figure,
    minimax_figure_kinds,
    plot_expected_gaps,
    plot_least_favorable_prior,
    plot_worst_case,
    run_minimax_regret,
)
from bandits.minimax_regret.plots import plot_minimax_figure

CONFIG = MinimaxRegretConfig(
    name="a",
    methods=[RuleConfig(method="behavior_cloning", label="cloning, chosen")],
    comparisons=[3, 2],
    margins=[0.5, 1.0],
    reward_max=2.0,
)


@pytest.fixture(scope="module")
def result() -> MinimaxRegretResult:
    return run_minimax_regret(CONFIG)


def test_closed_form_expected_gaps_are_drawn_over_the_difference_of_the_rewards(
    result: MinimaxRegretResult,
) -> None:
    ax: Any = plot_expected_gaps(result, Figure().subplots(), comparisons=2)
    best, cloning = ax.lines
    np.testing.assert_array_equal(best.get_xdata(), [-1.0, -0.5, 0.5, 1.0])
    order = [1, 0, 2, 3]  # of the worlds: arm 0 is better by .5 and 1, then arm 1
    np.testing.assert_array_equal(
        best.get_ydata(), np.array(result.optima.to_pylist()[1]["regret"])[order]
    )
    np.testing.assert_array_equal(
        cloning.get_ydata(), np.array(result.records.to_pylist()[1]["regret"])[order]
    )
    names = {text.get_text().removeprefix("= ") for text in ax.texts}  # cloning is minimax here
    assert names == {"best possible", "cloning,\nchosen"}


def test_closed_form_the_prior_is_drawn_as_stems(result: MinimaxRegretResult) -> None:
    ax: Any = plot_least_favorable_prior(result, Figure().subplots(), comparisons=3)
    prior = result.optima.to_pylist()[0]["least_favorable_prior"]
    stems = {tuple(stem[1]) for stem in ax.collections[0].get_segments()}
    assert stems == {(-1.0, prior[1]), (-0.5, prior[0]), (0.5, prior[2]), (1.0, prior[3])}


def test_closed_form_worst_cases_are_drawn_over_ascending_comparisons(
    result: MinimaxRegretResult,
) -> None:
    ax: Any = plot_worst_case(result, Figure().subplots())
    rows, optima = result.records.to_pylist(), result.optima.to_pylist()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [2, 3])
    expected = [optima[index]["minimax_regret"] for index in (1, 0)]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected)
    worst = [rows[index]["worst_case_regret"] for index in (1, 0)]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), worst)


def test_closed_form_figures_have_a_panel_for_the_prior(result: MinimaxRegretResult) -> None:
    assert minimax_figure_kinds(result) == ("regret_by_world", "worst_case_against_comparisons")
    upper, lower = draw_minimax_figure(result, "regret_by_world", Figure()).axes
    assert upper.get_title("left") == "Exact regret in every world, N = 3"
    assert lower.get_title("left") == "Least favorable prior over the worlds"
    shown = draw_minimax_figure(result, "regret_by_world", Figure(), comparisons=2)
    assert shown.axes[0].get_title("left").endswith("N = 2")
    assert len(draw_minimax_figure(result, "worst_case_against_comparisons", Figure()).axes) == 1


def test_closed_form_worlds_of_three_arms_are_drawn_by_index() -> None:
    rewards = [[0.0, 1.0, 0.5], [1.0, 0.0, 0.2]]
    config = MinimaxRegretConfig(
        name="a",
        methods=[RuleConfig(method="behavior_cloning")],
        comparisons=[1],
        rewards=rewards,
        actions=3,
        reward_max=2.0,
    )
    three = run_minimax_regret(config)
    assert minimax_figure_kinds(three) == ("regret_by_world",)
    ax: Any = plot_expected_gaps(three, Figure().subplots(), comparisons=1)
    assert ax.get_xlabel() == "index of the world"
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0.0, 1.0])
    with pytest.raises(ValueError, match="`kind` must be one that the study allows"):
        draw_minimax_figure(three, "worst_case_against_comparisons", Figure())


def test_raises_for_a_number_of_comparisons_that_the_study_lacks(
    result: MinimaxRegretResult,
) -> None:
    with pytest.raises(ValueError, match=r"`comparisons` must be one of \[2, 3\], got 4"):
        draw_minimax_figure(result, "regret_by_world", Figure(), comparisons=4)


def test_parity_a_figure_in_given_axes_shows_what_the_whole_figure_shows(
    result: MinimaxRegretResult,
) -> None:
    figure = draw_minimax_figure(result, "regret_by_world", Figure())
    for panel, expected in zip((None, "regret", "prior"), (0, 0, 1), strict=True):
        ax = Figure().subplots()
        assert result.plot("regret_by_world", ax, panel=panel) is ax
        assert ax.get_title("left") == figure.axes[expected].get_title("left")
        assert len(ax.lines) == len(figure.axes[expected].lines)
    worst = result.plot("worst_case_against_comparisons", Figure().subplots())
    assert worst.get_yscale() == "log"
    assert result.figure_kinds == minimax_figure_kinds(result)
    assert plot_minimax_figure(result, "regret_by_world", Figure().subplots(), comparisons=2)
    with pytest.raises(ValueError, match="`panel` of regret_by_world must be one of regret, prior"):
        result.plot("regret_by_world", Figure().subplots(), panel="both")
    with pytest.raises(ValueError, match="`kind` must be one that the study allows, regret_by"):
        result.plot("pie", Figure().subplots())


@pytest.mark.parametrize("width", [3.25, 6.4])
@pytest.mark.parametrize("kind", ["regret_by_world", "worst_case_against_comparisons"])
def test_property_no_texts_of_a_figure_touch(
    kind: str,
    width: float,
    result: MinimaxRegretResult,
    text_faults: Callable[[Figure], list[str]],
) -> None:
    with mpl.rc_context({"font.size": 8.0}):
        figure = draw_minimax_figure(result, kind, Figure(figsize=(width, 1.0)))
        assert text_faults(figure) == []
    assert figure.get_figwidth() == width
    assert any("units of reward" in ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes)
