"""Reward ensembles and Thompson sampling against their definitions, by NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax

from bandits.methods.base import FitContext
from bandits.methods.registry import METHODS
from bandits.methods.reward_uncertainty import bootstrap_wins
from rpo_theory.rewards import LinearBall, TabularBox
from rpo_theory.types import Problem, Status

BOX: Any = TabularBox(np.array([0.5, 1.0, 2.0]))


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(7)
    return Problem(
        context_weights=rng.dirichlet(np.ones(2), 3),
        reference_policy=rng.dirichlet(np.ones(3), (3, 2)),
        baseline_policy=rng.dirichlet(np.ones(3), (3, 2)),
        wins=rng.integers(1, 9, (3, 2, 3, 3)) * (1.0 - np.eye(3)),
        beta=np.array([0.3, 0.5, 1.0]),
        eta=np.array([0.2, 1.0, 0.5]),
    )


def seeds(*values: int) -> FitContext:
    return FitContext(seeds=np.array(values))


@pytest.mark.parametrize("rule", ["min", "std", "variance", "mean"])
def test_limit_one_member_without_bootstrap_is_two_stage(rule: str, problem: Any) -> None:
    options: Any = {"ensemble_members": 1, "ensemble_bootstrap": False, "ensemble_rule": rule}
    fit = METHODS["reward_ensemble"](problem, BOX, **options)
    np.testing.assert_allclose(fit.policy, METHODS["two_stage"](problem, BOX).policy, atol=1e-12)
    assert fit.certificate.max() <= 1e-9


@pytest.mark.parametrize("rule", ["min", "std", "variance"])
def test_closed_form_the_policy_is_the_gibbs_policy_of_the_combined_members(
    rule: str, problem: Any
) -> None:
    options: Any = {"ensemble_members": 3, "ensemble_rule": rule, "ensemble_coefficient": 0.7}
    fit = METHODS["reward_ensemble"](problem, BOX, context=seeds(4, 5, 6), **options)
    assert (fit.status == Status.SOLVED).all()
    members = []
    for member in range(3):
        wins = bootstrap_wins(problem.wins, np.array([4, 5, 6]), member)
        reward = METHODS["two_stage"](problem._replace(wins=wins), BOX).reward
        members.append(reward - (problem.reference_policy * reward).sum(-1, keepdims=True))
    deviation = {"std": np.std(members, axis=0), "variance": np.var(members, axis=0)}
    combined = np.min(members, axis=0)
    if rule != "min":
        combined = np.mean(members, axis=0) - 0.7 * deviation[rule]
    logits = np.log(problem.reference_policy) + combined / problem.beta[:, None, None]
    np.testing.assert_allclose(fit.policy, softmax(logits, axis=-1), atol=1e-12)


def test_property_bootstrap_samples_have_the_counts_and_the_mean_of_the_data() -> None:
    wins = np.array([[[[0.0, 6.0], [2.0, 0.0]]], [[[0.0, 0.5], [0.0, 0.0]]], [[[0.0] * 2] * 2]])
    samples = np.array([bootstrap_wins(wins, np.arange(3), member) for member in range(2000)])
    assert (samples.sum(axis=(2, 3, 4)) == wins.sum(axis=(1, 2, 3))).all()
    assert (samples[:, wins == 0] == 0).all()
    np.testing.assert_allclose(samples.mean(axis=0), wins, atol=5 * np.sqrt(1.5 / 2000))
    np.testing.assert_allclose(samples[:, 0, 0, 0, 1].var(), 8 * 0.75 * 0.25, rtol=0.15)


@pytest.mark.parametrize("method", ["reward_ensemble", "thompson"])
def test_property_only_the_seed_of_a_draw_decides_its_random_numbers(
    method: str, problem: Any
) -> None:
    def fit(*values: int) -> np.ndarray:
        return METHODS[method](problem, BOX, context=seeds(*values)).policy

    first, second = fit(4, 5, 6), fit(4, 9, 6)
    np.testing.assert_array_equal(first[[0, 2]], second[[0, 2]])
    assert np.abs(first[1] - second[1]).max() > 1e-3


def negative_log_posterior(point: np.ndarray, problem: Any, index: int, deviation: float) -> float:
    """Return it for rewards with a normal prior; the prior's mean does not matter per prompt."""
    reward = point.reshape(2, 3)
    margin = reward[:, :, None] - reward[:, None, :]
    centered = reward - BOX.maximum[index] / 2
    loss = np.sum(problem.wins[index] * np.logaddexp(0.0, -margin))
    return float(loss + 0.5 * np.sum(centered**2) / deviation**2)


def test_parity_without_posterior_noise_thompson_plays_the_posterior_mode(
    problem: Any,
) -> None:
    options: Any = {"thompson_scale": 0.0, "thompson_prior_scale": 0.3}
    fit = METHODS["thompson"](problem, BOX, **options)
    assert (fit.status == Status.SOLVED).all()
    for i, width in enumerate(BOX.maximum):
        arguments = (problem, i, 0.3 * width / np.sqrt(12))
        start = np.full(6, width / 2)
        mode = minimize(negative_log_posterior, start, arguments, options={"gtol": 1e-8}).x
        np.testing.assert_allclose(fit.reward[i], mode.reshape(2, 3), atol=2e-6)
        logits = np.log(problem.reference_policy[i]) + mode.reshape(2, 3) / problem.beta[i]
        np.testing.assert_allclose(fit.policy[i], softmax(logits, axis=-1), atol=1e-5)


def test_property_draws_have_the_covariance_of_the_inverse_hessian(problem: Any) -> None:
    copies = 2048
    # One pair with most of the data makes the Hessian far from diagonal.
    wins = problem.wins.copy()
    wins[:, :, :2, :2] *= 60.0
    problem = problem._replace(wins=wins)
    many: Any = [np.repeat(np.asarray(leaf)[2:], copies, axis=0) for leaf in problem[:6]]
    # A prior far narrower than the box, so that no draw is clipped.
    options: Any = {"thompson_prior_scale": 0.25}
    box = TabularBox(np.full(copies, 2.0))
    context = FitContext(seeds=np.arange(copies))
    draws = METHODS["thompson"](Problem(*many), box, context=context, **options).reward
    mode = METHODS["thompson"](problem, BOX, thompson_scale=0.0, **options).reward[2]
    hessian = np.eye(6) * 12 / (0.25 * 2.0) ** 2
    for x, a, b in np.ndindex(2, 3, 3):
        slope = expit(mode[x, a] - mode[x, b]) * expit(mode[x, b] - mode[x, a])
        direction = np.zeros(6)
        direction[3 * x + a] += 1.0
        direction[3 * x + b] -= 1.0
        hessian += problem.wins[2, x, a, b] * slope * np.outer(direction, direction)
    root = np.linalg.cholesky(hessian)
    whitened = (draws.reshape(copies, 6) - mode.ravel()) @ root
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(6), atol=5 * np.sqrt(2 / copies))
    np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=5 / np.sqrt(copies))


def test_property_draws_are_members_of_their_class(problem: Any) -> None:
    options: Any = {"thompson_scale": 30.0, "context": seeds(1, 2, 3)}
    reward = METHODS["thompson"](problem, BOX, **options).reward
    assert (reward >= 0).all()
    assert (reward <= BOX.maximum[:, None, None]).all()
    features = np.random.default_rng(3).normal(size=(3, 2, 3, 2))
    ball: Any = LinearBall(features, np.array([0.2, 0.5, 1.0]))
    reward = METHODS["thompson"](problem, ball, **options).reward
    for i, radius in enumerate(ball.radius):
        theta, *_ = np.linalg.lstsq(features[i].reshape(6, 2), reward[i].ravel(), rcond=None)
        assert np.linalg.norm(theta) == pytest.approx(radius, rel=1e-9)
        np.testing.assert_allclose(features[i] @ theta, reward[i], atol=1e-12)
