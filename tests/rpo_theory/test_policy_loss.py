"""The loss of the direct route against the formula of the paper, its Hessian and constant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory import policy_loss
from rpo_theory.objectives import minimax_objective
from rpo_theory.types import Problem

EXACT = 1e-12  # relative to the largest of the terms that are added

seeds = st.integers(0, 2**32 - 1)


def random_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    wins = rng.poisson(0.7, (2, 4, 4)).astype(np.float64)
    return Problem(
        context_weights=rng.dirichlet(np.ones(2)),
        reference_policy=rng.dirichlet(np.ones(4), 2),
        baseline_policy=rng.dirichlet(np.ones(4), 2),
        wins=wins,
        beta=np.array(10 ** rng.uniform(-1, 1)),
        eta=np.array(10 ** rng.uniform(-1, 1)),
    )


def terms(problem: Problem) -> float:
    return 10.0 * (1.0 + float(problem.eta) * (1.0 + float(problem.beta)))


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_equation_4_8_pair_by_pair(seed: int) -> None:
    problem = random_problem(seed)
    reward = np.random.default_rng(seed).normal(size=(2, 4))
    beta, eta = float(problem.beta), float(problem.eta)
    n_comparisons, expected = problem.wins.sum(), 0.0
    for x in range(2):
        weight = problem.reference_policy[x] * np.exp(reward[x] / beta)
        policy = weight / weight.sum()
        ratio = np.log(policy / problem.reference_policy[x])
        for a in range(4):
            expected -= (
                eta * beta * problem.context_weights[x] * problem.baseline_policy[x, a]
            ) * np.log(policy[a])
            for b in range(4):
                margin = beta * (ratio[a] - ratio[b])
                expected += (
                    problem.wins[x, a, b] * np.log1p(np.exp(-margin)) / max(n_comparisons, 1.0)
                )
    got = float(policy_loss.loss(problem, reward))
    assert got == pytest.approx(expected, rel=EXACT, abs=EXACT * terms(problem))


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_theorem_the_loss_plus_its_constant_is_f(seed: int) -> None:
    problem = random_problem(seed)
    reward = np.random.default_rng(seed).uniform(0, 3, (2, 4))
    got = float(policy_loss.adversarial_value(problem, reward))
    expected = float(minimax_objective(problem, reward))
    assert got == pytest.approx(expected, rel=EXACT, abs=EXACT * terms(problem))


@jax.jit
def hessian_and_conductance(problem: Problem, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
    hessian = jax.hessian(lambda r: policy_loss.loss(problem, r))(reward)
    return hessian, policy_loss.hessian_weights(problem, reward, jnp.asarray(problem.wins).sum())


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gradient_the_edge_weights_are_the_hessian_of_the_loss(seed: int) -> None:
    problem = random_problem(seed)
    reward = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4)))
    hessian, hessian_weights = hessian_and_conductance(problem, reward)
    expected = np.zeros((2, 4, 2, 4))
    for x in range(2):
        expected[x, :, x] = np.diag(hessian_weights[x].sum(axis=1)) - hessian_weights[x]
    np.testing.assert_allclose(hessian, expected, atol=10 * EXACT * terms(problem))


def test_property_losses_of_contexts_add_up_when_divided_by_the_same_count() -> None:
    problem = random_problem(4)
    reward = np.random.default_rng(4).normal(size=(2, 4))
    n_comparisons = jnp.asarray(problem.wins.sum())
    parts = [
        policy_loss.loss(
            Problem(
                context_weights=problem.context_weights[x],
                reference_policy=problem.reference_policy[x],
                baseline_policy=problem.baseline_policy[x],
                wins=problem.wins[x],
                beta=problem.beta,
                eta=problem.eta,
            ),
            reward[x],
            comparisons=n_comparisons,
        )
        for x in range(2)
    ]
    assert float(sum(parts)) == pytest.approx(float(policy_loss.loss(problem, reward)), rel=EXACT)


def test_extreme_responses_outside_the_reference_leave_no_nan_in_value_or_gradient() -> None:
    problem = random_problem(5)
    reference = np.array(problem.reference_policy)
    reference[:, 0] = 0.0
    problem = problem._replace(reference_policy=reference / reference.sum(axis=1, keepdims=True))
    reward = jnp.asarray(np.random.default_rng(5).normal(size=(2, 4)))
    loss, gradient = jax.value_and_grad(lambda r: policy_loss.loss(problem, r))(reward)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(gradient).all()
    assert not policy_loss.policy(problem, reward)[:, 0].any()
    # The limit of a small reference probability.
    nearly = problem._replace(reference_policy=np.maximum(problem.reference_policy, 1e-300))
    assert float(policy_loss.adversarial_value(problem, reward)) == pytest.approx(
        float(minimax_objective(nearly, reward)), rel=EXACT
    )
