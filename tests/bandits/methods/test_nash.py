"""The regularized Nash equilibrium against a cone program, brute force and limits."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.methods.nash import exploitability, preference_matrix, solve_game
from bandits.methods.registry import METHODS
from rpo_theory.rewards import Unbounded
from rpo_theory.types import Problem, Status

solve = jax.jit(solve_game)


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(5)
    return Problem(
        context_weights=rng.dirichlet(np.ones(2), 3),
        reference_policy=rng.dirichlet(np.ones(3), (3, 2)),
        baseline_policy=rng.dirichlet(np.ones(3), (3, 2)),
        wins=rng.integers(0, 9, (3, 2, 3, 3)) * (1.0 - np.eye(3)),
        beta=np.array([0.05, 0.3, 2.0]),
        eta=np.ones(3),
    )


def test_parity_the_equilibrium_is_the_cone_program_of_the_max_min_problem(
    problem: Any,
) -> None:
    fit = METHODS["nash"](problem, Unbounded(), nash_smoothing=0.25)
    assert (fit.status == Status.SOLVED).all()
    assert fit.certificate.max() <= 1e-12
    for i, x in np.ndindex(3, 2):
        reference, beta = problem.reference_policy[i, x], problem.beta[i]
        wins = problem.wins[i, x] + 0.25
        preferences = wins / (wins + wins.T)
        policy = cp.Variable(3, nonneg=True)
        # The second player answers in closed form.
        answer = cp.log_sum_exp(np.log(reference) - preferences.T @ policy / beta)
        value = -beta * cp.sum(cp.rel_entr(policy, reference)) - beta * answer
        normalized: Any = [cp.sum(policy) == 1]
        cp.Problem(cp.Maximize(value), normalized).solve(cp.CLARABEL)
        np.testing.assert_allclose(fit.policy[i, x], np.asarray(policy.value), atol=2e-5)
        assert float(np.asarray(value.value)) == pytest.approx(0.5, abs=1e-7)


def test_property_no_deviation_gains_more_than_half_of_the_duality_gap(problem: Any) -> None:
    reference, beta = problem.reference_policy[0, 0], 0.3
    preferences = np.asarray(preference_matrix(problem.wins[0, 0], 0.5))
    rng = np.random.default_rng(0)
    policy, deviations = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 20_000)

    def payoff(policies: np.ndarray) -> np.ndarray:
        cost = np.sum(policies * np.log(policies / reference), axis=-1)
        return policies @ preferences @ policy - beta * cost

    gains = payoff(deviations) - payoff(policy)
    half = float(exploitability(preferences, reference, policy, beta)) / 2
    assert 0.99 * half <= gains.max() <= half


@pytest.mark.parametrize("beta", [1e-3, 1.0])
def test_closed_form_a_cycle_of_preferences_is_played_evenly(beta: float) -> None:
    cycle = jnp.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    even = solve(cycle, jnp.full(3, 1 / 3), beta)
    np.testing.assert_allclose(even.policy, 1 / 3, atol=1e-14)
    skewed = solve(cycle, jnp.array([0.8, 0.1, 0.1]), beta)
    assert float(skewed.gap) <= 1e-12
    if beta == 1e-3:
        np.testing.assert_allclose(skewed.policy, 1 / 3, atol=0.01)


def test_limit_of_large_beta_is_the_reference(problem: Any) -> None:
    fit = METHODS["nash"](problem._replace(beta=np.full(3, 1e6)), Unbounded())
    np.testing.assert_allclose(fit.policy, problem.reference_policy, atol=1e-6)


def test_limit_of_small_beta_is_the_response_that_beats_all_others() -> None:
    reward = np.array([0.0, 2.0, 1.0])
    bradley_terry = jax.nn.sigmoid(jnp.asarray(reward[:, None] - reward))
    equilibrium = solve(bradley_terry, jnp.full(3, 1 / 3), 1e-3)
    np.testing.assert_allclose(equilibrium.policy, [0.0, 1.0, 0.0], atol=1e-12)
    assert float(equilibrium.gap) <= 1e-12


def test_closed_form_pairs_without_data_are_even() -> None:
    wins = jnp.array([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    expected = np.array([[0.5, 0.75, 0.5], [0.25, 0.5, 0.5], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(preference_matrix(wins), expected, rtol=1e-15)
    assert float(preference_matrix(wins, 1.0)[0, 1]) == pytest.approx(4 / 6)
