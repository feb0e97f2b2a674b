"""Newton steps against quadratic programs by SciPy, and the iteration against closed forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from rpo_theory.numerics.projected_newton import (
    NewtonProblem,
    ball_minimizer,
    box_direction,
    into_ball,
    minimize,
)
from rpo_theory.types import ArrayLike

SOLVED = 1e-9  # float64 and a condition number of up to 1e4
ROUNDOFF = 1e-11  # error left by a large but finite reach
FAR = 1e12  # a reach that does not change the Newton system

seeds = st.integers(0, 2**32 - 1)


@jax.jit
def direction_of(*arguments: jax.Array) -> jax.Array:
    return box_direction(*arguments)


@jax.jit
def minimizer_of(*arguments: jax.Array) -> jax.Array:
    return ball_minimizer(*arguments)


def in_box(*arguments: ArrayLike | float) -> np.ndarray:
    return np.asarray(direction_of(*map(jnp.asarray, arguments)))


def in_ball(*arguments: ArrayLike | float) -> np.ndarray:
    return np.asarray(minimizer_of(*map(jnp.asarray, arguments)))


def laplacian(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    weight = np.triu(rng.uniform(0.1, 2.0, (n, n)), 1)
    edge_weights = weight + weight.T
    return edge_weights, np.diag(edge_weights.sum(axis=1)) - edge_weights


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_closed_form_inside_the_box_the_direction_solves_the_newton_system(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edge_weights, hessian = laplacian(rng, 5)
    gradient = rng.normal(size=5)
    gradient -= gradient.mean()
    room = np.full(5, 1e9)
    direction = in_box(edge_weights, gradient, room, room, FAR)
    np.testing.assert_allclose(hessian @ direction, -gradient, atol=SOLVED)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_property_a_direction_descends_and_does_not_cross_active_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edge_weights, _ = laplacian(rng, 6)
    gradient = rng.normal(size=6)
    gradient -= gradient.mean()
    below, above = rng.choice([0.0, 1.0], 6), np.ones(6)
    direction = in_box(edge_weights, gradient, below, above, FAR)
    assert np.all(direction[below == 0] >= 0)
    assert gradient @ direction <= 0


def test_property_a_coordinate_next_to_its_bound_is_sent_to_it_and_the_others_follow() -> None:
    edge_weights, hessian = laplacian(np.random.default_rng(0), 4)
    gradient = np.array([3.0, -1.0, -1.0, -1.0])
    below = np.array([1e-9, 1.0, 1.0, 1.0])
    direction = in_box(edge_weights, gradient, below, np.ones(4), FAR)
    assert direction[0] == -1e-9
    np.testing.assert_allclose((hessian @ direction + gradient)[1:], 0.0, atol=ROUNDOFF)


def test_extreme_groups_without_curvature_move_at_most_by_the_reach() -> None:
    edge_weights = np.zeros((3, 3))
    edge_weights[0, 1] = edge_weights[1, 0] = 1.0
    room = np.full(3, 1e9)
    direction = in_box(edge_weights, np.array([0.25, 0.25, -0.5]), room, room, 4.0)
    # Each side moves by 4 relative to the other; a common shift is free.
    np.testing.assert_allclose(direction - direction[2], [-8.0, -8.0, 0.0], rtol=SOLVED)


def test_extreme_rounding_does_not_shift_unconstrained_components() -> None:
    """The gradient sums to zero up to rounding, and the Hessian is singular for that sum."""
    edge_weights = np.full((3, 3), 0.3) - 0.3 * np.eye(3)
    gradient = np.array([1e-3, -1e-3, 1e-17])
    room = np.full(3, 1e9)
    direction = in_box(edge_weights, gradient, room, room, FAR)
    assert abs(direction.sum()) < SOLVED


@settings(max_examples=40, deadline=None)
@given(seeds)
@example(1369)
def test_parity_the_ball_minimizer_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 4))
    hessian, gradient = root @ root.T + 0.1 * np.eye(4), 3 * rng.normal(size=4)
    point = np.asarray(into_ball(jnp.asarray(rng.normal(size=4)), jnp.asarray(1.0)))
    actual = in_ball(hessian, gradient, point, 1.0)

    def model(y: Any) -> Any:
        return gradient @ (y - point) + 0.5 * (y - point) @ hessian @ (y - point)

    slsqp = optimize.minimize(
        model,
        np.zeros(4),
        jac=lambda y: gradient + hessian @ (y - point),
        constraints={"type": "ineq", "fun": lambda y: 1 - y @ y, "jac": lambda y: -2 * y},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    inside = slsqp.x / max(1.0, np.linalg.norm(slsqp.x))  # SLSQP may end a little outside
    assert np.linalg.norm(actual) <= 1 + SOLVED
    assert model(actual) <= model(inside) + SOLVED
    np.testing.assert_allclose(actual, slsqp.x, atol=1e-5)  # SLSQP stops on the value


def test_extreme_a_flat_direction_of_the_ball_stays_where_it_is() -> None:
    hessian = np.diag([2.0, 0.0])
    actual = in_ball(hessian, np.array([-1.0, 0.0]), np.array([0.0, 0.5]), 3.0)
    np.testing.assert_allclose(actual, [0.5, 0.5], rtol=SOLVED)


def logistic(width: float) -> NewtonProblem:
    """log(1 + e^p) - p / 4 on an interval: its minimum is at -log 3."""
    return NewtonProblem(
        objective=lambda p: jnp.logaddexp(0.0, p[0]) - 0.25 * p[0],
        direction=lambda p, g: -g / (jax.nn.sigmoid(p) * jax.nn.sigmoid(-p)),
        project=lambda p: jnp.clip(p, -width, width),
        movement=lambda p, q: jnp.abs(p - q).max(),
    )


@pytest.mark.parametrize("start", [-10.0, 0.0, 10.0])
def test_closed_form_the_iteration_finds_the_minimum_from_far_away(start: float) -> None:
    actual = minimize(logistic(40.0), jnp.array([start]), tolerance=1e-10, max_steps=100)
    np.testing.assert_allclose(actual.point, -np.log(3.0), rtol=SOLVED)
    assert float(actual.gradient_norm) < 1e-5


def test_closed_form_the_iteration_stops_at_a_bound() -> None:
    actual = minimize(logistic(0.5), jnp.array([0.3]), tolerance=1e-12, max_steps=100)
    np.testing.assert_array_equal(actual.point, [-0.5])
    assert float(actual.gradient_norm) == 0.0


def test_limit_the_iteration_ends_at_its_step_limit() -> None:
    actual = minimize(logistic(40.0), jnp.array([20.0]), tolerance=0.0, max_steps=3)
    assert int(actual.steps) == 3
