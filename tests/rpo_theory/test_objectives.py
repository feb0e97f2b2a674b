"""The saddle function, its maximum, and the RPO loss that equals it: Lemma 4.1 and equation 4.5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, rel_entr

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.objectives import gap, minimax_objective, saddle_objective, value
from rpo_theory.policies import gibbs_policy
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.reductions import reduce_mean
from rpo_theory.types import Problem

EXACT = 1e-12  # relative to the largest of the terms that are added
ROUNDOFF = 1e-15

seeds = st.integers(0, 2**32 - 1)


def random_problem(seed: int) -> tuple[Problem, np.ndarray]:
    """Draw a problem and a reward, with beta and eta over four decades and partial support."""
    rng = np.random.default_rng(seed)
    baseline = rng.dirichlet(np.ones(4), 3)
    baseline[:, 0] = 0.0
    problem = Problem(
        context_weights=rng.dirichlet(np.ones(3)),
        reference_policy=rng.dirichlet(np.ones(4), 3),
        baseline_policy=baseline / baseline.sum(axis=1, keepdims=True),
        wins=rng.poisson(0.5, (3, 4, 4)).astype(np.float64),
        beta=np.array(10 ** rng.uniform(-2, 2)),
        eta=np.array(10 ** rng.uniform(-2, 2)),
    )
    return problem, rng.uniform(0, 3, (3, 4))


def terms(problem: Problem) -> float:
    """Return the size of the terms in the sums of the objectives."""
    smallest = np.log(problem.reference_policy).min()
    return 1.0 + float(problem.eta) * (6.0 - float(problem.beta) * smallest)


def random_policy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1).dirichlet(np.ones(4), 3)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_value_and_gap_are_sums_over_prompts_and_responses(seed: int) -> None:
    problem, reward = random_problem(seed)
    policy, comparator, d0 = random_policy(seed), problem.baseline_policy, problem.context_weights
    expected = sum(d0[x] * policy[x] @ reward[x] for x in range(3))
    assert float(value(policy, reward, d0)) == pytest.approx(expected, rel=EXACT)
    best = sum(d0[x] * comparator[x] @ reward[x] for x in range(3))
    got = float(gap(policy, comparator, reward, d0))
    assert got == pytest.approx(best - expected, abs=EXACT)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_phi_is_equation_3_3_and_f_equation_4_4(seed: int) -> None:
    problem, reward = random_problem(seed)
    policy = random_policy(seed)
    beta, eta = float(problem.beta), float(problem.eta)
    data = -np.sum(problem.wins * np.log(expit(reward[:, :, None] - reward[:, None, :])))
    data /= max(problem.wins.sum(), 1.0)
    phi, f = data, data
    for x in range(3):
        weight = eta * problem.context_weights[x]
        against = problem.baseline_policy[x] @ reward[x]
        divergence = rel_entr(policy[x], problem.reference_policy[x]).sum()
        phi += weight * (policy[x] @ reward[x] - against - beta * divergence)
        top = reward[x].max()
        log_z = np.log(problem.reference_policy[x] @ np.exp((reward[x] - top) / beta)) + top / beta
        f += weight * (beta * log_z - against)
    slack = EXACT * terms(problem)
    assert float(saddle_objective(problem, policy, reward)) == pytest.approx(phi, abs=slack)
    assert float(minimax_objective(problem, reward)) == pytest.approx(f, abs=slack)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_theorem_lemma_4_1_the_distance_to_the_maximum_is_a_divergence(seed: int) -> None:
    """F(r) - phi(pi, r) = eta beta E KL(pi || pi_r), which is zero at pi_r only."""
    problem, reward = random_problem(seed)
    policy = random_policy(seed)
    best = np.asarray(gibbs_policy(reward, problem.reference_policy, problem.beta))
    slack = EXACT * terms(problem)
    f = float(minimax_objective(problem, reward))
    assert float(saddle_objective(problem, best, reward)) == pytest.approx(f, abs=slack)
    shortfall = f - float(saddle_objective(problem, policy, reward))
    log_best = np.log(problem.reference_policy) + reward / problem.beta
    log_best -= np.logaddexp.reduce(log_best, axis=1, keepdims=True)
    divergence = np.sum(policy * (np.log(policy) - log_best), axis=1)
    expected = float(problem.eta * problem.beta * (problem.context_weights @ divergence))
    assert shortfall == pytest.approx(expected, rel=EXACT, abs=slack)
    apart = 0.5 * np.abs(policy - best).sum(axis=1)
    least = 2 * float(problem.eta * problem.beta * (problem.context_weights @ apart**2))
    assert shortfall >= least - slack  # Pinsker: strictly below the maximum elsewhere


@pytest.mark.parametrize("seed", range(4))
def test_parity_scipy_finds_no_better_policy(seed: int) -> None:
    problem, reward = random_problem(seed)
    problem = problem._replace(beta=np.array(0.5), eta=np.array(1.0))

    @jax.jit
    def loss(logits: jax.Array) -> jax.Array:
        policy = jax.nn.softmax(logits.reshape(3, 4))
        return -saddle_objective(problem, policy, reward)

    actual = minimize(jax.value_and_grad(loss), np.zeros(12), jac=True, options={"gtol": 1e-9})
    assert -float(actual.fun) == pytest.approx(float(minimax_objective(problem, reward)), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_theorem_f_is_the_rpo_loss_plus_a_constant(seed: int) -> None:
    """Equation 4.5 with the losses that a trainer calls; log Z cancels."""
    problem, reward = random_problem(seed)
    beta, eta = float(problem.beta), float(problem.eta)
    log_reference = np.log(problem.reference_policy)
    log_policy = jax.nn.log_softmax(jnp.asarray(log_reference + reward / beta))
    policy, reference = (
        PairLogProbs(*jnp.broadcast_arrays(log_probs[:, :, None], log_probs[:, None, :]))
        for log_probs in (log_policy, jnp.asarray(log_reference))
    )
    counts = jnp.asarray(problem.wins)
    pair_losses = losses.dpo(policy, reference, beta=beta, where=counts > 0)
    dpo = reduce_mean(pair_losses, counts).mean()
    drawn = jnp.asarray(problem.context_weights[:, None] * problem.baseline_policy)
    sft = reduce_mean(losses.sft(log_policy), drawn).sum
    constant = eta * beta * np.sum(np.asarray(drawn) * log_reference)
    got = float(dpo) + eta * beta * float(sft) + constant
    slack = EXACT * terms(problem)
    assert got == pytest.approx(float(minimax_objective(problem, reward)), rel=EXACT, abs=slack)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gradient_of_f_is_the_excess_of_its_policy_and_the_likelihoods(seed: int) -> None:
    problem, reward = random_problem(seed)
    gradient = jax.grad(lambda r: minimax_objective(problem, r))(jnp.asarray(reward))
    data = jax.grad(lambda r: negative_log_likelihood(r, problem.wins))(jnp.asarray(reward))
    best = gibbs_policy(reward, problem.reference_policy, problem.beta)
    excess = problem.eta * problem.context_weights[:, None] * (best - problem.baseline_policy)
    np.testing.assert_allclose(gradient, excess + data, atol=EXACT * terms(problem))


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 0.99))
def test_property_f_is_convex_and_phi_is_convex_concave(seed: int, share: float) -> None:
    problem, first = random_problem(seed)
    second = np.random.default_rng(seed + 2).uniform(0, 3, (3, 4))
    one, alternative = random_policy(seed), random_policy(seed + 7)
    between = share * first + (1 - share) * second
    mixed = share * one + (1 - share) * alternative
    slack = EXACT * terms(problem)

    def f(reward: np.ndarray) -> float:
        return float(minimax_objective(problem, reward))

    def phi(policy: np.ndarray, reward: np.ndarray) -> float:
        return float(saddle_objective(problem, policy, reward))

    assert f(between) <= share * f(first) + (1 - share) * f(second) + slack
    assert phi(one, between) <= share * phi(one, first) + (1 - share) * phi(one, second) + slack
    assert (
        phi(mixed, first) >= share * phi(one, first) + (1 - share) * phi(alternative, first) - slack
    )


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_property_a_constant_per_prompt_changes_neither_objective(seed: int) -> None:
    problem, reward = random_problem(seed)
    shift = np.random.default_rng(seed).uniform(-5, 5, (3, 1))
    policy, slack = random_policy(seed), EXACT * terms(problem)
    f = float(minimax_objective(problem, reward))
    assert float(minimax_objective(problem, reward + shift)) == pytest.approx(f, abs=slack)
    phi = float(saddle_objective(problem, policy, reward))
    shifted = float(saddle_objective(problem, policy, reward + shift))
    assert shifted == pytest.approx(phi, abs=slack)


def test_extreme_a_policy_outside_the_reference_is_worth_minus_infinity() -> None:
    problem, reward = random_problem(0)
    reference = np.array([[0.0, 0.5, 0.25, 0.25]] * 3)
    problem = problem._replace(reference_policy=reference)
    assert float(saddle_objective(problem, random_policy(0), reward)) == -np.inf
    inside = float(saddle_objective(problem, reference, reward))
    assert np.isfinite(inside)
    assert inside <= float(minimax_objective(problem, reward))


def test_limit_eta_of_zero_leaves_the_likelihood() -> None:
    problem, reward = random_problem(3)
    problem = problem._replace(eta=np.array(0.0))
    expected = float(negative_log_likelihood(reward, problem.wins))
    assert float(minimax_objective(problem, reward)) == pytest.approx(expected, rel=ROUNDOFF)
    got = float(saddle_objective(problem, random_policy(3), reward))
    assert got == pytest.approx(expected, rel=ROUNDOFF)


@pytest.mark.parametrize("beta", [1e-4, 1e4])
def test_extreme_temperatures_keep_f_finite_with_the_right_limit(beta: float) -> None:
    problem, reward = random_problem(4)
    problem = problem._replace(beta=np.array(beta), wins=np.zeros((3, 4, 4)), eta=np.array(1.0))
    f, gradient = jax.value_and_grad(lambda r: minimax_objective(problem, r))(jnp.asarray(reward))
    assert jnp.isfinite(gradient).all()
    drawn = reward.max(axis=1) if beta < 1 else np.sum(problem.reference_policy * reward, axis=1)
    expected = problem.context_weights @ (drawn - np.sum(problem.baseline_policy * reward, axis=1))
    assert float(f) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("beta", [1e2, 1e5, 1e8])
def test_extreme_the_objective_of_the_reward_keeps_its_digits_at_large_beta(beta: float) -> None:
    """For two equal responses F = beta log cosh(d / 2 beta), about d^2 / 8 beta."""
    even, nothing = np.full((1, 2), 0.5), np.zeros((1, 2, 2))
    problem = Problem(np.ones(1), even, even, nothing, np.array(beta), np.array(1.0))
    wanted = beta * ((1.0 / beta) ** 2 / 8 - (1.0 / beta) ** 4 / 192)
    value = float(minimax_objective(problem, np.array([[1e6, 1e6 + 1.0]])))
    assert value == pytest.approx(wanted, rel=1e-9)
