"""Problems with rankings, choices and ties agree with pairs, convex programs and choix."""

from __future__ import annotations

import warnings
from typing import Any

import choix
import cvxpy as cp
import jax
import numpy as np
import pytest

import rpo_theory as rt
from rpo_theory.stationarity import s1_residual, s2_violation

CONTEXTS, ACTIONS = 2, 3
SHAPE = (CONTEXTS, ACTIONS)
FEATURES = np.random.default_rng(7).normal(size=(*SHAPE, 2))
ROUTES = {"minimax": rt.minimax, "maximin": rt.maximin, "direct": rt.direct}
TIGHT = {"solver": cp.CLARABEL, "tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def random_problem(seed: int, tie_model: Any = None, *, eta: float | None = None) -> rt.Problem:
    """Draw a problem with comparisons, five rankings, three choices and, for a model, ties."""
    rng = np.random.default_rng(seed)
    wins, ties = rng.poisson(0.7, (2, CONTEXTS, ACTIONS, ACTIONS)) * (1.0 - np.eye(ACTIONS))
    ties[0, 0, 1] += 1
    # One set of all actions and one of two in each context: every problem has the same shape.
    rankings = [(x, rng.permutation(ACTIONS).tolist(), 1 + rng.poisson(1.0)) for x in (0, 0, 1, 1)]
    choices = [(x, [0, 2], 2 * int(rng.integers(2)), 1.5) for x in (0, 1)]
    later = [(x, [a, *rest], 1) for x in (0, 1) for a, *rest in ([0, 1, 2], [1, 0, 2], [2, 0, 1])]
    return rt.Problem.from_wins(
        wins,
        beta=10 ** rng.uniform(-0.5, 0.5),
        eta=10 ** rng.uniform(-1.0, 0.5) if eta is None else eta,
        context_weights=rng.dirichlet(np.ones(CONTEXTS)),
        reference_policy=rng.dirichlet(np.ones(ACTIONS), CONTEXTS),
        choices=rt.count_choices([*rankings, *later], choices, shape=SHAPE),
        ties=None if tie_model is None else ties,
        tie_model=tie_model,
        tie_parameter=None if tie_model is None else rng.uniform(1.1, 2.5),
    )


def minimum_by_cvxpy(problem: rt.Problem, reward_class: Any) -> float:
    """Return the smallest F by a conic solver, from the definition of every observation."""
    reward = cp.Variable(SHAPE)
    constraints = []
    if isinstance(reward_class, rt.TabularBox):
        constraints = [reward >= 0, reward <= float(reward_class.maximum)]
    elif isinstance(reward_class, rt.LinearBall):
        theta = cp.Variable(FEATURES.shape[-1])
        linear = [[FEATURES[x, a] @ theta for a in range(ACTIONS)] for x in range(CONTEXTS)]
        constraints = [reward == cp.bmat(linear), cp.norm(theta) <= float(reward_class.radius)]
    losses, n_data = _pair_losses(problem, reward)
    choices = problem.choices
    assert choices is not None
    for x, members, won, first in zip(*map(np.asarray, choices), strict=True):
        of_set = reward[int(x), np.flatnonzero(members)]
        losses.append(won.sum() * cp.log_sum_exp(of_set) - won @ reward[int(x)])
        n_data += won.sum() * first
    objective = sum(losses) / n_data
    beta, eta = float(problem.beta), float(problem.eta)
    for x, weight in enumerate(np.asarray(problem.context_weights)):
        log_z = cp.log_sum_exp(reward[x] / beta + np.log(problem.reference_policy[x]))
        value = problem.baseline_policy[x] @ reward[x]
        objective = objective + eta * weight * (beta * log_z - value)
    program = cp.Problem(cp.Minimize(objective), [*constraints])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these tolerances are at the limit of the solver
        return float(np.asarray(program.solve(**TIGHT)))


def _pair_losses(problem: rt.Problem, reward: cp.Variable) -> tuple[list[Any], float]:
    losses, ties = [], problem.ties
    counts = np.zeros_like(problem.wins) if ties is None else np.asarray(ties.counts)
    parameter = 1.0 if ties is None else float(ties.parameter)
    log = np.log(parameter)
    for x, i, j in np.argwhere(problem.wins + counts > 0):
        margin = reward[x, i] - reward[x, j]
        if ties is None:
            win, tie = cp.logistic(-margin), 0.0
        elif isinstance(ties, rt.DavidsonTies):
            outcomes = cp.log_sum_exp(cp.hstack([0.5 * margin, -0.5 * margin, log]))
            win, tie = outcomes - 0.5 * margin, outcomes - log
        else:
            win = cp.logistic(log - margin)
            tie = win + cp.logistic(log + margin) - np.log(parameter**2 - 1)
        losses.append(problem.wins[x, i, j] * win + counts[x, i, j] * tie)
    return losses, float(problem.wins.sum() + counts.sum())


def check_against_cvxpy(problem: rt.Problem, reward_class: Any, names: tuple[str, ...]) -> None:
    """Compare values with CVXPY, policies of the routes with each other, and S1."""
    expected = minimum_by_cvxpy(problem, reward_class)
    policies = []
    for name in names:
        solution = ROUTES[name].solve(problem, reward_class)
        value = float(solution.objective)
        assert abs(value - expected) <= 1e-7 * max(1.0, abs(expected)), (name, value, expected)
        policies.append(solution.policy)
    for policy in policies[1:]:
        np.testing.assert_allclose(policy, policies[0], atol=1e-6)
    if isinstance(reward_class, rt.Unbounded):
        solution = rt.minimax.solve(problem, reward_class)
        residual = s1_residual(problem, solution.policy, solution.reward)
        assert np.abs(residual).max() < 1e-10
        assert np.max(s2_violation(problem, solution.policy)) < 1e-10


@pytest.mark.parametrize("tie_model", [None, "davidson", "rao_kupper"])
def test_parity_minimax_over_a_box_agrees_with_a_conic_solver(tie_model: Any) -> None:
    for seed in range(2):
        check_against_cvxpy(random_problem(seed, tie_model), rt.TabularBox(1.5), ("minimax",))


def test_parity_maximin_over_all_rewards_agrees_with_a_conic_solver() -> None:
    check_against_cvxpy(random_problem(100, None), rt.Unbounded(), ("minimax", "maximin"))


def test_parity_with_choix_at_eta_zero() -> None:
    rng = np.random.default_rng(3)
    rankings = [rng.permutation(ACTIONS).tolist() for _ in range(8)]
    rankings += [[0, 1, 2], [1, 2, 0], [2, 0, 1]]  # the maximum exists
    problem = rt.Problem.from_rankings(["a"] * 11, rankings, beta=1.0, eta=0.0)
    reward = rt.minimax.solve(problem, rt.TabularBox(40.0)).reward[0]
    with jax.enable_x64(False):
        expected = choix.opt_rankings(ACTIONS, rankings, alpha=1e-12, method="BFGS", tol=1e-12)
    np.testing.assert_allclose(reward - reward.mean(), expected - expected.mean(), atol=1e-6)


def test_closed_form_rankings_and_choices_of_two_are_the_same_problem_as_pairs() -> None:
    winners, losers = ["a", "b", "a", "c"], ["b", "a", "c", "b"]
    pairs = rt.Problem.from_votes(["q"] * 4, winners, losers, [3, 1, 2, 1], beta=0.5, eta=0.3)
    sets = [[w, loser] for w, loser in zip(winners, losers, strict=True)]
    weights: dict[str, Any] = {"beta": 0.5, "eta": 0.3}
    rankings = rt.Problem.from_rankings(["q"] * 4, sets, [3, 1, 2, 1], **weights)
    choices = rt.Problem.from_choices(["q"] * 4, sets, winners, [3, 1, 2, 1], **weights)
    jax.tree.map(np.testing.assert_array_equal, pairs, rankings)
    jax.tree.map(np.testing.assert_array_equal, pairs, choices)


def test_parity_choices_of_two_that_are_not_folded_agree_with_pairs() -> None:
    wins = np.array([[[0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [0.5, 1.0, 0.0]]] * 2)
    pairs = rt.Problem.from_wins(wins, beta=0.5, eta=0.3)
    rows = [
        (int(x), [int(i), int(j)], int(i), float(wins[x, i, j])) for x, i, j in np.argwhere(wins)
    ]
    choices = rt.count_choices((), rows, shape=SHAPE)
    unfolded = pairs._replace(wins=np.zeros_like(wins), choices=choices)
    expected = rt.minimax.solve(pairs, rt.TabularBox(1.5))
    solution = rt.minimax.solve(unfolded, rt.TabularBox(1.5))
    np.testing.assert_allclose(solution.objective, expected.objective, rtol=1e-12)
    np.testing.assert_allclose(solution.policy, expected.policy, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tie_model", [None, "davidson", "rao_kupper"])
@pytest.mark.parametrize(
    "reward_class",
    [rt.TabularBox(0.8), rt.LinearBall(FEATURES, 1.2), rt.Unbounded()],
    ids=lambda reward_class: type(reward_class).__name__,
)
def test_parity_three_routes_agree_with_a_conic_solver(reward_class: Any, tie_model: Any) -> None:
    for seed in range(20):
        check_against_cvxpy(random_problem(100 + seed, tie_model), reward_class, tuple(ROUTES))


@pytest.mark.slow
def test_parity_choices_with_choix_at_eta_zero() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        orders = [*(rng.permutation(ACTIONS).tolist() for _ in range(9)), [0, 1, 2], [1, 2, 0]]
        orders.append([2, 0, 1])
        choices: list[Any] = [(winner, others) for winner, *others in orders]
        problem = rt.Problem.from_choices(
            [0] * len(choices), orders, [winner for winner, _ in choices], beta=1.0, eta=0.0
        )
        reward = rt.minimax.solve(problem, rt.TabularBox(40.0)).reward[0]
        expected = choix.opt_top1(ACTIONS, choices, alpha=1e-12, method="BFGS", tol=1e-12)
        np.testing.assert_allclose(reward - reward.mean(), expected - expected.mean(), atol=1e-6)
