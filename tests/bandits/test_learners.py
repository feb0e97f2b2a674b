"""Every learner against an oracle that knows nothing of the solvers: CVXPY, SciPy, or a formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bandits.learned import Learned, Options
from bandits.learners import LEARNERS, greedy_policy
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.objectives import minimax_objective
from rpo_theory.rewards import LinearBall, TabularBox, Unbounded
from rpo_theory.types import ArrayLike, Problem, Status

POLICY = 2e-4  # what CVXPY's interior point knows of a policy at beta of order one
VALUE = 1e-7  # and of an objective, where errors are squared
DESCENT = 2e-5  # what SciPy's quasi-Newton knows of a policy
ConvexClass = TabularBox | LinearBall
PairLoss = Callable[[PairLogProbs, PairLogProbs], jax.Array]
BATCH, CONTEXTS, ACTIONS, FEATURES = 3, 2, 3, 2


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Three problems in which every pair was compared and won both ways."""
    rng = np.random.default_rng(7)
    shape = (BATCH, CONTEXTS, ACTIONS)
    wins = rng.integers(1, 9, (*shape, ACTIONS)).astype(float) * (1 - np.eye(ACTIONS))
    return Problem(
        context_weights=rng.dirichlet(np.ones(CONTEXTS), BATCH),
        reference_policy=rng.dirichlet(np.ones(ACTIONS), shape[:2]),
        baseline_policy=rng.dirichlet(np.ones(ACTIONS), shape[:2]),
        wins=wins,
        beta=np.array([0.3, 0.5, 1.0]),
        eta=np.array([0.2, 1.0, 0.5]),
    )


@pytest.fixture(scope="module", params=["box", "ball"])
def reward_class(request: pytest.FixtureRequest) -> ConvexClass:
    """A box that binds and a ball that binds."""
    if request.param == "box":
        return TabularBox(np.array([0.5, 1.0, 2.0]))
    features = np.random.default_rng(3).normal(size=(BATCH, CONTEXTS, ACTIONS, FEATURES))
    return LinearBall(features, np.array([0.2, 0.5, 1.0]))


def row(tree: Any, index: int) -> Any:
    """One of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def table(variable: cp.Variable, reward_class: ConvexClass) -> tuple[list, list]:
    """CVXPY's rewards, a row a prompt, and the constraints of one reward class."""
    if isinstance(reward_class, TabularBox):
        rows = [variable[x * ACTIONS : (x + 1) * ACTIONS] for x in range(CONTEXTS)]
        return rows, [variable >= 0, variable <= float(reward_class.maximum)]
    rows = [reward_class.features[x] @ variable for x in range(CONTEXTS)]
    return rows, [cp.norm(variable) <= float(reward_class.radius)]


def log_loss(rows: list, wins: ArrayLike) -> Any:
    wins = np.asarray(wins)
    terms = [
        wins[x, winner, loser] * cp.logistic(rows[x][loser] - rows[x][winner])
        for x, winner, loser in zip(*np.nonzero(wins), strict=True)
    ]
    return sum(terms) / wins.sum()


def cvxpy_rpo(problem: Problem, reward_class: ConvexClass) -> tuple[np.ndarray, float]:
    """Policy and value of eq. 4.4 for one problem."""
    size = FEATURES if isinstance(reward_class, LinearBall) else CONTEXTS * ACTIONS
    variable = cp.Variable(size)
    rows, constraints = table(variable, reward_class)
    beta = float(problem.beta)
    penalty = sum(
        problem.context_weights[x]
        * (
            beta * cp.log_sum_exp(rows[x] / beta + np.log(problem.reference_policy[x]))
            - problem.baseline_policy[x] @ rows[x]
        )
        for x in range(CONTEXTS)
    )
    objective = float(problem.eta) * penalty + log_loss(rows, problem.wins)
    question = cp.Problem(cp.Minimize(objective), constraints)
    question.solve(solver=cp.CLARABEL)
    rewards = np.array([np.asarray(reward.value) for reward in rows])
    return gibbs(rewards / beta, problem.reference_policy), float(objective.value)


def gibbs(log_ratio: np.ndarray, reference: ArrayLike) -> np.ndarray:
    weights = np.asarray(reference) * np.exp(log_ratio - log_ratio.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def baseline_of(name: str, problem: Problem) -> np.ndarray:
    chosen, rejected = problem.wins.sum(axis=2), problem.wins.sum(axis=1)
    laws = {
        "chosen": chosen / chosen.sum(axis=1, keepdims=True),
        "reference": problem.reference_policy,
        "data_marginal": (chosen + rejected) / (2 * chosen.sum(axis=1, keepdims=True)),
        "given": problem.baseline_policy,
    }
    return laws[name]


def descend(problem: Problem, objective: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """SciPy's minimiser over free logits of a function of the log-policy."""

    def total(logits: jax.Array) -> jax.Array:
        return objective(jax.nn.log_softmax(logits.reshape(CONTEXTS, ACTIONS)))

    slope = jax.jit(jax.value_and_grad(total))
    found = minimize(
        lambda point: [np.asarray(part, float) for part in slope(jnp.asarray(point))],
        np.log(problem.reference_policy).ravel(),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    )
    return np.asarray(jax.nn.softmax(jnp.asarray(found.x.reshape(CONTEXTS, ACTIONS))))


def mean_over_pairs(problem: Problem, log_policy: jax.Array, loss: PairLoss) -> jax.Array:
    """Mean of a loss of policy and reference over the comparisons."""
    x, winner, loser = np.nonzero(problem.wins)
    log_reference = np.log(problem.reference_policy)
    policy, reference = (
        PairLogProbs(table[x, winner], table[x, loser]) for table in (log_policy, log_reference)
    )
    counts = problem.wins[x, winner, loser] / problem.wins.sum()
    return jnp.sum(counts * loss(policy, reference))


def rpo_loss(problem: Problem, log_policy: jax.Array) -> jax.Array:
    """Eq. 4.8, with its expectation over prompts and baseline."""
    dpo = mean_over_pairs(problem, log_policy, partial(losses.dpo, beta=problem.beta))
    weights = problem.eta * problem.beta * problem.context_weights[:, None]
    return dpo - jnp.sum(weights * problem.baseline_policy * log_policy)


def assert_proven(learned: Learned, most: float = 1e-9) -> None:
    assert (learned.status == Status.SOLVED).all()
    assert (learned.certificate >= 0).all()
    assert learned.certificate.max() <= most


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy"])
@pytest.mark.parametrize("baseline", ["chosen", "reference", "data_marginal", "given"])
def test_parity_rpo_by_every_route_and_baseline_is_the_policy_that_cvxpy_finds(
    method, baseline, problem, reward_class
):
    learned = LEARNERS[method](problem, reward_class, Options(baseline=baseline))
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)
        one = one._replace(baseline_policy=baseline_of(baseline, one))
        policy, value = cvxpy_rpo(one, row(reward_class, i))
        np.testing.assert_allclose(learned.policy[i], policy, atol=POLICY)
        reached = float(minimax_objective(one, learned.reward[i]))
        np.testing.assert_allclose(reached, value, atol=VALUE)


@pytest.mark.parametrize("method", ["dpo", "two_stage"])
def test_parity_dpo_and_two_stage_are_cvxpys_maximum_likelihood(method, problem, reward_class):
    learned = LEARNERS[method](problem, reward_class, Options())
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)._replace(eta=np.array(0.0))
        policy, value = cvxpy_rpo(one, row(reward_class, i))
        np.testing.assert_allclose(learned.policy[i], policy, atol=POLICY)
        reached = float(minimax_objective(one, learned.reward[i]))
        np.testing.assert_allclose(reached, value, atol=VALUE)


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy", "dpo"])
def test_parity_over_all_rewards_rpo_and_dpo_minimise_the_trained_loss(method, problem):
    options = Options(rewards="unbounded", baseline="given")
    learned = LEARNERS[method](problem, TabularBox(np.ones(BATCH)), options)
    assert_proven(learned)
    assert learned.certificate_kind == "stationarity_residual"
    for i in range(BATCH):
        one = row(problem, i)
        if method == "dpo":
            one = one._replace(eta=np.array(0.0))
        oracle = descend(one, partial(rpo_loss, one))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_parity_vpo_with_alpha_is_rpo_with_eta_alpha_over_n(problem):
    alpha = 4.0
    options = Options(rewards="unbounded", baseline="reference", vpo_alpha=alpha)
    learned = LEARNERS["vpo"](problem, Unbounded(), options)
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)
        eta = np.array(alpha / one.wins.sum())
        one = one._replace(eta=eta, baseline_policy=one.reference_policy)
        oracle = descend(one, partial(rpo_loss, one))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_parity_power_minimises_its_own_loss(problem):
    learned = LEARNERS["power"](problem, Unbounded(), Options())
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)

        def power(policy: PairLogProbs, _: PairLogProbs, one: Problem = one) -> jax.Array:
            ones = jnp.ones_like(jnp.asarray(policy.chosen))
            return losses.power(policy, PairLogProbs(ones, ones), beta=one.beta, eta=one.eta)

        oracle = descend(one, partial(mean_over_pairs, one, loss=power))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_closed_form_behaviour_cloning_gives_each_response_its_share_of_the_wins():
    wins = np.zeros((1, 2, 3, 3))
    wins[0, 0, 0, 1], wins[0, 0, 2, 1] = 3.0, 1.0
    reference = np.full((1, 2, 3), 1 / 3)
    one = Problem(np.full((1, 2), 0.5), reference, reference, wins, np.ones(1), np.ones(1))
    learned = LEARNERS["behaviour_cloning"](one, Unbounded(), Options())
    expected = np.array([[0.75, 0.0, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(learned.policy[0], expected, rtol=1e-15)
    assert np.isnan(learned.reward).all()
    assert learned.certificate.tolist() == [0.0]


def test_closed_form_greedy_takes_the_best_supported_arm_and_shares_ties():
    reward = np.array([[[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]])
    reference = np.array([[[0.0, 0.25, 0.75], [0.2, 0.3, 0.5]]])
    expected = [[[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]]]
    np.testing.assert_allclose(greedy_policy(reward, reference), expected, rtol=1e-15)


def test_closed_form_on_two_arms_greedy_plays_the_one_that_wins_more():
    wins = np.array([[[[0.0, 2.0], [1.0, 0.0]]], [[[0.0, 2.0], [5.0, 0.0]]]])
    even = np.full((2, 1, 2), 0.5)
    pair = Problem(np.ones((2, 1)), even, even, wins, np.ones(2), np.ones(2))
    learned = LEARNERS["greedy_mle"](pair, TabularBox(np.full(2, 4.0)), Options())
    assert learned.policy.tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    log_odds = learned.reward[:, 0, 0] - learned.reward[:, 0, 1]
    np.testing.assert_allclose(log_odds, np.log([2.0, 0.4]), atol=1e-9)
