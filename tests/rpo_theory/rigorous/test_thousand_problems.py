"""Bounds in ball arithmetic on a thousand solved problems, beside gaps at 60 digits.

A member that the adversary may answer with gives a lower bound on the gap. For the box and the ball
it is the minimizer itself, by Newton's method at 60 digits on the bounds that are active.
"""

from __future__ import annotations

from typing import Any

import jax
import mpmath
import numpy as np
import pytest
from mpmath import mpf

from rpo_theory import minimax, rigorous
from rpo_theory.rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Polytope,
    TabularBox,
)
from rpo_theory.types import Problem

DIGITS = 60
BAR = 1e-9
PROBLEMS = 42
SHAPES = [(1, 2), (1, 5), (2, 3), (3, 4)]
KINDS = ["box", "ball", "lipschitz", "polytope", "kernel", "finite"]
Table = np.ndarray


def draw(seed: int, shape: tuple[int, int], kind: str) -> tuple[Problem, Any]:
    rng = np.random.default_rng([seed, *shape, KINDS.index(kind)])
    n_contexts, n_actions = shape
    wins = rng.poisson(10.0 ** rng.uniform(-1.0, 1.5), (n_contexts, n_actions, n_actions))
    problem = Problem(
        rng.dirichlet(np.ones(n_contexts)),
        rng.dirichlet(np.ones(n_actions), n_contexts),
        rng.dirichlet(np.ones(n_actions), n_contexts),
        wins * (1.0 - np.eye(n_actions)),
        beta=np.array(10.0 ** rng.uniform(-2.0, 2.0)),
        eta=np.array(10.0 ** rng.uniform(-2.0, 2.0)),
    )
    points = rng.normal(size=(n_contexts * n_actions, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    size = np.array(rng.uniform(0.5, 4.0))
    match kind:
        case "box":
            return problem, TabularBox(size)
        case "ball":
            return problem, LinearBall(rng.normal(size=(*shape, 3)), size)
        case "lipschitz":
            return problem, Lipschitz(size / 4.0, distance, size)
        case "polytope":
            rows = rng.normal(size=(3, *shape))
            return problem, Polytope(rows, 0.3 * size * np.abs(rows).sum(axis=(1, 2)), size)
        case "kernel":
            return problem, KernelBall(np.exp(-(distance**2)), size)
    return problem, FiniteClass(rng.uniform(size=(5, *shape)) * size)


def in_mp(values: Any) -> Table:
    return np.vectorize(mpf, otypes=[object])(np.asarray(values, float))


def rows(distribution: Any) -> Table:
    table = in_mp(distribution)
    return table / table.sum(axis=-1, keepdims=True)


def exponentials(table: Table) -> Table:
    return np.vectorize(mpmath.exp, otypes=[object])(table)


class Game:
    """The function phi of one problem at 60 digits, with the derivatives of its data loss."""

    def __init__(self, problem: Problem, policy: Table) -> None:
        self.policy, self.beta = rows(policy), mpf(float(problem.beta))
        self.weights = rows(problem.context_weights) * mpf(float(problem.eta))
        self.reference, self.base = map(rows, (problem.reference_policy, problem.baseline_policy))
        wins = np.asarray(problem.wins)
        self.pairs = list(zip(*np.nonzero(wins), strict=True))
        self.shares = [mpf(wins[pair]) / mpf(max(wins.sum(), 1.0)) for pair in self.pairs]
        self.slope = self.weights[:, None] * (self.policy - self.base)

    def loss(self, reward: Table) -> Any:
        terms = [
            share * mpmath.log(1 + mpmath.exp(reward[x, j] - reward[x, i]))
            for share, (x, i, j) in zip(self.shares, self.pairs, strict=True)
        ]
        return sum(terms, mpf(0))

    def derivatives(self, reward: Table) -> tuple[Table, Table]:
        """Return gradient and Hessian of phi in the reward, flat."""
        n_actions = reward.shape[1]
        gradient, hessian = self.slope.ravel().copy(), in_mp(np.zeros((reward.size,) * 2))
        for share, (x, i, j) in zip(self.shares, self.pairs, strict=True):
            p = 1 / (1 + mpmath.exp(reward[x, i] - reward[x, j]))
            first, second = x * n_actions + i, x * n_actions + j
            gradient[first] -= share * p
            gradient[second] += share * p
            move = np.array([1, -1])
            where = np.ix_([first, second], [first, second])
            hessian[where] += share * p * (1 - p) * np.outer(move, move)
        return gradient, hessian

    def gap(self, reward: Table, answer: Table) -> Any:
        """Return F(r) - phi(pi, r') by the definitions of both."""
        best = self.reference * exponentials(reward / self.beta)
        z = best.sum(axis=1)
        log_z = np.array([mpmath.log(value) for value in z])
        peak = (self.weights * (self.beta * log_z - (self.base * reward).sum(axis=1))).sum()
        kl = in_mp(np.zeros(len(z)))
        for x, a in np.ndindex(reward.shape):
            if self.policy[x, a]:
                ratio = self.policy[x, a] / self.reference[x, a]
                kl[x] += self.policy[x, a] * mpmath.log(ratio)
        payoff = (self.slope * answer).sum() - self.beta * (self.weights * kl).sum()
        return peak + self.loss(reward) - payoff - self.loss(answer)


def newton(game: Game, basis: Table, point: Table, shape: tuple[int, int]) -> Table:
    """Minimize phi over ``point + basis z`` at 60 digits; a tiny ridge removes flat directions."""
    for _ in range(8 * min(basis.shape[1], 1)):
        gradient, hessian = game.derivatives(point.reshape(shape))
        ridge = in_mp(np.eye(basis.shape[1])) * mpf(10) ** -25
        point = point + basis.dot(
            solve(basis.T.dot(hessian).dot(basis) + ridge, -basis.T.dot(gradient))
        )
    return point


def newton_on_rim(game: Game, basis: Table, theta: Table, shape: tuple[int, int]) -> Table:
    """Minimize phi over ``basis theta`` on the sphere of ``theta``, by its multiplier."""
    radius, size = mpmath.sqrt((theta**2).sum()), len(theta)
    gradient, _ = game.derivatives(basis.dot(theta).reshape(shape))
    multiplier = -(basis.T.dot(gradient) * theta).sum() / radius**2
    for _ in range(8):
        gradient, hessian = game.derivatives(basis.dot(theta).reshape(shape))
        system = in_mp(np.zeros((size + 1, size + 1)))
        system[:size, :size] = basis.T.dot(hessian).dot(basis) + multiplier * in_mp(np.eye(size))
        system[:size, size] = system[size, :size] = theta
        residual = -(basis.T.dot(gradient) + multiplier * theta)
        move = solve(system, np.append(residual, (radius**2 - (theta**2).sum()) / 2))
        theta, multiplier = theta + move[:size], multiplier + move[size]
    return theta * (radius / mpmath.sqrt((theta**2).sum()))


def solve(matrix: Table, right: Table) -> Table:
    found = mpmath.lu_solve(mpmath.matrix(matrix.tolist()), mpmath.matrix(right.tolist()))
    return np.array(list(found), object)


def answers(game: Game, reward_class: Any, reward: Table) -> list[Table]:
    """Return members that the adversary may answer with; none may be below the bound's claim."""
    shape, flat = reward.shape, in_mp(reward).ravel()
    match reward_class:
        case FiniteClass(members):
            return [in_mp(member) for member in np.asarray(members)]
        case TabularBox(maximum):
            top, near = mpf(float(maximum)), 1e-6 * float(maximum)
            free = [near < entry < top - near for entry in flat]
            corner = np.where(flat < top / 2, mpf(0), top)
            point = newton(
                game, in_mp(np.eye(flat.size)[:, free]), np.where(free, flat, corner), shape
            )
            points = [np.clip(point, mpf(0), top), np.clip(flat, mpf(0), top)]
        case LinearBall(features, radius):
            basis = in_mp(np.asarray(features).reshape(flat.size, -1))
            theta = in_mp(np.linalg.lstsq(basis.astype(float), reward.ravel())[0])
            norm = mpmath.sqrt((theta**2).sum())
            theta = theta * min(mpf(1), mpf(float(radius)) / norm)
            points = [basis.dot(theta)]
            if norm > mpf(float(radius)) * (1 - mpf(10) ** -6):
                points.append(basis.dot(newton_on_rim(game, basis, theta, shape)))
        case _:
            return []
    return [point.reshape(shape) for point in points]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_the_bound_is_small_and_never_below_the_60_digit_gap(
    kind: str, shape: tuple[int, int]
) -> None:
    drawn = [draw(seed, shape, kind) for seed in range(PROBLEMS)]
    problems, classes = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    solution = minimax.solve_batch(problems, classes, throw=False)
    small = 0
    for i, (problem, reward_class) in enumerate(drawn):
        policy, reward = np.asarray(solution.policy[i]), np.asarray(solution.reward[i])
        rng = np.random.default_rng(i)
        other = rng.dirichlet(np.ones(shape[1]), shape[0])
        scale = max(1.0, float(problem.eta), abs(float(solution.objective[i])))
        with mpmath.workdps(DIGITS):
            for share in (0.0, 1e-3):
                moved = (1.0 - share) * policy + share * other
                bound = rigorous.duality_gap_bound(problem, reward_class, moved, reward)
                game = Game(problem, moved)
                gaps = [
                    game.gap(in_mp(reward), table) for table in answers(game, reward_class, reward)
                ]
                assert all(mpf(bound) >= gap for gap in gaps)
                least = game.gap(in_mp(reward), in_mp(reward))  # the gap to the best policy
                assert mpf(bound) >= least * (1 - mpf(1e-9)) - mpf(1e-16) * scale
                if share == 0.0:
                    excess = bound - max(gaps) if kind == "finite" else mpf(bound)
                    small += excess <= BAR * scale
    print(f"{kind} {shape}: {small} of {PROBLEMS} bounds are at most {BAR}")
    assert small >= 0.99 * PROBLEMS
