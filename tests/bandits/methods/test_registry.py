"""Every learner against an oracle that knows nothing of the solvers: CVXPY, SciPy, or a formula."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bandits.methods import path_following
from bandits.methods.base import FitResult, MethodOptions
from bandits.methods.policy_losses import chi_squared_policy
from bandits.methods.registry import METHODS, greedy_policy
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


def assert_proven(learned: FitResult, most: float = 1e-9) -> None:
    assert (learned.status == Status.SOLVED).all()
    assert (learned.certificate >= 0).all()
    assert learned.certificate.max() <= most


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy"])
@pytest.mark.parametrize("baseline", ["chosen", "reference", "data_marginal", "given"])
def test_parity_rpo_by_every_route_and_baseline_is_the_policy_that_cvxpy_finds(
    method, baseline, problem, reward_class
):
    learned = METHODS[method](problem, reward_class, MethodOptions(baseline=baseline))
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
    learned = METHODS[method](problem, reward_class, MethodOptions())
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)._replace(eta=np.array(0.0))
        policy, value = cvxpy_rpo(one, row(reward_class, i))
        np.testing.assert_allclose(learned.policy[i], policy, atol=POLICY)
        reached = float(minimax_objective(one, learned.reward[i]))
        np.testing.assert_allclose(reached, value, atol=VALUE)


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy", "dpo"])
def test_parity_over_all_rewards_rpo_and_dpo_minimise_the_trained_loss(method, problem):
    options = MethodOptions(rewards="unbounded", baseline="given")
    learned = METHODS[method](problem, TabularBox(np.ones(BATCH)), options)
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
    options = MethodOptions(rewards="unbounded", baseline="reference", vpo_alpha=alpha)
    learned = METHODS["vpo"](problem, Unbounded(), options)
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)
        eta = np.array(alpha / one.wins.sum())
        one = one._replace(eta=eta, baseline_policy=one.reference_policy)
        oracle = descend(one, partial(rpo_loss, one))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_parity_power_minimises_its_own_loss(problem):
    learned = METHODS["power"](problem, Unbounded(), MethodOptions())
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)

        def power(policy: PairLogProbs, _: PairLogProbs, one: Problem = one) -> jax.Array:
            ones = jnp.ones_like(jnp.asarray(policy.chosen))
            return losses.power(policy, PairLogProbs(ones, ones), beta=one.beta, eta=one.eta)

        oracle = descend(one, partial(mean_over_pairs, one, loss=power))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_closed_form_behavior_cloning_gives_each_response_its_share_of_the_wins():
    wins = np.zeros((1, 2, 3, 3))
    wins[0, 0, 0, 1], wins[0, 0, 2, 1] = 3.0, 1.0
    reference = np.full((1, 2, 3), 1 / 3)
    one = Problem(np.full((1, 2), 0.5), reference, reference, wins, np.ones(1), np.ones(1))
    learned = METHODS["behavior_cloning"](one, Unbounded(), MethodOptions())
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
    learned = METHODS["greedy_mle"](pair, TabularBox(np.full(2, 4.0)), MethodOptions())
    assert learned.policy.tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    log_odds = learned.reward[:, 0, 0] - learned.reward[:, 0, 1]
    np.testing.assert_allclose(log_odds, np.log([2.0, 0.4]), atol=1e-9)


@pytest.mark.parametrize("baseline", ["reference", "data_marginal"])
@pytest.mark.parametrize("curvature", ["safe", "printed"])
def test_parity_pessimistic_mle_is_the_cone_program_of_its_definition(
    curvature, baseline, problem, reward_class
):
    # A small constant, so that neither the likelihood nor the penalty decides alone.
    options = MethodOptions(baseline=baseline, curvature=curvature, pessimism=0.02, ridge=0.05)
    learned = METHODS["pessimistic_mle"](problem, reward_class, options)
    assert_proven(learned, most=1e-6)
    likely = METHODS["two_stage"](problem, reward_class, options).reward
    for i in range(BATCH):
        one, linear = row(problem, i), row(reward_class, i)
        penalty = zhu(one, linear, baseline_of(baseline, one), options)
        policy = cp.Variable((CONTEXTS, ACTIONS), nonneg=True)
        weighted = cp.multiply(policy, one.context_weights[:, None])
        objective = cp.sum(cp.multiply(weighted, likely[i])) - penalty(cp.vec(weighted, order="C"))
        normalised: Any = [cp.sum(policy, axis=1) == 1]
        question = cp.Problem(cp.Maximize(objective), normalised)
        question.solve(solver=cp.CLARABEL)
        mine = one.context_weights[:, None] * learned.policy[i]
        reached = (mine * likely[i]).sum() - penalty(mine.ravel()).value
        assert reached == pytest.approx(objective.value, abs=1e-6)


def test_property_a_policy_that_is_not_best_against_the_ellipsoid_is_not_called_solved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stay(smoothed: Any, start: jax.Array) -> path_following.PathState:
        one = jnp.ones((), start.dtype)
        return path_following.PathState(start, one, one, jnp.zeros((), int), jnp.array(True))

    monkeypatch.setattr(path_following, "follow", stay)
    even, second = np.full((1, 1, 5), 0.2), np.eye(5)[None, None, 1]
    wins = np.zeros((1, 1, 5, 5))
    wins[0, 0, 0, 1:], wins[0, 0, 1:, 0] = 9.0, 1.0
    problem = Problem(np.ones((1, 1)), even, second, wins, np.ones(1), np.ones(1))
    options = MethodOptions(baseline="given", pessimism=0.02)
    box = TabularBox(np.array([2.0]))
    learned = METHODS["pessimistic_mle"](problem, box, options)
    assert int(learned.status[0]) == Status.MAX_STEPS
    likely = METHODS["two_stage"](problem, box, options).reward[0]
    penalty = zhu(row(problem, 0), row(box, 0), second[0], options)
    best = likely[0, 0] - penalty(np.eye(5)[0]).value
    reached = (likely * learned.policy[0]).sum() - penalty(learned.policy[0].ravel()).value
    assert float(learned.certificate[0]) >= best - reached > 0.01


def zhu(
    problem: Problem, reward_class: ConvexClass, baseline: np.ndarray, options: MethodOptions
) -> Any:
    """Its penalty as a function of the joint law of prompt and response."""
    n = problem.wins.sum()
    if isinstance(reward_class, TabularBox):
        shape = np.shape(problem.reference_policy)
        features = np.eye(math.prod(shape)).reshape(*shape, -1)
        width = float(reward_class.maximum)
        bound, difference = width / 2 * np.sqrt(math.prod(shape)), width
    else:
        features, bound = np.asarray(reward_class.features), float(reward_class.radius)
        longest = np.linalg.norm(features, axis=-1).max()
        difference = longest * bound * (2 if options.curvature == "safe" else 1)
    d = features.shape[-1]
    covariance = options.ridge * np.eye(d)
    for x, winner, loser in zip(*np.nonzero(problem.wins), strict=True):
        gap = features[x, winner] - features[x, loser]
        covariance = covariance + problem.wins[x, winner, loser] / n * np.outer(gap, gap)
    gamma = 1 / (2 + np.exp(difference) + np.exp(-difference))
    noise = (d + np.log(1 / options.confidence)) / (gamma**2 * n)
    radius = options.pessimism * np.sqrt(noise + options.ridge * bound**2)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    flat = features.reshape(-1, d)
    behind = (problem.context_weights[:, None] * baseline).ravel()
    return lambda law: radius * cp.norm(whiten @ flat.T @ (law - behind))


def against_worst(
    problem: Problem,
    reward_class: ConvexClass,
    policy: np.ndarray | None,
    *,
    weight: float,
    slack: float | None = None,
) -> float:
    """CVXPY's least advantage over the baseline of a policy, or of the best policy.

    Rewards pay their log-loss per ``weight``, or must be within ``slack`` of the least log-loss.
    """
    size = FEATURES if isinstance(reward_class, LinearBall) else CONTEXTS * ACTIONS
    rows, constraints = table(cp.Variable(size), reward_class)
    loss = log_loss(rows, problem.wins)
    objective: Any = 0.0 if slack is not None else loss / weight
    for x in range(CONTEXTS):
        earned = cp.max(rows[x]) if policy is None else policy[x] @ rows[x]
        behind = problem.baseline_policy[x] @ rows[x]
        objective = objective + problem.context_weights[x] * (earned - behind)
    if slack is not None:
        least = cp.Problem(cp.Minimize(loss), constraints)
        least.solve(solver=cp.CLARABEL)
        constraints = [*constraints, loss <= float(loss.value) + slack]
    question = cp.Problem(cp.Minimize(objective), constraints)
    question.solve(solver=cp.CLARABEL)
    return float(objective.value)


@pytest.mark.parametrize("baseline", ["reference", "chosen"])
@pytest.mark.parametrize("zeta", [0.1, 3.0, 1e4])
def test_parity_freehand_is_best_against_every_likely_reward(zeta, baseline, problem, reward_class):
    options = MethodOptions(likelihood_slack=zeta, baseline=baseline)
    learned = METHODS["freehand"](problem, reward_class, options)
    assert_proven(learned, most=2e-4)
    for i in range(BATCH):
        one, rewards = row(problem, i), row(reward_class, i)
        one = one._replace(baseline_policy=baseline_of(baseline, one))
        judge = partial(against_worst, one, rewards, weight=1.0, slack=zeta / one.wins.sum())
        best, mine = judge(None), judge(learned.policy[i])
        assert mine >= best - learned.certificate[i] - 1e-6
        assert mine <= best + 1e-6


def test_theorem_spacs_average_policy_is_as_near_to_the_best_as_its_certificate_says(
    problem, reward_class
):
    gaps = []
    for rounds in (10, 200):
        options = MethodOptions(baseline="given", self_play_rounds=rounds)
        learned = METHODS["spac"](problem, reward_class, options)
        assert (learned.status == Status.SOLVED).all()
        for i in range(BATCH):
            one, rewards = row(problem, i), row(reward_class, i)
            judge = partial(against_worst, one, rewards, weight=float(one.eta))
            shortfall = float(one.eta) * (judge(None) - judge(learned.policy[i]))
            assert -VALUE <= shortfall <= learned.certificate[i] + VALUE
        gaps.append(learned.certificate.max())
    # Hedge's bound falls with the root of the rounds.
    assert gaps[1] < gaps[0] * np.sqrt(10 / 200) * 2


def test_parity_spac_is_mirror_descent_on_scipys_adversary(problem):
    maximum, rounds = np.array([0.5, 1.0, 2.0]), 3
    options = MethodOptions(baseline="given", self_play_rounds=rounds)
    learned = METHODS["spac"](problem, TabularBox(maximum), options)
    for i in range(BATCH):
        one = row(problem, i)
        step = np.sqrt(8 * -np.log(one.reference_policy.min()) / rounds) / maximum[i]
        total, policies = np.zeros((CONTEXTS, ACTIONS)), []
        for _ in range(rounds):
            policies.append(gibbs(step * total, one.reference_policy))
            total += scipy_adversary(one, policies[-1], maximum[i])
        np.testing.assert_allclose(learned.policy[i], np.mean(policies, axis=0), atol=1e-4)


def scipy_adversary(problem: Problem, policy: np.ndarray, maximum: float) -> np.ndarray:
    """Reward of the box that minimises the advantage of a policy plus the log-loss."""
    lead = problem.context_weights[:, None] * (policy - problem.baseline_policy)
    share = problem.wins / problem.wins.sum()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        reward = flat.reshape(CONTEXTS, ACTIONS)
        behind = reward[:, None, :] - reward[:, :, None]
        surprise = share / (1 + np.exp(-behind))
        slope = problem.eta * lead + surprise.sum(axis=1) - surprise.sum(axis=2)
        loss = np.sum(share * np.logaddexp(0, behind))
        return float(problem.eta * np.sum(lead * reward) + loss), np.asarray(slope).ravel()

    start = np.full(CONTEXTS * ACTIONS, maximum / 2)
    bounds = [(0.0, maximum)] * start.size
    tight = {"ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options=tight)
    return found.x.reshape(CONTEXTS, ACTIONS)


def test_parity_ipo_minimises_its_own_loss_over_tabular_policies(problem):
    learned = METHODS["ipo"](problem, Unbounded(), MethodOptions(ipo_tau=0.7))
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)
        ipo = partial(losses.ipo, tau=0.7)
        oracle = descend(one, partial(mean_over_pairs, one, loss=ipo))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


def test_closed_form_log_linear_ipo_is_least_squares_on_the_pairs(problem):
    features = np.random.default_rng(5).normal(size=(BATCH, CONTEXTS, ACTIONS, FEATURES))
    learned = METHODS["ipo"](problem, LinearBall(features, np.ones(BATCH)), MethodOptions())
    assert_proven(learned)
    for i in range(BATCH):
        x, winner, loser = np.nonzero(problem.wins[i])
        weight = np.sqrt(problem.wins[i][x, winner, loser])[:, None]
        design = weight * (features[i][x, winner] - features[i][x, loser])
        target = weight[:, 0] / (2 * problem.beta[i])
        theta = np.linalg.lstsq(design, target)[0]
        expected = gibbs(features[i] @ theta, problem.reference_policy[i])
        np.testing.assert_allclose(learned.policy[i], expected, rtol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_parity_dpop_is_the_convex_program_of_its_loss(penalty, problem, reward_class):
    learned = METHODS["dpop"](problem, reward_class, MethodOptions(dpop_penalty=penalty))
    assert_proven(learned, most=1e-6)
    for i in range(BATCH):
        one, rewards = row(problem, i), row(reward_class, i)
        beta = float(one.beta)
        size = FEATURES if isinstance(rewards, LinearBall) else CONTEXTS * ACTIONS
        rows, constraints = table(cp.Variable(size), rewards)
        terms = []
        for x, winner, loser in zip(*np.nonzero(one.wins), strict=True):
            ratios = rows[x] / beta
            lost = cp.log_sum_exp(ratios + np.log(one.reference_policy[x])) - ratios[winner]
            exponent = rows[x][loser] - rows[x][winner] + beta * penalty * cp.pos(lost)
            terms.append(one.wins[x, winner, loser] * cp.logistic(exponent))
        least = cp.Problem(cp.Minimize(sum(terms) / one.wins.sum()), constraints)
        least.solve(solver=cp.CLARABEL)
        dpop = partial(losses.dpop, beta=one.beta, penalty=penalty)
        reached = float(mean_over_pairs(one, jnp.log(learned.policy[i]), dpop))
        assert reached == pytest.approx(least.objective.value, abs=1e-6)


def test_parity_chi_po_minimises_its_own_loss_where_the_class_does_not_bind(problem):
    width = 30.0
    learned = METHODS["chi_po"](problem, TabularBox(np.full(BATCH, width)), MethodOptions())
    assert_proven(learned)
    for i in range(BATCH):
        one = row(problem, i)
        loss = partial(losses.chi_po, beta=one.beta, reward_max=width)
        oracle = descend(one, partial(mean_over_pairs, one, loss=loss))
        np.testing.assert_allclose(learned.policy[i], oracle, atol=DESCENT)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])
def test_parity_chi_squared_policy_maximises_reward_less_both_divergences(beta):
    reward, reference = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.3, 0.2])
    policy = cp.Variable(3, nonneg=True)
    ratio = cp.multiply(policy, 1 / reference)
    divergence = reference @ cp.square(ratio - 1) / 2 + cp.sum(cp.rel_entr(policy, reference))
    normalised: Any = [cp.sum(policy) == 1]
    question = cp.Problem(cp.Maximize(reward @ policy - beta * divergence), normalised)
    question.solve(solver=cp.CLARABEL)
    learned = np.asarray(chi_squared_policy(reward[None], reference[None], beta))[0]
    np.testing.assert_allclose(learned, np.asarray(policy.value), atol=1e-5)
    assert learned.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("method", ["dpop", "chi_po", "pessimistic_mle", "freehand", "spac"])
def test_raises_where_a_method_needs_a_compact_class(method, problem):
    with pytest.raises(ValueError, match=f"`reward_class` must be .* {method}, got Unbounded"):
        METHODS[method](problem, Unbounded(), MethodOptions())


@pytest.mark.parametrize(
    ("option", "value"),
    [("baseline", "best"), ("ridge", 0.0), ("confidence", 1.0), ("dpop_penalty", -1.0)],
)
def test_raises_on_an_option_out_of_range_and_names_it(option, value):
    options = MethodOptions()
    # Set past the type checker of the test run, which knows the names too.
    object.__setattr__(options, option, value)
    with pytest.raises(ValueError, match=f"`{option}` must be .*, got"):
        options.__post_init__()


@pytest.fixture(scope="module")
def crowd() -> tuple[Problem, LinearBall]:
    """More problems than a group of most solvers, and their features."""
    rng = np.random.default_rng(11)
    shape = (150, CONTEXTS, ACTIONS)
    problem = Problem(
        context_weights=rng.dirichlet(np.ones(CONTEXTS), shape[0]),
        reference_policy=rng.dirichlet(np.ones(ACTIONS), shape[:2]),
        baseline_policy=rng.dirichlet(np.ones(ACTIONS), shape[:2]),
        wins=rng.integers(0, 9, (*shape, ACTIONS)) * (1.0 - np.eye(ACTIONS)),
        beta=rng.uniform(0.01, 2.0, shape[0]),
        eta=rng.uniform(0.0, 2.0, shape[0]),
    )
    return problem, LinearBall(rng.normal(size=(*shape, FEATURES)), np.ones(shape[0]))


@pytest.mark.parametrize("kind", ["box", pytest.param("ball", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_property_an_answer_has_the_same_bits_whatever_is_answered_beside_it(
    method: str, kind: str, crowd: tuple[Problem, LinearBall]
) -> None:
    problem, ball = crowd
    reward_class = ball if kind == "ball" else TabularBox(2.0 * ball.radius)
    together = METHODS[method](problem, reward_class, MethodOptions(self_play_rounds=50))
    for some in (slice(1, 2), slice(3, 40)):
        few, classes = jax.tree.map(lambda leaf, some=some: leaf[some], (problem, reward_class))
        apart = METHODS[method](few, classes, MethodOptions(self_play_rounds=50))
        for name in ("policy", "reward", "certificate", "status"):
            np.testing.assert_array_equal(getattr(apart, name), getattr(together, name)[some])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_extreme_prompts_without_data_or_weight_and_arms_without_support(method):
    rng = np.random.default_rng(1)
    shape = (4, 3, 4)
    reference = rng.dirichlet(np.ones(4), shape[:2])
    wins = rng.integers(0, 4, (*shape, 4)) * (1.0 - np.eye(4))
    # No data at all, no data at a prompt, an arm that loses always, and one that is impossible.
    wins[0], wins[:, 2], wins[1, :, 2] = 0.0, 0.0, 0.0
    reference[:, 0, 1], wins[:, 0, 1], wins[:, 0, :, 1] = 0.0, 0.0, 0.0
    reference /= reference.sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(3), 4)
    weights[:, 1] = 0.0
    weights /= weights.sum(axis=-1, keepdims=True)
    eta = np.array([0.1, 0.0, 1.0, 10.0])
    hard = Problem(weights, reference, reference, wins, np.full(4, 0.05), eta)
    learned = METHODS[method](hard, TabularBox(np.full(4, 2.0)), MethodOptions())
    assert (learned.status == Status.SOLVED).all()
    assert np.isfinite(learned.certificate).all()
    assert (learned.policy >= 0).all()
    np.testing.assert_allclose(learned.policy.sum(axis=-1), 1.0, rtol=1e-12)
    assert (learned.policy[:, 0, 1] == 0).all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_compiles_once_for_all_numbers_of_one_shape(method, problem, caplog):
    box = TabularBox(np.array([0.5, 1.0, 2.0]))
    METHODS[method](problem, box, MethodOptions())
    other = problem._replace(beta=2 * problem.beta, eta=3 * problem.eta, wins=5 * problem.wins)
    options = MethodOptions(
        vpo_alpha=2.0,
        ipo_tau=0.3,
        dpop_penalty=1.0,
        confidence=0.2,
        pessimism=0.5,
        ridge=0.1,
        curvature="printed",
        likelihood_slack=1.0,
        self_play_rounds=20,
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        METHODS[method](other, TabularBox(2 * np.asarray(box.maximum)), options)
    assert [line for line in caplog.messages if "Finished XLA compilation" in line] == []
