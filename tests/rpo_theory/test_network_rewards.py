"""Double oracle on small networks against closed forms, brute force and the linear ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from rpo_theory import double_oracle, maximin
from rpo_theory.network_rewards import (
    NetworkClass,
    Parameters,
    best_response,
    minimax_network,
    network_reward,
)
from rpo_theory.rewards import LinearBall
from rpo_theory.types import Problem

BAR = 1e-3
"""Accuracy of the gap of a network class."""
SIDES = np.array([[[1.0], [-1.0], [0.0]]])
"""Features of three arms: the weight's sign decides which of the first two a rectifier sees."""


def no_data(beta: float, eta: float = 1.0, base: tuple[float, ...] = (0.0, 0.0, 1.0)) -> Problem:
    uniform = np.full((1, 3), 1 / 3)
    return Problem(np.ones(1), uniform, np.array([base]), np.zeros((1, 3, 3)), beta, eta)


def responder(network: NetworkClass, problem: Problem) -> Callable[[Any], np.ndarray]:
    key = jax.random.key(0)
    return lambda policy: np.asarray(best_response(network, problem, policy, key).reward)


def solve(
    network: NetworkClass, problem: Problem
) -> tuple[float, double_oracle.DoubleOracleSolution]:
    """Return min-max minus max-min of a network class, and the solution of the double oracle."""
    solution = double_oracle.solve(
        problem, responder(network, problem), start=np.zeros((1, 3)), tolerance=1e-6
    )
    highest = minimax_network(network, problem, jax.random.key(1))
    return float(highest.objective) - solution.objective, solution


def test_closed_form_the_gap_of_one_rectifier_is_known() -> None:
    # The class is {+-t e_1} and {+-t e_2}, 0 <= t <= B: the adversary lowers one of two arms, and
    # mixes both; the best single network lowers one arm by B.
    for beta, radius, eta in ((0.5, 1.0, 1.0), (0.2, 1.0, 0.7)):
        network = NetworkClass(SIDES, 1, "relu", radius)
        gap, solution = solve(network, no_data(beta, eta))
        one, both = np.exp(-radius / beta) + 2.0, 2.0 * np.exp(-0.5 * radius / beta) + 1.0
        assert gap == pytest.approx(eta * beta * np.log(one / both), abs=BAR)
        assert solution.converged
        assert solution.objective == pytest.approx(eta * beta * np.log(both / 3.0), abs=1e-6)
        np.testing.assert_allclose(
            solution.policy[0, :2], np.exp(-0.5 * radius / beta) / both, atol=1e-6
        )
        np.testing.assert_allclose(solution.mixture.sum(), 1.0)


def test_property_the_double_oracle_stops_at_the_round_limit_and_reports_the_gap() -> None:
    problem = no_data(0.5)
    network = NetworkClass(SIDES, 1, "relu")
    solution = double_oracle.solve(
        problem, responder(network, problem), start=np.zeros((1, 3)), max_rounds=1
    )
    assert (solution.rounds, len(solution.members), solution.converged) == (1, 1, False)
    # Against zero reward the policy is the reference; one arm of it is then lowered by 1.
    assert solution.gap == pytest.approx(1 / 3, abs=1e-6)


def test_raises_what_a_best_response_must_be() -> None:
    for start, rounds, rule in (
        (np.zeros((1, 2)), 3, "`start` must have shape"),
        (np.full((1, 3), np.nan), 3, "`start"),
        (np.zeros((1, 3)), 0, "`max_rounds` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=rule):
            double_oracle.solve(no_data(0.5), lambda policy: policy, start=start, max_rounds=rounds)
    with pytest.raises(ValueError, match="`best_response` must have shape"):
        double_oracle.solve(no_data(0.5), lambda policy: policy[0], start=np.zeros((1, 3)))


@pytest.mark.slow
def test_closed_form_two_rectifiers_have_no_gap() -> None:
    # Both arms can be lowered at once, by the point of least F in the hull |s| + |t| <= 2 B.
    for beta in (0.5, 0.2):
        gap, solution = solve(NetworkClass(SIDES, 2, "relu"), no_data(beta))
        assert gap == pytest.approx(0.0, abs=BAR)
        value = beta * np.log((2.0 * np.exp(-1.0 / beta) + 1.0) / 3.0)
        assert solution.objective == pytest.approx(value, abs=1e-5)


def brute_force_gap(
    network: NetworkClass, problem: Problem, thetas: list[Parameters]
) -> tuple[float, float]:
    """Return gap and max-min value over a fine grid of networks, without any of the solvers."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *thetas)
    rewards = np.asarray(jax.vmap(lambda theta: network_reward(network, theta))(stacked))[:, 0]
    rewards = np.unique(rewards.round(9), axis=0)
    base, beta = np.asarray(problem.baseline_policy)[0], float(problem.beta)
    eta, wins = float(problem.eta), np.asarray(problem.wins)[0]
    margins = rewards[:, :, None] - rewards[:, None, :]
    losses = (wins * np.logaddexp(0.0, -margins)).sum(axis=(1, 2)) / max(wins.sum(), 1.0)
    peaks = beta * np.log(np.exp(rewards / beta).mean(axis=1)) - rewards @ base
    highest = (eta * peaks + losses).min()

    center, width, steps = np.full(2, 0.5), 0.5, np.linspace(-1.0, 1.0, 41)
    lowest = -np.inf
    for _ in range(16):  # a grid over policies, which closes in on the best
        first, second = np.meshgrid(*(np.clip(at + width * steps, 1e-300, 1.0) for at in center))
        policies = np.stack([first, second, np.maximum(1.0 - first - second, 0.0)], axis=-1)
        policies = policies.reshape(-1, 3)
        kl = (policies * np.log(3.0 * np.maximum(policies, 1e-300))).sum(axis=1)
        payoffs = eta * (policies - base) @ rewards.T + losses
        worst = payoffs.min(axis=1) - eta * beta * kl
        worst = np.where(policies.sum(axis=1) > 1.0 + 1e-12, -np.inf, worst)
        lowest, center = worst.max(), policies[worst.argmax(), :2]
        width *= 0.3
    return float(highest - lowest), float(lowest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_parity_with_brute_force_over_one_neuron(activation: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = NetworkClass(rng.normal(size=(1, 3, 1)) * 2.0, 1, activation, 1.5)
    problem = no_data(0.3, 1.0, tuple(rng.dirichlet(np.ones(3))))
    if seed % 2:
        problem = problem._replace(wins=rng.poisson(1.0, (1, 3, 3)) * (1.0 - np.eye(3)))
    thetas = [
        Parameters(np.array([[u]]), np.array([w]))
        for u in np.linspace(-1.5, 1.5, 101)
        for w in np.linspace(-1.0, 1.0, 21)
    ]
    gap, solution = solve(network, problem)
    expected, lowest = brute_force_gap(network, problem, thetas)
    assert solution.objective == pytest.approx(lowest, abs=BAR)
    assert gap == pytest.approx(expected, abs=BAR)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_parity_a_linear_network_is_the_ball(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(1, 3, 2))
    problem = no_data(0.4, 0.8, tuple(rng.dirichlet(np.ones(3))))
    problem = problem._replace(wins=rng.poisson(2.0, (1, 3, 3)) * (1.0 - np.eye(3)))
    gap, solution = solve(NetworkClass(features, 1, "linear", 1.2), problem)
    exact = maximin.solve(problem, LinearBall(features, 1.2))
    assert gap == pytest.approx(0.0, abs=BAR)
    assert solution.objective == pytest.approx(float(exact.objective), abs=1e-5)
    np.testing.assert_allclose(solution.policy, exact.policy, atol=5e-3)
