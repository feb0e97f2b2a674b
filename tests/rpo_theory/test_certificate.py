"""Certificates of any policy and reward against independent solvers and definitions."""

from __future__ import annotations

import inspect
from typing import Any

import cvxpy as cp
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory import direct, maximin, minimax, unbounded
from rpo_theory.certificate import (
    GAP_TOLERANCE,
    all_finite,
    all_proven,
    certify,
    duality_gap_bound,
    is_proven,
    kkt_residual,
    mixture_gap,
    policy_gap,
    reduced_residual,
    reward_gradient,
    unbounded_residual,
    verify_status,
)
from rpo_theory.objectives import minimax_objective, saddle_objective
from rpo_theory.rewards import (
    FiniteClass,
    LinearBall,
    RewardClass,
    TabularBox,
    Unbounded,
    class_residual,
)
from rpo_theory.types import Problem, Solution, Status

CVXPY_VALUE = 1e-7  # Clarabel on a small exponential-cone problem
EXACT = 1e-12


def random_problem(seed: int, beta: float = 0.5, eta: float = 0.8) -> Problem:
    rng = np.random.default_rng(seed)
    wins = rng.poisson(1.0, (2, 4, 4)) * (1 - np.eye(4))
    return Problem(
        context_weights=rng.dirichlet(np.ones(2)),
        reference_policy=rng.dirichlet(np.ones(4), 2),
        baseline_policy=rng.dirichlet(np.ones(4), 2),
        wins=wins,
        beta=np.array(beta),
        eta=np.array(eta),
    )


def random_pair(seed: int, reward_class: RewardClass) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 1000)
    policy = rng.dirichlet(np.ones(4), 2)
    if isinstance(reward_class, LinearBall):
        theta = rng.normal(size=3)
        theta *= rng.uniform() * float(reward_class.radius) / np.linalg.norm(theta)
        return policy, np.asarray(reward_class.reward(theta))
    return policy, rng.uniform(0, 1.5, (2, 4))


def cvxpy_gap(
    problem: Problem, reward_class: TabularBox | LinearBall, policy: np.ndarray, reward: np.ndarray
) -> float:
    """Return F(r) minus the minimum of phi over rewards, the latter by Clarabel."""
    constraints: list[Any]
    if isinstance(reward_class, LinearBall):
        theta = cp.Variable(3)
        rows = [np.asarray(reward_class.features)[i] @ theta for i in range(2)]
        constraints = [cp.norm(theta) <= float(reward_class.radius)]
    else:
        table = cp.Variable((2, 4))
        rows = [table[i] for i in range(2)]
        constraints = [table >= 0, table <= float(reward_class.maximum)]
    eta, beta, n_comparisons = float(problem.eta), float(problem.beta), problem.wins.sum()
    terms = []
    for i in range(2):
        weight = eta * float(problem.context_weights[i])
        kl = np.sum(policy[i] * np.log(policy[i] / problem.reference_policy[i]))
        terms.append(weight * ((policy[i] - problem.baseline_policy[i]) @ rows[i] - beta * kl))
        for won, lost in zip(*np.nonzero(problem.wins[i]), strict=True):
            terms.append(
                problem.wins[i, won, lost]
                / n_comparisons
                * cp.logistic(rows[i][lost] - rows[i][won])
            )
    task = cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))), constraints)
    task.solve(solver=cp.CLARABEL)
    return float(minimax_objective(problem, reward)) - np.asarray(task.value).item()


def classes(seed: int) -> list[TabularBox | LinearBall]:
    features = np.random.default_rng(seed).normal(size=(2, 4, 3))
    return [TabularBox(np.array(1.5)), LinearBall(features, np.array(1.2))]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_parity_the_gap_of_any_pair_agrees_with_cvxpy(kind: int, seed: int) -> None:
    problem, reward_class = random_problem(seed), classes(seed)[kind]
    policy, reward = random_pair(seed, reward_class)
    gap = float(certify(problem, reward_class, policy, reward).duality_gap)
    expected = cvxpy_gap(problem, reward_class, policy, reward)
    assert gap == pytest.approx(expected, abs=CVXPY_VALUE)
    assert gap > 1e-3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.integers(0, 1))
def test_property_the_gap_is_never_below_what_any_challenger_shows(seed: int, kind: int) -> None:
    """Weak duality: phi(pi', r) - phi(pi, r') <= gap(pi, r) for every pi' and r'."""
    problem, reward_class = random_problem(seed), classes(seed)[kind]
    policy, reward = random_pair(seed, reward_class)
    gap = float(certify(problem, reward_class, policy, reward).duality_gap)
    for challenger in range(5):
        other_policy, other_reward = random_pair(seed + 7 * challenger + 1, reward_class)
        shown = saddle_objective(problem, other_policy, reward) - saddle_objective(
            problem, policy, other_reward
        )
        assert gap >= float(shown) - EXACT


def test_closed_form_a_finite_class_is_enumerated() -> None:
    problem = random_problem(0)
    rewards = np.random.default_rng(0).uniform(0, 1, (3, 2, 4))
    policy = np.asarray(problem.reference_policy)
    worst = min(float(saddle_objective(problem, policy, r)) for r in rewards)
    expected = float(minimax_objective(problem, rewards[0])) - worst
    proof = certify(problem, FiniteClass(rewards), policy, rewards[0])
    assert float(proof.duality_gap) == pytest.approx(expected, abs=EXACT)
    assert float(proof.kkt_residual) == float(proof.duality_gap)


def test_closed_form_the_unbounded_class_has_no_finite_gap() -> None:
    problem = random_problem(0)
    policy = np.asarray(problem.reference_policy)
    assert certify(problem, Unbounded(), policy, np.zeros((2, 4))).duality_gap == np.inf


def test_gradient_of_the_saddle_function_agrees_with_finite_differences() -> None:
    problem = random_problem(3)
    policy, reward = random_pair(3, Unbounded())
    gradient = np.asarray(reward_gradient(problem, policy, reward))
    step = 1e-6
    for x in range(2):
        for a in range(4):
            nudge = np.zeros((2, 4))
            nudge[x, a] = step
            rise = saddle_objective(problem, policy, reward + nudge)
            fall = saddle_objective(problem, policy, reward - nudge)
            assert gradient[x, a] == pytest.approx(float(rise - fall) / (2 * step), abs=1e-9)


def test_property_kkt_residual_is_large_away_from_the_saddle_point() -> None:
    for seed in range(5):
        problem = random_problem(seed)
        for reward_class in classes(seed):
            policy, reward = random_pair(seed, reward_class)
            assert float(kkt_residual(problem, reward_class, policy, reward)) > 1e-2


def claimed(problem: Problem, policy: np.ndarray, reward: np.ndarray) -> Solution:
    """Return a batch of one solution with status SOLVED."""
    value = np.asarray(minimax_objective(problem, reward))
    return Solution(policy[None], reward[None], value[None], np.zeros(1, int), {})


def batch_of_one(problem: Problem) -> Problem:
    return jax.tree.map(lambda field: np.asarray(field)[None], problem)


def test_property_status_solved_is_kept_only_if_the_gap_is_proven() -> None:
    problem, box = random_problem(0), TabularBox(np.array(1.5))
    batch, boxes = batch_of_one(problem), TabularBox(np.array([1.5]))
    policy, reward = minimax.solve(problem, box)[:2]
    good = claimed(problem, np.asarray(policy), np.asarray(reward))
    assert verify_status(batch, boxes, good).status.tolist() == [Status.SOLVED]
    wrong = claimed(problem, np.asarray(policy), np.asarray(reward) * 0.99)
    assert verify_status(batch, boxes, wrong).status.tolist() == [Status.MAX_STEPS]
    far = good._replace(objective=np.asarray(good.objective) + 1e-8)
    assert verify_status(batch, boxes, far).status.tolist() == [Status.MAX_STEPS]
    sick = batch._replace(eta=np.array([np.inf]))
    assert verify_status(sick, boxes, good).status.tolist() == [Status.NOT_FINITE]


OUTSIDERS = [
    (TabularBox(np.array(1.5)), np.full((2, 4), 1.6)),
    (TabularBox(np.array(1.5)), np.full((2, 4), -1e-6)),
    (LinearBall(np.ones((2, 4, 1)), np.array(1.0)), np.full((2, 4), 1.01)),  # too long
    (LinearBall(np.ones((2, 4, 1)), np.array(1.0)), np.eye(4)[:2]),  # not linear
    (FiniteClass(np.zeros((2, 2, 4))), np.eye(4)[:2]),
]


@pytest.mark.parametrize(("reward_class", "reward"), OUTSIDERS)
def test_property_nothing_is_proven_by_a_reward_that_is_not_in_the_class(
    reward_class: Any, reward: np.ndarray
) -> None:
    problem, policy = random_problem(5), np.full((2, 4), 0.25)
    proof = certify(problem, reward_class, policy, reward)
    assert proof.duality_gap == np.inf
    assert not proof.is_member
    assert float(proof.class_residual) == pytest.approx(
        float(np.abs(reward_class.project(reward) - reward).max()) / (1 + np.abs(reward).max())
    )
    member = np.asarray(reward_class.project(reward))
    inside = certify(problem, reward_class, policy, member * (1 + 1e-12))
    assert inside.is_member
    assert np.isfinite(float(inside.duality_gap))
    # A member that is the best response to the policy beats the claim below the optimum.
    assert float(class_residual(reward_class, member)) < 1e-15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": np.full((2, 4), 0.3)}, "`policy[0]` must sum to one, got a sum of 1.2"),
        ({"policy": np.eye(4)[:2] * 2 - 0.25}, "`policy[0][1]` must be at least 0, got -0.25"),
        ({"policy": np.full((2, 4), np.nan)}, "`policy[0][0]` must be finite, got nan"),
        ({"policy": np.full((2, 3), 1 / 3)}, "`policy` must have shape (2, 4), got shape (2, 3)"),
        ({"reward": np.full((2, 4), np.nan)}, "`reward[0][0]` must be finite, got nan"),
        ({"reward": np.zeros((4, 2))}, "`reward` must have shape (2, 4), got shape (4, 2)"),
        ({"reward_class": TabularBox(np.array(-1.0))}, "`reward_class.maximum` must be greater"),
        ({"problem": random_problem(0, beta=-1.0)}, "`beta` must be greater than 0, got -1"),
        (
            {"reward_class": Unbounded(), "reward": np.full((2, 4), np.inf)},
            "`reward[0][0]` must be less than inf in the support of the reference policy, got inf",
        ),
    ],
)
def test_raises_for_what_cannot_be_certified(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "problem": random_problem(0),
        "reward_class": TabularBox(np.array(1.5)),
        "policy": np.full((2, 4), 0.25),
        "reward": np.zeros((2, 4)),
    }
    with pytest.raises(ValueError) as raised:
        inspect.unwrap(certify)(**(arguments | changes))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("solver", [minimax, maximin, direct])
def test_extreme_a_gap_left_by_rounding_is_not_solved(solver: Any) -> None:
    """In a box of width 1e6 at beta 1e-8 no float64 solution can be within 1e-10 of optimal."""
    rng = np.random.default_rng(0)
    wins = np.array([[[0.0, 3e14, 1.0], [1e-9, 0.0, 2.0], [5.0, 7e3, 0.0]]])
    for _ in range(4):
        law = rng.dirichlet(np.ones(3), (2, 1))
        problem = Problem(np.ones(1), law[0], law[1], wins, np.array(1e-8), np.array(1e-3))
        box = TabularBox(np.array(1e6))
        actual = solver.solve(problem, box, throw=False)
        proof = certify(problem, box, actual.policy, actual.reward)
        assert actual.status != Status.SOLVED or float(proof.duality_gap) <= 1.01e-10


@pytest.mark.parametrize("solver", [minimax, direct])
@pytest.mark.parametrize("field", range(6))
def test_extreme_a_number_that_is_not_finite_is_never_solved(solver: Any, field: int) -> None:
    members = FiniteClass(np.array([[[0.0, 1.0, 0.5, 0.2]] * 2, [[1.0, 0.0, 0.1, 0.3]] * 2]))
    for bad in (np.nan, np.inf):
        arrays: list[Any] = [np.array(array, float) for array in random_problem(1)[:6]]
        arrays[field].reshape(-1)[-1] = bad
        actual = solver.solve(Problem(*arrays), members, throw=False)
        assert Status(int(actual.status)) is Status.NOT_FINITE


def test_closed_form_the_policy_gap_is_the_objective_minus_the_saddle_function() -> None:
    problem = random_problem(3)
    policy, reward = random_pair(3, TabularBox(np.array(1.5)))
    left = float(minimax_objective(problem, reward) - saddle_objective(problem, policy, reward))
    assert float(policy_gap(problem, policy, reward)) == pytest.approx(left, abs=EXACT)


def test_closed_form_the_gap_of_a_mixture_is_that_of_the_mixed_game() -> None:
    problem, rng = random_problem(4), np.random.default_rng(4)
    members, mixture = rng.uniform(0, 1.5, (3, 2, 4)), rng.dirichlet(np.ones(3))
    policy = rng.dirichlet(np.ones(4), 2)
    payoffs = np.array([float(saddle_objective(problem, policy, one)) for one in members])
    mean = np.einsum("k,kxa->xa", mixture, members)
    # For a mixture, phi is that of the mean reward, but with the mean of the losses.
    apart = mixture @ payoffs - float(saddle_objective(problem, policy, mean))
    most = float(minimax_objective(problem, mean)) + apart
    gap = float(mixture_gap(problem, FiniteClass(members), policy, mixture))
    assert gap == pytest.approx(most - payoffs.min(), abs=EXACT)


def test_closed_form_a_gap_is_proven_relative_to_the_larger_of_eta_and_value() -> None:
    small, large = random_problem(0, eta=0.5), random_problem(0, eta=100.0)

    def proven(problem: Problem, gap: float, value: float) -> bool:
        return bool(is_proven(problem, np.array(gap), np.array(value)))

    assert proven(small, GAP_TOLERANCE, 0.2)
    assert not proven(small, 1.01 * GAP_TOLERANCE, 0.2)
    assert proven(small, 49.0 * GAP_TOLERANCE, -50.0)
    assert proven(large, 99.0 * GAP_TOLERANCE, 0.2)
    assert not proven(large, np.nan, 0.2)


def test_limit_over_all_rewards_the_residual_is_zero_only_at_a_saddle_point() -> None:
    problem = random_problem(5)
    wins = problem.wins + 0.5 * (1 - np.eye(4))  # every response beats every other: attained
    problem = problem._replace(wins=wins)
    batch = batch_of_one(problem)
    actual = minimax.solve_batch(batch, Unbounded())
    policy, reward = np.asarray(actual.policy)[0], np.asarray(actual.reward)[0]
    assert float(unbounded_residual(problem, policy, reward)) < 1e-10
    alternative = reward + np.array([[0.1, 0.0, 0.0, 0.0]] * 2)
    gradient = np.abs(reward_gradient(problem, policy, alternative)).max()
    expected = max(float(gradient), float(policy_gap(problem, policy, alternative)))
    assert float(unbounded_residual(problem, policy, alternative)) == pytest.approx(
        expected, rel=1e-12
    )
    assert float(reduced_residual(unbounded.reduce(problem), policy, alternative)) == pytest.approx(
        expected, rel=1e-12
    )


def test_property_every_number_of_a_problem_and_its_class_is_checked() -> None:
    problem, maximum = random_problem(0), np.array(2.0)
    batch = jax.tree.map(lambda leaf: np.stack([leaf] * 4), problem)
    box = TabularBox(np.stack([maximum] * 4))
    wins, beta, width = np.copy(batch.wins), np.copy(batch.beta), np.copy(box.maximum)
    wins[1, 0, 2, 3], beta[2], width[3] = np.nan, np.inf, -np.inf
    actual = all_finite(batch._replace(wins=wins, beta=beta), TabularBox(width))
    assert actual.tolist() == [True, False, False, False]
    assert all_finite(batch, box).tolist() == [True] * 4


def test_property_the_bound_holds_for_any_pair_and_is_the_gap_of_finite_classes() -> None:
    problem, box = random_problem(3), TabularBox(np.array(1.5))
    for seed in range(2):
        policy, reward = random_pair(seed, box)
        bound = float(duality_gap_bound(problem, box, policy, reward))
        assert bound >= cvxpy_gap(problem, box, policy, reward) - CVXPY_VALUE
    finite = FiniteClass(np.stack([random_pair(seed, box)[1] for seed in range(4)]))
    policy, reward = random_pair(0, box)[0], np.asarray(finite.rewards)[0]
    worst = min(float(saddle_objective(problem, policy, each)) for each in finite.rewards)
    exact = float(minimax_objective(problem, reward)) - worst
    assert float(duality_gap_bound(problem, finite, policy, reward)) == pytest.approx(
        exact, abs=EXACT
    )
    assert float(duality_gap_bound(problem, Unbounded(), policy, reward)) == np.inf


def test_limit_the_bound_is_tight_at_a_saddle_point() -> None:
    problem, box = random_problem(3), TabularBox(np.array(1.5))
    solution = minimax.solve(problem, box)
    assert float(duality_gap_bound(problem, box, solution.policy, solution.reward)) < GAP_TOLERANCE


def test_closed_form_the_kkt_residual_is_the_projected_gradient_step_in_the_box() -> None:
    even, first = np.full((1, 2), 0.5), np.array([[1.0, 0.0]])
    one = np.array(1.0)
    problem = Problem(np.ones(1), even, first[:, ::-1], np.zeros((1, 2, 2)), one, one)
    # The gradient is (1, -1): a projected step ends in the corner (0, 0.75), 0.5 away.
    reward = np.array([[0.5, 0.25]])
    assert float(kkt_residual(problem, TabularBox(np.array(0.75)), first, reward)) == 0.5


@pytest.mark.parametrize("reward_class", [TabularBox(1.5), FiniteClass(np.zeros((1, 2, 4)))])
def test_extreme_outside_the_support_of_the_reference_policy_nothing_is_proven(
    reward_class: Any,
) -> None:
    within = np.array([[0.5, 0.5, 0.0, 0.0]] * 2)
    problem = random_problem(5)._replace(reference_policy=within, baseline_policy=within)
    proof = certify(problem, reward_class, np.full((2, 4), 0.25), np.zeros((2, 4)))
    assert proof.duality_gap == np.inf


def test_closed_form_without_comparisons_only_the_even_policy_is_proven() -> None:
    even, zero = np.full((2, 1, 2), 0.5), np.zeros((2, 1, 2))
    weights = np.ones(2)
    problems = Problem(np.ones((2, 1)), even, even, np.zeros((2, 1, 2, 2)), weights, weights)
    policies = np.array([[[0.5, 0.5]], [[1.0, 0.0]]])
    pairs = (policies, zero, np.zeros(2), None)
    proven, finite = all_proven(problems, TabularBox(weights), pairs)
    assert proven.tolist() == [True, False]
    assert finite.tolist() == [True, True]
