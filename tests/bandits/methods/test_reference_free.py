"""SimPO and ORPO against CVXPY, SciPy on their losses, and brute force on three responses."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bandits.methods.registry import METHODS
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.rewards import LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem, Status

CONE = 2e-4  # accuracy of a policy by CVXPY's interior point
VALUE = 1e-7  # accuracy of its objective, in which errors are squared
DESCENT = 2e-6  # accuracy of a policy by SciPy's quasi-Newton method


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Three problems of two prompts and three responses, all pairs won both ways."""
    rng = np.random.default_rng(7)
    shape = (3, 2, 3)
    return Problem(
        context_weights=rng.dirichlet(np.ones(2), 3),
        reference_policy=rng.dirichlet(np.ones(3), shape[:2]),
        baseline_policy=rng.dirichlet(np.ones(3), shape[:2]),
        wins=rng.integers(1, 9, (*shape, 3)) * (1.0 - np.eye(3)),
        beta=np.array([0.3, 0.5, 1.0]),
        eta=np.array([0.2, 1.0, 0.5]),
    )


def descend(wins: np.ndarray, loss: Any) -> np.ndarray:
    """Minimize the mean of a loss of all pairs over the logits of one problem, with SciPy."""
    x, winner, loser = np.nonzero(wins)
    shares = wins[x, winner, loser] / wins.sum()

    def objective(logits: jax.Array) -> jax.Array:
        table = jax.nn.log_softmax(logits.reshape(wins.shape[:2]))
        return jnp.sum(shares * loss(PairLogProbs(table[x, winner], table[x, loser])))

    value_and_gradient = jax.jit(jax.value_and_grad(objective))
    optimum = minimize(
        lambda point: [np.asarray(part, float) for part in value_and_gradient(jnp.asarray(point))],
        np.zeros(wins.shape[0] * wins.shape[1]),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-10, "maxiter": 2000},
    )
    return np.asarray(jax.nn.softmax(jnp.asarray(optimum.x.reshape(wins.shape[:2]))))


@pytest.mark.parametrize("kind", ["box", "ball"])
def test_parity_simpo_is_the_convex_program_of_its_loss(kind: str, problem: Any) -> None:
    features = np.random.default_rng(3).normal(size=(3, 2, 3, 2))
    ball: Any = LinearBall(features, np.array([0.2, 0.5, 1.0]))
    box: Any = TabularBox(np.array([0.5, 1.0, 2.0]))
    fit = METHODS["simpo"](problem, box if kind == "box" else ball, simpo_gamma_ratio=1.5)
    assert (fit.status == Status.SOLVED).all()
    assert fit.certificate.max() <= 1e-9
    rows: Any
    constraints: Any
    for i in range(3):
        if kind == "box":
            reward = cp.Variable((2, 3))
            rows, constraints = reward, [reward >= 0, reward <= box.maximum[i]]
        else:
            theta = cp.Variable(2)
            rows = cp.vstack([features[i, x] @ theta for x in range(2)])
            constraints = [cp.norm(theta) <= ball.radius[i]]
        terms = [
            problem.wins[i, x, winner, loser]
            * cp.logistic(1.5 * problem.beta[i] + rows[x, loser] - rows[x, winner])
            for x, winner, loser in zip(*np.nonzero(problem.wins[i]), strict=True)
        ]
        value = sum(terms) / problem.wins[i].sum()
        cp.Problem(cp.Minimize(value), constraints).solve(cp.CLARABEL)
        policy = np.exp(rows.value / problem.beta[i])
        policy /= policy.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(fit.policy[i], policy, atol=CONE)
        margin = fit.reward[i][:, :, None] - fit.reward[i][:, None, :]
        losses_of_pairs = np.logaddexp(0.0, 1.5 * problem.beta[i] - margin)
        reached = np.sum(problem.wins[i] * losses_of_pairs) / problem.wins[i].sum()
        assert reached == pytest.approx(float(np.asarray(value.value)), abs=VALUE)


def test_parity_simpo_over_all_rewards_minimizes_the_loss_of_a_policy(problem: Any) -> None:
    fit = METHODS["simpo"](problem, Unbounded(), simpo_gamma_ratio=0.5)
    one = PairLogProbs(jnp.ones(12), jnp.ones(12))
    for i, beta in enumerate(problem.beta):
        oracle = descend(
            problem.wins[i],
            lambda pair, beta=beta: losses.simpo(pair, one, beta=beta, gamma=0.5 * beta),
        )
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_limit_simpo_without_target_is_dpo_with_a_uniform_reference(problem: Any) -> None:
    even = np.full((3, 2, 3), 1 / 3)
    box: Any = TabularBox(np.array([0.5, 1.0, 2.0]))
    fit = METHODS["simpo"](problem, box, simpo_gamma_ratio=0.0)
    dpo = METHODS["dpo"](problem._replace(reference_policy=even), box)
    np.testing.assert_allclose(fit.policy, dpo.policy, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_parity_orpo_minimizes_its_loss(penalty: float, problem: Any) -> None:
    fit = METHODS["orpo"](problem, Unbounded(), orpo_penalty=penalty)
    assert (fit.status == Status.SOLVED).all()
    one = PairLogProbs(jnp.ones(12), jnp.ones(12))
    for i in range(3):
        oracle = descend(problem.wins[i], lambda pair: losses.orpo(pair, one, penalty=penalty))
        np.testing.assert_allclose(fit.policy[i], oracle, atol=DESCENT)


def test_limit_orpo_without_penalty_clones_the_chosen_responses(problem: Any) -> None:
    fit = METHODS["orpo"](problem, Unbounded(), orpo_penalty=0.0)
    cloned = METHODS["behavior_cloning"](problem, Unbounded())
    np.testing.assert_allclose(fit.policy, cloned.policy, atol=1e-12)


def test_extreme_orpo_never_plays_what_was_never_chosen(problem: Any) -> None:
    wins = problem.wins.copy()
    wins[:, :, 2] = 0.0  # the third response loses every comparison
    fit = METHODS["orpo"](problem._replace(wins=wins), Unbounded(), orpo_penalty=1.0)
    assert (fit.status == Status.SOLVED).all()
    assert (fit.policy[..., 2] == 0).all()
    # No policy on a grid of all policies has a smaller loss.
    share = np.arange(0.5, 80) / 80
    first, second = (axis.ravel() for axis in np.meshgrid(share, share))
    inside = first + second < 1
    grid = np.stack([first, second, 1 - first - second], axis=1)[inside]
    for i in range(3):
        for x in range(2):
            reached = orpo_loss(wins[i, x], np.maximum(fit.policy[i, x], 1e-300)[None])
            assert reached[0] <= orpo_loss(wins[i, x], grid).min()


def orpo_loss(wins: np.ndarray, policies: np.ndarray) -> np.ndarray:
    """Return the loss of each policy with penalty 1, from odds instead of logarithms."""
    odds = policies / (1 - policies)
    ratio = odds[:, None, :] / odds[:, :, None]
    return np.sum(wins * (np.log1p(ratio) - np.log(policies)[:, :, None]), axis=(1, 2))
