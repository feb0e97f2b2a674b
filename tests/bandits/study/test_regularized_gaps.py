"""Regularized gaps against their definition, and their bounds."""

from __future__ import annotations

import jax
import numpy as np

from bandits.environments.designs import Design, draw_design
from bandits.methods.registry import METHODS
from bandits.study.metrics import compute_bound_inputs
from bandits.study.regularized_gaps import (
    RegularizedOptimum,
    regularized_bound,
    regularized_gap,
    regularized_optimum,
)
from rpo_theory.bounds import corrected_modulus, regularized_gap_bound
from rpo_theory.coverage import coverage_coefficient

DRAWS = draw_design(Design(contexts=2, actions=4), 200, np.arange(3))
N = np.full(3, 200.0)
BETA = np.array([0.05, 0.3, 2.0])
COVERED = np.array([True, True, False])


def optimum() -> RegularizedOptimum:
    return regularized_optimum(DRAWS, BETA, covered=COVERED, kernel="jax")


def regularized_value(policy: np.ndarray, index: int) -> float:
    """Return the value minus the penalty, term by term."""
    problem, value = DRAWS.problem, 0.0
    for x, weight in enumerate(problem.context_weights[index]):
        for a, p in enumerate(policy[x]):
            penalty = BETA[index] * np.log(p / problem.reference_policy[index, x, a])
            value += weight * p * (DRAWS.true_reward[index, x, a] - penalty)
    return value


def test_theorem_the_regularized_gap_is_a_divergence() -> None:
    best = optimum()
    problem = DRAWS.problem._replace(beta=BETA)
    fit = METHODS["rpo"](problem, DRAWS.reward_class, baseline="given")
    gap = regularized_gap(fit.policy, best, DRAWS.problem.context_weights)
    for index in range(3):
        shortfall = regularized_value(np.exp(best.log_policy[index]), index)
        shortfall -= regularized_value(fit.policy[index], index)
        np.testing.assert_allclose(gap[index], shortfall, rtol=1e-9, atol=1e-12)
    zero = regularized_gap(np.exp(best.log_policy), best, DRAWS.problem.context_weights)
    np.testing.assert_allclose(zero, 0.0, atol=1e-15)


def test_extreme_a_policy_outside_of_the_reference_has_an_infinite_gap() -> None:
    even, corner = np.full((1, 1, 2), 0.5), np.array([[[1.0, 0.0]]])
    with np.errstate(divide="ignore"):
        best = RegularizedOptimum(np.ones(1), np.log(corner), np.ones(1))
    assert regularized_gap(even, best, np.ones((1, 1))).tolist() == [np.inf]
    assert regularized_gap(corner, best, np.ones((1, 1))).tolist() == [0.0]


def test_closed_form_the_bound_has_the_coverage_of_the_best_policy() -> None:
    best, inputs = optimum(), compute_bound_inputs(DRAWS, N, 0.05)
    eta = np.array([0.1, 0.0, 0.1])
    bound = regularized_bound(best, inputs, comparisons=N, eta=eta)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], DRAWS)
    coverage = coverage_coefficient(
        first.reward_class,
        true_reward=first.true_reward,
        comparator=np.exp(best.log_policy[0]),
        baseline=first.problem.baseline_policy,
        context_weights=first.problem.context_weights,
        pair_distribution=first.pair_distribution,
    )
    terms = {"n_pairs": 200, "complexity": inputs.complexity[0], "eta": 0.1}
    by_hand = regularized_gap_bound(corrected_modulus(1.0), coverage=coverage, **terms)
    np.testing.assert_allclose(bound[0], by_hand, rtol=1e-12)
    assert bound[1] == np.inf
    assert np.isnan(bound[2])
