"""Feasible sets of the maximin adversary: maps, derivatives and Newton moves by calculus."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.numerics import feasible_sets
from rpo_theory.numerics.feasible_sets import Ball, Box, FeasibleSet, Free, Simplex, Smooth

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 4, 3))
NAMES = ("box", "free", "ball", "simplex")
EVERY = pytest.mark.parametrize("name", NAMES)


def made(name: str) -> tuple[FeasibleSet, jax.Array]:
    """Return a set and a point inside it, in the dtype of the test."""
    match name:
        case "box":
            return Box(), jnp.array([0.2, 0.5, 0.9, 0.4])
        case "free":
            return Free(), jnp.array([-1.0, 2.0, 0.0, 0.3])
        case "ball":
            return Ball(jnp.asarray(FEATURES)), jnp.array([0.3, -0.2, 0.5])
        case _:
            losses = jnp.array([0.1, 0.7, 0.4])
            return Simplex(jnp.asarray(FEATURES), losses), jnp.array([0.2, 0.5, 0.3])


@EVERY
def test_closed_form_adjoint_form_applies_the_adjoint_on_both_sides(name: str) -> None:
    rewards, point = made(name)
    n_prompts, n_actions = feasible_sets.reward(rewards, point).shape
    matrix = jnp.asarray(RNG.normal(size=(n_prompts, n_actions, n_actions)))
    columns = []
    for unit in jnp.eye(point.size):
        table = jnp.einsum("xab,xb->xa", matrix, feasible_sets.reward(rewards, unit))
        columns.append(feasible_sets.adjoint(rewards, table))
    expected = jnp.stack(columns, axis=1)
    np.testing.assert_allclose(feasible_sets.adjoint_form(rewards, matrix), expected, atol=1e-12)


@EVERY
def test_gradient_bound_maps_are_the_derivative_of_the_slack_and_its_transpose(name: str) -> None:
    rewards, point = made(name)
    along, transpose = feasible_sets.bound_maps(rewards, point)
    slacks = feasible_sets.slack(rewards, point)
    move, step = jnp.asarray(RNG.normal(size=point.shape)), 1e-6
    moved = feasible_sets.slack(rewards, point + step * move)
    backward = feasible_sets.slack(rewards, point - step * move)
    np.testing.assert_allclose(along(move), (moved - backward) / (2 * step), atol=1e-8)
    multiplier = jnp.asarray(RNG.uniform(0.1, 1.0, size=slacks.shape))
    dot = jnp.vdot(transpose(multiplier), move)
    assert float(dot) == pytest.approx(float(jnp.vdot(multiplier, along(move))), abs=1e-12)


@EVERY
def test_closed_form_a_newton_move_solves_its_linear_system(name: str) -> None:
    rewards, point = made(name)
    n = point.size
    root = jnp.asarray(RNG.normal(size=(n, n)))
    matrix = root @ root.T + jnp.eye(n)
    slacks = feasible_sets.slack(rewards, point)
    multiplier = jnp.asarray(RNG.uniform(0.1, 1.0, size=slacks.shape))
    force = jnp.asarray(RNG.normal(size=n))
    factor = jnp.linalg.cholesky(matrix)
    move = feasible_sets.newton_move(rewards, factor, force, point, slacks, multiplier)
    match rewards:
        case Box() | Free():
            expected = jnp.linalg.solve(matrix, force)
        case Ball():
            # The barrier of the sphere acts along the point only.
            barrier = multiplier[0] / slacks[0] * jnp.outer(point, point)
            expected = jnp.linalg.solve(matrix + barrier, force)
        case _:
            # The move keeps the sum one, and its residual is constant.
            ones = jnp.ones((n, 1))
            bordered = jnp.block([[matrix, ones], [ones.T, jnp.zeros((1, 1))]])
            rest = jnp.concatenate([force, 1.0 - point.sum(keepdims=True)])
            expected = jnp.linalg.solve(bordered, rest)[:n]
    np.testing.assert_allclose(move, expected, atol=1e-10)


def test_closed_form_curvature_of_the_bounds() -> None:
    multiplier = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    box, point = made("box")
    slacks = feasible_sets.slack(box, point)
    got = feasible_sets.bound_curvature(box, point, slacks, multiplier)
    expected = multiplier[:4] / point + multiplier[4:] / (1.0 - point)
    np.testing.assert_allclose(got, jnp.diag(expected))
    free, point = made("free")
    np.testing.assert_array_equal(
        feasible_sets.bound_curvature(free, point, point[:0], point[:0]), np.zeros((4, 4))
    )
    ball, point = made("ball")
    slacks = feasible_sets.slack(ball, point)
    got = feasible_sets.bound_curvature(ball, point, slacks, jnp.array([3.0]))
    np.testing.assert_array_equal(got, 3.0 * np.eye(3))
    simplex, point = made("simplex")
    got = feasible_sets.bound_curvature(simplex, point, point, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(got, np.diag([5.0, 4.0, 10.0]))


def test_closed_form_only_the_ball_has_a_curved_bound() -> None:
    move, multiplier = jnp.array([1.0, 2.0, 2.0]), jnp.array([0.5])
    ball, simplex = made("ball")[0], made("simplex")[0]
    np.testing.assert_allclose(feasible_sets.curvature_loss(ball, move, move, multiplier), [4.5])
    np.testing.assert_array_equal(
        feasible_sets.curvature_loss(simplex, move, move, move), np.zeros(3)
    )
    np.testing.assert_allclose(feasible_sets.min_complementarity(ball, multiplier), [5e-15])
    np.testing.assert_array_equal(feasible_sets.min_complementarity(simplex, move), np.zeros(3))


def test_closed_form_the_ridge_scale_is_per_entry_only_for_tables() -> None:
    curvature = jnp.diag(jnp.array([1.0, 4.0, 9.0]))
    yes, no = jnp.array(True), jnp.array(False)
    assert feasible_sets.ridge_scale(Box(), curvature, yes).tolist() == [1.0, 4.0, 9.0]
    assert feasible_sets.ridge_scale(Free(), curvature, no).tolist() == [9.0, 9.0, 9.0]
    assert feasible_sets.ridge_scale(made("ball")[0], curvature, yes).tolist() == [9.0, 9.0, 9.0]


@EVERY
def test_gradient_is_the_derivative_of_the_adversarys_objective(name: str) -> None:
    rewards, point = made(name)
    flow = jnp.asarray(RNG.normal(size=feasible_sets.reward(rewards, point).shape))

    def paid(point: jax.Array) -> jax.Array:
        mixture_loss = rewards.losses @ point if isinstance(rewards, Simplex) else jnp.zeros(())
        return jnp.vdot(flow, feasible_sets.reward(rewards, point)) + mixture_loss

    np.testing.assert_allclose(
        feasible_sets.gradient(rewards, flow, point), jax.grad(paid)(point), atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "point", "gradient", "expected"),
    [
        ("box", [0.0, 1.0, 0.5, 0.5], [2.0, -2.0, 0.0, 0.0], 0.0),  # minimal: the bounds are active
        ("box", [0.0, 1.0, 0.5, 0.9], [2.0, -2.0, 0.1, -0.7], 0.1),
        ("free", [5.0, 5.0, 5.0, 5.0], [0.0, -0.3, 0.2, 0.0], 0.3),
        (
            "ball",
            [0.6, 0.8, 0.0],
            [-3.0, -4.0, 0.0],
            0.0,
        ),  # minimal: the gradient is along the radius
        ("ball", [0.0, 0.0, 0.0], [0.0, 0.5, 0.0], 0.5),
        ("ball", [0.0, 0.0, 0.0], [0.0, 7.0, 0.0], 1.0),
        ("simplex", [0.0, 1.0, 0.0], [3.0, 1.0, 2.0], 0.0),  # minimal: all on the best member
        ("simplex", [0.25, 0.5, 0.25], [3.0, 1.0, 1.1], 0.25),
    ],
)
def test_closed_form_the_distance_is_that_of_a_projected_unit_step(
    name: str, point: list[float], gradient: list[float], expected: float
) -> None:
    actual = feasible_sets.distance(made(name)[0], *map(jnp.array, (point, gradient, [])))
    assert float(actual) == pytest.approx(expected, abs=1e-15)


@EVERY
def test_property_the_start_is_inside_every_bound_and_treats_responses_alike(name: str) -> None:
    rewards, point = made(name)
    start = feasible_sets.start(rewards, 4)
    expected = {"box": 0.5, "free": 0.0, "ball": 0.0, "simplex": 1 / 3}[name]
    np.testing.assert_allclose(start, np.full(point.shape, expected), rtol=1e-15)
    assert (np.asarray(feasible_sets.slack(rewards, start)) > 0).all()


def test_closed_form_factor_of_a_newton_matrix() -> None:
    matrix = jnp.array([[4.0, 2.0], [2.0, 5.0]])
    lower = jnp.array([[2.0, 0.0], [1.0, 2.0]])
    smooth = Smooth(jnp.ones((1, 2, 2)), jnp.zeros((1, 2)), jnp.zeros(2), jnp.ones(2), None)
    for rewards in (Box(), smooth):
        np.testing.assert_allclose(feasible_sets.factor(rewards, matrix), lower, rtol=1e-13)


def test_extreme_factor_of_a_smooth_set_does_not_break_down() -> None:
    # Of rank one up to rounding, and slightly indefinite: the factor of a box would be NaN.
    matrix = jnp.array([[1e20, 1e8], [1e8, 1e-4 * (1.0 - 1e-15)]])
    smooth = Smooth(jnp.ones((1, 2, 2)), jnp.zeros((1, 2)), jnp.zeros(2), jnp.ones(2), None)
    assert np.isnan(feasible_sets.factor(Box(), matrix)).any()
    assert np.isfinite(feasible_sets.factor(smooth, matrix)).all()
