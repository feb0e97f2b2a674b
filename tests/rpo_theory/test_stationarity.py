"""Identities S1 to S4 at optima by bisection and by two solvers, and at other points."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from rpo_theory import direct, minimax
from rpo_theory.policies import chosen_policy, gibbs_policy
from rpo_theory.rewards import LinearBall, Unbounded
from rpo_theory.stationarity import s1_residual, s2_violation, s3_violation, s4_residual
from rpo_theory.types import Problem, Status

EXACT = 1e-12  # float64 after a handful of operations, at the root found to its last digit
ROUNDOFF = 1e-14

seeds = st.integers(0, 2**32 - 1)


def random_problem(seed: int, *, contexts: int = 2, actions: int = 4) -> Problem:
    """Draw problems in which every pair has wins both ways, so that the optimum is attained."""
    rng = np.random.default_rng(seed)
    wins = rng.uniform(0.5, 5.0, (contexts, actions, actions))
    wins[:, np.arange(actions), np.arange(actions)] = 0.0
    return Problem(
        context_weights=rng.dirichlet(np.ones(contexts)),
        reference_policy=rng.dirichlet(np.ones(actions), contexts),
        baseline_policy=rng.dirichlet(np.ones(actions), contexts),
        wins=wins,
        beta=np.array(10 ** rng.uniform(-1, 1)),
        eta=np.array(10 ** rng.uniform(-1, 1)),
    )


def two_arm_optimum(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the optimal policy and reward of a two-arm problem, by bisection on the margin."""
    beta, eta = float(problem.beta), float(problem.eta)
    reference = np.asarray(problem.reference_policy)[0]
    first, second = problem.wins[0, 0, 1], problem.wins[0, 1, 0]
    n_comparisons = first + second

    def policy_of(margin: float) -> float:
        return 1 / (1 + reference[1] / reference[0] * np.exp(-margin / beta))

    def gradient(margin: float) -> float:
        surprise = first / (1 + np.exp(margin)) - second / (1 + np.exp(-margin))
        return eta * (policy_of(margin) - problem.baseline_policy[0, 0]) - surprise / n_comparisons

    margin: Any = brentq(gradient, -60, 60, xtol=1e-15)
    first_policy = policy_of(margin)
    return np.array([[first_policy, 1 - first_policy]]), np.array([[margin, 0.0]])


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_closed_form_all_identities_hold_at_the_two_arm_optimum(seed: int) -> None:
    problem = random_problem(seed, contexts=1, actions=2)
    policy, reward = two_arm_optimum(problem)
    np.testing.assert_allclose(s1_residual(problem, policy, reward), 0, atol=EXACT)
    np.testing.assert_allclose(s2_violation(problem, policy), 0, atol=EXACT)
    features = np.random.default_rng(seed).normal(size=(1, 2, 3))
    np.testing.assert_allclose(s4_residual(problem, features, policy, reward), 0, atol=10 * EXACT)


def test_closed_form_one_comparison_moves_the_policy_by_its_surprise() -> None:
    even, wins = np.full((1, 2), 0.5), np.zeros((1, 2, 2))
    wins[0, 0, 1] = 4.0
    problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(0.5))
    reward = np.array([[1.5, 0.25]])
    expected = (1 / (1 + np.exp(1.25))) / 0.5  # sigmoid(-d) / eta: N cancels with four wins
    np.testing.assert_allclose(
        s1_residual(problem, even, reward), [[-expected, expected]], rtol=ROUNDOFF * 10
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([minimax, direct]))
def test_theorem_identities_hold_where_two_solvers_stop(seed: int, solver: Any) -> None:
    problem = random_problem(seed)
    solution = solver.solve(problem, Unbounded())
    policy, reward = solution.policy, solution.reward
    assert np.abs(s1_residual(problem, policy, reward)).max() < STOPS[solver]
    assert np.max(s2_violation(problem, policy)) < STOPS[solver]


STOPS = {minimax: 1e-11, direct: 1e-8}
"""Tolerance of each iteration divided by eta d0, which is at least 1e-3 in nearly every draw."""


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_theorem_s3_holds_with_the_chosen_responses_as_baseline(seed: int) -> None:
    problem = random_problem(seed, contexts=3)
    wins = np.array(problem.wins)
    wins[0, 2, :] = 0.0  # never wins at the first prompt
    wins[1] = 0.0  # no data at the second
    chosen = np.asarray(chosen_policy(wins, problem.reference_policy))
    problem = problem._replace(wins=wins, baseline_policy=chosen)
    solution = minimax.solve(problem, Unbounded())
    assert Status(int(solution.status)) is Status.NOT_ATTAINED
    assert np.max(s3_violation(problem, solution.policy)) < EXACT
    assert solution.policy[0, 2] == 0.0
    residual = s1_residual(problem, solution.policy, solution.reward)
    assert np.abs(residual).max() < STOPS[minimax]


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([minimax, direct]))
def test_theorem_s4_holds_at_a_linear_optimum_inside_the_ball(seed: int, solver: Any) -> None:
    problem = random_problem(seed, contexts=3, actions=5)
    features = np.random.default_rng(seed).normal(size=(3, 5, 2))
    ball = LinearBall(features, np.array(50.0))
    policy, reward = solver.solve(problem, ball)[:2]
    assert np.linalg.norm(ball.parameter(reward)) < 0.9 * ball.radius
    residual = s4_residual(problem, features, policy, reward)
    assert np.abs(residual).max() < STOPS[solver]
    away = ball.reward(ball.parameter(reward) + 0.1)
    off = gibbs_policy(away, problem.reference_policy, problem.beta)
    assert np.abs(s4_residual(problem, features, off, away)).max() > 1e-4


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gradient_s1_and_s4_are_the_derivatives_of_f(seed: int) -> None:
    """For any reward and its Gibbs policy, eta d0 times S1 is the gradient of F of the paper."""
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    theta, features = rng.normal(size=3), rng.normal(size=(2, 4, 3))
    reward = features @ theta

    def f(reward: jax.Array) -> jax.Array:
        weight = jnp.asarray(problem.reference_policy) * jnp.exp(reward / problem.beta)
        margin = reward[:, :, None] - reward[:, None, :]
        data = jnp.sum(problem.wins * jnp.log1p(jnp.exp(-margin))) / problem.wins.sum()
        excess = problem.beta * jnp.log(weight.sum(1)) - (problem.baseline_policy * reward).sum(1)
        return jnp.asarray(problem.eta) * (problem.context_weights @ excess) + data

    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    gradient = jax.grad(f)(jnp.asarray(reward))
    weights = problem.eta * problem.context_weights[:, None]
    np.testing.assert_allclose(
        weights * s1_residual(problem, policy, reward), gradient, rtol=EXACT, atol=EXACT
    )
    np.testing.assert_allclose(
        problem.eta * s4_residual(problem, features, policy, reward),
        jnp.einsum("xa,xad->d", gradient, features),
        rtol=EXACT,
        atol=10 * EXACT,
    )


def test_property_residuals_are_not_zero_away_from_the_optimum() -> None:
    problem = random_problem(1)
    policy, reward = minimax.solve(problem, Unbounded())[:2]
    assert np.abs(s1_residual(problem, policy, reward + np.arange(4) * 0.1)).max() > 1e-3
    delta = np.eye(4)[[0, 0]]
    sharp = problem._replace(eta=np.array(100.0))
    assert np.max(s2_violation(sharp, delta)) > 0.1
    assert np.max(s3_violation(sharp, delta)) > 0.1


@pytest.mark.parametrize("change", [{"context_weights": np.array([1.0, 0.0])}, {}])
def test_extreme_weight_eta_and_data_of_zero_give_finite_residuals(change: dict[str, Any]) -> None:
    problem = random_problem(2)._replace(**change)
    empty = problem._replace(wins=np.zeros_like(problem.wins))
    free = problem._replace(eta=np.array(0.0))
    policy, reward = problem.reference_policy, np.zeros((2, 4))
    for each in (problem, empty, free):
        features = np.ones((2, 4, 1))
        for residual in (
            s1_residual(each, policy, reward),
            s2_violation(each, policy),
            s3_violation(each, policy),
            s4_residual(each, features, policy, reward),
        ):
            assert np.isfinite(residual).all()
    if change:
        assert not np.any(np.asarray(s1_residual(problem, policy, reward))[1])
    counted = empty.context_weights > 0
    excess = np.asarray(policy) - problem.baseline_policy
    np.testing.assert_array_equal(
        s1_residual(empty, policy, reward), np.where(counted[:, None], excess, 0.0)
    )
    assert not np.any(np.asarray(s3_violation(empty, policy)))
    assert not np.any(np.asarray(s4_residual(free, np.ones((2, 4, 1)), policy, reward)))
