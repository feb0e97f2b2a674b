"""Bounds in ball arithmetic against 60-digit gaps, by independent formulas in mpmath."""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from rpo_theory import rigorous
from rpo_theory.preference_data import Choices, DavidsonTies, RaoKupperTies
from rpo_theory.rewards import (
    FiniteClass,
    LinearBall,
    Polytope,
    RewardClass,
    TabularBox,
    Unbounded,
)
from rpo_theory.types import Problem

DIGITS = 60
SHAPE = (2, 3)


def random_problem(seed: int, *, beta: float = 0.3, eta: float = 0.7, **data: Any) -> Problem:
    rng = np.random.default_rng(seed)
    n_contexts, n_actions = SHAPE
    return Problem(
        context_weights=rng.dirichlet(np.ones(n_contexts)),
        reference_policy=rng.dirichlet(np.ones(n_actions), n_contexts),
        baseline_policy=rng.dirichlet(np.ones(n_actions), n_contexts),
        wins=rng.poisson(2.0, (n_contexts, n_actions, n_actions)) * (1.0 - np.eye(n_actions)),
        beta=beta,
        eta=eta,
        **data,
    )


def random_pair(seed: int, reward_class: RewardClass) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 100)
    policy = rng.dirichlet(np.ones(SHAPE[1]), SHAPE[0])
    match reward_class:
        case FiniteClass(rewards):
            return policy, np.asarray(rewards)[0]
        case LinearBall(features, radius):
            theta = rng.normal(size=np.shape(features)[-1])
            return policy, np.asarray(features) @ (theta * (0.9 * radius / np.linalg.norm(theta)))
    return policy, rng.uniform(0.0, 2.0, SHAPE)


def random_classes(seed: int) -> list[RewardClass]:
    rng = np.random.default_rng(seed + 200)
    ball = LinearBall(rng.normal(size=(*SHAPE, 2)), 1.5)
    return [TabularBox(2.0), ball, FiniteClass(rng.uniform(size=(4, *SHAPE)))]


def in_mp(values: Any) -> np.ndarray:
    return np.vectorize(mpf, otypes=[object])(np.asarray(values, float))


def rows(distribution: Any) -> np.ndarray:
    table = in_mp(distribution)
    return table / table.sum(axis=-1, keepdims=True)


def payoff(problem: Problem, policy: np.ndarray, reward: np.ndarray) -> Any:
    """Return phi at 60 digits by its definition, comparison by comparison."""
    weights, beta = rows(problem.context_weights), mpf(float(problem.beta))
    reference, base = rows(problem.reference_policy), rows(problem.baseline_policy)
    result, wins = mpf(0), np.asarray(problem.wins)
    for x, weight in enumerate(weights):
        margin = ((policy[x] - base[x]) * reward[x]).sum()
        kl = sum(p * mpmath.log(p / q) for p, q in zip(policy[x], reference[x], strict=True) if p)
        result += mpf(float(problem.eta)) * weight * (margin - beta * kl)
    losses = [
        mpf(wins[x, w, lost]) * mpmath.log(1 + mpmath.exp(reward[x, lost] - reward[x, w]))
        for x, w, lost in zip(*np.nonzero(wins), strict=True)
    ]
    return result + sum(losses, mpf(0)) / mpf(max(wins.sum(), 1.0))


def best_policy(problem: Problem, reward: np.ndarray) -> np.ndarray:
    scaled = reward / mpf(float(problem.beta))
    weights = rows(problem.reference_policy) * np.vectorize(mpmath.exp, otypes=[object])(scaled)
    return weights / weights.sum(axis=1, keepdims=True)


def gap_to(problem: Problem, policy: Any, reward: Any, other: np.ndarray) -> Any:
    """Return the gap if the adversary answers with one member: a lower bound on the gap."""
    table = in_mp(reward)
    answer = payoff(problem, rows(policy), other)
    return payoff(problem, best_policy(problem, table), table) - answer


def test_theorem_the_bound_is_never_below_the_60_digit_gap_against_any_member() -> None:
    rng = np.random.default_rng(0)
    with mpmath.workdps(DIGITS):
        for seed in range(4):
            problem = random_problem(seed)
            for reward_class in random_classes(seed):
                policy, reward = random_pair(seed, reward_class)
                bound = rigorous.duality_gap_bound(problem, reward_class, policy, reward)
                assert 0.0 < bound < 10.0
                for _ in range(20):
                    match reward_class:
                        case TabularBox(maximum):
                            other = in_mp(rng.choice(np.array([0.0, maximum, 1.0]), SHAPE))
                        case LinearBall(features, radius):
                            theta = in_mp(rng.normal(size=2))
                            norm = mpmath.sqrt((theta**2).sum())
                            other = (in_mp(features) * theta).sum(axis=-1) * (mpf(radius) / norm)
                        case _:
                            other = in_mp(cast(Any, reward_class).rewards[rng.integers(4)])
                    assert mpf(bound) >= gap_to(problem, policy, reward, other)


def test_closed_form_the_bound_of_a_finite_class_is_the_60_digit_gap_rounded_up() -> None:
    with mpmath.workdps(DIGITS):
        for seed in range(10):
            problem, reward_class = random_problem(seed), random_classes(seed)[2]
            policy, reward = random_pair(seed, reward_class)
            members = map(in_mp, np.asarray(cast(Any, reward_class).rewards))
            gap = max(gap_to(problem, policy, reward, member) for member in members)
            bound = rigorous.duality_gap_bound(problem, reward_class, policy, reward)
            assert gap <= bound <= gap * (1 + mpf(2) ** -51)


def test_closed_form_without_data_the_bound_of_a_box_is_the_gap() -> None:
    with mpmath.workdps(DIGITS):
        for seed in range(5):
            problem = random_problem(seed)._replace(wins=np.zeros((*SHAPE, SHAPE[1])))
            policy, reward = random_pair(seed, TabularBox(2.0))
            rises = rows(policy) >= rows(problem.baseline_policy)
            gap = gap_to(problem, policy, reward, in_mp(np.where(rises, 0.0, 2.0)))
            bound = rigorous.duality_gap_bound(problem, TabularBox(2.0), policy, reward)
            assert gap <= bound <= gap * (1 + mpf(2) ** -51)


def test_limit_a_saddle_point_is_proven_and_a_perturbed_pair_is_not() -> None:
    even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 1.0], [1.0, 0.0]]])
    problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
    proven = rigorous.duality_gap_bound(problem, TabularBox(2.0), even, np.ones((1, 2)))
    assert proven < 1e-30
    moved = np.array([[0.5 + 1e-6, 0.5 - 1e-6]])
    for policy, reward in ((moved, np.ones((1, 2))), (even, np.array([[1.0, 1.0 + 1e-6]]))):
        bound = rigorous.duality_gap_bound(problem, TabularBox(2.0), policy, reward)
        assert bound > 1e-13
    outside = np.array([[1.0, 2.0 + 1e-6]])
    assert rigorous.duality_gap_bound(problem, TabularBox(2.0), even, outside) == math.inf
    rounded = np.array([[2.0, 2.0 + 4e-16]])  # stands for the corner of the box
    assert 0.0 < rigorous.duality_gap_bound(problem, TabularBox(2.0), even, rounded) < 1e-14


def test_limit_a_policy_outside_the_support_has_an_infinite_bound() -> None:
    even = np.full((1, 2), 0.5)
    problem = Problem(np.ones(1), np.eye(2)[:1], even, np.zeros((1, 2, 2)), beta=1.0, eta=1.0)
    bound = rigorous.duality_gap_bound(problem, TabularBox(1.0), even, np.zeros((1, 2)))
    assert bound == math.inf


def test_extreme_numbers_of_any_size_are_enclosed() -> None:
    even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 1e200], [1e-200, 0.0]]])
    for beta, eta in ((1e-300, 1e300), (1e300, 1e-300), (1e-8, 0.0)):
        problem = Problem(np.ones(1), even, even, wins, beta=beta, eta=eta)
        bound = rigorous.duality_gap_bound(problem, TabularBox(2.0), even, np.array([[2.0, 0.0]]))
        assert not math.isnan(bound)
        assert bound >= 0.1 or eta < 1.0


def slice_of_box(limit: float) -> Polytope:
    """Return the box with a bound on the sum of the rewards of the first context."""
    row = np.array([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    return Polytope(row, np.array([limit]), 2.0)


def test_closed_form_the_bound_uses_the_inequalities_and_shrinks_a_reward_into_them() -> None:
    problem = random_problem(3)._replace(wins=np.zeros((*SHAPE, SHAPE[1])))
    policy, _ = random_pair(3, TabularBox(2.0))
    reward = np.full(SHAPE, 0.1 + 0.2)  # three of them sum to more than 0.9
    bound = rigorous.duality_gap_bound(problem, slice_of_box(0.9), policy, reward)
    with mpmath.workdps(DIGITS):
        move = rows(policy) - rows(problem.baseline_policy)
        worst = in_mp(np.where(move < 0, 2.0, 0.0))
        worst[0] = 0
        worst[0, int(move[0].argmin())] = mpf(0.9)
        gap = gap_to(problem, policy, reward, worst)
    assert gap <= bound <= gap * (1 + mpf(1e-14))
    wide = rigorous.duality_gap_bound(problem, TabularBox(2.0), policy, reward)
    assert wide > bound


@pytest.mark.parametrize("ties", [DavidsonTies, RaoKupperTies])
def test_closed_form_choices_and_ties_enter_the_loss(ties: Any) -> None:
    counts = np.zeros((*SHAPE, SHAPE[1]))
    counts[1, 0, 2] = 3.0
    choices = Choices(np.array([0]), np.ones((1, 3)), np.array([[2.0, 0.0, 1.0]]), np.ones(1))
    problem = random_problem(5, choices=choices, ties=ties(counts, 1.5))
    reward_class = random_classes(5)[2]
    policy, reward = random_pair(5, reward_class)
    bound = rigorous.duality_gap_bound(problem, reward_class, policy, reward)

    def loss(table: np.ndarray) -> float:
        result, nu = 0.0, 1.5
        for x, i, j in zip(*np.nonzero(problem.wins + counts), strict=True):
            m = table[x, i] - table[x, j]
            if ties is DavidsonTies:
                whole = np.exp(m / 2) + np.exp(-m / 2) + nu
                win, tie = np.exp(m / 2) / whole, nu / whole
            else:
                win, lose = 1 / (1 + nu * np.exp(-m)), 1 / (1 + nu * np.exp(m))
                tie = 1 - win - lose
            result -= problem.wins[x, i, j] * np.log(win) + counts[x, i, j] * np.log(tie)
        result -= np.array([2.0, 0.0, 1.0]) @ (table[0] - np.log(np.exp(table[0]).sum()))
        return result / (problem.wins.sum() + 6.0)

    with mpmath.workdps(DIGITS):
        no_data = problem._replace(wins=np.zeros_like(problem.wins))
        gaps = [
            float(gap_to(no_data, policy, reward, in_mp(row))) + loss(reward) - loss(row)
            for row in np.asarray(cast(Any, reward_class).rewards)
        ]
    assert bound == pytest.approx(max(gaps), rel=1e-12)


def test_raises_a_class_without_exact_form_is_refused_by_name() -> None:
    problem = random_problem(0)
    policy, reward = random_pair(0, TabularBox(2.0))
    with pytest.raises(ValueError, match=r"`reward_class` must have .*`exact_form`.*Unbounded"):
        rigorous.duality_gap_bound(problem, Unbounded(), policy, reward)
    with pytest.raises(ValueError, match="`precision` must be at least 53 bits, got 24"):
        rigorous.duality_gap_bound(problem, TabularBox(2.0), policy, reward, precision=24)


def test_raises_without_python_flint_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    problem = random_problem(0)
    policy, reward = random_pair(0, TabularBox(2.0))
    with pytest.raises(ImportError, match=r"pip install 'rpo-theory\[rigorous\]'"):
        rigorous.duality_gap_bound(problem, TabularBox(2.0), policy, reward)
