"""The exact solver against closed forms, CVXPY, limits and hard problems."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import jax
import numpy as np
import pytest
from scipy.optimize import brentq

from rpo_theory import certificate, minimax
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem, Solution, Status

CVXPY_VALUE = 1e-8  # accuracy of Clarabel's exponential cones in the objective
CVXPY_POLICY = 1e-4  # and in the policy, which at small beta magnifies the reward's error
EXACT = 1e-12  # float64 after a handful of operations
GAP = 1e-10


def random_problem(
    seed: int, *, contexts: int = 3, actions: int = 5, beta: float = 0.5, eta: float = 0.5
) -> Problem:
    rng = np.random.default_rng(seed)
    reward = rng.uniform(0, 2, (contexts, actions))
    wins = np.zeros((contexts, actions, actions))
    for _ in range(2 * contexts):
        x = rng.integers(contexts)
        i, j = rng.choice(actions, 2, replace=False)
        n = rng.integers(1, 20)
        won = rng.binomial(n, 1 / (1 + np.exp(reward[x, j] - reward[x, i])))
        wins[x, i, j] += won
        wins[x, j, i] += n - won
    return Problem(
        context_weights=rng.dirichlet(np.ones(contexts)),
        reference_policy=rng.dirichlet(np.ones(actions), contexts),
        baseline_policy=rng.dirichlet(np.ones(actions), contexts),
        wins=wins,
        beta=np.array(beta),
        eta=np.array(eta),
    )


def stack(items: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def cvxpy_minimum(problem: Problem, reward_class: RewardClass) -> tuple[float, np.ndarray]:
    """Minimize F(r) of the paper by Clarabel, and return the value and pi_r."""
    x, a = problem.reference_policy.shape
    beta, eta = float(problem.beta), float(problem.eta)
    constraints: list[Any]
    if isinstance(reward_class, LinearBall):
        theta = cp.Variable(reward_class.features.shape[-1])
        rows = [np.asarray(reward_class.features)[i] @ theta for i in range(x)]
        constraints = [cp.norm(theta) <= float(reward_class.radius)]
    else:
        table = cp.Variable((x, a))
        rows = [table[i] for i in range(x)]
        constraints = [table[:, 0] == 0]
        if isinstance(reward_class, TabularBox):
            constraints = [table >= 0, table <= float(reward_class.maximum)]
    terms = []
    for i in range(x):
        log_z = cp.log_sum_exp(rows[i] / beta + np.log(problem.reference_policy[i]))
        baseline = problem.baseline_policy[i] @ rows[i]
        terms.append(eta * float(problem.context_weights[i]) * (beta * log_z - baseline))
        won, lost = np.nonzero(problem.wins[i])
        if won.size:
            share = problem.wins[i][won, lost] / problem.wins.sum()
            terms.append(share @ cp.logistic(rows[i][lost] - rows[i][won]))
    task = cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))), constraints)
    task.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    reward = np.stack([np.asarray(row.value) for row in rows])
    weight = problem.reference_policy * np.exp((reward - reward.max(1, keepdims=True)) / beta)
    return np.asarray(task.value).item(), weight / weight.sum(1, keepdims=True)


def reward_class_of(kind: str, seed: int) -> RewardClass:
    rng = np.random.default_rng(seed)
    if kind == "tabular":
        return TabularBox(np.array(1.5))
    if kind == "linear":
        return LinearBall(rng.normal(size=(3, 5, 3)), np.array(rng.uniform(0.5, 3)))
    return Unbounded()


def every_response_compared(problem: Problem) -> Problem:
    """Draw problems in which each response wins and loses, so that the minimum is attained."""
    return problem._replace(wins=np.asarray(problem.wins) + 0.5 * (1 - np.eye(5)))


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("kind", ["tabular", "linear", "unbounded"])
def test_parity_value_and_policy_agree_with_cvxpy_on_50_random_instances(kind: str) -> None:
    rng = np.random.default_rng(7)
    problems, classes = [], []
    for seed in range(50):
        beta, eta = np.exp(rng.uniform(np.log(0.05), np.log(5), 2))
        problem = random_problem(seed, beta=beta, eta=eta)
        problems.append(every_response_compared(problem) if kind == "unbounded" else problem)
        classes.append(reward_class_of(kind, seed))
    solution = minimax.solve_batch(stack(problems), stack(classes))
    for i, (problem, reward_class) in enumerate(zip(problems, classes, strict=True)):
        value, policy = cvxpy_minimum(problem, reward_class)
        assert solution.objective[i] == pytest.approx(value, abs=CVXPY_VALUE)
        np.testing.assert_allclose(solution.policy[i], policy, atol=CVXPY_POLICY)
        assert solution.objective[i] <= value + CVXPY_VALUE


def test_closed_form_two_responses_by_bisection() -> None:
    problem = random_problem(3, contexts=1, actions=2, beta=0.7, eta=1.3)
    wins, base, ref = problem.wins[0], problem.baseline_policy[0], problem.reference_policy[0]

    def gradient(margin: float) -> float:
        odds = ref[0] / ref[1] * np.exp(margin / 0.7)
        excess = 1.3 * (odds / (1 + odds) - base[0])
        won = wins[0, 1] / (1 + np.exp(margin)) - wins[1, 0] / (1 + np.exp(-margin))
        return float(excess - won / wins.sum())

    margin = np.asarray(brentq(gradient, -30, 30, xtol=1e-15)).item()
    odds = ref[0] / ref[1] * np.exp(margin / 0.7)
    solution = minimax.solve(problem, Unbounded())
    assert solution.policy[0, 0] == pytest.approx(odds / (1 + odds), abs=EXACT)


@pytest.mark.parametrize("kind", ["tabular", "linear"])
def test_theorem_the_gibbs_policy_of_the_minimizer_maximizes_the_worst_case(kind: str) -> None:
    """Theorem 5.6: no other policy has a better worst case than pi_rhat."""
    problem, reward_class = random_problem(11), reward_class_of(kind, 11)
    solution = minimax.solve(problem, reward_class)
    value = float(solution.objective)
    assert float(solution.stats["duality_gap"]) <= GAP
    rng = np.random.default_rng(0)
    for size in (0.01, 0.1, 1.0):
        alternative = (1 - size) * solution.policy + size * rng.dirichlet(np.ones(5), 3)
        proof = certificate.certify(problem, reward_class, alternative, solution.reward)
        worst_case = float(proof.value) - float(proof.duality_gap)
        assert worst_case < value - 1e-6 * size**2


def test_limit_small_eta_is_maximum_likelihood() -> None:
    wins = np.array([[[0.0, 3.0], [1.0, 0.0]]])
    problem = random_problem(0, contexts=1, actions=2, beta=1.0)._replace(wins=wins)
    solution = minimax.solve(problem._replace(eta=np.array(0.0)), Unbounded())
    margin = solution.reward[0, 0] - solution.reward[0, 1]
    assert margin == pytest.approx(np.log(3.0), abs=EXACT)


def test_limit_large_eta_is_the_baseline_and_large_beta_the_reference() -> None:
    problem = random_problem(5, beta=0.1)
    wide = TabularBox(np.array(5.0))
    pulled = minimax.solve(problem._replace(eta=np.array(1e4)), wide)
    np.testing.assert_allclose(pulled.policy, problem.baseline_policy, atol=1e-3)
    stiff = minimax.solve(problem._replace(beta=np.array(1e4)), wide)
    np.testing.assert_allclose(stiff.policy, problem.reference_policy, atol=1e-3)


def test_limit_a_response_that_never_wins_gets_probability_zero() -> None:
    """By S3 its reward diverges, and the others solve the problem without it."""
    wins = np.array([[[0.0, 3.0, 4.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    ref = np.full((1, 3), 1 / 3)
    base = wins.sum(2) / wins.sum()
    problem = Problem(np.ones(1), ref, base, wins, np.array(0.3), np.array(0.8))
    solution = minimax.solve(problem, Unbounded())
    assert Status(int(solution.status)) is Status.NOT_ATTAINED
    assert solution.policy[0, 2] == 0.0
    assert solution.reward[0, 2] == -np.inf
    # With eta scaled to the ten comparisons that remain of ten: five are among the first two.
    left = problem._replace(
        reference_policy=1.5 * ref[:, :2], baseline_policy=base[:, :2], wins=wins[:, :2, :2]
    )
    share = left.wins.sum() / wins.sum()
    left = left._replace(eta=np.array(0.8 / share))
    smaller = minimax.solve(left, Unbounded())
    np.testing.assert_allclose(solution.policy[0, :2], smaller.policy[0], atol=EXACT)
    wide = minimax.solve(problem, TabularBox(np.array(40.0)))
    np.testing.assert_allclose(solution.policy, wide.policy, atol=1e-10)
    assert solution.objective == pytest.approx(float(wide.objective), abs=1e-10)


def test_extreme_baseline_outside_the_reference_is_unbounded_below() -> None:
    problem = random_problem(0, contexts=1)
    point, alternative = np.eye(5)[:1], np.eye(5)[1:2]
    problem = problem._replace(reference_policy=point, baseline_policy=alternative)
    solution = minimax.solve(problem, Unbounded(), throw=False)
    assert Status(int(solution.status)) is Status.UNBOUNDED
    with pytest.raises(ValueError, match="unbounded below"):
        minimax.solve(problem, Unbounded())


@pytest.mark.parametrize("kind", ["tabular", "linear", "unbounded"])
@pytest.mark.parametrize("eta", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("beta", [1e-4, 1.0, 1e4])
def test_extreme_eta_and_beta_are_solved_or_have_another_status(
    kind: str, eta: float, beta: float
) -> None:
    problem, reward_class = random_problem(2, beta=beta, eta=eta), reward_class_of(kind, 2)
    solution = minimax.solve(problem, reward_class, throw=False)
    assert np.isfinite(solution.policy).all()
    np.testing.assert_allclose(solution.policy.sum(1), 1.0, atol=EXACT)
    if kind != "unbounded":
        assert Status(int(solution.status)) is Status.SOLVED
        scale = max(1.0, eta, abs(float(solution.objective)))
        assert solution.stats["duality_gap"] <= GAP * scale


def _hard(name: str) -> Problem:
    problem = random_problem(4)
    wins, weights = np.zeros((3, 5, 5)), np.asarray(problem.context_weights)
    wins[0, 0, 1], wins[0, 1, 0], wins[0, 2, 3], wins[0, 3, 2] = 4, 2, 1, 5
    if name == "tiny weights":
        return problem._replace(context_weights=np.array([1 - 2e-12, 1e-12, 1e-12]))
    if name == "weight zero":
        return problem._replace(context_weights=np.array([0.5, 0.5, 0.0]))
    if name == "no data":
        return problem._replace(wins=np.zeros((3, 5, 5)))
    if name == "disconnected graph, prompts without data":
        return problem._replace(wins=wins)
    if name == "self comparisons":
        return problem._replace(wins=wins + 3 * np.eye(5))
    if name == "fractional counts":
        return problem._replace(wins=1e-12 * wins)
    if name == "deterministic reference":
        point = np.eye(5)[:3]
        return problem._replace(reference_policy=point, baseline_policy=point)
    return problem._replace(context_weights=weights, wins=1e12 * wins)


@pytest.mark.parametrize("kind", ["tabular", "linear", "unbounded"])
@pytest.mark.parametrize(
    "name",
    [
        "tiny weights",
        "weight zero",
        "no data",
        "disconnected graph, prompts without data",
        "self comparisons",
        "fractional counts",
        "deterministic reference",
        "huge counts",
    ],
)
def test_extreme_degenerate_problems_are_solved_with_certificate(kind: str, name: str) -> None:
    problem, reward_class = _hard(name), reward_class_of(kind, 4)
    solution = minimax.solve(problem, reward_class)
    assert np.isfinite(solution.policy).all()
    proof = certificate.certify(problem, reward_class, solution.policy, solution.reward)
    if kind == "unbounded":
        assert solution.stats["residual"] <= GAP
    else:
        assert proof.duality_gap <= GAP


def test_extreme_more_actions_than_a_chunk_holds() -> None:
    problem = random_problem(8, contexts=2, actions=150)
    solution = minimax.solve(problem, TabularBox(np.array(2.0)))
    assert solution.stats["duality_gap"] <= GAP


@pytest.mark.slow
def test_extreme_two_thousand_actions_are_solved_with_certificate() -> None:
    problem = random_problem(9, contexts=1, actions=2000, beta=0.1)
    wins = np.zeros((1, 2000, 2000))
    rng = np.random.default_rng(9)
    np.add.at(wins, (0, *rng.integers(2000, size=(2, 20_000))), 1.0)
    solution = minimax.solve(problem._replace(wins=wins), TabularBox(np.array(2.0)))
    assert solution.stats["duality_gap"] <= GAP


def test_property_cost_and_answer_do_not_depend_on_the_number_of_comparisons() -> None:
    few = random_problem(6)
    many = few._replace(wins=1e5 * np.asarray(few.wins))
    first, second = (minimax.solve(p, TabularBox(np.array(2.0))) for p in (few, many))
    np.testing.assert_allclose(first.policy, second.policy, atol=EXACT)
    assert abs(int(first.stats["steps"]) - int(second.stats["steps"])) <= 2


def test_property_a_batch_gives_what_single_solves_give() -> None:
    problems = [random_problem(seed, beta=0.1 + seed, eta=2.0) for seed in range(5)]
    box = TabularBox(np.array(2.0))
    together = minimax.solve_batch(stack(problems), stack([box] * 5))
    for i, problem in enumerate(problems):
        single = minimax.solve(problem, box)
        np.testing.assert_allclose(together.policy[i], single.policy, atol=EXACT)


def test_property_groups_join_to_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = stack([random_problem(seed) for seed in range(7)])
    box = TabularBox(np.full(7, 2.0))
    whole = minimax.solve_batch(problems, box)
    monkeypatch.setattr(minimax, "GROUP", 3 * 5 * 5 * 2)
    parts = minimax.solve_batch(problems, box)
    np.testing.assert_allclose(whole.policy, parts.policy, atol=EXACT)
    np.testing.assert_allclose(whole.objective, parts.objective, atol=EXACT)


def test_closed_form_a_finite_class_is_searched() -> None:
    problem = random_problem(1)
    rewards = np.random.default_rng(0).uniform(0, 2, (4, 3, 5))
    solution = minimax.solve(problem, FiniteClass(rewards))
    values = [
        certificate.certify(problem, FiniteClass(rewards), solution.policy, r).value
        for r in rewards
    ]
    assert float(solution.objective) == pytest.approx(float(min(values)), abs=EXACT)


def test_compiles_once_for_each_shape() -> None:
    box = TabularBox(np.array(2.0))
    minimax.solve(random_problem(0), box)
    compilations = getattr(minimax._solve_group, "_cache_size")  # noqa: B009
    before = compilations()
    for seed in range(3):
        minimax.solve(random_problem(seed, beta=0.1 + seed), box)
    assert compilations() == before


def test_raises_when_the_step_limit_comes_first() -> None:
    solution: Solution = minimax.solve(
        random_problem(0), TabularBox(np.array(2.0)), max_steps=2, throw=False
    )
    assert Status(int(solution.status)) is Status.MAX_STEPS
    with pytest.raises(ValueError, match="step limit"):
        minimax.solve(random_problem(0), TabularBox(np.array(2.0)), max_steps=2)


@pytest.mark.parametrize("beta", [1e-3, 1.0])
@pytest.mark.parametrize("eta", [1e-4, 1.0, 1e4])
def test_extreme_a_ball_of_radius_1e3_is_solved_with_certificate(eta: float, beta: float) -> None:
    for seed in range(4):
        problem = random_problem(seed, beta=beta, eta=eta)
        features = np.random.default_rng(seed).normal(size=(3, 5, 4))
        ball = LinearBall(features, np.array(1e3))
        solution = minimax.solve(problem, ball)
        assert Status(int(solution.status)) is Status.SOLVED
        assert solution.stats["steps"] < 150


def test_extreme_the_unbounded_class_is_certified_relative_to_eta() -> None:
    """Nearly all comparisons are with a diverging response: eta over the others is 1e12."""
    wins = np.zeros((1, 3, 3))
    wins[0, 0, 2], wins[0, 2, 1] = 5520564.0, 527722905752.0
    problem = Problem(
        context_weights=np.ones(1),
        reference_policy=np.array([[0.3975542849886494, 0.27549176512245865, 0.32695394988889187]]),
        baseline_policy=np.array([[1.0460994186987997e-05, 0.0, 0.999989539005813]]),
        wins=wins,
        beta=np.array(1.0204437514255758e-08),
        eta=np.array(14275476.468053624),
    )
    actual = minimax.solve(problem, Unbounded(), throw=False)
    proven = actual.stats["residual"] <= GAP * float(problem.eta)
    assert bool(actual.status == Status.NOT_ATTAINED) == bool(proven)
