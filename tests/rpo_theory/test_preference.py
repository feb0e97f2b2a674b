"""Bradley-Terry likelihood and gradient pair by pair, the sampler, the curvature constants."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from rpo_theory.preference import (
    curvature,
    expected_wins,
    hellinger_curvature,
    negative_log_likelihood,
    preference_probability,
    sample_wins,
    win_counts,
)

EXACT = 1e-13  # float64 after a handful of operations

seeds = st.integers(0, 2**32 - 1)


def random_data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 4)), rng.poisson(1.0, (2, 4, 4)).astype(np.float64)


@settings(deadline=None)
@given(st.floats(-700, 700), st.floats(-700, 700))
def test_closed_form_preferences_are_a_sigmoid_and_add_to_one(first: float, second: float) -> None:
    got = preference_probability(np.array(first), np.array(second))
    np.testing.assert_allclose(got, expit(first - second), rtol=EXACT)
    alternative = preference_probability(np.array(second), np.array(first))
    np.testing.assert_allclose(got + alternative, 1.0, rtol=EXACT)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_closed_form_likelihood_is_the_sum_over_labeled_pairs(seed: int) -> None:
    """Equation 3.2 with labels: each comparison written with y = 1 or, reversed, with y = 0."""
    reward, wins = random_data(seed)
    rng = np.random.default_rng(seed)
    n_comparisons, terms = wins.sum(), 0.0
    for x, w, loser in np.ndindex(*wins.shape):
        y = rng.integers(2)
        first, second = (w, loser) if y else (loser, w)
        d = reward[x, first] - reward[x, second]
        terms -= wins[x, w, loser] * (y * np.log(expit(d)) + (1 - y) * np.log(expit(-d)))
    got = float(negative_log_likelihood(reward, wins))
    assert got == pytest.approx(terms / max(n_comparisons, 1.0), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gradient_of_the_likelihood_is_the_surprise_of_losses_less_wins(seed: int) -> None:
    reward, wins = random_data(seed)
    gradient = jax.grad(lambda r: negative_log_likelihood(r, wins))(jnp.asarray(reward))
    expected = np.zeros_like(reward)
    for x, w, loser in np.ndindex(*wins.shape):
        surprise = wins[x, w, loser] * expit(reward[x, loser] - reward[x, w]) / wins.sum()
        expected[x, w] -= surprise
        expected[x, loser] += surprise
    np.testing.assert_allclose(gradient, expected, atol=EXACT)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_property_likelihood_ignores_prompt_constants_and_the_unit_of_counts(seed: int) -> None:
    reward, wins = random_data(seed)
    wins[0, 0, 1] += 1.0
    got = float(negative_log_likelihood(reward, wins))
    shifted = reward + np.array([[3.0], [-7.0]])
    assert float(negative_log_likelihood(shifted, wins)) == pytest.approx(got, rel=1e-12)
    assert float(negative_log_likelihood(reward, 1e-9 * wins)) == pytest.approx(got, rel=1e-12)


def test_extreme_no_data_gives_zero_loss_and_gradient() -> None:
    reward, nothing = jnp.ones((2, 3)), jnp.zeros((2, 3, 3))
    value, gradient = jax.value_and_grad(lambda r: negative_log_likelihood(r, nothing))(reward)
    assert float(value) == 0.0
    assert not gradient.any()


def test_extreme_a_comparison_with_itself_costs_log_two_with_zero_gradient() -> None:
    wins = jnp.zeros((1, 2, 2)).at[0, 1, 1].set(3.0)
    value, gradient = jax.value_and_grad(lambda r: negative_log_likelihood(r, wins))(
        jnp.array([[0.0, 5.0]])
    )
    assert float(value) == pytest.approx(np.log(2.0), rel=EXACT)
    assert not gradient.any()


def test_extreme_rewards_of_ten_thousand_keep_the_likelihood_linear() -> None:
    wins = jnp.zeros((1, 2, 2)).at[0, 1, 0].set(1.0)
    value, gradient = jax.value_and_grad(lambda r: negative_log_likelihood(r, wins))(
        jnp.array([[1e4, 0.0]])
    )
    assert float(value) == pytest.approx(1e4, rel=EXACT)
    np.testing.assert_allclose(gradient, [[1.0, -1.0]], rtol=EXACT)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_property_win_counts_add_up_rows_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 3, (3, 12))
    counts = rng.uniform(0, 2, 12)
    got = win_counts(rows[0], rows[1], rows[2], counts, shape=(3, 3))
    expected = np.zeros((3, 3, 3))
    for x, w, loser, count in zip(*rows, counts, strict=True):
        expected[x, w, loser] += count
    np.testing.assert_allclose(got, expected, rtol=EXACT)
    order = rng.permutation(12)
    np.testing.assert_allclose(
        win_counts(rows[0, order], rows[1, order], rows[2, order], counts[order], shape=(3, 3)),
        expected,
        rtol=EXACT,
    )


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_property_expected_wins_share_each_pair_at_the_bradley_terry_rate(seed: int) -> None:
    reward, comparisons = random_data(seed)
    got = np.asarray(expected_wins(reward, comparisons))
    both = comparisons + comparisons.swapaxes(1, 2)
    np.testing.assert_allclose(got + got.swapaxes(1, 2), both, rtol=EXACT)
    rate = expit(reward[:, :, None] - reward[:, None, :])
    np.testing.assert_allclose(got, both * rate, rtol=1e-12)
    # The labeling reward is a stationary point of the likelihood of its own expected counts.
    gradient = jax.grad(lambda r: negative_log_likelihood(r, got))(jnp.asarray(reward))
    np.testing.assert_allclose(gradient, 0.0, atol=EXACT)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_property_sampled_wins_are_whole_and_keep_the_count_of_each_pair(seed: int) -> None:
    reward, comparisons = random_data(seed)
    got = np.asarray(sample_wins(jax.random.key(seed), reward, comparisons))
    np.testing.assert_array_equal(got, np.round(got))
    assert got.min() >= 0.0
    both = comparisons + comparisons.swapaxes(1, 2)
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal((got + got.swapaxes(1, 2))[:, off], both[:, off])
    assert got.sum() == comparisons.sum()


def test_theorem_sampled_wins_follow_the_binomial_distribution() -> None:
    reward, comparisons = np.array([[0.7, 0.0]]), np.zeros((1, 2, 2))
    comparisons[0, 0, 1] = 6.0
    keys = jax.random.split(jax.random.key(3), 4000)
    draws = jax.vmap(lambda key: sample_wins(key, reward, comparisons)[0, 0, 1])(keys)
    observed = np.bincount(np.asarray(draws).astype(int), minlength=7)
    expected = 4000 * binom.pmf(np.arange(7), 6, expit(0.7))
    # Chi-squared with six degrees of freedom: beyond 22.5 with probability 0.001, for a fixed key.
    assert np.sum((observed - expected) ** 2 / expected) < 22.5


@pytest.mark.parametrize("reward_max", [0.0, 0.3, 1.0, 5.0, 20.0])
def test_closed_form_kappa(reward_max: float) -> None:
    assert float(curvature(reward_max)) == pytest.approx((1 + np.exp(reward_max)) ** -2, rel=EXACT)


def hellinger(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the squared distance 1 - sum sqrt(pq) of two coins, without cancellation."""
    heads = (np.sqrt(expit(z)) - np.sqrt(expit(w))) ** 2
    return 0.5 * (heads + (np.sqrt(expit(-z)) - np.sqrt(expit(-w))) ** 2)


@pytest.mark.parametrize("reward_max", [0.01, 0.333, 1.0, 3.0, 10.0])
def test_closed_form_the_tight_constant_is_the_infimum_of_the_hellinger_ratio(
    reward_max: float,
) -> None:
    grid = np.linspace(-reward_max, reward_max, 401)
    z, w = np.meshgrid(grid, grid)
    apart = np.abs(z - w) > 1e-3 * reward_max
    ratio = hellinger(z[apart], w[apart]) / (z[apart] - w[apart]) ** 2
    bound = float(hellinger_curvature(reward_max))
    assert ratio.min() >= bound
    assert ratio.min() == pytest.approx(bound, rel=0.03 * max(1.0, reward_max / 3))  # grid spacing


def test_closed_form_the_printed_constant_is_the_safer_one_from_a_range_of_one_third() -> None:
    """From a range of 1/3 kappa is at most the root of the tight constant: erratum on Lemma A.1."""

    def excess(reward_max: float) -> float:
        return float(hellinger_curvature(reward_max)) ** 0.5 - float(curvature(reward_max))

    crossing: Any = brentq(excess, 0.0, 3.0)
    assert round(crossing, 3) == 0.333


def test_closed_form_ratio_of_the_tight_to_the_printed_constant() -> None:
    printed = {1.0: (6.4, 13.8), 3.0: (13.0, 445.0), 5.0: (35.0, 22324.0)}
    for reward_max, (tight, loose) in printed.items():
        assert float(hellinger_curvature(reward_max)) ** -0.5 == pytest.approx(tight, rel=0.03)
        assert 1 / float(curvature(reward_max)) == pytest.approx(loose, rel=0.003)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": [0, 1]}, r"`contexts\[1\]` must be an index from 0 to 0, got 1"),
        ({"winners": [-1, 0]}, r"`winners\[0\]` must be an index from 0 to 1, got -1"),
        ({"losers": [1, 2]}, r"`losers\[1\]` must be an index from 0 to 1, got 2"),
        ({"losers": [0.5, 1.0]}, "`losers` must hold whole numbers, got float64"),
        ({"winners": [0]}, r"`winners` must have shape \(2,\) like `counts`, got \(1,\)"),
    ],
)
def test_raises_for_comparisons_that_would_be_dropped(
    changes: dict[str, list[int]], message: str
) -> None:
    rows = {"contexts": [0, 0], "winners": [0, 1], "losers": [1, 0], "counts": [2.0, 1.0]}
    columns = {name: np.array(column) for name, column in (rows | changes).items()}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(win_counts)(**columns, shape=(1, 2))
