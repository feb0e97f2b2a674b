"""Optimistic RPO against brute force, CVXPY and formulas of its own."""

from __future__ import annotations

import itertools

import cvxpy as cp
import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from bandits.methods import optimistic_bound, optimistic_objective, optimistic_reward
from bandits.methods.registry import METHODS
from rpo_theory.rewards import LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem, Status

rpo_optimistic = METHODS["rpo_optimistic"]


def random_problems(
    rng: np.random.Generator, count: int, actions: int, contexts: int = 1
) -> tuple[Problem, TabularBox]:
    """Draw problems over two and more orders of magnitude of every weight."""
    shape = (count, contexts, actions)
    point = np.eye(actions)[rng.integers(actions, size=shape[:2])]
    mixed = rng.dirichlet(np.ones(actions), shape[:2])
    wins = rng.poisson(10 ** rng.uniform(-1, 2, (*shape, actions))) * (1.0 - np.eye(actions))
    problem = Problem(
        context_weights=rng.dirichlet(np.ones(contexts), count),
        reference_policy=rng.dirichlet(np.full(actions, 0.5), shape[:2]),
        baseline_policy=np.where(rng.random((count, 1, 1)) < 0.5, point, mixed),
        wins=wins,
        beta=10 ** rng.uniform(-2, 0.5, count),
        eta=10 ** rng.uniform(-3, 1, count),
    )
    return problem, TabularBox(10 ** rng.uniform(-0.5, 0.7, count))


def numpy_objective(problem: Problem, reward: np.ndarray) -> np.ndarray:
    """Return G of many rewards ``[... a]`` for a problem with one prompt."""
    scaled = reward / problem.beta
    log_z = np.asarray(logsumexp(scaled, axis=-1, b=np.asarray(problem.reference_policy)[0]))
    margin = reward[..., :, None] - reward[..., None, :]
    wins = np.asarray(problem.wins)[0]
    loss = (wins * np.logaddexp(0.0, -margin)).sum(axis=(-2, -1)) / max(wins.sum(), 1e-300)
    gain = np.asarray(problem.beta) * log_z - reward @ np.asarray(problem.baseline_policy)[0]
    return problem.eta * gain - loss


def brute_force(problem: Problem, width: float, points: int) -> float:
    """Return the maximum of G over the box: a grid, polished from its best points."""
    n_actions = np.shape(problem.reference_policy)[-1]
    axis = np.linspace(0.0, width, points)
    grid = np.array(list(itertools.product(axis, repeat=n_actions - 1)))
    best = -np.inf
    for lowest in range(n_actions):  # a constant changes nothing: one reward is zero

        def objective(free: np.ndarray, lowest: int = lowest) -> np.ndarray:
            return numpy_objective(problem, np.insert(free, lowest, 0.0, axis=-1))

        values = objective(grid)
        for start in grid[np.argsort(-values)[:6]]:
            found = minimize(
                lambda free, f=objective: -float(f(free)),
                start,
                bounds=[(0.0, width)] * (n_actions - 1),
                method="L-BFGS-B",
                options={"ftol": 1e-15, "gtol": 1e-10},
            )
            best = max(best, -found.fun)
    return best


def gaps_to_brute_force(
    problem: Problem, box: TabularBox, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of the fits from the global maximum, and its proven bound."""
    fit = rpo_optimistic(problem, box, baseline="given")
    assert np.all(fit.status == Status.SOLVED)
    gaps = []
    for row, width in enumerate(np.asarray(box.maximum)):
        single = jax.tree.map(lambda leaf, row=row: leaf[row], problem)
        value = float(numpy_objective(single, fit.reward[row, 0]))
        gaps.append(brute_force(single, float(width), points) - value)
    return np.array(gaps), fit.certificate


def test_theorem_the_best_start_is_the_global_maximum_of_three_arms() -> None:
    problem, box = random_problems(np.random.default_rng(0), 12, 3)
    gaps, bounds = gaps_to_brute_force(problem, box, points=15)
    assert np.abs(gaps).max() <= 1e-9
    assert np.all(bounds >= gaps - 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("actions", [2, 3])
def test_theorem_the_best_start_is_the_global_maximum_of_many_small_problems(actions: int) -> None:
    problem, box = random_problems(np.random.default_rng(1), 500, actions)
    gaps, bounds = gaps_to_brute_force(problem, box, points=41)
    print(f"{actions} arms: largest gap to brute force {gaps.max():.1e}, smallest {gaps.min():.1e}")
    print("proven bounds, median and 90 %:", np.quantile(bounds, [0.5, 0.9]))
    assert np.abs(gaps).max() <= 1e-9
    assert np.all(bounds >= gaps - 1e-9)


def test_closed_form_the_objective_is_its_formula() -> None:
    problem, _ = random_problems(np.random.default_rng(2), 4, 3)
    reward = np.random.default_rng(3).normal(size=(4, 1, 3))
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(optimistic_objective))(problem, reward)
    for row in range(4):
        single = jax.tree.map(lambda leaf, row=row: leaf[row], problem)
        formula = float(numpy_objective(single, reward[row, 0]))
        assert float(values[row]) == pytest.approx(formula, abs=1e-12)


def test_parity_the_reward_step_is_cvxpys_convex_program() -> None:
    problem, box = random_problems(np.random.default_rng(4), 1, 3)
    problem = jax.tree.map(lambda leaf: leaf[0], problem)._replace(eta=0.2, beta=0.3)
    width, policy = float(np.asarray(box.maximum)[0]), np.array([[0.1, 0.2, 0.7]])
    with jax.enable_x64(True):
        found = np.asarray(optimistic_reward(problem, TabularBox(width), policy))[0]

    wins, reward = np.asarray(problem.wins)[0], cp.Variable(3)
    loss = sum(
        wins[i, j] * cp.logistic(reward[j] - reward[i])
        for i, j in itertools.permutations(range(3), 2)
    )
    gain = (policy[0] - np.asarray(problem.baseline_policy)[0]) @ reward
    objective = cp.Maximize(0.2 * gain - loss / wins.sum())
    program = cp.Problem(objective, [reward >= 0, reward <= width])
    program.solve(solver=cp.CLARABEL)
    margin = found[:, None] - found[None, :]
    loss_of_found = (wins * np.logaddexp(0.0, -margin)).sum() / wins.sum()
    gain_of_found = (policy[0] - np.asarray(problem.baseline_policy)[0]) @ found
    assert 0.2 * gain_of_found - loss_of_found == pytest.approx(program.value, abs=1e-7)


def test_parity_the_policy_minimizes_the_loss_of_xpo() -> None:
    reference = np.array([0.8, 0.15, 0.05])
    wins = np.array([[0.0, 6.0, 2.0], [3.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    beta, alpha = 0.5, 0.02
    table = reference[None, None]
    weights = np.array([beta]), np.array([alpha / beta])
    problem = Problem(np.ones((1, 1)), table, table, wins[None, None], *weights)

    def xpo_loss(logits: np.ndarray) -> float:
        policy = softmax(np.append(logits, 0.0))
        implicit = beta * np.log(policy / reference)
        margin = implicit[:, None] - implicit[None, :]
        loss = (wins * np.logaddexp(0.0, -margin)).sum() / wins.sum()
        return float(alpha * reference @ np.log(policy) + loss)

    ends = [minimize(xpo_loss, start, tol=1e-13) for start in 3.0 * np.eye(2)]
    best = min(ends, key=lambda end: end.fun)
    fit = rpo_optimistic(problem, TabularBox(np.array([50.0])), baseline="reference")
    np.testing.assert_allclose(fit.policy[0, 0], softmax(np.append(best.x, 0.0)), atol=1e-5)


def test_property_the_prompts_of_a_box_do_not_interact() -> None:
    problem, _ = random_problems(np.random.default_rng(5), 1, 3, contexts=2)
    box = TabularBox(np.array([2.0]))
    both = rpo_optimistic(problem, box, baseline="given")
    wins = np.asarray(problem.wins)
    for prompt in range(2):
        # One prompt of the same loss: the weights grow by the share of its comparisons.
        share = wins[:, prompt].sum() / wins.sum()
        single = Problem(
            context_weights=np.ones((1, 1)),
            reference_policy=np.asarray(problem.reference_policy)[:, [prompt]],
            baseline_policy=np.asarray(problem.baseline_policy)[:, [prompt]],
            wins=wins[:, [prompt]],
            beta=problem.beta,
            eta=problem.eta * np.asarray(problem.context_weights)[:, prompt] / share,
        )
        fit = rpo_optimistic(single, box, baseline="given")
        np.testing.assert_allclose(both.policy[:, prompt], fit.policy[:, 0], atol=1e-7)
    assert np.isfinite(both.certificate).all()


def test_limit_without_optimism_the_policy_is_that_of_maximum_likelihood() -> None:
    problem, box = random_problems(np.random.default_rng(6), 12, 3)
    wins = np.asarray(problem.wins) + 5.0 * (1.0 - np.eye(3))
    problem = problem._replace(eta=np.zeros(12), beta=np.ones(12), wins=wins)
    optimistic = rpo_optimistic(problem, box, baseline="given")
    greedy = METHODS["two_stage"](problem, box)
    np.testing.assert_allclose(optimistic.policy, greedy.policy, atol=1e-8)
    assert optimistic.certificate.max() <= 1e-12


def test_limit_the_bound_is_attained_at_a_small_kl_weight() -> None:
    problem, box = random_problems(np.random.default_rng(7), 12, 3)
    small = rpo_optimistic(problem._replace(beta=np.full(12, 1e-5)), box, baseline="given")
    assert small.certificate.max() <= 1e-4 * np.asarray(problem.eta).max()


def test_closed_form_the_bound_is_a_log_partition_function() -> None:
    even = np.array([[0.25, 0.75]])
    problem = Problem(np.ones(1), even, even, np.zeros((1, 2, 2)), beta=0.5, eta=2.0)
    with jax.enable_x64(True):
        bound = float(optimistic_bound(problem, np.array([[1.0], [0.0]]))[0])
    assert bound == pytest.approx(np.log(0.25 * np.e + 0.75), abs=1e-14)


@pytest.mark.slow
def test_property_a_ball_has_a_bound_for_one_prompt_only() -> None:
    rng = np.random.default_rng(8)
    for contexts, finite in ((1, True), (2, False)):
        problem, _ = random_problems(rng, 2, 3, contexts)
        ball = LinearBall(rng.normal(size=(2, contexts, 3, 2)), np.ones(2))
        fit = rpo_optimistic(problem, ball, baseline="given")
        assert np.all(np.isfinite(fit.certificate) == finite)
        assert np.all(fit.status == Status.SOLVED)


def test_raises_for_rewards_without_bounds() -> None:
    problem, _ = random_problems(np.random.default_rng(9), 1, 3)
    with pytest.raises(ValueError, match="`reward_class` must be compact and convex"):
        rpo_optimistic(problem, Unbounded(), baseline="given")
