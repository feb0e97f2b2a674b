"""Metrics of policies and bounds, on an instance that can be computed by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bandits.environments.base import Instance, best_action_policy
from bandits.environments.designs import Design, draw_design
from bandits.methods.base import FitResult
from bandits.study.metrics import (
    BoundInputs,
    compute_bound_inputs,
    eta_by_rule,
    gap_bounds,
    is_member,
    kl_to_reference,
    measure_policy,
)
from rpo_theory.rewards import TabularBox, Unbounded
from rpo_theory.types import Problem, Status

TRUTH = np.array([[[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]]])


@pytest.fixture
def instance() -> Instance:
    """Return two prompts with weights 1/4 and 3/4, three responses and uniform pairs."""
    even = np.full((1, 2, 3), 1 / 3)
    weights = np.array([[0.25, 0.75]])
    problem = Problem(weights, even, even, np.zeros((1, 2, 3, 3)), np.ones(1), np.ones(1))
    pair_distribution = (
        np.broadcast_to((1 - np.eye(3)) / 6.0, (1, 2, 3, 3)) * weights[..., None, None]
    )
    return Instance(
        problem,
        TabularBox(np.array([2.0])),
        TRUTH,
        best_action_policy(TRUTH[0])[None],
        pair_distribution,
    )


def test_closed_form_gaps_values_and_divergence(instance: Instance) -> None:
    policy = np.array([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    reward = np.array([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    result = FitResult(policy, reward, np.zeros(1), "closed_form", np.array([Status.SOLVED]))
    measured = {name: float(value[0]) for name, value in measure_policy(result, instance).items()}
    # J: best 1/4 * 1 + 3/4 * 2, fitted 1/4 * 1/2 + 3/4 * 2, uniform 1/4 * 1/2 + 3/4 * 2/3.
    assert measured["gap"] == pytest.approx(0.125)
    assert measured["gap_baseline"] == measured["gap_reference"] == pytest.approx(-1.0)
    assert measured["true_value"] == pytest.approx(1.0)
    assert measured["proxy_value"] == pytest.approx(0.25 * (1 - 2 / 3) + 0.75 * (1 - 1 / 3))
    expected = 0.25 * np.log(3 / 2) + 0.75 * np.log(3)
    assert measured["kl"] == float(kl_to_reference(policy, instance)[0]) == pytest.approx(expected)


def test_closed_form_the_inputs_of_the_bounds(instance: Instance) -> None:
    inputs = compute_bound_inputs(instance, np.array([100.0]), 0.05)
    assert float(inputs.comparator_kl[0]) == pytest.approx(np.log(3))
    assert float(inputs.reward_max[0]) == 2.0
    # Pairs are uniform: C is the norm of comparator minus baseline, 4/9 + 1/9 + 1/9 per prompt.
    assert float(inputs.coverage[0]) == pytest.approx(np.sqrt(2 / 3))
    safer = compute_bound_inputs(instance, np.array([100.0]), 0.005)
    assert float(safer.complexity[0] - inputs.complexity[0]) > 0.0
    with pytest.raises(ValueError, match="`reward_class` must be compact"):
        compute_bound_inputs(instance._replace(reward_class=Unbounded()), np.array([100.0]), 0.05)


def test_parity_the_inputs_of_the_bounds_agree_between_the_kernels() -> None:
    draws = draw_design(Design(contexts=2, actions=4, rare=1), 50, np.arange(6))
    # Classes and numbers of comparisons that repeat, and that change.
    maxima, n = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 1.0]), np.array([9.0, 9.0, 9.0, 9.0, 99.0, 99.0])
    draws = draws._replace(reward_class=TabularBox(maxima))
    by_jax, by_numba = (compute_bound_inputs(draws, n, 0.05, name) for name in ("jax", "numba"))
    for first, second in zip(by_jax, by_numba, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], draws) for i in range(6)]
    each = [compute_bound_inputs(row, n[i : i + 1], 0.05) for i, row in enumerate(rows)]
    assert by_jax.complexity.tolist() == [float(inputs.complexity[0]) for inputs in each]


def test_closed_form_the_etas_of_the_theorem_do_not_depend_on_coverage() -> None:
    inputs = BoundInputs(
        np.array([9.0, 9.0]), np.zeros(2), np.array([0.0, 1.0]), np.array([2.0, 3.0])
    )
    n = np.array([100.0, 400.0])
    printed = np.sqrt(24 / n) * inputs.complexity / (1 + np.exp(inputs.reward_max)) ** 2
    np.testing.assert_allclose(eta_by_rule(inputs, n, "theorem"), printed, rtol=1e-14)
    # The sharpest modulus is an eighth of the slope of the sigmoid at the widest difference.
    slope = 1 / (2 + np.exp(inputs.reward_max) + np.exp(-inputs.reward_max))
    tight = np.sqrt(24 * slope / 8 / n) * inputs.complexity
    np.testing.assert_allclose(eta_by_rule(inputs, n, "tight"), tight, rtol=1e-14)


def test_closed_form_bounds_are_equation_a44_with_three_moduli() -> None:
    inputs = BoundInputs(np.array([3.0]), np.array([0.7]), np.array([1.0]), np.array([2.0]))
    n, eta, beta = np.array([100.0]), np.array([0.4]), np.array([0.1])
    weights = {"comparisons": n, "beta": beta, "valid": np.array([True])}
    bounds = gap_bounds(inputs, eta=eta, **weights)
    printed = (1 + np.e) ** -4
    tight = 1 / (2 + np.e + 1 / np.e) / 8
    for name, modulus in (("", printed / 2), ("_printed", printed), ("_tight", tight)):
        terms = 9 * eta / (8 * modulus), 3 * 4 / (eta * n), beta * 0.7
        np.testing.assert_allclose(bounds[f"bound{name}"], sum(terms), rtol=1e-12)
        if not name:
            for term, value in zip(("coverage", "complexity", "kl"), terms, strict=True):
                np.testing.assert_allclose(bounds[f"bound_{term}"], value, rtol=1e-9)
    assert gap_bounds(inputs, eta=0.0 * eta, **weights)["bound"] == [np.inf]


def test_limit_bounds_are_nan_where_assumption_51_fails(instance: Instance) -> None:
    n, eta, beta = np.array([1e10]), np.array([0.4]), np.array([0.1])
    inputs = compute_bound_inputs(instance, n, 0.05)
    weights = {"comparisons": n, "eta": eta, "beta": beta}
    assert all(map(np.isfinite, gap_bounds(inputs, **weights, valid=np.array([True])).values()))
    noisy = gap_bounds(inputs, **weights, valid=np.array([False]))
    assert all(map(np.isnan, noisy.values()))
    outside = instance._replace(reward_class=TabularBox(np.array([1.0])))
    assert is_member(instance).tolist() == [True]
    assert is_member(outside).tolist() == [False]
    misspecified = compute_bound_inputs(outside, n, 0.05)
    assert np.isnan(misspecified.coverage).all()
    bounds = gap_bounds(misspecified, **weights, valid=np.array([True]))
    assert all(map(np.isnan, bounds.values()))
