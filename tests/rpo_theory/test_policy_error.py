"""Claims about the distance of a certified policy from the exact one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rpo_theory import minimax
from rpo_theory.certificate import certify
from rpo_theory.policies import kl_divergence, total_variation
from rpo_theory.policy_error import policy_error
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

BOX = TabularBox(1.5)


def random_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    reference, baseline = rng.dirichlet(np.ones(3), size=(2, 2))
    wins = rng.integers(0, 5, (2, 3, 3)).astype(float) * (1 - np.eye(3))
    return Problem(np.array([0.3, 0.7]), reference, baseline, wins, np.array(0.4), np.array(0.2))


@pytest.mark.parametrize("seed", range(4))
def test_theorem_the_gap_bounds_the_distance_from_the_exact_policy(seed: int) -> None:
    problem = random_problem(seed)
    exact = minimax.solve(problem, BOX)
    rng = np.random.default_rng(seed)
    for size in (1e-3, 0.1, 1.0):
        policy = (1 - size) * exact.policy + size * rng.dirichlet(np.ones(3), size=2)
        reward = np.clip(exact.reward + size * rng.normal(size=(2, 3)), 0.0, 1.5)
        bound = policy_error(problem, certify(problem, BOX, policy, reward).duality_gap)
        weights = problem.context_weights
        assert weights @ np.asarray(kl_divergence(policy, exact.policy)) <= bound.kl
        assert weights @ np.asarray(total_variation(policy, exact.policy)) <= bound.total_variation


def test_closed_form_the_bound_is_attained_where_one_reward_is_worst_for_all_policies() -> None:
    """Without data, and with a baseline of one response, only that one has a positive reward."""
    reference, baseline = np.array([[0.6, 0.4]]), np.array([[0.0, 1.0]])
    problem = Problem(np.ones(1), reference, baseline, np.zeros((1, 2, 2)), 0.4, 0.2)
    exact = minimax.solve(problem, BOX)
    np.testing.assert_allclose(exact.reward, [[0.0, 1.5]], atol=1e-9)
    for share in (0.1, 0.5, 0.9):
        policy = np.array([[share, 1.0 - share]])
        bound = policy_error(problem, certify(problem, BOX, policy, exact.reward).duality_gap)
        np.testing.assert_allclose(bound.kl, kl_divergence(policy, exact.policy)[0], rtol=1e-6)


def test_limit_without_adversarial_term_there_is_no_bound() -> None:
    bound = policy_error(random_problem(0)._replace(eta=np.array(0.0)), 1e-12)
    assert bound.kl == np.inf
    assert bound.total_variation == 1.0


def test_parity_traced_bounds_equal_the_concrete_ones() -> None:
    problem, gaps = random_problem(0), np.array([0.0, 1e-9, 1e-3, np.inf])
    concrete = [policy_error(problem, gap) for gap in gaps]
    with jax.enable_x64(True):
        traced = jax.jit(jax.vmap(policy_error, in_axes=(None, 0)))(problem, gaps)
    np.testing.assert_allclose(traced.kl, [bound.kl for bound in concrete])
    np.testing.assert_allclose(
        traced.total_variation, [bound.total_variation for bound in concrete]
    )
