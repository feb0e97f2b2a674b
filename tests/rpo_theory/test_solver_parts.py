"""Parts of the solvers, on one context with two responses and a known minimizer."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import minimax, saddle_columns, saddle_forms, sensitivity
from rpo_theory._tracing import solver_of_one
from rpo_theory.numerics import saddle_interior_point
from rpo_theory.objectives import saddle_objective
from rpo_theory.rewards import FiniteClass, TabularBox
from rpo_theory.types import Problem, Solution, Status

BOX = TabularBox(np.array(4.0))
LIKELIEST = 2.0 + 0.5 * np.log(3.0) * np.array([[1.0, -1.0]])
"""Reward of largest likelihood, centered in the box: the margin is the logarithm of the odds."""


def three_to_one(eta: float) -> Problem:
    even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
    problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(eta))
    return jax.tree.map(jnp.asarray, problem)


def likeliest(problems: Problem, classes: Any) -> Solution:
    """Answer a batch of one with the reward of largest likelihood, off by 0.01."""
    reward = jnp.asarray(LIKELIEST)[None] + jnp.array([0.01, -0.01])
    status = jnp.full(1, Status.SOLVED.value)
    return Solution(reward, reward, jnp.zeros(1), status, {})


def test_closed_form_tangent_of_the_likeliest_reward() -> None:
    """The log odds log(n / 1) move by 1/n, half on each side."""
    problem = three_to_one(0.0)
    primals = (problem, jax.tree.map(jnp.asarray, BOX))
    still, box = jax.tree.map(jnp.zeros_like, primals)
    direction = still._replace(wins=jnp.zeros((1, 2, 2)).at[0, 0, 1].set(1.0))
    tangent = jax.jit(sensitivity.tangent)
    move = tangent(jnp.asarray(LIKELIEST), primals, (direction, box))
    np.testing.assert_allclose(move, [[1 / 6, -1 / 6]], rtol=1e-12)


def test_property_vmap_calls_the_solver_once_for_the_whole_batch() -> None:
    sizes = []

    def solver(problems: Problem, classes: Any) -> Solution:
        eta, policy = jnp.asarray(problems.eta), jnp.asarray(problems.reference_policy)
        sizes.append(len(eta))
        return Solution(policy, policy, eta, jnp.zeros(len(eta), int), {})

    def value(eta: Any) -> Any:
        problem = three_to_one(0.0)._replace(eta=eta)
        return solver_of_one(solver)(problem, jax.tree.map(jnp.asarray, BOX)).objective

    values = jax.vmap(value)(jnp.array([0.5, 1.0, 2.0]))
    np.testing.assert_array_equal(values, [0.5, 1.0, 2.0])
    assert sizes.count(3) == 1


def test_closed_form_solution_is_polished() -> None:
    solver = jax.jit(partial(sensitivity.solution, likeliest))
    found = solver(three_to_one(0.0), jax.tree.map(jnp.asarray, BOX))
    np.testing.assert_allclose(found.reward, LIKELIEST, rtol=1e-13)
    np.testing.assert_allclose(found.policy, [[0.75, 0.25]], rtol=1e-13)


def test_raises_a_derivative_of_the_other_routes() -> None:
    def value(eta: Any) -> Any:
        problem = three_to_one(0.0)._replace(eta=eta)
        return sensitivity.solution_without_derivative(likeliest, problem, BOX).objective

    with pytest.raises(NotImplementedError, match=r"minimax\.solve"):
        jax.grad(value)(jnp.array(0.5))


def test_property_an_unproven_claim_is_withdrawn() -> None:
    solver = jax.jit(partial(sensitivity.solution_without_derivative, likeliest))
    found = solver(three_to_one(0.0), jax.tree.map(jnp.asarray, BOX))
    assert Status(int(found.status)) == Status.MAX_STEPS


def test_parity_solver_on_columns_with_minimax() -> None:
    problem = three_to_one(0.5)
    exact = minimax.solve(problem, BOX)
    solver = partial(saddle_columns.solve, tolerance=1e-9, max_steps=100)
    found = jax.jit(solver)(problem, jax.tree.map(jnp.asarray, BOX))
    np.testing.assert_allclose(found.policy, exact.policy, atol=1e-6)
    np.testing.assert_allclose(found.objective, exact.objective, atol=1e-9)


def test_property_lower_bound_of_any_reward_is_below_the_exact_one() -> None:
    problem = three_to_one(0.0)
    policy = jnp.full((1, 2), 0.5)
    bound = partial(saddle_columns.lower_bound, problem, BOX, policy)
    exact = saddle_objective(problem, policy, LIKELIEST)
    np.testing.assert_allclose(bound(jnp.asarray(LIKELIEST)), exact, rtol=1e-12)
    assert bound(jnp.full((1, 2), 2.0)) < exact


def test_closed_form_adversary_takes_the_likeliest_member_of_a_mixture() -> None:
    problem = three_to_one(0.5)
    members = jnp.array([[[0.0, 0.0]], [[0.0, 4.0]]])
    game = saddle_forms.mixture_problem(problem, members)
    state = saddle_interior_point.init(game)
    for member in (0, 1):
        stacked = state._replace(adversary=jnp.eye(2)[member])
        stacked = jax.tree.map(lambda leaf: leaf[None], stacked)
        reward = saddle_forms.adversary_reward(problem, FiniteClass(members), stacked)
        np.testing.assert_array_equal(reward, members[member])
