"""Gibbs policies against SciPy and direct maximization; divergences and baselines."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, rel_entr

from rpo_theory.policies import (
    chosen_policy,
    data_marginal_policy,
    gibbs_policy,
    implicit_reward,
    kl_divergence,
    kl_to_gibbs,
    log_gibbs_policy,
    log_partition,
    total_variation,
)

EXACT = 1e-12  # float64; exponents of up to 100 nats
TINY = 1e-14
RELATIVE = 1e-8  # next to where the series takes over, the formula is left with some 1e-9

seeds = st.integers(0, 2**32 - 1)


def random_law(rng: np.random.Generator, *, zeros: bool = False) -> np.ndarray:
    law = rng.dirichlet(np.ones(5), 3)
    if zeros:
        law[:, 1] = 0.0
        law /= law.sum(axis=1, keepdims=True)
    return law


@settings(max_examples=50, deadline=None)
@given(seeds, st.booleans())
def test_closed_form_log_partition_and_gibbs_policy(seed: int, zeros: bool) -> None:
    rng = np.random.default_rng(seed)
    reference, reward = random_law(rng, zeros=zeros), rng.uniform(-5, 5, (3, 5))
    beta = 10 ** rng.uniform(-1, 1)
    log_z: Any = logsumexp(reward / beta, axis=1, b=reference)
    got = log_partition(reward, reference, beta)
    np.testing.assert_allclose(got, log_z, rtol=EXACT, atol=EXACT)
    weight = reference * np.exp(reward / beta - log_z[:, None])
    np.testing.assert_allclose(gibbs_policy(reward, reference, beta), weight, rtol=1e-11)
    np.testing.assert_allclose(gibbs_policy(reward, reference, beta).sum(axis=1), 1.0, rtol=EXACT)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gradient_of_the_log_partition_is_the_gibbs_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, reward = random_law(rng, zeros=True), jnp.asarray(rng.normal(size=(3, 5)))
    gradient = jax.grad(lambda r: 0.5 * log_partition(r, reference, 0.5).sum())(reward)
    np.testing.assert_allclose(gradient, gibbs_policy(reward, reference, 0.5), atol=EXACT)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_roundtrip_implicit_reward_is_the_reward_up_to_a_constant_per_prompt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, reward = random_law(rng), rng.normal(size=(3, 5))
    policy = gibbs_policy(reward, reference, 0.7)
    implied = np.asarray(implicit_reward(policy, reference, 0.7))
    shift = reward - implied
    np.testing.assert_allclose(shift, shift[:, :1] * np.ones(5), atol=EXACT)
    np.testing.assert_allclose(log_partition(implied, reference, 0.7), 0.0, atol=EXACT)
    np.testing.assert_allclose(gibbs_policy(implied, reference, 0.7), policy, rtol=EXACT)


def test_extreme_implicit_reward_is_zero_outside_both_supports() -> None:
    law = jnp.array([[0.25, 0.0, 0.75]])
    np.testing.assert_array_equal(implicit_reward(law, law, 2.0), [[0.0, 0.0, 0.0]])
    sure = implicit_reward(jnp.array([[1.0, 0.0, 0.0]]), law, 1.0)
    assert float(sure[0, 2]) == -np.inf


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_property_a_constant_per_prompt_changes_no_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, reward = random_law(rng), rng.normal(size=(3, 5))
    shift = rng.uniform(-50, 50, (3, 1))
    np.testing.assert_allclose(
        gibbs_policy(reward + shift, reference, 0.3),
        gibbs_policy(reward, reference, 0.3),
        rtol=1e-11,
    )


@pytest.mark.parametrize("beta", [1e-4, 1e4])
def test_extreme_temperatures_give_finite_policies_with_the_right_limit(beta: float) -> None:
    reward, reference = np.array([[0.0, 3.0, 1.0]]), np.array([[0.5, 0.2, 0.3]])
    log_policy = log_gibbs_policy(reward, reference, beta)
    assert np.isfinite(log_policy).all()
    limit = np.array([[0.0, 1.0, 0.0]]) if beta < 1 else reference
    np.testing.assert_allclose(np.exp(log_policy), limit, atol=3 / 1e4)
    gradient = jax.grad(lambda r: log_gibbs_policy(r, reference, beta)[0, 0])(jnp.asarray(reward))
    assert np.isfinite(gradient).all()


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_divergences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_law(rng, zeros=True), random_law(rng)
    expected = rel_entr(first, second).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(first, second), expected, rtol=1e-10, atol=TINY)
    distance = np.maximum(first - second, 0.0).sum(axis=1)
    np.testing.assert_allclose(total_variation(first, second), distance, rtol=1e-10, atol=TINY)
    assert np.all(np.asarray(kl_divergence(second, first)) == np.inf)


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 9))
def test_property_small_divergences_keep_their_relative_accuracy(seed: int, digits: int) -> None:
    """Agree with p log(p/q) - p + q in extended precision, in a form with less cancellation."""
    rng = np.random.default_rng(seed)
    law = random_law(rng) * 0.9 + 0.02
    step = rng.normal(size=law.shape) * law
    step -= step.mean(axis=1, keepdims=True)
    moved = law + 0.1 * 10.0**-digits * step
    wide = law.astype(np.longdouble)
    change = (moved - wide) / wide
    expected = np.sum(wide * ((1 + change) * np.log1p(change) - change), axis=1)
    np.testing.assert_allclose(kl_divergence(moved, law), expected.astype(float), rtol=RELATIVE)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_kl_to_gibbs_is_the_divergence_from_the_gibbs_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy, reference = random_law(rng), random_law(rng)
    reward = rng.normal(size=(3, 5))
    expected = kl_divergence(policy, gibbs_policy(reward, reference, 0.5))
    got = kl_to_gibbs(policy, reward, reference, 0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=TINY)


def test_extreme_kl_to_gibbs_is_right_where_the_gibbs_policy_underflows() -> None:
    even, reward = np.full((1, 2), 0.5), np.array([[0.0, 1.0]])
    got = float(kl_to_gibbs(even, reward, even, 1e-4)[0])
    # log pi_r = (-10^4, 0) up to e^-10000.
    assert got == pytest.approx(np.log(0.5) + 0.5e4, rel=EXACT)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_property_baselines_from_data_are_distributions_and_count_the_right_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wins = rng.poisson(1.0, (3, 5, 5)).astype(np.float64)
    wins[1] = 0.0
    fallback = random_law(rng)
    chosen = np.asarray(chosen_policy(wins, fallback))
    marginal = np.asarray(data_marginal_policy(wins, fallback))
    for law in (chosen, marginal):
        np.testing.assert_allclose(law.sum(axis=1), 1.0, rtol=EXACT)
        np.testing.assert_array_equal(law[1], fallback[1])
    n_comparisons = wins[0].sum()
    np.testing.assert_allclose(chosen[0], wins[0].sum(axis=1) / n_comparisons, rtol=EXACT)
    members = wins[0].sum(axis=0) + wins[0].sum(axis=1)
    np.testing.assert_allclose(marginal[0], members / (2 * n_comparisons), rtol=EXACT)


def test_extreme_the_gibbs_policy_sums_to_one_where_reward_over_beta_loses_its_digits() -> None:
    reward = jnp.array([[1e6, 1e6 - 1e-8, 1e6 - 2e-8, 0.0]])
    policy = gibbs_policy(reward, jnp.array([[0.1, 0.2, 0.3, 0.4]]), 1e-8)
    np.testing.assert_allclose(policy.sum(axis=-1), 1.0, rtol=1e-15)
    distance = np.asarray(reward[0, 0] - reward[0, :3]) / 1e-8
    weight = np.array([0.1, 0.2, 0.3]) * np.exp(-distance)
    np.testing.assert_allclose(policy[0, :3], weight / weight.sum(), rtol=1e-14)
    assert policy[0, 3] == 0.0
