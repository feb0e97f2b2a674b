"""Minimax regret against closed forms, dense linear programs and enumeration of all rules."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import expit
from scipy.stats import binom

from bandits.minimax_regret import (
    Worlds,
    action_gaps,
    bayes_risk,
    enumerate_outcomes,
    expected_gaps,
    rewards_from_margins,
    solve_minimax,
)

CERTIFIED = 1e-9  # largest duality gap, in units of reward
QUARTER = np.array([[0.75, 0.25], [0.0, 0.0]])


def random_game(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities and gaps of three-arm worlds with few comparisons."""
    rng = np.random.default_rng(seed)
    rewards = rng.uniform(0.0, 10.0 ** rng.uniform(-2, 1), (rng.integers(2, 9), 3))
    pairs = np.triu(rng.uniform(size=(3, 3)))
    worlds = Worlds(rewards, pairs / pairs.sum(), int(rng.integers(1, 5)))
    probability = np.exp(enumerate_outcomes(worlds).log_probability)
    return probability, action_gaps(rewards)


def two_point_gap(margin: float, informative: float, comparisons: int) -> float:
    """Return the minimax regret of two worlds in which either arm is better by a margin.

    By symmetry each world has prior probability one half (Le Cam). The Bayes rule takes the arm
    with more wins, and is wrong if the better arm wins a minority of the informative comparisons.
    """
    wrong = 0.0
    for number in range(comparisons + 1):
        below = binom.cdf(math.ceil(number / 2) - 1, number, expit(margin))
        tied = binom.pmf(number / 2, number, expit(margin)) if number % 2 == 0 else 0.0
        wrong += binom.pmf(number, comparisons, informative) * (below + 0.5 * tied)
    return float(margin * wrong)


@pytest.mark.parametrize(("margin", "informative", "n"), [(0.7, 0.25, 20), (0.1, 1.0, 31)])
def test_closed_form_two_worlds_have_the_minimax_regret_of_le_cams_argument(
    margin: float, informative: float, n: int
) -> None:
    pairs = np.array([[1.0 - informative, informative], [0.0, 0.0]])
    rewards = rewards_from_margins(np.array([margin]), 2)
    outcomes = enumerate_outcomes(Worlds(rewards, pairs, n))
    solution = solve_minimax(np.exp(outcomes.log_probability), action_gaps(rewards))
    assert solution.minimax_regret == pytest.approx(
        two_point_gap(margin, informative, n), rel=1e-11
    )
    np.testing.assert_allclose(solution.prior, 0.5, atol=1e-9)


def test_closed_form_two_points_give_the_lower_bound_of_order_coverage_over_root_n() -> None:
    n, coverage = 100, 2.0  # C^2 = 1 / informative
    bound = two_point_gap(coverage / math.sqrt(n), 0.25, n)
    assert bound * math.sqrt(n) / coverage == pytest.approx(0.3095, abs=5e-5)
    margins = np.append(np.geomspace(0.05, 2.0, 12), coverage / math.sqrt(n))
    rewards = rewards_from_margins(margins, 2)
    outcomes = enumerate_outcomes(Worlds(rewards, QUARTER, n))
    solution = solve_minimax(np.exp(outcomes.log_probability), action_gaps(rewards))
    assert solution.lower_bound >= bound  # more worlds are not easier


@pytest.mark.parametrize("seed", range(4))
def test_parity_dense_linear_program_of_cvxpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability, gaps = rng.dirichlet(np.ones(20), 6), rng.uniform(size=(6, 3))
    gaps -= gaps.min(axis=1, keepdims=True)
    rule = cp.Variable((20, 3), nonneg=True)
    regrets = cp.sum(cp.multiply(probability @ rule, gaps), axis=1)
    normalized: Any = cp.sum(rule, axis=1) == 1
    program: Any = cp.Problem(cp.Minimize(cp.max(regrets)), [normalized])
    program.solve(solver=cp.CLARABEL)
    solution = solve_minimax(probability, gaps)
    assert solution.minimax_regret == pytest.approx(program.value, abs=1e-7)
    assert solution.duality_gap <= CERTIFIED


@pytest.mark.parametrize("seed", range(4))
def test_parity_the_whole_linear_program_by_highs(seed: int) -> None:
    probability, gaps = random_game(seed)
    (n_worlds, n_outcomes), n_actions = probability.shape, gaps.shape[1]
    regrets = (probability[:, :, None] * gaps[:, None, :]).reshape(n_worlds, -1)
    result = linprog(
        np.append(np.zeros(n_outcomes * n_actions), 1.0),
        A_ub=np.hstack([regrets, -np.ones((n_worlds, 1))]),
        b_ub=np.zeros(n_worlds),
        A_eq=np.hstack(
            [np.kron(np.eye(n_outcomes), np.ones(n_actions)), np.zeros((n_outcomes, 1))]
        ),
        b_eq=np.ones(n_outcomes),
    )
    solution = solve_minimax(probability, gaps)
    assert solution.minimax_regret == pytest.approx(result.fun, abs=1e-7 * gaps.max())
    assert solution.duality_gap <= CERTIFIED


def test_parity_mixture_of_all_deterministic_rules() -> None:
    rng = np.random.default_rng(5)
    probability, gaps = rng.dirichlet(np.ones(4), 3), rng.uniform(size=(3, 2))
    gaps -= gaps.min(axis=1, keepdims=True)
    rules = [np.eye(2)[list(actions)] for actions in itertools.product((0, 1), repeat=4)]
    regrets = np.stack([expected_gaps(rule, probability, gaps) for rule in rules])
    mixture = cp.Variable(len(rules), nonneg=True)
    normalized: Any = cp.sum(mixture) == 1
    program: Any = cp.Problem(cp.Minimize(cp.max(mixture @ regrets)), [normalized])
    program.solve(solver=cp.CLARABEL)
    assert solve_minimax(probability, gaps).minimax_regret == pytest.approx(program.value, abs=1e-6)


@pytest.mark.parametrize("seed", range(4, 12))
def test_property_both_bounds_are_those_of_the_rule_and_the_prior(seed: int) -> None:
    probability, gaps = random_game(seed)
    solution = solve_minimax(probability, gaps)
    policy, prior = solution.policy, solution.prior
    assert policy.min() >= 0.0
    assert prior.min() >= 0.0
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, rtol=1e-14)
    assert prior.sum() == pytest.approx(1.0, rel=1e-14)
    by_world = [
        sum(p * (row @ gap) for p, row in zip(chances, policy, strict=True))
        for chances, gap in zip(probability, gaps, strict=True)
    ]
    assert solution.minimax_regret == pytest.approx(max(by_world), rel=1e-12)
    posterior = np.einsum("m,mo,ma->oa", prior, probability, gaps)
    assert solution.lower_bound == pytest.approx(posterior.min(axis=1).sum(), rel=1e-12)
    assert -1e-14 * gaps.max() <= solution.duality_gap <= min(CERTIFIED, 1e-11 * gaps.max())
    other = np.random.default_rng(seed).dirichlet(np.ones(3), len(policy))
    assert expected_gaps(other, probability, gaps).max() >= solution.lower_bound
    assert bayes_risk(np.full(len(gaps), 1.0 / len(gaps)), probability, gaps) <= (
        solution.minimax_regret + 1e-14 * gaps.max()
    )


def test_limit_without_information_the_value_is_that_of_the_game_without_data() -> None:
    gaps = np.array([[0.0, 2.0], [1.0, 0.0]])
    solution = solve_minimax(np.array([[0.3, 0.7], [0.3, 0.7]]), gaps)
    assert solution.minimax_regret == pytest.approx(2.0 / 3.0, rel=1e-12)
    np.testing.assert_allclose(solution.prior, [1.0 / 3.0, 2.0 / 3.0], rtol=1e-9)


def test_limit_one_world_or_equal_actions_have_zero_minimax_regret() -> None:
    one = solve_minimax(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0, 3.0]]))
    assert (one.minimax_regret, one.lower_bound) == (0.0, 0.0)
    flat = solve_minimax(np.full((2, 2), 0.5), np.zeros((2, 3)))
    assert flat.minimax_regret == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_extreme_minimax_regret_is_proportional_to_the_gaps(scale: float) -> None:
    probability, gaps = random_game(1)
    plain, scaled = solve_minimax(probability, gaps), solve_minimax(probability, scale * gaps)
    assert scaled.minimax_regret == pytest.approx(scale * plain.minimax_regret, rel=1e-11)
    assert abs(scaled.duality_gap) <= 1e-11 * scale * gaps.max()


def test_limit_the_bounds_are_valid_when_the_search_is_cut_short() -> None:
    probability, gaps = random_game(1)
    exact = solve_minimax(probability, gaps).minimax_regret
    short = solve_minimax(probability, gaps, max_rounds=2)
    assert short.rounds == 2
    assert short.lower_bound < exact < short.minimax_regret


def test_raises_for_arguments_that_do_not_fit() -> None:
    gaps = np.eye(2)
    with pytest.raises(ValueError, match="`gaps` must be finite and at least 0"):
        solve_minimax(np.ones((2, 1)), -gaps)
    with pytest.raises(ValueError, match="`probability` must not be empty"):
        solve_minimax(np.ones((2, 0)), gaps)
    with pytest.raises(ValueError, match="`max_rounds` must be at least 1"):
        solve_minimax(np.ones((2, 1)), gaps, max_rounds=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uninformative", "comparisons", "n_margins"), [(0.0, 22, 12), (0.5, 16, 12), (0.25, 16, 60)]
)
def test_closed_form_three_arm_worlds_are_certified_in_under_two_minutes(
    uninformative: float, comparisons: int, n_margins: int
) -> None:
    pairs = np.array([[0.0, 0.6, 0.1], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]]) * (1 - uninformative)
    pairs[0, 0] = uninformative
    rewards = rewards_from_margins(np.geomspace(0.05, 2.0, n_margins), 3)
    start = time.perf_counter()
    outcomes = enumerate_outcomes(Worlds(rewards, pairs, comparisons))
    solution = solve_minimax(np.exp(outcomes.log_probability), action_gaps(rewards))
    seconds = time.perf_counter() - start
    print(f"{outcomes.log_probability.shape} in {seconds:.1f} s, gap {solution.duality_gap:.1e}")
    assert len(outcomes.wins) > 70_000
    assert solution.duality_gap <= CERTIFIED
    assert seconds < 120.0
