"""Claims about best-of-n on a table: enumeration of all draws, its divergence, its derivatives."""

from __future__ import annotations

import itertools

import jax
import mpmath
import numpy as np
import pytest

from bandits.methods import METHODS
from bandits.overoptimization import (
    best_of_n_kl,
    best_of_n_kl_bound,
    best_of_n_policy,
    best_of_n_score,
)
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

ROUNDING = 1e-14
PROXY = np.array([[0.3, -1.0, 0.3, 2.0, 0.1], [1.0, 1.0, 0.0, 5.0, 0.0]])
REFERENCE = np.array([[0.1, 0.2, 0.3, 0.15, 0.25], [0.4, 0.1, 0.5, 0.0, 0.0]])


jitted = jax.jit(best_of_n_policy)


@jax.jit
@jax.vmap
def policy_and_kl(proxy: jax.Array, reference: jax.Array, n: jax.Array) -> tuple:
    return best_of_n_policy(proxy, reference, n), best_of_n_kl(proxy, reference, n)


def enumerated(proxy: np.ndarray, reference: np.ndarray, n: int) -> np.ndarray:
    """Return the policy by all sequences of n draws; the winner is uniform among the tied draws."""
    policy = np.zeros_like(reference)
    for draws in itertools.product(range(len(proxy)), repeat=n):
        top = [draw for draw in draws if proxy[draw] == max(proxy[list(draws)])]
        for winner in top:
            policy[winner] += np.prod(reference[list(draws)]) / len(top)
    return policy


@pytest.mark.parametrize("n", [1, 2, 5])
def test_closed_form_the_policy_is_that_of_all_sequences_of_draws(n: int) -> None:
    policy = jitted(PROXY, REFERENCE, n)
    expected = [enumerated(*rows, n) for rows in zip(PROXY, REFERENCE, strict=True)]
    np.testing.assert_allclose(policy, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("n", [1.0, 1.0 + 1e-9, 2.5, 1e3, 1e9])
def test_parity_policy_and_divergence_are_those_of_mpmath_at_every_real_n(n: float) -> None:
    rng = np.random.default_rng(3)
    proxy, reference = rng.integers(0, 4, 9).astype(float), rng.dirichlet(np.full(9, 0.2))
    policy, divergence = policy_and_kl(proxy[None], reference[None], np.array([n]))
    found = np.asarray(policy[0])
    with mpmath.workdps(60):
        p = [mpmath.mpf(value) for value in reference]
        p = [value / mpmath.fsum(p) for value in p]
        kl = mpmath.mpf(0)
        for action, value in enumerate(proxy):
            below = mpmath.fsum(q for q, other in zip(p, proxy, strict=True) if other < value)
            level = mpmath.fsum(q for q, other in zip(p, proxy, strict=True) if other == value)
            ratio = ((below + level) ** mpmath.mpf(n) - below ** mpmath.mpf(n)) / level
            assert abs(found[action] - p[action] * ratio) <= 1e-13 + 1e-9 * (n > 1e6)
            if ratio > 0:
                kl += p[action] * ratio * mpmath.log(ratio)
    assert float(divergence[0]) == pytest.approx(float(kl), rel=1e-6, abs=1e-22)


def test_property_the_divergence_is_at_most_log_n_minus_n_minus_1_over_n() -> None:
    rng = np.random.default_rng(0)
    cases, actions = 2000, 9
    proxy = rng.integers(0, rng.integers(1, 12, (cases, 1)), (cases, actions)).astype(float)
    reference = rng.dirichlet(np.full(actions, 0.3), cases)
    reference = np.where(rng.random((cases, actions)) < 0.2, 0.0, reference) + 1e-300
    reference /= reference.sum(axis=1, keepdims=True)
    n = 1.0 + rng.exponential(1.0, cases) ** rng.uniform(1, 20, cases)
    policy, kl = policy_and_kl(proxy, reference, n)
    assert policy.min() >= 0
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, rtol=0, atol=1e-11)
    assert kl.min() >= -1e-15
    assert (kl - best_of_n_kl_bound(n)).max() <= 1e-10


def test_limit_many_responses_without_ties_attain_the_bound() -> None:
    n = np.array([1.5, 4.0, 16.0])
    proxy = np.arange(500.0) * np.ones((3, 1))
    _, kl = policy_and_kl(proxy, np.full((3, 500), 1 / 500), n)
    bound = best_of_n_kl_bound(n)
    assert (kl <= bound).all()
    np.testing.assert_allclose(kl, bound, rtol=1e-2)


def test_gradient_in_n_is_the_score_at_1_and_a_central_difference_above() -> None:
    derivative = jax.jit(jax.jacfwd(lambda n: best_of_n_policy(PROXY, REFERENCE, n)))
    score = jax.jit(best_of_n_score)(PROXY, REFERENCE)
    np.testing.assert_allclose(derivative(1.0), REFERENCE * score, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose((REFERENCE * score).sum(axis=1), 0.0, rtol=0, atol=ROUNDING)
    step = 1e-5
    above, below = (jitted(PROXY, REFERENCE, 3.0 + s) for s in (step, -step))
    np.testing.assert_allclose(derivative(3.0), (above - below) / (2 * step), rtol=0, atol=1e-9)


def test_property_it_maps_under_jit_and_vmap_and_differentiates_the_divergence() -> None:
    def divergence(n: jax.Array) -> jax.Array:
        return best_of_n_kl(PROXY, REFERENCE, n).sum()

    ns = np.array([1.0, 2.0, 7.5])
    kl, gradient = jax.jit(jax.vmap(jax.value_and_grad(divergence)))(ns)
    policies = np.array([jitted(PROXY, REFERENCE, n) for n in ns])
    ratios = np.where(REFERENCE > 0, policies / np.where(REFERENCE > 0, REFERENCE, 1.0), 1.0)
    expected = (policies * np.log(ratios)).sum(axis=(1, 2))
    np.testing.assert_allclose(kl, expected, rtol=0, atol=ROUNDING)
    assert abs(gradient[0]) < 1e-12
    assert (gradient[1:] > 0).all()


def test_property_only_the_order_of_the_proxy_matters() -> None:
    policy = jitted(PROXY, REFERENCE, 4.0)
    np.testing.assert_array_equal(jitted(np.exp(3 * PROXY), REFERENCE, 4.0), policy)


def test_extreme_infinite_unsupported_and_unknown_proxies() -> None:
    reference = np.array([[0.5, 0.5, 0.0]])
    policy = jitted(np.array([[-np.inf, 0.0, np.inf]]), reference, 2.0)
    assert policy.tolist() == [[0.25, 0.75, 0.0]]
    tied = jitted(np.array([[-np.inf, -np.inf, 0.0]]), reference, 9.0)
    assert tied.tolist() == reference.tolist()
    assert np.isnan(jitted(np.array([[np.nan, 0.0, 0.0]]), reference, 2.0)).all()
    finite = jitted(np.array([[0.0, 1.0, np.nan]]), reference, 2.0)
    assert finite.tolist() == [[0.25, 0.75, 0.0]]


def test_property_levels_within_the_tolerance_tie() -> None:
    proxy, even = np.array([[0.0, 1e-9, 1.0]]), np.full((1, 3), 1 / 3)
    tied = jitted(proxy, even, 2.0, tie_tolerance=1e-6)
    exact = jitted(np.array([[0.0, 0.0, 1.0]]), even, 2.0)
    np.testing.assert_array_equal(tied, exact)
    assert abs(tied - jitted(proxy, even, 2.0)).max() > 0.1


@pytest.mark.parametrize("n", [1.0, 4.0, 1e9])
def test_limit_the_method_goes_from_the_reference_to_the_greedy_policy(n: float) -> None:
    rng = np.random.default_rng(2)
    reference = rng.dirichlet(np.ones(3), (3, 2))
    wins = rng.integers(1, 9, (3, 2, 3, 3)) * (1.0 - np.eye(3))
    problem = Problem(np.full((3, 2), 0.5), reference, reference, wins, np.ones(3), np.ones(3))
    box = TabularBox(np.full(3, 3.0))
    fit = METHODS["best_of_n"](problem, box, best_of_n_responses=n)
    mle = METHODS["two_stage"](problem, box).reward
    expected = {
        1.0: reference,
        4.0: [
            [enumerated(*row, 4) for row in zip(*rows, strict=True)]
            for rows in zip(mle, reference, strict=True)
        ],
        1e9: METHODS["greedy_mle"](problem, box).policy,
    }
    np.testing.assert_allclose(fit.policy, expected[n], atol=ROUNDING)
    assert fit.certificate.max() <= 1e-9
