"""Bounds against their algebra by hand, and constants of the proof against numerical scans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from rpo_theory import minimax
from rpo_theory.bounds import (
    complexity,
    corrected_modulus,
    covering_scale,
    printed_modulus,
    prompt_shift_factor,
    regularized_gap_bound,
    suboptimality_bound,
    theorem_beta,
    theorem_bound_corrected,
    theorem_bound_printed,
    theorem_bound_tight,
    tight_modulus,
    tuned_eta,
)
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.preference import curvature
from rpo_theory.rewards import FiniteClass, TabularBox, log_covering_number
from rpo_theory.types import Problem

ALGEBRA = 1e-12
"""Tens of roundings."""
SCAN = 1e-4
"""Accuracy of scans of 200 by 200 points, and of ratios of numbers that tend to zero."""

sizes = st.floats(1.0, 1e9)
ranges = st.floats(0.0, 10.0)
complexities = st.floats(1.0, 50.0)
coefficients = st.floats(0.0, 100.0)
divergences = st.floats(0.0, 50.0)


def sigmoid(margin: np.ndarray | float) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.asarray(margin, np.float64)))


def hellinger(z: np.ndarray | float, w: np.ndarray | float) -> np.ndarray:
    """Return 1 - sum sqrt(p q) of two labels with margins z and w, without cancellation."""
    half_sum = (np.sqrt(sigmoid(z)) - np.sqrt(sigmoid(w))) ** 2
    return 0.5 * (half_sum + (np.sqrt(sigmoid(-z)) - np.sqrt(sigmoid(-w))) ** 2)


def scanned_modulus(reward_max: float) -> float:
    """Return the smallest ratio of squared Hellinger distance to squared margin on a grid."""
    z, w = np.meshgrid(*2 * [np.linspace(-reward_max, reward_max, 200)])
    apart = z != w
    return float((hellinger(z, w)[apart] / (z - w)[apart] ** 2).min())


@settings(deadline=None)
@given(sizes, ranges, complexities, coefficients, divergences)
def test_theorem_printed_is_the_untuned_bound_at_its_eta_and_beta(
    n: float, reward_max: float, iota: float, c: float, kl: float
) -> None:
    kappa = (1.0 + math.exp(reward_max)) ** -2
    eta, beta = kappa * math.sqrt(24.0 * iota**2 / n), n**-0.5
    modulus = printed_modulus(reward_max)
    np.testing.assert_allclose(modulus, kappa**2, rtol=ALGEBRA)
    np.testing.assert_allclose(tuned_eta(modulus, n_pairs=n, complexity=iota), eta, rtol=ALGEBRA)
    np.testing.assert_allclose(theorem_beta(n), beta, rtol=ALGEBRA)
    untuned = c**2 * eta / (8 * kappa**2) + 3 * iota**2 / (eta * n) + beta * kl
    terms = {"n_pairs": n, "complexity": iota, "coverage": c, "kl": kl}
    actual = suboptimality_bound(modulus, **terms, eta=eta, beta=beta)
    np.testing.assert_allclose(actual, untuned, rtol=ALGEBRA)
    tuned = theorem_bound_printed(**terms, reward_max=reward_max)
    np.testing.assert_allclose(tuned, untuned, rtol=ALGEBRA)


@settings(deadline=None)
@given(sizes, ranges, complexities, coefficients, divergences)
def test_theorem_corrected_is_the_safe_bound_at_the_same_eta_and_beta(
    n: float, reward_max: float, iota: float, c: float, kl: float
) -> None:
    kappa = (1.0 + math.exp(reward_max)) ** -2
    eta, beta = kappa * math.sqrt(24.0 * iota**2 / n), n**-0.5
    safe = c**2 * eta / (4 * kappa**2) + 3 * iota**2 / (eta * n) + beta * kl
    terms = {"n_pairs": n, "complexity": iota, "coverage": c, "kl": kl}
    actual = suboptimality_bound(corrected_modulus(reward_max), **terms, eta=eta, beta=beta)
    np.testing.assert_allclose(actual, safe, rtol=ALGEBRA)
    tuned = theorem_bound_corrected(**terms, reward_max=reward_max)
    np.testing.assert_allclose(tuned, safe, rtol=ALGEBRA)


@settings(deadline=None)
@given(sizes, ranges, complexities, coefficients, divergences)
def test_theorem_tight_is_the_printed_one_with_the_root_of_h_for_kappa(
    n: float, reward_max: float, iota: float, c: float, kl: float
) -> None:
    gradient = float(sigmoid(reward_max) * sigmoid(-reward_max))
    root_h = math.sqrt(gradient / 8.0)
    eta, beta = root_h * math.sqrt(24.0 * iota**2 / n), n**-0.5
    untuned = c**2 * eta / (8 * root_h**2) + 3 * iota**2 / (eta * n) + beta * kl
    modulus = tight_modulus(reward_max)
    np.testing.assert_allclose(tuned_eta(modulus, n_pairs=n, complexity=iota), eta, rtol=ALGEBRA)
    tuned = theorem_bound_tight(
        n_pairs=n, complexity=iota, coverage=c, kl=kl, reward_max=reward_max
    )
    np.testing.assert_allclose(tuned, untuned, rtol=ALGEBRA)


@pytest.mark.parametrize("modulus", [printed_modulus, corrected_modulus, tight_modulus])
def test_theorem_known_coverage_eta_minimizes_the_bound_to_two_c(
    modulus: Callable[[float], Array],
) -> None:
    n, iota, c, reward_max = 500.0, 3.0, 7.0, 1.5
    m = float(modulus(reward_max))

    def bound(eta: float) -> float:
        terms = {"n_pairs": n, "complexity": iota, "coverage": c}
        return float(regularized_gap_bound(m, **terms, eta=eta))

    eta = float(tuned_eta(m, n_pairs=n, complexity=iota, coverage=c))
    # a eta + b / eta is smallest where it is symmetric in log eta.
    np.testing.assert_allclose(bound(2.0 * eta), bound(0.5 * eta), rtol=ALGEBRA)
    assert bound(eta) < bound(1.001 * eta)
    unknown = bound(float(tuned_eta(m, n_pairs=n, complexity=iota)))
    np.testing.assert_allclose(bound(eta) / unknown, 2 * c / (c**2 + 1), rtol=ALGEBRA)


def test_theorem_known_coverage_eta_matches_its_formula() -> None:
    n, iota, c, reward_max = 500.0, 3.0, 7.0, 1.5
    kappa = (1.0 + math.exp(reward_max)) ** -2
    expected = 2 * math.sqrt(6.0) * kappa * iota / (c * math.sqrt(n))
    actual = tuned_eta(printed_modulus(reward_max), n_pairs=n, complexity=iota, coverage=c)
    np.testing.assert_allclose(actual, expected, rtol=ALGEBRA)


def test_theorem_eta_without_kappa_does_not_give_the_printed_bound() -> None:
    """Erratum 1: (A.45) without kappa does not give the bound of Theorem 5.3."""
    n, iota, c, reward_max = 100.0, 2.0, 1.0, 1.0
    eta = math.sqrt(24.0) * iota / math.sqrt(n)
    terms = {"n_pairs": n, "complexity": iota, "coverage": c}
    without = regularized_gap_bound(printed_modulus(reward_max), **terms, eta=eta)
    assert without > 5.0 * theorem_bound_printed(**terms, reward_max=reward_max, kl=0.0)


@pytest.mark.parametrize("reward_max", [0.01, 0.333, 1.0, 3.0, 5.0, 12.0, 40.0])
def test_closed_form_tight_modulus_is_the_infimum_of_the_hellinger_ratio(
    reward_max: float,
) -> None:
    """No ratio on the grid is smaller; it is approached as both margins tend to the maximum."""
    h = float(tight_modulus(reward_max))
    assert scanned_modulus(reward_max) >= h * (1.0 - SCAN)
    close = reward_max * 1e-3
    at_corner = hellinger(reward_max, reward_max - close) / close**2
    np.testing.assert_allclose(at_corner, h, rtol=max(reward_max, 1.0) * 1e-3)


def test_closed_form_infimum_of_hellinger_over_total_variation_is_one_half() -> None:
    """Erratum 2: D_H^2 >= D_TV^2 fails by up to 2; D_TV^2 <= D_H^2 (2 - D_H^2) holds."""
    margin = np.linspace(-12.0, 12.0, 801)
    z, w = np.meshgrid(margin, margin)
    apart = z != w
    total_variation = np.abs(sigmoid(z) - sigmoid(w))[apart]
    distance = hellinger(z, w)[apart]
    assert np.all(total_variation**2 <= distance * (2.0 - distance) * (1.0 + ALGEBRA))
    ratio = distance / total_variation**2
    assert ratio.min() >= 0.5
    near_half = hellinger(1e-3, -1e-3) / (sigmoid(1e-3) - sigmoid(-1e-3)) ** 2
    np.testing.assert_allclose(near_half, 0.5, rtol=SCAN)


def test_theorem_printed_constant_is_safe_from_reward_range_a_third_on() -> None:
    """Erratum 2: the printed modulus is below the scanned one exactly from .333 on."""
    ranges = np.arange(0.25, 0.45, 0.001)
    safe = [
        float(printed_modulus(reward_max)) <= scanned_modulus(reward_max)
        for reward_max in ranges.tolist()
    ]
    threshold = float(ranges[np.argmax(safe)])
    assert sum(safe) == len(safe) - np.argmax(safe)
    assert abs(threshold - 0.333) <= 0.0015
    terms = {"n_pairs": 100.0, "complexity": 2.0, "coverage": 3.0, "kl": 0.5}
    for reward_max in (0.0, 0.1, 0.3, 0.5, 1.0, 4.0):
        printed = theorem_bound_printed(**terms, reward_max=reward_max)
        corrected = theorem_bound_corrected(**terms, reward_max=reward_max)
        tight = theorem_bound_tight(**terms, reward_max=reward_max)
        assert printed < corrected
        assert (tight <= printed) == (reward_max >= threshold)


@settings(deadline=None)
@given(st.floats(0.0, 40.0))
def test_property_corrected_modulus_never_exceeds_the_tight_one(reward_max: float) -> None:
    assert corrected_modulus(reward_max) <= tight_modulus(reward_max) * (1.0 + ALGEBRA)


@pytest.mark.parametrize(
    ("reward_max", "tight", "printed"), [(1.0, 6.4, 13.8), (3.0, 13.0, 445.0), (5.0, 35.0, 22324.0)]
)
def test_closed_form_table_of_constants(reward_max: float, tight: float, printed: float) -> None:
    """Erratum 3: 1/sqrt h and (1 + e^Rmax)^2 agree with the table to its digits."""
    digits = 1 if reward_max == 1.0 else 0
    assert round(float(tight_modulus(reward_max)) ** -0.5, digits) == tight
    assert round(float(printed_modulus(reward_max)) ** -0.5, digits) == printed


def test_theorem_discretization_step_is_false_but_its_cost_is_small() -> None:
    """Erratum 6: D^2 <= D1^2 + 2 D2^2 fails; rounding a reward costs less than 3 eps <= 1/N.

    A reward within eps in sup norm moves a margin by 2 eps. The cost is of the log-likelihood and
    of 2 D_H^2 together, the two terms of Lemma A.1.
    """
    whole, first, second = hellinger(2.0, 0.0), hellinger(2.0, 0.5), hellinger(0.5, 0.0)
    assert whole > 1.05 * (first + 2.0 * second)
    margin = np.linspace(-6.0, 6.0, 61)
    z, w = np.meshgrid(margin, margin)
    for eps in (0.5, 0.05, 1e-3):
        for moved in (w + 2 * eps, w - 2 * eps):
            likelihood = np.logaddexp(0.0, -moved) - np.logaddexp(0.0, -w)
            distance = hellinger(z, moved) - hellinger(z, w)
            assert np.max(np.abs(likelihood) + 2.0 * np.abs(distance)) < 3.0 * eps
    for n, reward_max in ((1.0, 0.0), (1e6, 3.0)):
        assert 3.0 * covering_scale(n, reward_max) <= 1.0 / n


def test_closed_form_covering_scale_and_complexity() -> None:
    n, reward_max, delta = 250, 2.0, 0.1
    epsilon = float(covering_scale(n, reward_max))
    np.testing.assert_allclose(epsilon, 1 / (6 * (1 + math.exp(2.0)) * 250), rtol=ALGEBRA)
    three = FiniteClass(np.zeros((3, 1, 1)))
    iota = float(complexity(log_covering_number(three, epsilon, 1), delta))
    np.testing.assert_allclose(iota**2, math.log(30.0), rtol=ALGEBRA)
    box = TabularBox(np.array(reward_max))
    larger = float(complexity(log_covering_number(box, epsilon, 6), delta))
    intervals = math.ceil(reward_max / (2 * epsilon))
    np.testing.assert_allclose(larger**2, 6 * math.log(intervals) + math.log(10.0), rtol=ALGEBRA)


def test_property_what_a_class_lacks_is_nan_in_every_bound() -> None:
    unknown = math.nan
    assert np.isnan(covering_scale(10, unknown))
    assert np.isnan(complexity(unknown, 0.05))
    assert np.isnan(corrected_modulus(unknown))
    assert np.isnan(tuned_eta(0.1, n_pairs=10, complexity=unknown))
    terms = {"n_pairs": 10, "complexity": 1.0, "eta": 0.1, "beta": 0.1, "kl": 0.2}
    assert np.isnan(suboptimality_bound(0.1, coverage=unknown, **terms))
    with pytest.raises(ValueError, match="`eta` must be greater than 0, got nan"):
        suboptimality_bound(0.1, coverage=1.0, **{**terms, "eta": unknown})


@pytest.mark.parametrize("delta", [0.0, -0.1, 0.4, math.nan])
def test_raises_for_a_failure_probability_out_of_range(delta: float) -> None:
    with pytest.raises(ValueError, match="`delta` must be greater than 0 and less than 1/e"):
        complexity(1.0, delta)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_theorem_shifted_prompts_cost_at_most_the_factor(seed: int) -> None:
    """Corollary 5.8: the gap under d1 is at most the factor times the gap under d0."""
    rng = np.random.default_rng(seed)
    d0, d1 = rng.dirichlet(np.ones(4), 2)
    reward = rng.random((4, 3))
    policy = rng.dirichlet(np.ones(3), 4)
    lacking = reward.max(axis=1) - (policy * reward).sum(axis=1)
    factor = float(prompt_shift_factor(d1, d0))
    assert d1 @ lacking <= factor * (d0 @ lacking) * (1.0 + ALGEBRA)
    # Tight if the gap is positive at the worst prompt only.
    worst = np.arange(4) == np.argmax(d1 / d0)
    np.testing.assert_allclose(d1 @ worst, factor * (d0 @ worst), rtol=ALGEBRA)


def test_extreme_a_prompt_without_training_weight_has_no_bound() -> None:
    new, old = jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, 0.0, 0.0])
    assert prompt_shift_factor(new, old) == jnp.inf
    assert prompt_shift_factor(old, new) == 2.0


def test_property_arguments_broadcast_like_arrays() -> None:
    n = jnp.array([10.0, 1000.0])
    terms = {"n_pairs": n, "complexity": 2.0, "coverage": jnp.array(3.0), "kl": 0.5}
    many = theorem_bound_printed(**terms, reward_max=1.0)
    one = [theorem_bound_printed(**(terms | {"n_pairs": m}), reward_max=1.0) for m in n.tolist()]
    np.testing.assert_allclose(many, one, rtol=ALGEBRA)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("n", [2**31, 2**40, np.int64(2**40), np.array([2**31, 2**40])])
def test_extreme_integer_counts_do_not_overflow(n: Any, x64: bool) -> None:
    as_floats = np.asarray(n, np.float64)
    terms = {"complexity": 2.0, "coverage": 1.0, "eta": 0.5}
    theorem = {"reward_max": 1.0, "complexity": 2.0, "coverage": 1.0, "kl": 0.5}
    with jax.enable_x64(x64):
        for bound in (
            lambda n: covering_scale(n, 1.0),
            theorem_beta,
            lambda n: tuned_eta(0.1, n_pairs=n, complexity=2.0),
            lambda n: regularized_gap_bound(0.1, n_pairs=n, **terms),
            lambda n: suboptimality_bound(0.1, n_pairs=n, **terms, beta=0.1, kl=0.5),
            lambda n: theorem_bound_printed(n_pairs=n, **theorem),
            lambda n: theorem_bound_corrected(n_pairs=n, **theorem),
            lambda n: theorem_bound_tight(n_pairs=n, **theorem),
        ):
            np.testing.assert_allclose(bound(n), bound(as_floats), rtol=1e-6)
            assert np.all(np.asarray(bound(n)) > 0)


def multinomial_data(n_pairs: int, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all data sets of a size as counts of the cells, with their probabilities."""
    counts = np.array(
        [c for c in itertools.product(range(n_pairs + 1), repeat=len(cells)) if sum(c) == n_pairs]
    )
    orders = [
        math.factorial(n_pairs) / math.prod(math.factorial(int(c)) for c in row) for row in counts
    ]
    return counts, np.array(orders) * np.prod(cells**counts, axis=1)


@pytest.mark.parametrize("n_pairs", [1, 4, 9])
def test_theorem_lemma_a1_holds_by_enumeration_of_all_data_sets(n_pairs: int) -> None:
    """E exp(N/2 [L(r*) - L(r)]) = (1 - E D_H^2)^N, and Markov's inequality for a finite class."""
    rng = np.random.default_rng(n_pairs)
    members, pair_shares = rng.uniform(0.0, 2.0, (8, 3)), np.array([0.3, 0.7])
    margins = members[:, [0, 1]] - members[:, [1, 2]]  # pairs (0, 1) and (1, 2)
    labels = np.concatenate([sigmoid(margins), sigmoid(-margins)], axis=1)
    shares = np.concatenate([pair_shares, pair_shares])
    counts, probability = multinomial_data(n_pairs, shares * labels[0])
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=ALGEBRA)
    losses = -counts @ np.log(labels).T / n_pairs
    advantage = losses[:, :1] - losses
    divergence = hellinger(margins[0], margins) @ pair_shares
    moments = probability @ np.exp(0.5 * n_pairs * advantage)
    np.testing.assert_allclose(moments, (1.0 - divergence) ** n_pairs, rtol=1e-10)
    assert np.all(moments <= np.exp(-n_pairs * divergence) * (1.0 + ALGEBRA))
    for delta in (0.02, 0.1, 0.3):
        bound = -2.0 * divergence + 3.0 * float(complexity(math.log(8), delta)) ** 2 / n_pairs
        assert probability @ np.any(advantage > bound, axis=1) <= delta


@pytest.mark.parametrize("reward_max", [0.1, 1.0, 4.0])
def test_theorem_lemma_a2_label_probabilities_determine_margins(reward_max: float) -> None:
    margins = np.linspace(-reward_max, reward_max, 101)
    first, second = np.meshgrid(margins, margins)
    probability = np.abs(sigmoid(first) - sigmoid(second))
    kappa = float(curvature(reward_max))
    assert np.all(kappa * np.abs(first - second) <= probability + ALGEBRA)


def test_theorem_the_regularized_gap_is_a_divergence_and_below_its_bound() -> None:
    """J_b(pi*_b) - J_b(pi_hat) = beta E KL(pi_hat, pi_r*), for J_b(pi) = J(pi) - beta E KL."""
    rng, n_pairs, box = np.random.default_rng(0), 60, TabularBox(1.0)
    reference, weights = rng.dirichlet(np.ones(3), 2), np.array([0.4, 0.6])
    pairs = np.array([[[0, 0.1, 0.15], [0, 0, 0.25], [0, 0, 0]]] * 2)
    truths = rng.uniform(0.0, 1.0, (20, 2, 3))
    wins = []
    for truth in truths:
        count = rng.multinomial(n_pairs, pairs.ravel()).reshape(pairs.shape)
        first = rng.binomial(count, sigmoid(truth[:, :, None] - truth[:, None, :]))
        wins.append(first + (count - first).swapaxes(1, 2))
    epsilon = float(covering_scale(n_pairs, 1.0))
    iota = float(complexity(log_covering_number(box, epsilon, 6), 0.05))
    modulus, beta = corrected_modulus(1.0), 1.0 / math.sqrt(n_pairs)
    eta = float(tuned_eta(modulus, n_pairs=n_pairs, complexity=iota))
    shared = [np.broadcast_to(table, (20, *table.shape)) for table in (weights, reference)]
    problems = Problem(shared[0], shared[1], shared[1], np.array(wins, float), beta, eta)
    policies = np.asarray(minimax.solve_batch(problems, TabularBox(np.ones(20))).policy)
    for truth, policy in zip(truths, policies, strict=True):
        best = reference * np.exp(truth / beta)
        best /= best.sum(axis=1, keepdims=True)

        def regularized(policy: np.ndarray, truth: np.ndarray = truth) -> float:
            divergence = np.sum(policy * np.log(policy / reference), axis=1)
            return float(weights @ ((policy * truth).sum(axis=1) - beta * divergence))

        shortfall = regularized(best) - regularized(policy)
        identity = beta * weights @ np.sum(policy * np.log(policy / best), axis=1)
        np.testing.assert_allclose(shortfall, identity, atol=1e-12)
        coverage = coverage_coefficient(
            box,
            true_reward=truth,
            comparator=best,
            baseline=reference,
            context_weights=weights,
            pair_distribution=pairs,
        )
        terms = {"n_pairs": n_pairs, "complexity": iota, "coverage": float(coverage), "eta": eta}
        assert 0.0 <= shortfall <= float(regularized_gap_bound(modulus, **terms))


def test_theorem_beta_changes_the_direction_of_dpo_gradients_of_several_pairs() -> None:
    """Compare gradients at two values of beta: of one pair they are parallel, of several not."""

    def gradient(beta: float, wins: np.ndarray) -> np.ndarray:
        def loss(logits: jax.Array) -> jax.Array:
            log_ratio = jax.nn.log_softmax(logits) - math.log(1 / 3)
            margin = log_ratio[:, None] - log_ratio[None, :]
            return jnp.sum(wins * jax.nn.softplus(-beta * margin)) / wins.sum()

        return np.asarray(jax.grad(loss)(jnp.array([2.0, 0.0, 1.0])))

    def angle(wins: np.ndarray) -> float:
        weak, strong = gradient(0.01, wins), gradient(5.0, wins)
        cosine = weak @ strong / np.linalg.norm(weak) / np.linalg.norm(strong)
        return math.degrees(math.acos(min(1.0, float(cosine))))

    one, two = np.zeros((3, 3)), np.zeros((3, 3))
    one[0, 1] = two[0, 1] = two[0, 2] = 1.0
    assert angle(one) < 0.1
    assert 29.0 < angle(two) < 31.0
