"""Figures of studies: they show the values of the summary, and no texts overlap."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandits.study.figures import check_kind, draw_figure, figure_kinds, plot_figure
from bandits.study.lines import log_log_slope, plot_gap, plot_gap_along, plot_overoptimization
from bandits.study.panels import plot_bound, plot_methods, plot_phase
from bandits.study.summary import Summary
from bandits.study.summary_queries import curve, display_name, is_crossed

ROUNDING = 1e-12
"""A few operations in float64."""


def table(*axes: tuple[str, list[Any]], **columns: Any) -> Summary:
    """Return a summary with every combination of the axes; columns are functions of the rows."""
    grids = np.meshgrid(*(np.arange(len(values)) for _, values in axes), indexing="ij")
    rows = {
        name: np.array(values)[grid.ravel()]
        for (name, values), grid in zip(axes, grids, strict=True)
    }
    return rows | {name: make(rows) for name, make in columns.items()}


def half_root(rows: Summary) -> np.ndarray:
    return np.where(rows["label"] == "rpo", rows["comparisons"] ** -0.5, 0.4)


SIZES = [100.0, 1000.0, 10_000.0]
METHODS = ("label", ["rpo", "dpo"])
RATE = table(
    METHODS,
    ("comparisons", SIZES),
    gap=half_root,
    gap_low=lambda rows: 0.9 * half_root(rows),
    gap_high=lambda rows: 1.1 * half_root(rows),
    bound=lambda rows: 30.0 * rows["comparisons"] ** -0.5,
    bound_tight=lambda rows: 3.0 * rows["comparisons"] ** -0.5,
    beta=lambda rows: rows["comparisons"] ** -0.5,
    eta=lambda rows: 2.0 * rows["comparisons"] ** -0.5,
    kl=lambda rows: np.log(rows["comparisons"]),
    true_value=half_root,
    proxy_value=half_root,
)
GAPS = {name: RATE[name] for name in ("gap", "gap_low", "gap_high")}
COVERAGE = table(
    METHODS,
    ("target_coverage", [1.5, 6.0]),
    ("comparisons", SIZES),
    gap=lambda rows: rows["target_coverage"] * rows["comparisons"] ** -0.5,
)
SWEEP = table(
    ("label", ["rpo"]), ("eta", [0.01, 0.1, 1.0]), ("comparisons", SIZES), gap=lambda r: r["eta"]
)
BETAS = table(
    METHODS,
    ("beta", [0.01, 0.1, 1.0]),
    kl=lambda rows: 1.0 / (1.0 + rows["beta"]) + (rows["label"] == "dpo"),
    true_value=lambda rows: rows["beta"],
    proxy_value=lambda rows: 1.0 - rows["beta"],
    gap=lambda rows: rows["beta"],
    comparisons=lambda rows: np.full(len(rows["beta"]), 100.0),
)
SUMMARIES = {
    "gap_against_comparisons": RATE,
    "bound_against_gap": RATE,
    "method_comparison": RATE,
    "phase_coverage": COVERAGE,
    "phase_eta": SWEEP,
    "overoptimization": BETAS,
}


def points(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def axes() -> Any:
    return Figure(layout="constrained").add_subplot()


def test_property_the_axes_of_a_study_determine_its_figures() -> None:
    assert figure_kinds(RATE) == (
        "gap_against_comparisons",
        "bound_against_gap",
        "method_comparison",
    )
    assert figure_kinds(COVERAGE) == ("phase_coverage",)
    assert figure_kinds(SWEEP) == ("phase_eta",)
    assert figure_kinds(BETAS) == ("overoptimization",)
    assert figure_kinds({"label": np.array(["rpo"]), "gap": np.ones(1)}) == ()
    assert not is_crossed(RATE, "eta", "comparisons")  # eta follows N
    holes = {name: column[:-1] for name, column in COVERAGE.items()}
    assert figure_kinds(holes) == ()


NARROW = {**COVERAGE, "gap": 0.3 + 0.05 * np.arange(len(COVERAGE["gap"])) / 5.0}
"""Gaps within less than a decade, for which powers of ten are too few labels of the colors."""
MANY_WEIGHTS = table(
    ("label", ["rpo"]),
    ("eta", [0.0, *(10.0 ** np.arange(-5, 6)), 0.0002, 0.0005]),
    ("comparisons", SIZES),
    gap=lambda rows: 0.1 + rows["eta"] / 1e6,
)
PANELS = {
    name: np.concatenate([column] * 3)
    for name, column in {**GAPS, **{key: RATE[key] for key in ("label", "comparisons")}}.items()
} | {"environment": np.repeat(["named:type_ii_hacking", "named:b", "mine"], len(RATE["gap"]))}
CASES = [
    *SUMMARIES.items(),
    ("phase_coverage", NARROW),
    ("phase_eta", MANY_WEIGHTS),
    ("gap_against_comparisons", PANELS),
    ("method_comparison", PANELS),
    ("gap_against_comparisons", {**RATE, "comparisons": RATE["comparisons"] ** 0.2 * 100.0}),
]


@pytest.mark.parametrize("width", [3.25, 6.4])
@pytest.mark.parametrize(("kind", "summary"), CASES)
def test_property_every_figure_has_units_a_title_and_no_overlapping_texts(
    kind: str, summary: Summary, width: float, text_faults: Callable[[Figure], list[str]]
) -> None:
    with mpl.rc_context({"font.size": 8.0}):
        figure = draw_figure(summary, kind, Figure(figsize=(width, 1.0)))
        assert text_faults(figure) == []
    assert figure.get_figwidth() == width
    assert figure.get_suptitle() or figure.axes[0].get_title("left")
    axis_labels = [figure.get_supxlabel(), figure.get_supylabel()]
    axis_labels += [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    assert any("units of reward" in text for text in axis_labels)


@pytest.mark.parametrize(("low", "ratio"), [(0.3, 1.0), (0.0123, 9.0), (0.3, 3.0)])
def test_property_a_color_bar_has_two_labels_or_more_that_do_not_touch(
    low: float, ratio: float, text_faults: Callable[[Figure], list[str]]
) -> None:
    gaps = low * np.geomspace(1.0, ratio, len(COVERAGE["gap"]))
    with mpl.rc_context({"font.size": 8.0}):
        figure = draw_figure({**COVERAGE, "gap": gaps}, "phase_coverage", Figure(figsize=(3.25, 1)))
        assert text_faults(figure) == []
    axis: Any = figure.axes[-1].xaxis
    ends = axis.get_view_interval()
    labeled = [
        tick
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if tick.label1.get_text() and ends.min() <= tick.get_loc() <= ends.max()
    ]
    assert len(labeled) >= 2
    assert ends.max() >= 1.99 * ends.min()  # nearly equal gaps have nearly equal colors


@pytest.mark.parametrize("kind", SUMMARIES)
def test_roundtrip_drawing_a_figure_again_gives_the_same_bytes(kind: str) -> None:
    pictures = []
    for _ in range(2):
        buffer = io.BytesIO()
        draw_figure(SUMMARIES[kind], kind, Figure()).savefig(buffer, format="png")
        pictures.append(buffer.getvalue())
    assert pictures[0] == pictures[1]


def test_parity_the_slope_is_that_of_polyfit_and_its_interval_that_of_simulation() -> None:
    rng = np.random.default_rng(0)
    n = np.array([100.0, 300.0, 1000.0, 5000.0])
    mean, error = n**-0.4, 0.02 * n**-0.4
    half = 1.96 * error
    slope, width = log_log_slope(n, mean, mean - half, mean + half)
    assert slope == pytest.approx(-0.4, rel=ROUNDING)
    noisy = mean + error * rng.standard_normal((4000, 4))
    slopes = [np.polyfit(np.log(n), np.log(row), 1)[0] for row in noisy]
    # The standard deviation of 4000 draws is known to 1.1 %, and the log is not quite linear.
    assert width == pytest.approx(1.96 * np.std(slopes), rel=0.05)
    assert log_log_slope(n, noisy[0], mean, mean)[0] == pytest.approx(slopes[0])


def test_extreme_the_slope_is_nan_without_two_positive_means() -> None:
    n = np.array([10.0, 100.0])
    assert all(map(math.isnan, log_log_slope(n, np.array([0.0, 1.0]), n, n)))


def test_property_lines_pass_through_the_means_and_show_their_slope() -> None:
    ax = plot_gap(RATE, axes())
    drawn = {tuple(points(line)[1]) for line in ax.lines}
    assert drawn == {tuple(np.array(SIZES) ** -0.5), (0.4, 0.4, 0.4)}
    assert {text.get_text().split(" ±")[0] for text in ax.texts} == {
        "RPO\nslope −0.50",
        "DPO\nslope 0.00",
    }
    rpo, dpo = (text.get_position()[1] for text in ax.texts)
    assert rpo < dpo


def test_property_the_phase_diagram_shows_each_gap_at_its_coordinates() -> None:
    ax = axes()
    mesh = plot_phase(COVERAGE, "target_coverage", "rpo", ax, limits=(0.01, 1.0))
    expected = np.array(SIZES)[:, None] ** -0.5 * np.array([1.5, 6.0])
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 2), expected)
    assert [text.get_text() for text in ax.texts[:2]] == [".15", ".60"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["100", "1k", "10k"]


def test_property_true_and_proxy_values_are_drawn_in_ascending_kl() -> None:
    ax = plot_overoptimization(BETAS, axes())
    _, proxy, true = ax.lines[:3]  # the first is at zero
    assert np.all(np.diff(points(true)[0]) > 0)
    np.testing.assert_allclose(points(true)[1], [1.0, 0.1, 0.01])
    np.testing.assert_allclose(points(proxy)[1], [0.0, 0.9, 0.99])
    assert (true.get_linestyle(), proxy.get_linestyle()) == ("-", "--")


def test_property_a_violated_bound_is_drawn_in_the_shaded_half() -> None:
    violated = {**RATE, "bound": 0.5 * RATE["gap"]}
    ax = plot_bound(violated, axes())
    np.testing.assert_array_equal(*points(ax.lines[-1]))
    gaps, bounds = points(ax.lines[0])
    assert np.all(bounds < gaps)
    assert ax.get_ylim()[0] <= bounds.min()


def test_property_methods_are_compared_at_the_most_data_with_the_best_on_top() -> None:
    ax = plot_methods(RATE, axes())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["DPO", "RPO"]
    assert [text.get_text().strip() for text in ax.texts] == ["0.400", "0.0100"]
    assert "10,000" in ax.get_title(loc="left")


def test_property_every_environment_has_a_panel_with_the_same_colors() -> None:
    half = len(RATE["gap"])
    both = {name: np.concatenate([column, 2 * column]) for name, column in GAPS.items()}
    both |= {name: np.concatenate([RATE[name]] * 2) for name in ("label", "comparisons")}
    both["environment"] = np.repeat(["named:four_arms", "design"], half)
    assert figure_kinds(both) == ("gap_against_comparisons", "method_comparison")
    figure = draw_figure(both, "gap_against_comparisons", Figure())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["four arms", "design"]
    first, second = (points(ax.lines[0])[1] for ax in figure.axes)
    np.testing.assert_allclose(second, 2 * first)
    only_dpo = {**both, "label": np.where(np.arange(2 * half) < half, both["label"], "dpo")}
    exact = {name: only_dpo[name] for name in ("label", "comparisons", "gap", "environment")}
    distinct = {name: column[[*range(half), -3, -2, -1]] for name, column in exact.items()}
    figure = draw_figure(distinct, "gap_against_comparisons", Figure())
    first, second = figure.axes
    assert second.lines[0].get_color() == first.lines[1].get_color() != first.lines[0].get_color()
    assert [text.get_text() for text in first.texts] == ["RPO", "DPO"]


def test_property_every_panel_has_the_same_limits_and_names_at_the_ends_of_its_lines() -> None:
    size = len(RATE["gap"])
    scales = np.repeat([1.0, 1e-2, 1e-4], size)
    panels = {name: np.concatenate([RATE[name]] * 3) for name in ("label", "comparisons")}
    panels |= {name: np.concatenate([GAPS[name]] * 3) * scales for name in GAPS}
    panels["environment"] = np.repeat(["named:a", "named:b", "named:c"], size)
    figure = draw_figure(panels, "gap_against_comparisons", Figure(figsize=(9.0, 4.0)))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 3
    assert len({ax.get_ylim() for ax in shown}) == 1
    columns = {cell.colspan.start for ax in shown if (cell := ax.get_subplotspec())}
    assert len(columns) == 2  # panels side by side, not three
    for ax in shown:
        to_axes = ax.transData + ax.transAxes.inverted()
        for line, text in zip(ax.lines, ax.texts, strict=True):
            end = to_axes.transform(np.asarray(line.get_xydata())[-1])[1]
            assert text.get_position()[1] == pytest.approx(end, abs=0.1)


def test_property_a_curve_averages_rows_with_equal_x() -> None:
    both = {"label": np.array(["a", "a"]), "n": np.array([5, 5]), "gap": np.array([1.0, 3.0])}
    x, (mean, low, high) = curve(both, "n", "gap", "a")
    assert [*x, *mean, *low, *high] == [5.0, 2.0, 2.0, 2.0]


def test_closed_form_display_names_keep_what_follows_the_method() -> None:
    assert display_name("rpo") == "RPO"
    assert display_name("rpo, chosen") == "RPO, chosen"
    assert display_name("mine") == "mine"


def test_raises_for_a_figure_that_the_axes_do_not_allow() -> None:
    with pytest.raises(ValueError, match=r"`kind` must be one .* phase_eta, got 'pie'"):
        draw_figure(SWEEP, "pie", Figure())


@pytest.mark.parametrize("kind", SUMMARIES)
def test_parity_a_panel_in_given_axes_shows_what_the_figure_shows(kind: str) -> None:
    summary = SUMMARIES[kind]
    if kind == "phase_coverage":
        with pytest.raises(ValueError, match="`label` must be one of rpo, dpo, got None"):
            plot_figure(summary, kind, axes())
        summary = {name: column[summary["label"] == "rpo"] for name, column in summary.items()}
    ax = axes()
    assert plot_figure(summary, kind, ax) is ax
    expected = draw_figure(summary, kind, Figure()).axes[0]
    assert [text.get_text() for text in ax.texts] == [text.get_text() for text in expected.texts]
    for line, other in zip(ax.lines, expected.lines, strict=True):
        np.testing.assert_array_equal(points(line), points(other))


def test_raises_for_several_environments_in_one_panel() -> None:
    both = {name: np.concatenate([column, column]) for name, column in GAPS.items()}
    both |= {name: np.concatenate([RATE[name]] * 2) for name in ("label", "comparisons")}
    both["environment"] = np.repeat(["named:four_arms", "design"], len(RATE["gap"]))
    with pytest.raises(ValueError, match="`environment` must be one of named:four_arms, design"):
        plot_figure(both, "gap_against_comparisons", axes())


def test_property_the_gap_is_drawn_along_the_only_numerical_axis_of_the_design() -> None:
    sizes = np.tile([0.0, 0.1, 0.4], 2)
    summary = {
        "label": np.repeat(["rpo", "dpo"], 3),
        "comparisons": np.full(6, 100),
        "design.misspecification": sizes,
        "target_coverage": np.full(6, 2.0),
        "gap": 0.1 + sizes,
    }
    check_kind(summary, "gap_along_design")
    ax = plot_gap_along(summary, Figure().subplots(), axis="design.misspecification")
    assert ax.get_xlabel() == "misspecification (units of reward)"
    assert "N = 100" in ax.get_title(loc="left")
    with pytest.raises(ValueError, match="`kind` must be one that the study's axes allow"):
        check_kind(summary, "phase_eta")
