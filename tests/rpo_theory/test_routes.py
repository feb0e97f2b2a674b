"""Every kind of reward class by every route: smooth forms, projections, and classes of users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import certificate, direct, maximin, minimax, rewards, routes
from rpo_theory.rewards import KernelBall, Lipschitz, Polytope, TabularBox
from rpo_theory.types import Problem, Status

SHAPE = (2, 3)
VALUE, POLICY = 1e-7, 1e-4  # accuracy of Clarabel's exponential cones
USER_VALUE, USER_GAP = 1e-6, 1e-8
SMOOTH = ["lipschitz", "polytope", "kernel"]
USERS = ["ellipsoid", "monotone", "l1"]


@partial(
    jax.tree_util.register_dataclass, data_fields=["axes", "lengths", "center"], meta_fields=[]
)
@dataclass
class Ellipsoid:
    """Tables ``center + axes @ (lengths * z)`` with ``z`` in the unit ball."""

    axes: Any
    lengths: Any
    center: Any

    def project(self, reward: Any) -> Any:
        """Bisect on the multiplier of the constraint."""
        offset = self.axes.T @ (reward - self.center).reshape(-1)
        squared = self.lengths**2

        def size(multiplier: Any) -> Any:
            return jnp.sum(squared * offset**2 / (squared + multiplier) ** 2)

        def halve(_: Any, ends: Any) -> Any:
            low, high = ends
            middle = 0.5 * (low + high)
            outside = size(middle) > 1.0
            return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

        largest = jnp.linalg.norm(offset) * self.lengths.max() + 1.0
        low, high = jax.lax.fori_loop(0, 100, halve, (jnp.zeros_like(largest), largest))
        moved = offset * squared / (squared + 0.5 * (low + high))
        inside = jnp.where(size(0.0) <= 1.0, offset, moved)
        return self.center + (self.axes @ inside).reshape(reward.shape)

    def linear_minimizer(self, direction: Any) -> Any:
        """Return the point of the boundary against the direction."""
        pull = self.lengths * (self.axes.T @ direction.reshape(-1))
        norm = jnp.linalg.norm(pull)
        away = self.axes @ (self.lengths * pull / jnp.where(norm > 0, norm, 1.0))
        return self.center - away.reshape(direction.shape)


@partial(jax.tree_util.register_dataclass, data_fields=["maximum"], meta_fields=[])
@dataclass
class Monotone:
    """Rewards between 0 and a maximum that do not decrease with the action."""

    maximum: Any

    def project(self, reward: Any) -> Any:
        """Pool adjacent violators, by the min-max formula."""
        n = reward.shape[1]
        sums = jnp.pad(jnp.cumsum(reward, axis=1), ((0, 0), (1, 0)))
        lengths = np.maximum(np.arange(n)[None, :] - np.arange(n)[:, None] + 1.0, 1.0)
        ordered = np.tri(n, dtype=bool).T
        means = (sums[:, None, 1:] - sums[:, :-1, None]) / lengths
        lowest = jax.lax.cummin(jnp.where(ordered, means, jnp.inf), axis=2, reverse=True)
        return jnp.clip(jnp.where(ordered, lowest, -jnp.inf).max(axis=1), 0.0, self.maximum)

    def linear_minimizer(self, direction: Any) -> Any:
        """Return the best step function."""
        tails = jnp.cumsum(direction[:, ::-1], axis=1)[:, ::-1]
        first = jnp.argmin(tails, axis=1)[:, None]
        helps = jnp.take_along_axis(tails, first, axis=1) < 0
        return jnp.where((np.arange(direction.shape[1]) >= first) & helps, self.maximum, 0.0)


@partial(jax.tree_util.register_dataclass, data_fields=["radius"], meta_fields=[])
@dataclass
class L1Ball:
    """Tables whose absolute values sum to at most a radius."""

    radius: Any

    def project(self, reward: Any) -> Any:
        """Sort the absolute values and shrink them by one threshold."""
        sizes = jnp.sort(jnp.abs(reward).reshape(-1))[::-1]
        excess = (jnp.cumsum(sizes) - self.radius) / np.arange(1.0, reward.size + 1)
        threshold = jnp.maximum(jnp.where(sizes > excess, excess, -jnp.inf).max(), 0.0)
        return jnp.sign(reward) * jnp.maximum(jnp.abs(reward) - threshold, 0.0)

    def linear_minimizer(self, direction: Any) -> Any:
        """Return the corner against the largest entry."""
        flat = direction.reshape(-1)
        index = jnp.argmax(jnp.abs(flat))
        corner = jnp.zeros_like(flat).at[index].set(-self.radius * jnp.sign(flat[index]))
        return corner.reshape(direction.shape)


def problem_and_class(kind: str, seed: int, shape: tuple[int, int]) -> tuple[Problem, Any]:
    """Draw a problem with beta of at least .1, and a class of a kind."""
    rng = np.random.default_rng([seed, len(kind)])
    x, a = shape
    beta, eta = np.exp(rng.uniform(np.log([0.1, 0.05]), np.log([5.0, 5.0])))
    problem = Problem(
        context_weights=rng.dirichlet(np.ones(x)),
        reference_policy=rng.dirichlet(np.ones(a), x),
        baseline_policy=rng.dirichlet(np.ones(a), x),
        wins=rng.poisson(1.0, (x, a, a)) * (1.0 - np.eye(a)),
        beta=beta,
        eta=eta,
    )
    n = x * a
    points = rng.normal(size=(n, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    match kind:
        case "lipschitz":
            return problem, Lipschitz(rng.uniform(0.2, 1.0), distance, 1.5)
        case "polytope":
            return problem, Polytope(rng.normal(size=(4, x, a)), rng.uniform(0.5, 2.0, 4), 1.5)
        case "kernel":
            return problem, KernelBall(np.exp(-(distance**2)), rng.uniform(0.5, 2.0))
        case "ellipsoid":
            axes = np.linalg.qr(rng.normal(size=(n, n)))[0]
            return problem, Ellipsoid(axes, rng.uniform(0.2, 2.0, n), rng.uniform(0, 1, (x, a)))
        case "monotone":
            return problem, Monotone(np.array(rng.uniform(0.5, 3.0)))
        case _:
            return problem, L1Ball(np.array(rng.uniform(0.5, 3.0)))


def cvxpy_constraints(reward_class: Any, table: cp.Variable) -> list[Any]:
    """Return the class as constraints of a table."""
    flat = cp.reshape(table, (table.size,), order="C")
    match reward_class:
        case Lipschitz(constant, distance, maximum):
            first, second = np.triu_indices(table.size, 1)
            limits = float(constant) * np.asarray(distance)[first, second]
            near = cp.abs(flat[first] - flat[second]) <= limits
            return [table >= 0, table <= maximum, near]
        case Polytope(matrix, limits, maximum):
            rows = np.asarray(matrix).reshape(len(limits), -1)
            return [table >= 0, table <= maximum, rows @ flat <= limits]
        case KernelBall(gram, radius):
            half = np.linalg.cholesky(np.asarray(gram) + 1e-13 * np.eye(table.size))
            weights = cp.Variable(table.size)
            return [flat == half @ weights, cp.norm(weights) <= float(radius)]
        case Ellipsoid(axes, lengths, center):
            unit = cp.Variable(table.size)
            return [flat == center.reshape(-1) + (axes * lengths) @ unit, cp.norm(unit) <= 1]
        case Monotone(maximum):
            return [table >= 0, table <= float(maximum), table[:, 1:] >= table[:, :-1]]
        case _:
            return [cp.norm1(flat) <= float(reward_class.radius)]


def cvxpy_minimum(problem: Problem, reward_class: Any) -> tuple[float, np.ndarray]:
    """Minimize F(r) of the paper by Clarabel, and return the value and the policy."""
    x, a = np.shape(problem.reference_policy)
    table = cp.Variable((x, a))
    beta, terms = float(problem.beta), []
    for i in range(x):
        log_z = cp.log_sum_exp(table[i] / beta + np.log(problem.reference_policy[i]))
        weight = float(problem.eta) * float(problem.context_weights[i])
        terms.append(weight * (beta * log_z - problem.baseline_policy[i] @ table[i]))
        for won, lost in zip(*np.nonzero(problem.wins[i]), strict=True):
            share = problem.wins[i, won, lost] / problem.wins.sum()
            terms.append(share * cp.logistic(table[i][lost] - table[i][won]))
    task = cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))), cvxpy_constraints(reward_class, table))
    task.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    reward = np.asarray(table.value)
    weight = problem.reference_policy * np.exp((reward - reward.max(1, keepdims=True)) / beta)
    return float(np.asarray(task.value)), weight / weight.sum(1, keepdims=True)


def agrees_with_cvxpy(kind: str, seed: int, shape: tuple[int, int], accuracy: float) -> None:
    """Compare all three routes with Clarabel and with each other."""
    problem, reward_class = problem_and_class(kind, seed, shape)
    value, policy = cvxpy_minimum(problem, reward_class)
    for route in (minimax, maximin, direct):
        solution = route.solve(problem, reward_class)
        assert solution.status == Status.SOLVED, (kind, seed, route)
        assert solution.objective == pytest.approx(value, abs=accuracy), (kind, seed, route)
        np.testing.assert_allclose(solution.policy, policy, atol=POLICY)
    solution = minimax.solve(problem, reward_class)
    proof = certificate.certify(problem, reward_class, solution.policy, solution.reward)
    assert proof.duality_gap <= USER_GAP * max(1.0, abs(float(solution.objective)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("kind", SMOOTH)
def test_parity_three_routes_agree_with_cvxpy(kind: str, seed: int) -> None:
    agrees_with_cvxpy(kind, seed, (3, 4), VALUE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", USERS)
def test_parity_classes_of_users_agree_with_cvxpy(kind: str, seed: int) -> None:
    agrees_with_cvxpy(kind, seed, (3, 5), USER_VALUE)


def test_limit_lipschitz_of_large_constant_is_the_box_and_of_zero_a_point() -> None:
    problem, reward_class = problem_and_class("lipschitz", 3, (2, 3))
    wide, narrow = (
        Lipschitz(constant, reward_class.distance, reward_class.maximum) for constant in (1e6, 1e-9)
    )
    in_box = minimax.solve(problem, TabularBox(reward_class.maximum))
    in_wide = minimax.solve(problem, wide)
    assert in_wide.objective == pytest.approx(float(in_box.objective), abs=VALUE)
    np.testing.assert_allclose(in_wide.policy, in_box.policy, atol=POLICY)
    # Equal rewards: the policy is the reference, and F is log 2 of every comparison.
    in_narrow = minimax.solve(problem, narrow)
    assert np.ptp(in_narrow.reward) <= 1e-8
    np.testing.assert_allclose(in_narrow.policy, problem.reference_policy, atol=POLICY)
    assert in_narrow.objective == pytest.approx(np.log(2.0), abs=VALUE)


@pytest.mark.slow
def test_parity_the_smooth_form_of_a_box_has_the_minimum_of_its_blocks() -> None:
    problem, box = problem_and_class("lipschitz", 0, SHAPE)[0], TabularBox(1.5)
    options = {"tolerance": 1e-12, "max_steps": 100}

    @jax.jit
    def values(problem: Problem) -> list[jax.Array]:
        objective = partial(routes.smoothed_objective, problem, None)
        sharp = jnp.minimum(problem.beta, 1.0)
        by_form = routes.minimize_function(problem, box, objective, sharp, **options)
        return [
            objective(found.reward, 0.0) for found in (by_form, box.minimize(problem, **options))
        ]

    np.testing.assert_allclose(*values(problem), atol=1e-12)


def test_parity_a_projection_suffices_for_the_minimum_of_a_box() -> None:
    @partial(jax.tree_util.register_dataclass, data_fields=["box"], meta_fields=[])
    @dataclass
    class Hidden:
        box: TabularBox

        def project(self, reward: Any) -> Any:
            return self.box.project(reward)

        def linear_minimizer(self, direction: Any) -> Any:
            return self.box.linear_minimizer(direction)

    problem, box = problem_and_class("l1", 0, SHAPE)[0], TabularBox(1.5)
    options = {"tolerance": 1e-12, "max_steps": 100}

    @jax.jit
    def values(problem: Problem) -> list[jax.Array]:
        minima = (routes.minimizer(problem, made, **options) for made in (Hidden(box), box))
        return [routes.smoothed_objective(problem, None, found.reward, 0.0) for found in minima]

    np.testing.assert_allclose(*values(problem), atol=1e-12)


def test_property_fields_that_are_indices_keep_their_type() -> None:
    @partial(jax.tree_util.register_dataclass, data_fields=["order", "radius"], meta_fields=[])
    @dataclass
    class Ordered:
        order: Any
        radius: float

        def project(self, reward: Any) -> Any:
            return reward

    made = rewards.to_float64(Ordered(np.array([1, 0]), 2))
    assert made.order.dtype == np.int64
    assert np.asarray(made.radius).dtype == np.float64


def test_closed_form_what_the_routes_ask_of_a_problem_and_a_class() -> None:
    even, wins = np.full((2, 1, 2), 0.5), np.array([[[[0.0, 1.0], [0.0, 0.0]]]] * 2)
    eta = np.array([1.0, 3.0])
    problems = Problem(np.ones((2, 1)), even, even, wins, beta=np.ones(2), eta=eta)
    members = np.array([[[0.0, 0.0]], [[1.0, 0.0]]])
    classes = rewards.FiniteClass(np.stack([members, members[:1].repeat(2, axis=0)]))
    assert routes.has_batch_solver(problems, TabularBox(np.ones(2)))
    assert not routes.has_batch_solver(problems, classes)
    best = routes.minimize_batch(problems, classes, tolerance=1e-9, max_steps=1).reward
    np.testing.assert_array_equal(best, [members[1], members[0]])
    one = jax.tree.map(lambda leaf: leaf[0], problems)
    assert float(routes.objective_scale(one)) == 2.0
    assert float(routes.objective_scale(one._replace(eta=0.0, wins=0.0 * wins[0]))) == 1.0
    sums = routes.batched(lambda table: table.sum(), problems, classes)(jnp.asarray(even))
    assert np.asarray(sums).tolist() == [1.0, 1.0]
