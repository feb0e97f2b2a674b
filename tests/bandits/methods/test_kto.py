"""KTO on tables against SciPy on its loss, a formula, and a limit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from bandits.methods.registry import METHODS
from rpo_theory import losses
from rpo_theory.rewards import Unbounded
from rpo_theory.types import Problem, Status


def two_good_responses(beta: float, seed: int = 0) -> Any:
    """Three problems in which the first two responses win more often than they lose."""
    rng = np.random.default_rng(seed)
    wins = np.zeros((3, 2, 3, 3))
    wins[..., 0, 1], wins[..., 1, 0] = 2.0, 1.0
    wins[..., :2, 2] = rng.integers(3, 12, (3, 2, 2))
    wins[..., 2, :2] = rng.integers(0, 2, (3, 2, 2))
    reference = rng.dirichlet(np.full(3, 3.0), (3, 2))
    even = np.full((3, 2), 0.5)
    return Problem(even, reference, reference, wins, np.full(3, beta), np.ones(3))


def mean_loss(
    share: float, wins: np.ndarray, reference: np.ndarray, point: float, beta: float, weight: float
) -> float:
    """Return the loss of the pairs of a prompt for the policy (share, 1 - share, 0)."""
    log_policy = np.array([np.log(share), np.log1p(-share), -1e5])
    winner, loser = np.nonzero(wins)
    responses = np.concatenate([winner, loser])
    loss = losses.kto(
        jnp.asarray(log_policy[responses]),
        jnp.log(reference[responses]),
        jnp.arange(len(responses)) < len(winner),
        beta=beta,
        reference_point=point,
        desirable_weight=weight,
    )
    return float(np.tile(wins[winner, loser], 2) @ np.asarray(loss))


@pytest.mark.parametrize(
    ("point", "beta", "weight"), [("kl", 0.1, 1.0), ("kl", 0.9, 1.3), ("zero", 0.5, 1.0)]
)
def test_parity_kto_minimizes_its_loss_at_the_reference_point_of_its_policy(
    point: str, beta: float, weight: float
) -> None:
    problem = two_good_responses(beta)
    options: Any = {"kto_reference_point": point, "kto_desirable_weight": weight}
    fit = METHODS["kto"](problem, Unbounded(), **options)
    assert (fit.status == Status.SOLVED).all()
    assert (fit.policy[..., 2] == 0).all()
    for i, x in np.ndindex(3, 2):
        policy, reference = fit.policy[i, x, :2], problem.reference_policy[i, x]
        z = float(policy @ np.log(policy / reference[:2])) if point == "kl" else 0.0
        arguments = (problem.wins[i, x], reference, z, beta, weight)
        limits: Any = {"bounds": (1e-9, 1 - 1e-9), "options": {"xatol": 1e-10}}
        best: Any = minimize_scalar(mean_loss, args=arguments, method="bounded", **limits)
        assert policy[0] == pytest.approx(best.x, abs=3e-6)


def test_limit_of_small_beta_shares_mass_by_the_net_wins() -> None:
    problem = two_good_responses(1e-7)
    fit = METHODS["kto"](problem, Unbounded())
    net = np.maximum(problem.wins.sum(axis=3) - problem.wins.sum(axis=2), 0.0)
    np.testing.assert_allclose(fit.policy, net / net.sum(axis=2, keepdims=True), atol=1e-6)


def test_closed_form_the_only_net_winner_is_always_played_and_even_data_change_nothing() -> None:
    problem = two_good_responses(0.1)
    wins = np.zeros_like(problem.wins)
    wins[:, 0, 1, 0], wins[:, 1, 1, 0], wins[:, 1, 0, 1] = 4.0, 2.0, 2.0
    fit = METHODS["kto"](problem._replace(wins=wins), Unbounded())
    np.testing.assert_array_equal(fit.policy[:, 0], np.tile([0.0, 1.0, 0.0], (3, 1)))
    np.testing.assert_array_equal(fit.policy[:, 1], problem.reference_policy[:, 1])


def test_property_a_beta_above_one_is_not_certified() -> None:
    fit = METHODS["kto"](two_good_responses(1.5), Unbounded())
    assert np.isinf(fit.certificate).all()
    assert (fit.status == Status.MAX_STEPS).all()
    np.testing.assert_allclose(fit.policy.sum(axis=-1), 1.0, rtol=1e-12)


def test_property_the_certificate_bounds_the_distance_from_the_best_loss() -> None:
    from bandits.methods.kto import _linear_gap

    problem = two_good_responses(0.6)
    wins, reference = problem.wins[0, 0], problem.reference_policy[0, 0]
    net = wins.sum(axis=1) - wins.sum(axis=0)
    kept = net > 0
    level = np.where(kept, np.log(np.abs(net) * 0.6 / reference), 0.0)
    options: Any = {"bounds": (1e-9, 1 - 1e-9), "options": {"xatol": 1e-10}}
    for share in (0.02, 0.3, 0.7, 0.98):
        policy = np.array([share, 1 - share, 0.0])
        log_ratio = np.log(np.where(kept, policy, 1.0) / reference)
        point = float(policy[:2] @ log_ratio[:2])
        arguments = (wins, reference, point, 0.6, 1.0)
        best: Any = minimize_scalar(mean_loss, args=arguments, method="bounded", **options)
        gap = _linear_gap(*map(jnp.asarray, (kept, level, log_ratio, policy, point, 0.6)))
        assert float(gap) >= mean_loss(share, *arguments) - float(best.fun) - 1e-9
