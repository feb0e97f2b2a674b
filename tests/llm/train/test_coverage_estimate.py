"""Coverage of sampled replies: bias, intervals and the limit of many replies."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest

from llm.train.coverage_estimate import estimate_coverage
from llm.train.diagnostics import linear_coverage

DIMENSION = 32
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DIFFERENCES = RNG.normal(size=(400, DIMENSION)) @ np.diag(RNG.uniform(0.5, 2.0, DIMENSION))


def replies(mean: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of replies and of baseline responses, around means that differ by one."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, count, DIMENSION)) * np.sqrt(0.5)
    return noise[0] + mean, noise[1]


def true_square(mean: np.ndarray) -> float:
    covariance = DIFFERENCES.T @ DIFFERENCES / len(DIFFERENCES)
    return float(mean @ np.linalg.solve(covariance, mean))


def test_closed_form_the_estimate_is_the_mean_product_of_different_prompts() -> None:
    samples, baseline = replies(np.full(DIMENSION, 0.1), 5, 1)
    covariance = DIFFERENCES.T @ DIFFERENCES / len(DIFFERENCES)
    z = samples - baseline
    inner = [
        z[i] @ np.linalg.solve(covariance, z[j]) for i, j in itertools.permutations(range(5), 2)
    ]
    estimate = estimate_coverage(samples, baseline, DIFFERENCES, KEY, ridge=1e-13)
    assert estimate.squared == pytest.approx(np.mean(inner), rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.08])
def test_property_the_estimate_has_no_bias_and_the_interval_holds_the_truth(mean: float) -> None:
    """The plain formula shows a policy like the baseline as uncovered."""
    mean_shift, trials = np.full(DIMENSION, mean), 60
    truth = true_square(mean_shift)
    estimates, plain = [], []
    for seed in range(trials):
        drawn = replies(mean_shift, 64, seed)
        estimates.append(estimate_coverage(*drawn, DIFFERENCES, jax.random.key(seed)))
        plain.append(linear_coverage(*drawn, DIFFERENCES) ** 2)
    squares = np.array([estimate.squared for estimate in estimates])
    error = squares.std() / math.sqrt(trials)
    assert abs(squares.mean() - truth) < 4 * error
    assert np.mean(plain) > truth + 10 * error
    held = [e.lower**2 <= truth + 1e-12 and truth <= e.upper**2 for e in estimates]
    assert np.mean(held) >= 0.85


def test_limit_identical_shifts_have_no_noise() -> None:
    samples = np.tile(RNG.normal(size=DIMENSION), (3, 1))
    estimate = estimate_coverage(samples, 0.0 * samples, DIFFERENCES, KEY)
    expected = linear_coverage(samples, 0.0 * samples, DIFFERENCES)
    np.testing.assert_allclose(estimate[1:], [expected] * 3, rtol=1e-9)
    unseen = estimate_coverage(samples, 0.0 * samples, 0.0 * DIFFERENCES, KEY)
    assert unseen.coefficient == unseen.upper == math.inf
    assert estimate_coverage(samples, samples, 0.0 * DIFFERENCES, KEY).upper == 0.0


def test_raises_for_one_prompt() -> None:
    one = np.ones((1, DIMENSION))
    with pytest.raises(ValueError, match="`samples` must have at least 2 rows, got 1"):
        estimate_coverage(one, one, DIFFERENCES, KEY)
