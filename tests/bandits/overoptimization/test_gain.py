"""Claims about gains: their definition, and the slope at which curves leave the reference."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jaxtyping import Float

from bandits.methods import chi_squared_policy
from bandits.overoptimization import (
    best_of_n_curve,
    best_of_n_score,
    gibbs_curve,
    initial_slope,
    measure_gain,
    policy_gain,
)
from rpo_theory import minimax
from rpo_theory.rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Polytope,
    RewardClass,
    TabularBox,
    Unbounded,
)
from rpo_theory.types import Problem

RNG = np.random.default_rng(5)
CONTEXTS, ACTIONS = 3, 5
WEIGHTS = np.array([0.6, 0.3, 0.1])
REFERENCE = RNG.dirichlet(np.ones(ACTIONS), CONTEXTS)
TRUTH = RNG.uniform(0.0, 2.0, (CONTEXTS, ACTIONS))
PROXY = TRUTH + RNG.normal(0.0, 1.0, (CONTEXTS, ACTIONS))
SMALL = np.array([2e4, 1e4])
"""Values of beta so large that the policies are close to the reference."""
FEATURES = RNG.normal(size=(CONTEXTS, ACTIONS, 4))
POINTS = FEATURES.reshape(-1, 4)
DISTANCE = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=-1)
CLASSES: dict[str, RewardClass] = {
    "tabular": TabularBox(np.array(2.0)),
    "linear": LinearBall(FEATURES, np.array(1.0)),
    "kernel": KernelBall(POINTS @ POINTS.T + 0.1 * np.eye(len(POINTS)), np.array(1.0)),
    "lipschitz": Lipschitz(np.array(0.5), DISTANCE, np.array(2.0)),
    "polytope": Polytope(
        RNG.normal(size=(3, CONTEXTS, ACTIONS)), np.full(3, 4.0), maximum=np.array(2.0)
    ),
    "finite": FiniteClass(RNG.uniform(0.0, 2.0, (6, CONTEXTS, ACTIONS))),
    "unbounded": Unbounded(),
}


def problem() -> Problem:
    """Return data in which every pair of a context was compared."""
    rng = np.random.default_rng(7)
    counts = rng.integers(3, 9, (CONTEXTS, ACTIONS, ACTIONS))
    rate = 1.0 / (1.0 + np.exp(TRUTH[:, None, :] - TRUTH[:, :, None]))
    wins = rng.binomial(counts, rate).astype(float) * (1.0 - np.eye(ACTIONS))
    return Problem(WEIGHTS, REFERENCE, REFERENCE, wins, np.array(0.5), np.array(0.05))


def within_covariance(first: Float[np.ndarray, "x a"], second: Float[np.ndarray, "x a"]) -> float:
    """Return the mean over the contexts of the covariance under the reference, by sums."""
    covariances = [
        p @ (a * b) - (p @ a) * (p @ b) for p, a, b in zip(REFERENCE, first, second, strict=True)
    ]
    return float(WEIGHTS @ np.array(covariances))


def slope_of(score: np.ndarray) -> float:
    return np.sqrt(2.0) * within_covariance(TRUTH, score) / within_covariance(score, score) ** 0.5


slope = jax.jit(initial_slope)
along_beta = jax.jit(gibbs_curve)


def test_closed_form_gain_is_the_difference_of_the_expected_rewards() -> None:
    policy = RNG.dirichlet(np.ones(ACTIONS), CONTEXTS)
    expected = WEIGHTS @ ((policy * TRUTH).sum(axis=1) - (REFERENCE * TRUTH).sum(axis=1))
    measured = measure_gain(policy, PROXY, TRUTH, REFERENCE, WEIGHTS)
    assert float(measured.true_gain) == pytest.approx(expected, abs=1e-14)
    kl = WEIGHTS @ (policy * np.log(policy / REFERENCE)).sum(axis=1)
    assert float(measured.kl) == pytest.approx(kl, abs=1e-14)
    assert float(measured.sqrt_kl) == pytest.approx(kl**0.5, abs=1e-14)
    infinite = np.where(np.arange(ACTIONS) == 0, -np.inf, PROXY)
    first = np.eye(ACTIONS)[np.zeros(CONTEXTS, int)]
    assert float(policy_gain(first, infinite, REFERENCE, WEIGHTS)) == -np.inf
    assert float(policy_gain(REFERENCE, infinite, REFERENCE, WEIGHTS)) == 0.0


def test_limit_gibbs_policies_leave_with_the_slope_of_the_covariance() -> None:
    curve = along_beta(PROXY, TRUTH, REFERENCE, WEIGHTS, SMALL)
    expected = float(slope(PROXY, TRUTH, REFERENCE, WEIGHTS))
    assert expected == pytest.approx(slope_of(PROXY), rel=1e-12)
    ratio = np.asarray(curve.true_gain / curve.sqrt_kl)
    assert abs(ratio - expected).max() < 1e-3
    # The error is of first order in d: it halves as d halves.
    assert abs(ratio[0] - expected) < 0.6 * abs(ratio[1] - expected)
    proxy_slope = float(curve.proxy_gain[0] / curve.sqrt_kl[0])
    assert proxy_slope == pytest.approx((2 * within_covariance(PROXY, PROXY)) ** 0.5, rel=1e-3)


def test_limit_best_of_n_leaves_with_the_slope_of_its_score() -> None:
    ns = np.array([1.0 + 1e-4])
    curve = jax.jit(best_of_n_curve)(PROXY, TRUTH, REFERENCE, WEIGHTS, ns)
    score = np.asarray(jax.jit(best_of_n_score)(PROXY, REFERENCE))
    assert float(curve.true_gain[0] / curve.sqrt_kl[0]) == pytest.approx(slope_of(score), rel=1e-3)
    assert slope_of(score) != pytest.approx(slope_of(PROXY), rel=1e-2)


def test_limit_chi_po_leaves_with_the_slope_of_its_reward() -> None:
    policy = jax.jit(chi_squared_policy)(PROXY, REFERENCE, 1e4)
    measured = measure_gain(policy, PROXY, TRUTH, REFERENCE, WEIGHTS)
    assert float(measured.true_gain / measured.sqrt_kl) == pytest.approx(slope_of(PROXY), rel=1e-3)


def test_property_no_score_has_a_larger_slope_than_the_true_reward() -> None:
    most = float(slope(TRUTH, TRUTH, REFERENCE, WEIGHTS))
    assert most == pytest.approx((2 * within_covariance(TRUTH, TRUTH)) ** 0.5, rel=1e-12)
    for seed in range(20):
        score = np.random.default_rng(seed).normal(size=TRUTH.shape)
        assert float(slope(score, TRUTH, REFERENCE, WEIGHTS)) <= most
    shifted = 3.0 * TRUTH + np.array([[1.0], [-2.0], [5.0]])
    assert float(slope(shifted, TRUTH, REFERENCE, WEIGHTS)) == pytest.approx(most, rel=1e-12)


def test_extreme_a_score_that_is_constant_in_every_context_has_no_slope() -> None:
    constant = np.array([[0.3], [-7.0], [1e3]]) * np.ones((CONTEXTS, ACTIONS))
    assert np.isnan(slope(constant, TRUTH, REFERENCE, WEIGHTS))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLASSES))
def test_limit_the_slope_of_fitted_rewards_is_that_of_the_formula_in_every_class(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = np.asarray(minimax.solve(problem(), CLASSES[name]).reward)
    curve = along_beta(reward, TRUTH, REFERENCE, WEIGHTS, SMALL)
    ratio = float(curve.true_gain[0] / curve.sqrt_kl[0])
    with capsys.disabled():
        print(f"\n{name}: relative error of the slope {abs(ratio / slope_of(reward) - 1.0):.1e}")
    assert ratio == pytest.approx(slope_of(reward), rel=1e-2)
