"""The direct route against closed forms, SciPy, the exact solver and the certificate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp

from rpo_theory import direct, minimax
from rpo_theory.certificate import certify
from rpo_theory.objectives import minimax_objective
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem, Solution, Status

POLICY = 1e-6  # the bar of the project for the agreement of two routes, in total variation
EXACT = 1e-12  # float64 after a handful of operations
STOPS = 1e-10  # ten times the tolerance of the iteration, in total variation
VALUE = 1e-10  # relative to max(1, |value|), the bar of the project

seeds = st.integers(0, 2**32 - 1)


def random_problem(
    seed: int, *, contexts: int = 3, actions: int = 5, padding: tuple[int, int] = (0, 0)
) -> Problem:
    """Draw beta and eta over four decades, sparse comparisons, and a random or chosen baseline.

    ``padding`` adds prompts of weight zero and responses that neither law gives.
    """
    rng = np.random.default_rng(seed)
    x, a = contexts, actions
    n_comparisons = int(10 ** rng.uniform(0, 4))
    truth, seen = rng.uniform(0, 2, (x, a)), rng.random((x, a)) < rng.uniform(0.2, 1.0)
    seen[:, :2] = True
    wins = np.zeros((x + padding[0], a + padding[1], a + padding[1]))
    for prompt in range(x):
        i, j = np.triu_indices(a, 1)
        both = seen[prompt, i] & seen[prompt, j]
        i, j = i[both], j[both]
        n = rng.multinomial(rng.binomial(n_comparisons, 1 / x), np.full(len(i), 1 / len(i)))
        won = rng.binomial(n, 1 / (1 + np.exp(truth[prompt, j] - truth[prompt, i])))
        wins[prompt, i, j], wins[prompt, j, i] = won, n - won
    reference, baseline = np.zeros(wins.shape[:2]), np.zeros(wins.shape[:2])
    reference[x:, 0] = baseline[x:, 0] = 1.0
    reference[:x, :a] = rng.dirichlet(np.full(a, rng.choice([0.5, 5.0])), x) * 0.999 + 0.001 / a
    baseline[:x, :a] = rng.dirichlet(np.full(a, rng.choice([0.3, 5.0])), x)
    if rng.random() < 0.5:
        won = wins[:x, :a].sum(axis=2)
        data = won.sum(axis=1, keepdims=True)
        chosen = won / np.maximum(data, 1.0)
        baseline[:x, :a] = np.where(data > 0, chosen, reference[:x, :a])
    return Problem(
        context_weights=np.pad(rng.dirichlet(np.ones(x)), (0, padding[0])),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=wins,
        beta=np.array(10 ** rng.uniform(-2, 2)),
        eta=np.array(10 ** rng.uniform(-2, 2)),
    )


def random_class(kind: str, seed: int, shape: tuple[int, int], d: int = 8) -> RewardClass:
    rng = np.random.default_rng(seed + 1)
    if kind == "box":
        return TabularBox(np.array(rng.uniform(1, 4)))
    if kind == "unbounded":
        return Unbounded()
    features = rng.normal(size=(*shape, d)) / np.sqrt(d)
    features[..., rng.integers(2, d + 1) :] = 0.0
    return LinearBall(features, np.array(rng.uniform(1, 3)))


def assert_proven(problem: Problem, reward_class: RewardClass, solution: Solution) -> None:
    """An error of the policy costs at most its weight times the range of the rewards, 8."""
    policy, reward, value = solution[:3]
    proof = certify(problem, reward_class, policy, reward)
    assert float(proof.duality_gap) <= 8 * STOPS * (1.0 + float(problem.eta))
    terms = 1.0 + float(
        problem.eta * problem.beta
    )  # size of the terms whose difference is the value
    np.testing.assert_allclose(value, minimax_objective(problem, reward), atol=EXACT * terms)


def stack(items: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def distance(first: Solution, second: Solution) -> np.ndarray:
    difference = np.asarray(first.policy) - np.asarray(second.policy)
    return 0.5 * np.abs(difference).sum(axis=-1)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["box", "ball"])
def test_parity_with_the_exact_solver_on_many_problems(kind: str, count: int) -> None:
    """Up to 20 contexts and 30 actions, padded to one shape so that each solver compiles once."""
    rng = np.random.default_rng(7)
    problems, classes = [], []
    for seed in range(count):
        x, a = int(rng.integers(1, 21)), int(rng.integers(2, 31))
        problem = random_problem(seed, contexts=x, actions=a, padding=(20 - x, 30 - a))
        problems.append(problem)
        classes.append(random_class(kind, seed, (20, 30)))
    batch = stack(problems), stack(classes)
    actual = direct.solve_batch(*batch)
    exact = minimax.solve_batch(*batch)
    assert distance(actual, exact).max() < POLICY
    np.testing.assert_allclose(actual.objective, exact.objective, rtol=VALUE, atol=VALUE)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(["box", "ball"]))
def test_theorem_the_certificate_proves_the_solution_optimal(seed: int, kind: str) -> None:
    problem, reward_class = random_problem(seed), random_class(kind, seed, (3, 5))
    assert_proven(problem, reward_class, direct.solve(problem, reward_class))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_property_the_reward_lies_in_its_class(seed: int) -> None:
    problem = random_problem(seed)
    box = random_class("box", seed, (3, 5))
    assert isinstance(box, TabularBox)
    table = direct.solve(problem, box).reward
    assert table.min() >= 0.0
    assert table.max() <= box.maximum
    ball = random_class("ball", seed, (3, 5))
    assert isinstance(ball, LinearBall)
    theta = ball.parameter(direct.solve(problem, ball).reward)
    assert np.linalg.norm(theta) <= ball.radius * (1 + EXACT)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_closed_form_two_arms_by_bisection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    beta, eta = 10 ** rng.uniform(-2, 2, 2)
    reference, baseline = rng.dirichlet(np.ones(2), 1), rng.dirichlet(np.ones(2), 1)
    wins = np.zeros((1, 2, 2))
    wins[0, 0, 1], wins[0, 1, 0] = rng.uniform(1, 9, 2)
    share = wins / wins.sum()
    logit = np.log(reference[0, 0] / reference[0, 1])

    def gradient(margin: float) -> float:
        policy = 1 / (1 + np.exp(-margin / beta - logit))
        surprise = share[0, 0, 1] / (1 + np.exp(margin)) - share[0, 1, 0] / (1 + np.exp(-margin))
        return eta * (policy - baseline[0, 0]) - surprise

    bound = 20 * (1 + beta)
    with np.errstate(over="ignore"):
        margin: Any = brentq(gradient, -bound, bound, xtol=1e-14)
    problem = Problem(np.ones(1), reference, baseline, wins, np.array(beta), np.array(eta))
    actual = direct.solve(problem, Unbounded())
    expected = 1 / (1 + np.exp(-margin / beta - logit))
    np.testing.assert_allclose(actual.policy[0, 0], expected, atol=STOPS)


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_scipy_on_the_loss_written_by_hand(seed: int) -> None:
    problem = random_problem(seed)._replace(beta=np.array(0.7), eta=np.array(1.3))
    problem = problem._replace(context_weights=np.full(3, 1 / 3))
    reference, n_comparisons = problem.reference_policy, problem.wins.sum()

    def loss(flat: Any) -> float:
        logits = np.log(reference) + flat.reshape(3, 5) / 0.7
        log_policy = logits - logsumexp(logits, axis=1, keepdims=True)
        ratio = log_policy - np.log(reference)
        margin = 0.7 * (ratio[:, :, None] - ratio[:, None, :])
        dpo = np.sum(problem.wins * np.logaddexp(0, -margin)) / n_comparisons
        return dpo - 1.3 * 0.7 * np.sum(problem.baseline_policy * log_policy) / 3

    box = TabularBox(np.array(1.5))
    external = minimize(
        loss, np.zeros(15), method="L-BFGS-B", bounds=[(0, 1.5)] * 15, options={"ftol": 1e-15}
    )
    ours = direct.solve(problem, box)
    assert loss(ours.reward.ravel()) <= external.fun + EXACT
    weight = reference * np.exp(external.x.reshape(3, 5) / 0.7)
    # Finite differences of SciPy limit the accuracy of its gradient and policy to about 1e-7.
    np.testing.assert_allclose(ours.policy, weight / weight.sum(1, keepdims=True), atol=1e-4)


def test_closed_form_a_finite_class_gives_the_member_with_the_smallest_loss() -> None:
    problem = random_problem(3)
    rewards = np.random.default_rng(0).uniform(0, 2, (6, 3, 5))
    values = [float(minimax_objective(problem, reward)) for reward in rewards]
    actual = direct.solve(problem, FiniteClass(rewards))
    np.testing.assert_array_equal(actual.reward, rewards[np.argmin(values)])
    np.testing.assert_allclose(actual.objective, min(values), rtol=EXACT)


def test_limit_eta_to_infinity_gives_the_baseline_policy() -> None:
    problem = random_problem(5)._replace(eta=np.array(1e8))
    policy = direct.solve(problem, Unbounded()).policy
    np.testing.assert_allclose(policy, problem.baseline_policy, atol=1e-6)


def test_limit_beta_to_infinity_gives_the_reference_policy_for_bounded_rewards() -> None:
    problem = random_problem(6)._replace(beta=np.array(1e5))
    policy = direct.solve(problem, TabularBox(np.array(4.0))).policy
    np.testing.assert_allclose(policy, problem.reference_policy, atol=4 / 1e5)


def test_limit_a_binding_box_has_another_policy_than_the_free_minimizer() -> None:
    """The RPO policy minimizes the loss over the policies of the rewards in the class only."""
    wins = np.array([[[0, 61.6, 0], [37.4, 0, 0], [0, 1, 0]]])
    even, chosen = np.full((1, 3), 1 / 3), wins.sum(axis=2) / wins.sum()
    problem = Problem(np.ones(1), even, chosen, wins, np.array(0.1), np.array(0.1))
    free = direct.solve(problem, Unbounded())
    for maximum, expected in ((2.0, 0.0), (0.3, 0.02358), (0.1, 0.34356)):
        bound = direct.solve(problem, TabularBox(np.array(maximum)))
        assert float(distance(bound, free).max()) == pytest.approx(expected, abs=1e-4)


def test_limit_eta_of_zero_fits_the_observed_frequencies() -> None:
    even, wins = np.full((1, 3), 1 / 3), np.zeros((1, 3, 3))
    wins[0, 0, 1], wins[0, 1, 0] = 3.0, 1.0
    problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(0.0))
    policy = direct.solve(problem, TabularBox(np.array(5.0))).policy
    np.testing.assert_allclose(policy[0, 0] / policy[0, 1], 3.0, rtol=STOPS)


def test_theorem_a_response_that_never_wins_gets_probability_zero_in_the_limit() -> None:
    even, wins = np.full((1, 3), 1 / 3), np.zeros((1, 3, 3))
    wins[0, 0, 2] = wins[0, 1, 0] = wins[0, 0, 1] = 2.0
    chosen = wins.sum(axis=2) / wins.sum()
    problem = Problem(np.ones(1), even, chosen, wins, np.array(0.5), np.array(0.5))
    actual = direct.solve(problem, Unbounded())
    assert Status(int(actual.status)) is Status.NOT_ATTAINED
    assert actual.policy[0, 2] == 0.0
    assert actual.reward[0, 2] == -np.inf
    exact = minimax.solve(problem, Unbounded())
    assert distance(actual, exact).max() < STOPS
    np.testing.assert_allclose(actual.objective, exact.objective, atol=STOPS)


def test_extreme_a_response_outside_the_reference_keeps_its_data_and_loses_its_probability() -> (
    None
):
    problem = random_problem(8)
    reference = np.array(problem.reference_policy)
    reference[:, 1] = 0.0
    reference /= reference.sum(axis=1, keepdims=True)
    problem = problem._replace(reference_policy=reference, baseline_policy=reference)
    box = TabularBox(np.array(2.0))
    actual, exact = direct.solve(problem, box), minimax.solve(problem, box)
    assert not actual.policy[:, 1].any()
    assert distance(actual, exact).max() < POLICY
    np.testing.assert_allclose(actual.objective, exact.objective, rtol=VALUE)
    drawn = problem._replace(baseline_policy=np.full((3, 5), 0.2))
    status = direct.solve(drawn, Unbounded(), throw=False).status
    assert Status(int(status)) is Status.UNBOUNDED


@pytest.mark.parametrize("kind", ["box", "ball"])
@pytest.mark.parametrize(
    "change",
    [
        {"beta": np.array(1e-4)},
        {"beta": np.array(1e4)},
        {"eta": np.array(1e-4)},
        {"eta": np.array(1e4)},
        {"wins": np.zeros((3, 5, 5))},
        {"wins": np.eye(5) * np.ones((3, 1, 1))},
        {"context_weights": np.array([1.0, 0.0, 0.0])},
        {"context_weights": np.array([1 - 2e-9, 1e-9, 1e-9])},
    ],
    ids=str,
)
def test_extreme_problems_are_solved(kind: str, change: dict[str, Any]) -> None:
    for seed in range(3):
        problem = random_problem(seed)._replace(**change)
        reward_class = random_class(kind, seed, (3, 5))
        assert_proven(problem, reward_class, direct.solve(problem, reward_class))


def test_raises_at_the_step_limit_unless_throw_is_false() -> None:
    problem, box = random_problem(0), TabularBox(np.array(2.0))
    with pytest.raises(ValueError, match=r"step limit.*throw=False"):
        direct.solve(problem, box, max_steps=1)
    actual = direct.solve(problem, box, max_steps=1, throw=False)
    assert Status(int(actual.status)) is Status.MAX_STEPS


def test_raises_for_a_batch_name_the_first_problem_unsolved() -> None:
    even = random_problem(0)
    simple = even._replace(wins=np.zeros((3, 5, 5)), baseline_policy=even.reference_policy)
    batch = stack([simple, even]), TabularBox(np.full(2, 2.0))
    with pytest.raises(ValueError, match="problem 1 of 2"):
        direct.solve_batch(*batch, max_steps=4)


def test_compiles_once_for_problems_of_different_shapes() -> None:
    box = TabularBox(np.array(2.0))
    direct.solve(random_problem(0, contexts=2, actions=3), box)
    compilations = getattr(direct._solve_group, "_cache_size")  # noqa: B009
    before = compilations()
    for contexts, actions in ((1, 8), (8, 2), (5, 6)):
        actual = direct.solve(random_problem(0, contexts=contexts, actions=actions), box)
        assert actual.policy.shape == (contexts, actions)
    assert compilations() == before


def test_property_padding_and_batching_change_nothing() -> None:
    problems = [random_problem(seed) for seed in range(3)]
    boxes = [random_class("box", seed, (3, 5)) for seed in range(3)]
    together = direct.solve_batch(stack(problems), stack(boxes))
    for i, (problem, box) in enumerate(zip(problems, boxes, strict=True)):
        single = direct.solve(problem, box)
        np.testing.assert_allclose(together.policy[i], single.policy, atol=STOPS)


def test_property_float32_input_gives_float64_solutions() -> None:
    problem = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), random_problem(1))
    with jax.enable_x64(False):
        actual = direct.solve(problem, TabularBox(np.array(2.0, np.float32)))
    assert actual.policy.dtype == np.float64
    assert jnp.result_type(actual.objective) == jnp.float64
