"""Claims about infima over all rewards, and about the limit of descent on the likelihood."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from rpo_theory import direct, maximin, minimax, unbounded
from rpo_theory.certificate import certify
from rpo_theory.policies import total_variation
from rpo_theory.rewards import TabularBox, Unbounded
from rpo_theory.types import Problem, Solution, Status
from rpo_theory.unbounded import component_means

from . import recession_lp

ROUTES: tuple[ModuleType, ...] = (minimax, maximin, direct)
AGREEMENT = 1e-9
"""Distance of policies and values of two routes."""
WIDE = 80.0
"""Width of a box in nats; its bounds change values by exp(-40) times a rate."""


class Case(NamedTuple):
    """A problem with one context and three responses, and what is known about it."""

    problem: Problem
    status: Status
    value: float | None = None
    policy: tuple[float, ...] | None = None


def case(
    reference: tuple[float, ...],
    baseline: tuple[float, ...],
    wins: dict[tuple[int, int], float],
    eta: float,
    *expected: Any,
) -> Case:
    counts = np.zeros((1, 3, 3))
    for pair, count in wins.items():
        counts[0][pair] = count
    tables = (np.array([reference]), np.array([baseline]), counts)
    return Case(Problem(np.ones(1), *tables, np.array(1.0), np.array(eta)), *expected)


FIRST, SECOND, HALVES = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0)
BOTH_WAYS = {(0, 1): 1.0, (1, 0): 1.0}
CASES = {
    "losses cost more than the adversary gains": case(
        SECOND, FIRST, BOTH_WAYS, 0.1, Status.SOLVED, 0.6730116670092565, SECOND
    ),
    "losses cost less": case(SECOND, FIRST, BOTH_WAYS, 0.6, Status.UNBOUNDED, -np.inf, SECOND),
    "losses cost as much": case(
        SECOND, FIRST, {(1, 0): 1.0}, 1.0, Status.NOT_ATTAINED, 0.0, SECOND
    ),
    "outside of the support without data": case(
        HALVES, HALVES, BOTH_WAYS, 1.0, Status.SOLVED, np.log(2.0), HALVES
    ),
    "outside of the support, only wins": case(
        HALVES, HALVES, BOTH_WAYS | {(2, 0): 1.0, (2, 1): 1.0}, 1.0, Status.NOT_ATTAINED,
        np.log(2.0) / 2.0, HALVES,
    ),
    "a chain of unanimous wins without adversarial term": case(
        (0.2, 0.3, 0.5), FIRST, {(0, 1): 2.0, (1, 2): 1.0}, 0.0, Status.NOT_ATTAINED, 0.0, FIRST
    ),
    "mass flows along a chain of losses": case(
        (0.0, 0.0, 1.0), FIRST, {(1, 0): 2.0, (2, 1): 2.0}, 0.4, Status.SOLVED,
        # Each margin m solves sigmoid(m) / 2 = .4: two losses of log 5, less .4 times 2 log 4.
        np.log(5.0) - 0.8 * np.log(4.0), (0.0, 0.0, 1.0),
    ),
    "a chain saturated at its second link": case(
        (0.0, 0.0, 1.0), FIRST, {(1, 0): 3.0, (2, 1): 1.0}, 0.25, Status.NOT_ATTAINED,
        # The first margin solves .75 sigmoid(m) = .25; the second diverges.
        0.75 * np.log(1.5) + 0.25 * np.log(2.0), (0.0, 0.0, 1.0),
    ),
}  # fmt: skip


def stack(problems: list[Problem]) -> Problem:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *problems)


def random_problems(n: int, *, contexts: int, actions: int, seed: int) -> list[Problem]:
    rng = np.random.default_rng(seed)
    shape = {"contexts": contexts, "actions": actions}
    return [
        recession_lp.random_problem(rng, **shape, eta=0.0 if i % 10 == 0 else None)
        for i in range(n)
    ]


def names_of(status: np.ndarray) -> list[str]:
    return [Status(int(code)).name for code in status]


def assert_routes_agree(problems: list[Problem], seed: int) -> None:
    """Compare status with linear programs, and value and policy between the routes."""
    rng = np.random.default_rng(seed)
    expected = [recession_lp.status(problem, rng).name for problem in problems]
    batch = stack(problems)
    options: dict[ModuleType, Any] = {
        direct: {"max_steps": 1000}
    }  # some probabilities converge slowly to zero
    solutions = [
        route.solve_batch(batch, Unbounded(), throw=False, **options.get(route, {}))
        for route in ROUTES
    ]
    for route, solution in zip(ROUTES, solutions, strict=True):
        assert names_of(np.asarray(solution.status)) == expected, route.__name__
    first = solutions[0]
    for other in solutions[1:]:
        assert total_variation(first.policy, other.policy).max() < AGREEMENT
        np.testing.assert_allclose(first.objective, other.objective, rtol=AGREEMENT, atol=AGREEMENT)
        np.testing.assert_array_equal(np.isposinf(first.reward), np.isposinf(other.reward))
        np.testing.assert_array_equal(np.isneginf(first.reward), np.isneginf(other.reward))
    assert_infimum_of_a_wide_box(batch, first)


def assert_infimum_of_a_wide_box(batch: Problem, solution: Solution) -> None:
    """Compare with a box, whose solver knows nothing of directions."""
    bounded = np.isfinite(solution.objective)
    wide = minimax.solve_batch(batch, TabularBox(np.full(bounded.size, WIDE)), throw=False)
    adversarial = (np.asarray(batch.eta)[:, None] * batch.context_weights > 0)[bounded]
    np.testing.assert_allclose(solution.objective[bounded], wide.objective[bounded], atol=1e-8)
    distance = total_variation(solution.policy, wide.policy)[bounded]
    assert np.where(adversarial, distance, 0.0).max() < 1e-6


@pytest.fixture(scope="module")
def solved() -> dict[str, Solution]:
    batch = stack([case.problem for case in CASES.values()])
    return {r.__name__: r.solve_batch(batch, Unbounded(), throw=False) for r in ROUTES}


@pytest.mark.parametrize("route", ROUTES)
def test_closed_form_status_value_and_policy_of_named_cases(
    route: ModuleType, solved: dict[str, Solution]
) -> None:
    solution = solved[route.__name__]
    assert names_of(np.asarray(solution.status)) == [case.status.name for case in CASES.values()]
    for i, case in enumerate(CASES.values()):
        np.testing.assert_allclose(
            solution.objective[i], np.asarray(case.value), rtol=1e-10, atol=1e-10
        )
        np.testing.assert_allclose(solution.policy[i], np.array([case.policy]), atol=AGREEMENT)
    margin = solution.reward[0, 0, 0] - solution.reward[0, 0, 1]
    assert margin == pytest.approx(np.log(1.5), abs=1e-10)
    tied, only_wins, chain = (
        solution.reward[list(CASES).index(name), 0]
        for name in (
            "losses cost as much",
            "outside of the support, only wins",
            "a chain of unanimous wins without adversarial term",
        )
    )
    infinity = np.inf
    np.testing.assert_array_equal(np.where(np.isinf(tied), tied, 0.0)[:2], [infinity, 0.0])
    np.testing.assert_array_equal(np.where(np.isinf(only_wins), only_wins, 0.0), [0, 0, infinity])
    np.testing.assert_array_equal(np.where(np.isinf(chain), chain, 0.0), [0, -infinity, -infinity])


@pytest.mark.parametrize("route", ROUTES)
def test_property_infinite_rewards_are_certified(
    route: ModuleType, solved: dict[str, Solution]
) -> None:
    solution = solved[route.__name__]
    for i, case in enumerate(CASES.values()):
        if case.status is not Status.UNBOUNDED:
            arguments = (solution.policy[i], solution.reward[i])
            assert case.value is not None
            proof = certify(case.problem, Unbounded(), *arguments)
            assert proof.is_member
            # Two rewards that tend to infinity together count as equal.
            together = np.isposinf(solution.reward[i]).sum() > 1
            assert proof.value >= case.value - 1e-9
            assert together or proof.value == pytest.approx(case.value, rel=1e-9, abs=1e-9)


def test_theorem_status_is_that_of_linear_programs_over_directions() -> None:
    """Sets of rate below zero make F unbounded; arcs outside of cycles leave it unattained."""
    problems = random_problems(40, contexts=2, actions=4, seed=1)
    rng = np.random.default_rng(1)
    expected = [recession_lp.status(problem, rng).name for problem in problems]
    assert len(set(expected)) == 3
    with jax.enable_x64(True):
        reduced = jax.jit(jax.vmap(unbounded.reduce))(stack(problems))
    attained = np.where(reduced.attained, "SOLVED", "NOT_ATTAINED")
    actual = np.where(np.asarray(reduced.bounded), attained, "UNBOUNDED")
    assert actual.tolist() == expected


def test_theorem_the_condition_on_sets_decides_whether_f_is_bounded() -> None:
    problems = random_problems(40, contexts=2, actions=4, seed=2)
    with jax.enable_x64(True):
        reduced = jax.jit(jax.vmap(unbounded.reduce))(stack(problems))
    for problem, bounded in zip(problems, np.asarray(reduced.bounded), strict=True):
        lowest = np.inf
        weights = float(problem.eta) * np.asarray(problem.context_weights)
        for x, weight in enumerate(weights):
            for code in range(1, 2**4):
                inside = (code >> np.arange(4)) % 2 == 1
                meets = float((inside & (np.asarray(problem.reference_policy)[x] > 0)).any())
                gain = meets - np.asarray(problem.baseline_policy)[x, inside].sum()
                cost = np.asarray(problem.wins)[x][np.ix_(~inside, inside)].sum()
                lowest = min(lowest, weight * gain + cost / np.sum(problem.wins))
        assert bounded == (lowest >= -1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("contexts", "actions", "n"), [(1, 3, 150), (2, 4, 200), (3, 6, 150)])
def test_property_three_routes_agree_with_base_mass_outside_the_support(
    contexts: int, actions: int, n: int
) -> None:
    problems = random_problems(n, contexts=contexts, actions=actions, seed=actions)
    assert_routes_agree(problems, seed=actions)


@pytest.mark.slow
def test_extreme_many_actions_need_long_flows() -> None:
    """Mass crosses fifty responses, each with capacity for it or, in the second case, not."""
    n_actions = 50
    wins = np.zeros((1, n_actions, n_actions))
    wins[0, np.arange(1, n_actions), np.arange(n_actions - 1)] = 1.0
    baseline, reference = np.eye(n_actions)[:1], np.eye(n_actions)[-1:]
    for eta, status in ((0.9 / 49, Status.SOLVED), (1.1 / 49, Status.UNBOUNDED)):
        problem = Problem(np.ones(1), reference, baseline, wins, np.array(1.0), np.array(eta))
        solution = minimax.solve(problem, Unbounded(), throw=False)
        assert Status(int(solution.status)) is status
        if status is Status.SOLVED:
            value = np.log(10.0) - 0.9 * np.log(9.0)
            assert solution.objective == pytest.approx(value, abs=1e-10)


def exact_minimum(problem: Problem) -> tuple[Any, np.ndarray]:
    """Minimize F by Newton's method with 40 digits, for one context with an attained minimum."""
    mp = mpmath
    reference, baseline = (
        [mp.mpf(p) / mp.fsum(table[0]) for p in table[0]] for table in problem[1:3]
    )
    shares = np.asarray(problem.wins)[0] / np.sum(problem.wins)
    beta, eta = mp.mpf(float(problem.beta)), mp.mpf(float(problem.eta))
    n = len(reference)

    def value(r: Any) -> Any:
        log_z = mp.log(mp.fsum(p * mp.exp(r[a] / beta) for a, p in enumerate(reference)))
        lost = mp.fsum(b * r[a] for a, b in enumerate(baseline))
        data = mp.fsum(
            mp.mpf(shares[i, j]) * mp.log1p(mp.exp(r[j] - r[i])) for i, j in np.ndindex(n, n)
        )
        return eta * (beta * log_z - lost) + data

    r = mp.matrix(n, 1)
    for _ in range(200):
        weights = [p * mp.exp(r[a] / beta) for a, p in enumerate(reference)]
        policy = [w / mp.fsum(weights) for w in weights]
        gradient = mp.matrix([eta * (policy[a] - baseline[a]) for a in range(n)])
        hessian = mp.ones(n)  # holds the constant, which changes nothing
        for a in range(n):
            hessian[a, a] += eta / beta * policy[a] + mp.mpf("1e-36")
            for b in range(n):
                hessian[a, b] -= eta / beta * policy[a] * policy[b]
        for won, lost in np.ndindex(n, n):
            surprise = 1 / (1 + mp.exp(r[won] - r[lost]))
            flow = mp.mpf(shares[won, lost]) * surprise
            gradient[won] -= flow
            gradient[lost] += flow
            for i, j, sign in ((won, won, 1), (lost, lost, 1), (won, lost, -1), (lost, won, -1)):
                hessian[i, j] += sign * flow * (1 - surprise)
        step = mp.lu_solve(hessian, -gradient)
        length = min(mp.mpf(1), 1 / max(mp.mpf("1e-30"), max(abs(s) for s in step)))
        r = r + length * step
        if max(abs(g) for g in gradient) < mp.mpf("1e-32"):
            break
    weights = [p * mp.exp(r[a] / beta) for a, p in enumerate(reference)]
    return value(r), np.array([float(w / mp.fsum(weights)) for w in weights])


@pytest.mark.slow
def test_closed_form_attained_minima_with_forty_digits() -> None:
    """Mass outside of the support, in problems whose minimum is attained."""
    problems = random_problems(150, contexts=1, actions=3, seed=3)
    solution = minimax.solve_batch(stack(problems), Unbounded(), throw=False)
    solved = np.asarray(solution.status) == Status.SOLVED
    outside = [np.any((p.baseline_policy > 0) & (p.reference_policy == 0)) for p in problems]
    rows = np.flatnonzero(solved & np.array(outside) & (np.array([p.eta for p in problems]) > 0))
    assert len(rows) >= 10
    with mpmath.workdps(40):
        for row in rows[:20]:
            value, policy = exact_minimum(problems[row])
            assert abs(float(value) - solution.objective[row]) < 1e-12
            np.testing.assert_allclose(solution.policy[row, 0], policy, atol=1e-11)


def test_closed_form_means_are_those_of_connected_components() -> None:
    wins = np.zeros((2, 4, 4))
    wins[0, 0, 1] = wins[0, 2, 1] = 1.0  # 0, 1 and 2 are connected, 3 is isolated
    wins[1, 3, 0] = 2.0  # 0 and 3
    reward = jnp.array([[1.0, 2.0, 6.0, 5.0], [1.0, 7.0, 9.0, 3.0]])
    means = component_means(reward, jnp.asarray(wins))
    np.testing.assert_allclose(means, [[3.0, 3.0, 3.0, 5.0], [2.0, 7.0, 9.0, 2.0]])


def test_limit_descent_on_the_likelihood_keeps_the_means_of_components() -> None:
    wins = np.zeros((1, 3, 3))
    wins[0, 0, 1], wins[0, 1, 0] = 3.0, 1.0
    reward = np.zeros((1, 3))
    for _ in range(4000):
        surprise = 1.0 / (1.0 + np.exp(reward[:, :, None] - reward[:, None, :]))
        flow = wins * surprise
        reward = reward + 0.1 * (flow.sum(axis=2) - flow.sum(axis=1))
    means = component_means(jnp.asarray(reward), jnp.asarray(wins))
    np.testing.assert_allclose(means, np.zeros((1, 3)), atol=1e-12)
    assert abs(reward[0, 0] - reward[0, 1] - np.log(3.0)) < 1e-9


def test_limit_the_reward_of_a_response_that_always_loses_diverges() -> None:
    even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 1.0], [0.0, 0.0]]])
    problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=0.0)
    reduced = unbounded.reduce(problem)
    assert reduced.kept.tolist() == [[True, False]]
    reward = unbounded.normalized(reduced, jnp.zeros((1, 2)))
    assert float(reward[0, 0]) == pytest.approx(np.log(2.0), rel=1e-15)
    policy, value, status = jnp.array([[1.0, 0.0]]), jnp.zeros(()), jnp.array(Status.SOLVED.value)
    solution = unbounded.take_limit(reduced, Solution(policy, reward, value, status, {}))
    assert solution.reward.tolist() == [[float(reward[0, 0]), -np.inf]]
    assert int(solution.status) == Status.NOT_ATTAINED.value
    assert float(unbounded.limit_objective(problem, jnp.asarray(solution.reward))) == 0.0
