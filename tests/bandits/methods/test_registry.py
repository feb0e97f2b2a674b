"""Every method against an oracle independent of the solvers: CVXPY, SciPy, or a formula."""

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
from bandits.methods.base import FitResult
from bandits.methods.chi_po import chi_squared_policy
from bandits.methods.pessimistic_mle import PessimisticOptions
from bandits.methods.registry import METHODS
from bandits.methods.saddle_methods import greedy_policy
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.objectives import minimax_objective
from rpo_theory.rewards import LinearBall, Lipschitz, TabularBox, Unbounded
from rpo_theory.types import ArrayLike, Problem, Status

POLICY = 2e-4  # accuracy of a policy by CVXPY's interior point, at beta of order one
VALUE = 1e-7  # accuracy of its objective, in which errors are squared
DESCENT = 2e-5  # accuracy of a policy by SciPy's quasi-Newton method
ConvexClass = TabularBox | LinearBall
PairLoss = Callable[[PairLogProbs, PairLogProbs], jax.Array]
BATCH, CONTEXTS, ACTIONS, FEATURES = 3, 2, 3, 2


def known_options(method: str, **values: Any) -> dict[str, Any]:
    """Return those of the options that the method has."""
    return {
        name: value for name, value in values.items() if hasattr(METHODS[method].options(), name)
    }


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
    """Return one member of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def table(variable: cp.Variable, reward_class: ConvexClass) -> tuple[list, list]:
    """Return CVXPY's rewards, one row for each prompt, and the constraints of one class."""
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
    """Return policy and value of eq. 4.4 for one problem."""
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
    program = cp.Problem(cp.Minimize(objective), constraints)
    program.solve(solver=cp.CLARABEL)
    rewards = np.array([np.asarray(reward.value) for reward in rows])
    return gibbs(rewards / beta, problem.reference_policy), float(objective.value)


def gibbs(log_ratio: np.ndarray, reference: ArrayLike) -> np.ndarray:
    weights = np.asarray(reference) * np.exp(log_ratio - log_ratio.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def baseline_of(name: str, problem: Problem) -> np.ndarray:
    chosen, rejected = problem.wins.sum(axis=2), problem.wins.sum(axis=1)
    policies = {
        "chosen": chosen / chosen.sum(axis=1, keepdims=True),
        "reference": problem.reference_policy,
        "data_marginal": (chosen + rejected) / (2 * chosen.sum(axis=1, keepdims=True)),
        "given": problem.baseline_policy,
    }
    return policies[name]


def descend(problem: Problem, objective: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Minimize a function of the log-policy over free logits, with SciPy."""

    def of_logits(logits: jax.Array) -> jax.Array:
        return objective(jax.nn.log_softmax(logits.reshape(CONTEXTS, ACTIONS)))

    value_and_gradient = jax.jit(jax.value_and_grad(of_logits))
    optimum = minimize(
        lambda point: [np.asarray(part, float) for part in value_and_gradient(jnp.asarray(point))],
        np.log(problem.reference_policy).ravel(),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    )
    return np.asarray(jax.nn.softmax(jnp.asarray(optimum.x.reshape(CONTEXTS, ACTIONS))))


def mean_over_pairs(problem: Problem, log_policy: jax.Array, loss: PairLoss) -> jax.Array:
    """Return the mean of a loss of policy and reference over the comparisons."""
    x, winner, loser = np.nonzero(problem.wins)
    log_reference = np.log(problem.reference_policy)
    policy, reference = (
        PairLogProbs(table[x, winner], table[x, loser]) for table in (log_policy, log_reference)
    )
    counts = problem.wins[x, winner, loser] / problem.wins.sum()
    return jnp.sum(counts * loss(policy, reference))


def rpo_loss(problem: Problem, log_policy: jax.Array) -> jax.Array:
    """Return eq. 4.8, with its expectation over prompts and baseline."""
    dpo = mean_over_pairs(problem, log_policy, partial(losses.dpo, beta=problem.beta))
    weights = problem.eta * problem.beta * problem.context_weights[:, None]
    return dpo - jnp.sum(weights * problem.baseline_policy * log_policy)


def assert_certified(fit: FitResult, largest: float = 1e-9) -> None:
    assert (fit.status == Status.SOLVED).all()
    assert (fit.certificate >= 0).all()
    assert fit.certificate.max() <= largest


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy"])
@pytest.mark.parametrize("baseline", ["chosen", "reference", "data_marginal", "given"])
def test_parity_rpo_by_every_route_and_baseline_is_the_policy_that_cvxpy_finds(
    method, baseline, problem, reward_class
):
    fit = METHODS[method](problem, reward_class, baseline=baseline)
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)
        instance = instance._replace(baseline_policy=baseline_of(baseline, instance))
        policy, value = cvxpy_rpo(instance, row(reward_class, i))
        np.testing.assert_allclose(fit.policy[i], policy, atol=POLICY)
        reached = float(minimax_objective(instance, fit.reward[i]))
        np.testing.assert_allclose(reached, value, atol=VALUE)


@pytest.mark.parametrize("method", ["dpo", "two_stage"])
def test_parity_dpo_and_two_stage_are_cvxpys_maximum_likelihood(method, problem, reward_class):
    fit = METHODS[method](problem, reward_class)
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)._replace(eta=np.array(0.0))
        policy, value = cvxpy_rpo(instance, row(reward_class, i))
        np.testing.assert_allclose(fit.policy[i], policy, atol=POLICY)
        reached = float(minimax_objective(instance, fit.reward[i]))
        np.testing.assert_allclose(reached, value, atol=VALUE)


@pytest.mark.parametrize("method", ["rpo", "rpo_maximin", "rpo_policy", "dpo"])
def test_parity_over_all_rewards_rpo_and_dpo_minimize_the_trained_loss(method, problem):
    options = known_options(method, rewards="unbounded", baseline="given")
    fit = METHODS[method](problem, TabularBox(np.ones(BATCH)), **options)
    assert_certified(fit)
    assert fit.certificate_kind == "stationarity_residual"
    for i in range(BATCH):
        instance = row(problem, i)
        if method == "dpo":
            instance = instance._replace(eta=np.array(0.0))
        oracle = descend(instance, partial(rpo_loss, instance))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_parity_vpo_with_alpha_is_rpo_with_eta_alpha_over_n(problem):
    alpha = 4.0
    options = {"rewards": "unbounded", "baseline": "reference", "vpo_alpha": alpha}
    fit = METHODS["vpo"](problem, Unbounded(), **options)
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)
        eta = np.array(alpha / instance.wins.sum())
        instance = instance._replace(eta=eta, baseline_policy=instance.reference_policy)
        oracle = descend(instance, partial(rpo_loss, instance))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_parity_power_minimizes_its_loss(problem):
    fit = METHODS["power"](problem, Unbounded())
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)

        def power(policy: PairLogProbs, _: PairLogProbs, instance: Problem = instance) -> jax.Array:
            ones = jnp.ones_like(jnp.asarray(policy.chosen))
            return losses.power(
                policy, PairLogProbs(ones, ones), beta=instance.beta, eta=instance.eta
            )

        oracle = descend(instance, partial(mean_over_pairs, instance, loss=power))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_closed_form_behavior_cloning_gives_each_response_its_share_of_the_wins():
    wins = np.zeros((1, 2, 3, 3))
    wins[0, 0, 0, 1], wins[0, 0, 2, 1] = 3.0, 1.0
    reference = np.full((1, 2, 3), 1 / 3)
    instance = Problem(np.full((1, 2), 0.5), reference, reference, wins, np.ones(1), np.ones(1))
    fit = METHODS["behavior_cloning"](instance, Unbounded())
    expected = np.array([[0.75, 0.0, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(fit.policy[0], expected, rtol=1e-15)
    assert np.isnan(fit.reward).all()
    assert fit.certificate.tolist() == [0.0]


def test_closed_form_greedy_takes_the_best_supported_arm_and_shares_ties():
    reward = np.array([[[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]])
    reference = np.array([[[0.0, 0.25, 0.75], [0.2, 0.3, 0.5]]])
    expected = [[[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]]]
    np.testing.assert_allclose(greedy_policy(reward, reference), expected, rtol=1e-15)


def test_closed_form_on_two_arms_greedy_plays_the_one_that_wins_more():
    wins = np.array([[[[0.0, 2.0], [1.0, 0.0]]], [[[0.0, 2.0], [5.0, 0.0]]]])
    even = np.full((2, 1, 2), 0.5)
    pair = Problem(np.ones((2, 1)), even, even, wins, np.ones(2), np.ones(2))
    fit = METHODS["greedy_mle"](pair, TabularBox(np.full(2, 4.0)))
    assert fit.policy.tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    log_odds = fit.reward[:, 0, 0] - fit.reward[:, 0, 1]
    np.testing.assert_allclose(log_odds, np.log([2.0, 0.4]), atol=1e-9)


@pytest.mark.parametrize("baseline", ["reference", "data_marginal"])
@pytest.mark.parametrize("curvature", ["safe", "printed"])
def test_parity_pessimistic_mle_is_the_cone_program_of_its_definition(
    curvature, baseline, problem, reward_class
):
    # The constant is small, so that neither the likelihood nor the penalty dominates.
    options = PessimisticOptions(baseline=baseline, curvature=curvature, pessimism=0.02, ridge=0.05)
    fit = METHODS["pessimistic_mle"](problem, reward_class, **vars(options))
    assert_certified(fit, largest=1e-6)
    mle = METHODS["two_stage"](problem, reward_class).reward
    for i in range(BATCH):
        instance, linear = row(problem, i), row(reward_class, i)
        penalty = pessimism_penalty(instance, linear, baseline_of(baseline, instance), options)
        policy = cp.Variable((CONTEXTS, ACTIONS), nonneg=True)
        weighted = cp.multiply(policy, instance.context_weights[:, None])
        objective = cp.sum(cp.multiply(weighted, mle[i])) - penalty(cp.vec(weighted, order="C"))
        normalized: Any = [cp.sum(policy, axis=1) == 1]
        program = cp.Problem(cp.Maximize(objective), normalized)
        program.solve(solver=cp.CLARABEL)
        joint = instance.context_weights[:, None] * fit.policy[i]
        reached = (joint * mle[i]).sum() - penalty(joint.ravel()).value
        assert reached == pytest.approx(objective.value, abs=1e-6)


def test_property_a_policy_that_is_not_optimal_against_the_ellipsoid_is_not_solved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stay(smoothed: Any, start: jax.Array) -> path_following.PathState:
        one = jnp.ones((), start.dtype)
        return path_following.PathState(start, one, one, jnp.zeros((), int), jnp.array(True))

    monkeypatch.setattr(path_following, "follow_path", stay)
    even, second = np.full((1, 1, 5), 0.2), np.eye(5)[None, None, 1]
    wins = np.zeros((1, 1, 5, 5))
    wins[0, 0, 0, 1:], wins[0, 0, 1:, 0] = 9.0, 1.0
    problem = Problem(np.ones((1, 1)), even, second, wins, np.ones(1), np.ones(1))
    options = PessimisticOptions(baseline="given", pessimism=0.02)
    box = TabularBox(np.array([2.0]))
    fit = METHODS["pessimistic_mle"](problem, box, **vars(options))
    assert int(fit.status[0]) == Status.MAX_STEPS
    mle = METHODS["two_stage"](problem, box).reward[0]
    penalty = pessimism_penalty(row(problem, 0), row(box, 0), second[0], options)
    best = mle[0, 0] - penalty(np.eye(5)[0]).value
    reached = (mle * fit.policy[0]).sum() - penalty(fit.policy[0].ravel()).value
    assert float(fit.certificate[0]) >= best - reached > 0.01


def pessimism_penalty(
    problem: Problem, reward_class: ConvexClass, baseline: np.ndarray, options: PessimisticOptions
) -> Any:
    """Return the penalty of `zhu:23` as a function of the joint distribution."""
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
    center = (problem.context_weights[:, None] * baseline).ravel()
    return lambda joint: radius * cp.norm(whiten @ flat.T @ (joint - center))


def against_worst(
    problem: Problem,
    reward_class: ConvexClass,
    policy: np.ndarray | None,
    *,
    weight: float,
    slack: float | None = None,
) -> float:
    """Return the worst-case advantage over the baseline of a policy, or of the best one.

    CVXPY minimizes over rewards, which pay their log loss divided by ``weight`` or must be within
    ``slack`` of the smallest log loss.
    """
    size = FEATURES if isinstance(reward_class, LinearBall) else CONTEXTS * ACTIONS
    rows, constraints = table(cp.Variable(size), reward_class)
    loss = log_loss(rows, problem.wins)
    objective: Any = 0.0 if slack is not None else loss / weight
    for x in range(CONTEXTS):
        value = cp.max(rows[x]) if policy is None else policy[x] @ rows[x]
        baseline_value = problem.baseline_policy[x] @ rows[x]
        objective = objective + problem.context_weights[x] * (value - baseline_value)
    if slack is not None:
        least = cp.Problem(cp.Minimize(loss), constraints)
        least.solve(solver=cp.CLARABEL)
        constraints = [*constraints, loss <= float(loss.value) + slack]
    program = cp.Problem(cp.Minimize(objective), constraints)
    program.solve(solver=cp.CLARABEL)
    return float(objective.value)


@pytest.mark.parametrize("baseline", ["reference", "chosen"])
@pytest.mark.parametrize("zeta", [0.1, 3.0, 1e4])
def test_parity_freehand_is_best_against_every_likely_reward(zeta, baseline, problem, reward_class):
    fit = METHODS["freehand"](problem, reward_class, likelihood_slack=zeta, baseline=baseline)
    assert_certified(fit, largest=2e-4)
    for i in range(BATCH):
        instance, rewards = row(problem, i), row(reward_class, i)
        instance = instance._replace(baseline_policy=baseline_of(baseline, instance))
        judge = partial(
            against_worst, instance, rewards, weight=1.0, slack=zeta / instance.wins.sum()
        )
        best, value = judge(None), judge(fit.policy[i])
        assert value >= best - fit.certificate[i] - 1e-6
        assert value <= best + 1e-6


def test_theorem_spac_is_as_close_to_the_best_policy_as_its_certificate_says(problem, reward_class):
    gaps = []
    for rounds in (10, 200):
        options = {"baseline": "given", "self_play_rounds": rounds}
        fit = METHODS["spac"](problem, reward_class, **options)
        assert (fit.status == Status.SOLVED).all()
        for i in range(BATCH):
            instance, rewards = row(problem, i), row(reward_class, i)
            judge = partial(against_worst, instance, rewards, weight=float(instance.eta))
            shortfall = float(instance.eta) * (judge(None) - judge(fit.policy[i]))
            assert -VALUE <= shortfall <= fit.certificate[i] + VALUE
        gaps.append(fit.certificate.max())
    # Hedge's bound falls like one over the root of the rounds.
    assert gaps[1] < gaps[0] * np.sqrt(10 / 200) * 2


def test_parity_spac_is_mirror_descent_on_scipys_adversary(problem):
    maximum, rounds = np.array([0.5, 1.0, 2.0]), 3
    options = {"baseline": "given", "self_play_rounds": rounds}
    fit = METHODS["spac"](problem, TabularBox(maximum), **options)
    for i in range(BATCH):
        instance = row(problem, i)
        step = np.sqrt(8 * -np.log(instance.reference_policy.min()) / rounds) / maximum[i]
        reward_sum, policies = np.zeros((CONTEXTS, ACTIONS)), []
        for _ in range(rounds):
            policies.append(gibbs(step * reward_sum, instance.reference_policy))
            reward_sum += scipy_adversary(instance, policies[-1], maximum[i])
        np.testing.assert_allclose(fit.policy[i], np.mean(policies, axis=0), atol=1e-4)


def scipy_adversary(problem: Problem, policy: np.ndarray, maximum: float) -> np.ndarray:
    """Return the reward of the box that minimizes the advantage of a policy plus the log loss."""
    direction = problem.context_weights[:, None] * (policy - problem.baseline_policy)
    share = problem.wins / problem.wins.sum()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        reward = flat.reshape(CONTEXTS, ACTIONS)
        deficit = reward[:, None, :] - reward[:, :, None]
        surprise = share / (1 + np.exp(-deficit))
        gradient = problem.eta * direction + surprise.sum(axis=1) - surprise.sum(axis=2)
        loss = np.sum(share * np.logaddexp(0, deficit))
        return float(problem.eta * np.sum(direction * reward) + loss), np.asarray(gradient).ravel()

    start = np.full(CONTEXTS * ACTIONS, maximum / 2)
    bounds = [(0.0, maximum)] * start.size
    tight = {"ftol": 1e-15, "gtol": 1e-10}
    optimum = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options=tight)
    return optimum.x.reshape(CONTEXTS, ACTIONS)


def test_parity_ipo_minimizes_its_loss_over_tabular_policies(problem):
    fit = METHODS["ipo"](problem, Unbounded(), ipo_tau=0.7)
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)
        ipo = partial(losses.ipo, tau=0.7)
        oracle = descend(instance, partial(mean_over_pairs, instance, loss=ipo))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_closed_form_log_linear_ipo_is_least_squares_on_the_pairs(problem):
    features = np.random.default_rng(5).normal(size=(BATCH, CONTEXTS, ACTIONS, FEATURES))
    fit = METHODS["ipo"](problem, LinearBall(features, np.ones(BATCH)))
    assert_certified(fit)
    for i in range(BATCH):
        x, winner, loser = np.nonzero(problem.wins[i])
        weight = np.sqrt(problem.wins[i][x, winner, loser])[:, None]
        design = weight * (features[i][x, winner] - features[i][x, loser])
        target = weight[:, 0] / (2 * problem.beta[i])
        theta = np.linalg.lstsq(design, target)[0]
        expected = gibbs(features[i] @ theta, problem.reference_policy[i])
        np.testing.assert_allclose(fit.policy[i], expected, rtol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_parity_dpop_is_the_convex_program_of_its_loss(penalty, problem, reward_class):
    fit = METHODS["dpop"](problem, reward_class, dpop_penalty=penalty)
    assert_certified(fit, largest=1e-6)
    for i in range(BATCH):
        instance, rewards = row(problem, i), row(reward_class, i)
        beta = float(instance.beta)
        size = FEATURES if isinstance(rewards, LinearBall) else CONTEXTS * ACTIONS
        rows, constraints = table(cp.Variable(size), rewards)
        terms = []
        for x, winner, loser in zip(*np.nonzero(instance.wins), strict=True):
            ratios = rows[x] / beta
            lost = cp.log_sum_exp(ratios + np.log(instance.reference_policy[x])) - ratios[winner]
            exponent = rows[x][loser] - rows[x][winner] + beta * penalty * cp.pos(lost)
            terms.append(instance.wins[x, winner, loser] * cp.logistic(exponent))
        program = cp.Problem(cp.Minimize(sum(terms) / instance.wins.sum()), constraints)
        program.solve(solver=cp.CLARABEL)
        dpop = partial(losses.dpop, beta=instance.beta, penalty=penalty)
        reached = float(mean_over_pairs(instance, jnp.log(fit.policy[i]), dpop))
        assert reached == pytest.approx(program.objective.value, abs=1e-6)


def test_parity_chi_po_minimizes_its_loss_where_the_class_does_not_bind(problem):
    width = 30.0
    fit = METHODS["chi_po"](problem, TabularBox(np.full(BATCH, width)))
    assert_certified(fit)
    for i in range(BATCH):
        instance = row(problem, i)
        loss = partial(losses.chi_po, beta=instance.beta, reward_max=width)
        oracle = descend(instance, partial(mean_over_pairs, instance, loss=loss))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_limit_chi_po_in_a_lipschitz_class_of_large_constant_is_that_of_the_box(problem):
    cells = np.asarray(problem.reference_policy)[0].size
    constant, apart = np.full(BATCH, 50.0), np.repeat((1.0 - np.eye(cells))[None], BATCH, axis=0)
    lipschitz = METHODS["chi_po"](problem, Lipschitz(constant, apart, np.full(BATCH, 2.0)))
    box = METHODS["chi_po"](problem, TabularBox(np.full(BATCH, 2.0)))
    assert_certified(lipschitz)
    np.testing.assert_allclose(lipschitz.policy, box.policy, atol=1e-5)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])
def test_parity_chi_squared_policy_maximizes_reward_minus_both_divergences(beta):
    reward, reference = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.3, 0.2])
    policy = cp.Variable(3, nonneg=True)
    ratio = cp.multiply(policy, 1 / reference)
    divergence = reference @ cp.square(ratio - 1) / 2 + cp.sum(cp.rel_entr(policy, reference))
    normalized: Any = [cp.sum(policy) == 1]
    program = cp.Problem(cp.Maximize(reward @ policy - beta * divergence), normalized)
    program.solve(solver=cp.CLARABEL)
    fit = np.asarray(chi_squared_policy(reward[None], reference[None], beta))[0]
    np.testing.assert_allclose(fit, np.asarray(policy.value), atol=1e-5)
    assert fit.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    "method",
    ["dpop", "chi_po", "pessimistic_mle", "freehand", "spac", "reward_ensemble", "thompson"],
)
def test_raises_where_a_method_needs_a_compact_class(method, problem):
    with pytest.raises(ValueError, match=f"`reward_class` must be .* {method}, got Unbounded"):
        METHODS[method](problem, Unbounded())


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("rpo", "baseline", "best"),
        ("rpo", "rewards", "all"),
        ("vpo", "vpo_alpha", -1.0),
        ("pessimistic_mle", "ridge", 0.0),
        ("pessimistic_mle", "confidence", 1.0),
        ("pessimistic_mle", "curvature", "sharp"),
        ("pessimistic_mle", "pessimism", -1.0),
        ("freehand", "likelihood_slack", 0.0),
        ("spac", "self_play_rounds", 0),
        ("ipo", "ipo_tau", 0.0),
        ("dpop", "dpop_penalty", -1.0),
        ("dpop", "dpop_penalty", "large"),
        ("simpo", "simpo_gamma_ratio", -0.1),
        ("orpo", "orpo_penalty", -1.0),
        ("kto", "kto_reference_point", "mean"),
        ("kto", "kto_desirable_weight", 0.5),
        ("nash", "nash_smoothing", -1.0),
        ("best_of_n", "best_of_n_responses", 0.5),
        ("thompson", "thompson_scale", -1.0),
        ("thompson", "thompson_prior_scale", 0.0),
        ("reward_ensemble", "ensemble_members", 0),
        ("reward_ensemble", "ensemble_rule", "max"),
        ("reward_ensemble", "ensemble_coefficient", -1.0),
    ],
)
def test_raises_on_an_option_out_of_range_and_names_it(method, option, value):
    with pytest.raises(ValueError, match=f"`options` of {method}: `{option}` must be .*, got"):
        METHODS[method].make_options({option: value})


def test_raises_on_an_option_that_the_method_does_not_have():
    with pytest.raises(ValueError, match="`options` of dpo: unknown key `ipo_tau`"):
        METHODS["dpo"].make_options({"ipo_tau": 0.1})
    with pytest.raises(ValueError, match="`options` of dpo must be SearchOptions, got Pessimi"):
        METHODS["dpo"].make_options(PessimisticOptions())


@pytest.fixture(scope="module")
def crowd() -> tuple[Problem, LinearBall]:
    """Return more problems than most solvers take in a group, and their features."""
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
def test_property_a_fit_has_the_same_bits_in_every_batch(
    method: str, kind: str, crowd: tuple[Problem, LinearBall]
) -> None:
    problem, ball = crowd
    reward_class = ball if kind == "ball" else TabularBox(2.0 * ball.radius)
    options = known_options(method, self_play_rounds=50)
    together = METHODS[method](problem, reward_class, **options)
    for rows in (slice(1, 2), slice(3, 40)):
        few, classes = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (problem, reward_class))
        separate = METHODS[method](few, classes, **options)
        for name in ("policy", "reward", "certificate", "status"):
            np.testing.assert_array_equal(getattr(separate, name), getattr(together, name)[rows])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_extreme_prompts_without_data_or_weight_and_arms_without_support(method):
    rng = np.random.default_rng(1)
    shape = (4, 3, 4)
    reference = rng.dirichlet(np.ones(4), shape[:2])
    wins = rng.integers(0, 4, (*shape, 4)) * (1.0 - np.eye(4))
    # No data at all, no data at a prompt, an arm that always loses, and an arm of probability 0.
    wins[0], wins[:, 2], wins[1, :, 2] = 0.0, 0.0, 0.0
    reference[:, 0, 1], wins[:, 0, 1], wins[:, 0, :, 1] = 0.0, 0.0, 0.0
    reference /= reference.sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(3), 4)
    weights[:, 1] = 0.0
    weights /= weights.sum(axis=-1, keepdims=True)
    eta = np.array([0.1, 0.0, 1.0, 10.0])
    hard = Problem(weights, reference, reference, wins, np.full(4, 0.05), eta)
    fit = METHODS[method](hard, TabularBox(np.full(4, 2.0)))
    assert (fit.status == Status.SOLVED).all()
    assert np.isfinite(fit.certificate).all()
    assert (fit.policy >= 0).all()
    np.testing.assert_allclose(fit.policy.sum(axis=-1), 1.0, rtol=1e-12)
    assert (fit.policy[:, 0, 1] == 0).all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_compiles_once_for_all_numbers_of_one_shape(method, problem, caplog):
    box = TabularBox(np.array([0.5, 1.0, 2.0]))
    METHODS[method](problem, box)
    changed = problem._replace(beta=2 * problem.beta, eta=3 * problem.eta, wins=5 * problem.wins)
    options = known_options(
        method,
        vpo_alpha=2.0,
        ipo_tau=0.3,
        dpop_penalty=1.0,
        confidence=0.2,
        pessimism=0.5,
        ridge=0.1,
        curvature="printed",
        likelihood_slack=1.0,
        self_play_rounds=20,
        simpo_gamma_ratio=0.2,
        orpo_penalty=0.3,
        kto_reference_point="zero",
        kto_desirable_weight=1.2,
        nash_smoothing=0.1,
        best_of_n_responses=3.5,
        thompson_scale=0.5,
        thompson_prior_scale=2.0,
        ensemble_members=3,
        ensemble_rule="min",
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        METHODS[method](changed, TabularBox(2 * np.asarray(box.maximum)), **options)
    assert [line for line in caplog.messages if "Finished XLA compilation" in line] == []
