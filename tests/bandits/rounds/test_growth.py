"""Slopes of cumulative regret, and its figures."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from bandits.rounds import (
    RoundsConfig,
    RoundsMethod,
    RoundsResult,
    mean_curve,
    measure_growth,
    plot_cumulative_regret,
    plot_cumulative_regret_growth,
)
from bandits.rounds.growth import cumulative_table
from bandits.rounds.plots import draw_rounds_figure, plot_rounds_figure, rounds_figure_kinds


def power_records(exponents: dict[str, float], seeds: int = 3, rounds: int = 200) -> pa.Table:
    """Return records whose cumulative regret is a seed's multiple of a power of the round."""
    numbers = np.arange(1, rounds + 1)
    rows = [
        (label, seed, number, (1.0 + seed) * float(number) ** exponent)
        for label, exponent in exponents.items()
        for seed in range(seeds)
        for number in numbers
    ]
    names = ("label", "seed", "round", "cumulative_regret")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def test_closed_form_the_slope_of_a_power_is_its_exponent() -> None:
    growth = measure_growth(power_records({"a": 1.0, "b": 0.5}), resamples=50)
    assert [item.label for item in growth] == ["a", "b"]
    assert [item.slope for item in growth] == pytest.approx([1.0, 0.5], abs=1e-12)
    assert [item.low for item in growth] == pytest.approx([1.0, 0.5], abs=1e-12)
    assert growth[0].final == pytest.approx(2.0 * 200.0)


def test_property_the_interval_covers_seeds_that_differ() -> None:
    stuck, solved = power_records({"a": 1.0}, seeds=10), power_records({"a": 0.0}, seeds=10)
    other_seeds = pa.array(np.repeat(np.arange(10, 20), 200))
    solved = solved.set_column(1, "seed", other_seeds)
    (growth,) = measure_growth(pa.concat_tables([stuck, solved]), resamples=200)
    assert growth.low < growth.slope < growth.high <= 1.0 + 1e-9


def test_closed_form_the_interval_of_the_mean_is_that_of_the_normal_distribution() -> None:
    records = power_records({"a": 1.0}, seeds=3, rounds=2)
    curve = mean_curve(records, "a")
    assert curve.mean.tolist() == [2.0, 4.0]
    np.testing.assert_allclose(
        curve.high - curve.mean, 1.959964 * curve.mean / 2 / 3**0.5, rtol=1e-6
    )


def test_raises_for_records_that_lack_rounds() -> None:
    records = power_records({"a": 1.0}, rounds=3)
    with pytest.raises(ValueError, match="`records` must hold every round of every seed once"):
        cumulative_table(records.slice(1), "a", "cumulative_regret")
    with pytest.raises(ValueError, match="`label` must be one of a, got 'b'"):
        cumulative_table(records, "b", "cumulative_regret")
    with pytest.raises(ValueError, match="at least two rounds"):
        measure_growth(power_records({"a": 1.0}, rounds=1))


def test_property_figures_name_their_methods_and_slopes() -> None:
    records = power_records({"greedy": 1.0, "optimistic": 0.5})
    figure = Figure(figsize=(12.0, 4.0))
    linear, growth = figure.subplots(1, 2)
    assert plot_cumulative_regret(records, linear) is linear
    assert plot_cumulative_regret_growth(records, growth) is growth
    texts = "\n".join(text.get_text() for text in growth.texts)
    assert "greedy\nslope 1.00 [1.00, 1.00]" in texts
    assert "optimistic\nslope 0.50 [0.50, 0.50]" in texts


@pytest.mark.parametrize("width", [3.25, 6.4])
@pytest.mark.parametrize("kind", ["cumulative_regret", "cumulative_regret_growth"])
def test_property_no_texts_of_a_figure_touch(
    kind: str, width: float, text_faults: Callable[[Figure], list[str]]
) -> None:
    records = power_records({"greedy: maximum likelihood": 1.0, "optimistic": 0.5})
    config = RoundsConfig(name="a", methods=[RoundsMethod(method="two_stage")], rounds=2, seeds=3)
    result = RoundsResult(config, records, measure_growth(records))
    with mpl.rc_context({"font.size": 8.0}):
        figure = draw_rounds_figure(result, kind, Figure(figsize=(width, 1.0)))
        assert text_faults(figure) == []
    assert figure.get_figwidth() == width
    assert rounds_figure_kinds(result._replace(growth=())) == ("cumulative_regret",)
    ax = Figure().subplots()
    assert result.plot(kind, ax) is ax is plot_rounds_figure(result, kind, ax)
    assert ax.get_title("left") == figure.axes[0].get_title("left")
    with pytest.raises(ValueError, match=r"`kind` must be one of cumulative_regret, cum.* 'pie'"):
        result.plot("pie", ax)
    with pytest.raises(ValueError, match="`panel` must be left out"):
        result.plot(kind, ax, panel="left")


def test_limit_figures_show_more_methods_than_there_are_colors() -> None:
    exponents = {f"m{index}": 0.5 + 0.04 * index for index in range(12)}
    records = power_records(exponents, seeds=1, rounds=12)
    for plot in (plot_cumulative_regret, plot_cumulative_regret_growth):
        ax = plot(records, Figure().subplots())
        shown = " ".join(text.get_text() for text in ax.texts)
        shown += " ".join(text.get_text() for text in getattr(ax.get_legend(), "texts", []))
        assert all(label in shown for label in exponents), plot
