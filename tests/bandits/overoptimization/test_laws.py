"""Claims about the fits of the laws: exactness, least squares, intervals with their coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from bandits.overoptimization import LawFit, fit_law, law_gain, law_terms
from bandits.overoptimization.laws import LawName

LAWS: tuple[LawName, ...] = ("rl", "best_of_n")
RESAMPLES = 200


def draw_curves(
    law: LawName, seeds: int, rng: np.random.Generator, noise: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Draw curves with skewed coefficients of mean (1, .3), distances that differ, and noise."""
    d = np.geomspace(0.05, 2.0, 12) * np.exp(0.2 * rng.standard_normal((seeds, 1)))
    alpha = 0.6 + 0.4 * rng.standard_exponential((seeds, 1))
    gamma = 0.3 + 0.2 * rng.standard_normal((seeds, 1))
    first, second = law_terms(law, d)
    return d, alpha * first + gamma * second + noise * rng.standard_normal(d.shape)


def interval(fit: LawFit) -> list[float]:
    return [fit.alpha_low, fit.alpha_high, fit.gamma_low, fit.gamma_high]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("span", [(1e-3, 3.0), (0.99, 1.01)])
def test_closed_form_noiseless_curves_are_recovered(
    law: LawName, span: tuple[float, float]
) -> None:
    d = np.geomspace(*span, 9) * np.linspace(1.0, 1.003, 6)[:, None]
    fit = fit_law(d, law_gain(law, d, 0.7, -0.2), law, seed=0, resamples=RESAMPLES)
    assert fit.alpha == pytest.approx(0.7, abs=1e-11)
    assert fit.gamma == pytest.approx(-0.2, abs=1e-11)
    assert interval(fit) == pytest.approx([0.7, 0.7, -0.2, -0.2], abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-9)
    assert fit.residual < 1e-14
    assert fit.seeds == 6


def test_closed_form_the_two_forms_are_those_of_gao_and_vanish_at_0() -> None:
    d = np.array([0.0, 0.5, 2.0])
    rl = [0.0, 0.5 * (0.4 - 0.3 * np.log(0.5)), 2.0 * (0.4 - 0.3 * np.log(2.0))]
    np.testing.assert_allclose(law_gain("rl", d, 0.4, 0.3), rl, rtol=1e-15)
    best = [0.0, 0.5 * (0.4 - 0.15), 2.0 * (0.4 - 0.6)]
    np.testing.assert_allclose(law_gain("best_of_n", d, 0.4, 0.3), best, rtol=1e-15)


@pytest.mark.parametrize("law", LAWS)
def test_parity_the_fit_at_common_distances_is_scipys_of_the_mean_curve(law: LawName) -> None:
    rng = np.random.default_rng(1)
    d = np.broadcast_to(np.geomspace(0.1, 3.0, 8), (7, 8))
    gain = law_gain(law, d, 1.0, 0.3) + 0.1 * rng.standard_normal(d.shape)
    fit = fit_law(d, gain, law, seed=0, resamples=RESAMPLES)
    (alpha, gamma), _ = curve_fit(
        lambda x, a, g: law_gain(law, x, a, g), d[0], gain.mean(axis=0), p0=(0.0, 0.0)
    )
    assert fit.alpha == pytest.approx(alpha, abs=1e-8)
    assert fit.gamma == pytest.approx(gamma, abs=1e-8)
    deviation = gain.mean(axis=0) - law_gain(law, d[0], alpha, gamma)
    assert fit.residual == pytest.approx(np.sqrt(np.mean(deviation**2)), abs=1e-8)
    assert fit.r_squared == pytest.approx(
        1.0 - np.mean(deviation**2) / np.var(gain.mean(axis=0)), abs=1e-8
    )


def test_parity_the_standard_errors_are_those_of_the_jackknife() -> None:
    from bandits.overoptimization.laws import _estimate

    # The law does not fit and distances differ at random, so that errors of the terms matter.
    rng = np.random.default_rng(2)
    d = np.geomspace(0.05, 2.0, 12) * np.exp(0.3 * rng.standard_normal((60, 12)))
    gain = np.sin(4.0 * d) + 0.05 * rng.standard_normal(d.shape)
    terms = np.stack(law_terms("rl", d), axis=-1)
    weights = (1.0 - np.eye(60)) / 59
    left_out, _ = _estimate(weights, terms, gain, np.eye(2))
    _, errors = _estimate(np.full((1, 60), 1 / 60), terms, gain, np.eye(2))
    jackknife = np.sqrt(59 / 60 * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(errors[0], jackknife, rtol=0.05)


def test_property_intervals_depend_only_on_the_seed_and_widen_with_confidence() -> None:
    d, gain = draw_curves("best_of_n", 20, np.random.default_rng(3))
    first, again, other, wide = (
        fit_law(d, gain, "best_of_n", seed=seed, resamples=RESAMPLES, confidence=confidence)
        for seed, confidence in ((0, 0.9), (0, 0.9), (1, 0.9), (0, 0.99))
    )
    assert first == again
    assert interval(first) != interval(other)
    assert first.alpha == other.alpha
    assert wide.alpha_low < first.alpha_low < first.alpha < first.alpha_high < wide.alpha_high


def test_extreme_few_seeds_points_at_0_and_values_that_are_not_finite() -> None:
    d, gain = draw_curves("rl", 6, np.random.default_rng(4))
    fit = fit_law(d, gain, "rl", seed=0, resamples=RESAMPLES)
    # A point at distance 0 says nothing.
    zeros = np.zeros((6, 1))
    with_zero = fit_law(
        np.hstack([zeros, d]), np.hstack([zeros, gain]), "rl", seed=0, resamples=RESAMPLES
    )
    assert with_zero.alpha == pytest.approx(fit.alpha, rel=1e-12)
    # A seed that failed is left out.
    failed = np.vstack([gain, np.full((1, 12), np.nan)])
    without = fit_law(np.vstack([d, d[:1]]), failed, "rl", seed=0, resamples=RESAMPLES)
    assert without == fit
    few = fit_law(d[:4], gain[:4], "rl", seed=0, resamples=RESAMPLES)
    assert np.isnan(interval(few)).all()
    assert np.isfinite([few.alpha, few.gamma]).all()
    one_point = fit_law(d[:, :1], gain[:, :1], "rl", seed=0, resamples=RESAMPLES)
    assert np.isnan(one_point.alpha)
    nothing = fit_law(np.zeros((6, 3)), np.zeros((6, 3)), "rl", seed=0, resamples=RESAMPLES)
    assert np.isnan(nothing.alpha)


def test_raises_for_arguments_that_are_out_of_range() -> None:
    d = np.ones((6, 2))
    unchecked: Any = getattr(law_terms, "__wrapped__", law_terms)
    with pytest.raises(ValueError, match=r"`law` must be one of rl, best_of_n, got 'linear'"):
        unchecked("linear", d)
    with pytest.raises(ValueError, match=r"`sqrt_kl` must be at least 0, got -1"):
        fit_law(-d, d, "rl", seed=0)
    with pytest.raises(ValueError, match=r"`resamples` must be at least 1, got 0"):
        fit_law(d, d, "rl", seed=0, resamples=0)
    with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1, got 1.0"):
        fit_law(d, d, "rl", seed=0, confidence=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seeds", [15, 50])
def test_property_95_percent_intervals_cover_the_mean_coefficients(
    law: LawName, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = 1000
    covered = np.zeros(2)
    for study in range(studies):
        d, gain = draw_curves(law, seeds, np.random.default_rng(study))
        fit = fit_law(d, gain, law, seed=study, resamples=999)
        covered += [
            fit.alpha_low <= 1.0 <= fit.alpha_high,
            fit.gamma_low <= 0.3 <= fit.gamma_high,
        ]
    with capsys.disabled():
        print(f"\n{law}, {seeds} seeds: coverage of alpha and gamma {covered / studies}")
    assert (abs(covered / studies - 0.95) <= 0.03).all()
