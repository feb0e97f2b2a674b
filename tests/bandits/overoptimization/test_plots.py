"""Claims about the figures of the laws study: they show the tables, and no curve is cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from bandits.overoptimization import (
    LawsConfig,
    LawsResult,
    draw_coefficients,
    draw_laws,
    fit_law,
    law_gain,
    plot_coefficient,
    plot_gain_curve,
)
from bandits.overoptimization.figures import (
    draw_laws_figure,
    laws_figure_kinds,
    plot_laws_figure,
)
from bandits.overoptimization.laws import LawName
from bandits.overoptimization.plots import fits_of, plot_gains, title_of

SEEDS, POINTS = 6, 5
KEYS = {"reward_class": "tabular"}
D = np.linspace(0.0, 2.0, POINTS) * np.ones((SEEDS, 1))


def result() -> LawsResult:
    """Return a study of two methods whose curves follow their laws exactly."""
    config = LawsConfig(name="a", methods=["rpo", "best_of_n"], comparisons=[10, 100], seeds=SEEDS)
    records, fits = [], []
    laws: dict[str, LawName] = {"rpo": "rl", "best_of_n": "best_of_n"}
    for method, law in laws.items():
        eta = 0.1 if law == "rl" else float("nan")
        for comparisons in (10, 100):
            d = D * (1.0 if law == "rl" else 1.5)
            gain = law_gain(law, d, 0.5, 0.2) + 0.01 * np.arange(SEEDS)[:, None] * d
            keys = {"method": method, **KEYS, "comparisons": comparisons, "eta": eta}
            columns = {name: [value] * d.size for name, value in keys.items()}
            columns |= {"sqrt_kl": d.ravel(), "true_gain": gain.ravel()}
            records.append(pa.table({**columns, "proxy_gain": 2.0 * gain.ravel()}))
            fit = fit_law(d, gain, law, seed=0, resamples=50)
            fits.append({**keys, "law": law, **fit._asdict(), "initial_slope": 0.5})
    return LawsResult(config, pa.concat_tables(records), pa.Table.from_pylist(fits))


RESULT = result()


def test_closed_form_a_panel_shows_means_proxy_and_law() -> None:
    fit = RESULT.fits.to_pylist()[0]
    ax = plot_gain_curve(RESULT, fit, Figure().subplots())
    _, proxy, true, law = ax.lines
    mean = law_gain("rl", D[0], 0.5 + 0.01 * np.arange(SEEDS).mean(), 0.2)
    for line, values in ((true, mean), (proxy, 2.0 * mean), (law, mean)):
        np.testing.assert_allclose(np.asarray(line.get_xydata())[:, 1], values, atol=1e-12)
    assert [line.get_linestyle() for line in (true, proxy, law)] == ["-", "--", ":"]
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)[:, 1]
    half_width_at_the_end = 1.959964 * 0.02 * np.std(np.arange(SEEDS), ddof=1) / SEEDS**0.5
    assert band.max() == pytest.approx((mean + D[0] / 2 * half_width_at_the_end).max(), abs=1e-6)
    assert ax.get_title(loc="left") == "RPO, η = 0.1"


def test_property_every_curve_lies_within_the_limits_of_its_panel() -> None:
    figure = draw_laws(RESULT, Figure(), reward_class="tabular", comparisons=100)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["RPO, η = 0.1", "best-of-n"]
    for ax in figure.axes:
        for line in ax.lines[1:]:
            points = np.asarray(line.get_xydata())
            (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
            assert (points >= [left, low]).all()
            assert (points <= [right, high]).all()
        assert ax.texts[0].get_text().startswith("α = 0.5")
    assert "N = 100, 6 seeds" in figure.legends[0].get_title().get_text()


def test_closed_form_coefficients_are_drawn_over_the_number_of_comparisons() -> None:
    ax = plot_coefficient(RESULT, "gamma", Figure().subplots(), reward_class="tabular")
    drawn = [np.asarray(line.get_xydata()) for line in ax.lines]
    drawn = [points for points in drawn if points[:, 0].tolist() == [10, 100]]
    assert len(drawn) == 2
    np.testing.assert_allclose(drawn[0][:, 1], [0.2, 0.2], atol=1e-12)
    slope = plot_coefficient(RESULT, "initial_slope", Figure().subplots(), reward_class="tabular")
    assert slope.get_ylabel() == "slope at the reference (units of reward)"
    figure = draw_coefficients(RESULT, Figure())
    assert [ax.get_ylabel().replace("\n", " ") for ax in figure.axes] == [
        "coefficient α (units of reward)",
        "overoptimization γ (units of reward)",
    ]


def test_property_methods_with_equal_curves_share_a_panel() -> None:
    fits, records = RESULT.fits.to_pylist(), RESULT.records
    twins = pa.Table.from_pylist([*fits, {**fits[0], "method": "vpo"}])
    figure = draw_laws(
        LawsResult(RESULT.config, records, twins), Figure(), reward_class="tabular", comparisons=10
    )
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["RPO, η = 0.1 = VPO, η = 0.1", "best-of-n"]


def test_raises_for_a_setting_that_the_study_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"`reward_class` and `comparisons` must be .* and 7"):
        draw_laws(RESULT, Figure(), reward_class="tabular", comparisons=7)


def test_property_figures_have_names_and_are_drawn_into_given_axes() -> None:
    kinds = "laws_tabular_10", "laws_tabular_100", "coefficients"
    assert RESULT.figure_kinds == laws_figure_kinds(RESULT) == kinds
    whole = draw_laws_figure(RESULT, "laws_tabular_10", Figure())
    ax = Figure().subplots()
    assert RESULT.plot("laws_tabular_10", ax, panel="best-of-n") is ax
    for line, expected in zip(ax.lines, whole.axes[1].lines, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), expected.get_xydata())
    legend = ax.get_legend()
    assert legend
    assert legend.get_texts()[0].get_text() == "true gain"
    # Without a panel, the true gains of all methods.
    setting: dict[str, Any] = {"reward_class": "tabular", "comparisons": 10}
    assert [title_of(fit) for fit in fits_of(RESULT, **setting)] == ["RPO, η = 0.1", "best-of-n"]
    gains = plot_gains(RESULT, Figure().subplots(), **setting)
    same = plot_laws_figure(RESULT, "laws_tabular_10", Figure().subplots())
    assert same.get_title("left") == gains.get_title("left")
    for line, panel in zip(gains.lines[1:], whole.axes, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), panel.lines[2].get_xydata())
    assert draw_laws_figure(RESULT, "coefficients", Figure()).axes
    for panel, label in ((None, "coefficient α"), ("gamma, tabular", "overoptimization γ")):
        assert label in RESULT.plot("coefficients", Figure().subplots(), panel=panel).get_ylabel()
    with pytest.raises(ValueError, match="`panel` must be one of alpha, tabular; gamma, tabular"):
        RESULT.plot("coefficients", Figure().subplots(), panel="beta, tabular")
    with pytest.raises(ValueError, match=r"`panel` must be one of RPO, η = 0.1; best-of-n, got"):
        RESULT.plot("laws_tabular_10", Figure().subplots(), panel="DPO")
    with pytest.raises(ValueError, match=r"`kind` must be one of laws_tabular_10, .*, got 'pie'"):
        RESULT.plot("pie", Figure().subplots())


@pytest.mark.parametrize("width", [3.25, 6.4])
@pytest.mark.parametrize("kind", ["laws_tabular_100", "coefficients"])
def test_property_no_texts_of_a_figure_touch(
    kind: str, width: float, text_faults: Callable[[Figure], list[str]]
) -> None:
    with mpl.rc_context({"font.size": 8.0}):
        figure = draw_laws_figure(RESULT, kind, Figure(figsize=(width, 1.0)))
        assert text_faults(figure) == []
    assert figure.get_figwidth() == width
