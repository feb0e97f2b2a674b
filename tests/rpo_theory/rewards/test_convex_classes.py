"""Polytopes, Lipschitz classes and kernel balls against HiGHS, Clarabel and brute force."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import rpo_theory as rt
from rpo_theory import rewards
from rpo_theory.numerics import linear_program, polyhedron_projection
from rpo_theory.numerics.linear_rows import DenseRows, DifferenceRows, Polyhedron
from rpo_theory.rewards.kernel import pivoted_cholesky

SHAPE, CELLS = (1, 3), 3
MAXIMUM = 2.0
DIFFERENCES = np.array([np.eye(3)[i] - np.eye(3)[j] for i in range(3) for j in range(3)])


def draw(kind: str, rng: np.random.Generator) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a class and its inequalities."""
    if kind == "polytope":
        matrix = rng.normal(size=(2, *SHAPE))
        limits = np.einsum("mxa,xa->m", matrix, rng.uniform(0, MAXIMUM, SHAPE)) + 0.2
        return rt.Polytope(matrix, limits, MAXIMUM), matrix.reshape(2, -1), limits
    points = rng.normal(size=(CELLS, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    constant = {"flat": 0.0, "tiny": 1e-9, "lipschitz": 0.4, "wide": 1e9}[kind]
    reward_class = rt.Lipschitz(constant, distance, MAXIMUM)
    return reward_class, DIFFERENCES, constant * distance.reshape(-1)


@pytest.mark.parametrize("kind", ["polytope", "flat", "tiny", "lipschitz", "wide"])
def test_parity_linear_programs_and_projections(kind: str) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(5):
            reward_class, matrix, limits = draw(kind, rng)
            direction, table = rng.normal(size=SHAPE), rng.normal(1.0, 2.0, SHAPE)
            lowest = linprog(direction.ravel(), matrix, limits, bounds=[(0.0, MAXIMUM)] * CELLS)
            member = np.asarray(reward_class.linear_minimizer(direction))
            # HiGHS allows violations of 1e-7.
            assert np.vdot(direction, member) == pytest.approx(lowest.fun, abs=1e-6)
            assert float(rewards.class_residual(reward_class, member)) <= 1e-13
            minimum = float(reward_class.linear_minimum(direction))
            assert minimum == pytest.approx(np.vdot(direction, member), abs=1e-10)
            assert -1e-13 <= float(reward_class.linear_gap(direction, member)) <= 1e-10
            nearest = np.asarray(reward_class.project(table))
            assert (matrix @ nearest.ravel() - limits).max() <= 1e-13
            # The normal at a projection is maximal there: an exact condition of optimality.
            assert float(reward_class.linear_gap(nearest - table, nearest)) <= 1e-12
            np.testing.assert_allclose(reward_class.project(nearest), nearest, atol=1e-13)
            # Any member has a valid bound on its gap.
            bound = float(reward_class.linear_gap(direction, nearest))
            assert bound >= np.vdot(direction, nearest - member) - 1e-12


def test_limit_a_flat_class_is_constant_and_a_wide_one_is_the_box() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(1.0, 2.0, SHAPE)
    with jax.enable_x64(True):
        flat, wide = draw("flat", rng)[0], draw("wide", rng)[0]
        mean = np.clip(table.mean(), 0.0, MAXIMUM)
        np.testing.assert_allclose(flat.project(table), np.full(SHAPE, mean), atol=1e-14)
        np.testing.assert_array_equal(wide.project(table), np.clip(table, 0.0, MAXIMUM))


def test_parity_a_kernel_ball_is_the_set_of_bounded_norm() -> None:
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(CELLS, 2))
    gram, radius, table = factor @ factor.T, 0.7, rng.normal(size=SHAPE)
    ball = rt.KernelBall(gram, radius)
    with jax.enable_x64(True):
        features = np.asarray(ball.features(SHAPE)).reshape(CELLS, -1)
        np.testing.assert_allclose(features @ features.T, gram, atol=1e-14)
        assert np.linalg.matrix_rank(np.asarray(pivoted_cholesky(gram))) == 2
        member = np.asarray(ball.linear_minimizer(table))
        norm = np.sqrt(table.ravel() @ gram @ table.ravel())
        assert np.vdot(table, member) == pytest.approx(-radius * norm, rel=1e-13)
        nearest = np.asarray(ball.project(table))
        assert float(ball.linear_gap(nearest - table, nearest)) <= 1e-12
    theta = cp.Variable(2)
    distance = cp.sum_squares(factor @ theta - table.ravel())
    cp.Problem(cp.Minimize(distance), [cp.norm(theta) <= radius]).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(nearest.ravel(), factor @ np.asarray(theta.value), atol=1e-4)


@pytest.mark.parametrize("kind", ["polytope", "lipschitz"])
def test_property_the_smooth_form_describes_the_class(kind: str) -> None:
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        reward_class, matrix, limits = draw(kind, rng)
        assert float(reward_class.slack(reward_class.interior(SHAPE)).min()) > 1e-3
        for _ in range(20):
            table = rng.uniform(-0.2, MAXIMUM + 0.2, SHAPE)
            parameter = reward_class.to_parameter(table)
            np.testing.assert_allclose(reward_class.to_reward(parameter, SHAPE), table, atol=1e-14)
            inside = (matrix @ table.ravel() <= limits).all()
            inside &= bool((table >= 0).all() and (table <= MAXIMUM).all())
            assert bool((reward_class.slack(parameter) >= 0).all()) == inside


def test_gradient_of_a_projection_is_the_projection_onto_its_face() -> None:
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        reward_class, _, _ = draw("lipschitz", rng)
        table, move = rng.normal(1.0, 2.0, SHAPE), rng.normal(size=SHAPE)
        _, forward = jax.jvp(reward_class.project, (table,), (move,))
        step = 1e-6
        ends = [np.asarray(reward_class.project(table + s * step * move)) for s in (1, -1)]
        np.testing.assert_allclose(forward, (ends[0] - ends[1]) / (2 * step), atol=1e-8)


def test_closed_form_covering_numbers_are_at_most_those_of_the_box() -> None:
    rng = np.random.default_rng(5)
    for epsilon in (0.7, 0.1, 0.01):
        box = rt.log_covering_number(rt.TabularBox(MAXIMUM), epsilon, CELLS)
        polytope, lipschitz = draw("polytope", rng)[0], draw("lipschitz", rng)[0]
        assert rt.log_covering_number(polytope, epsilon) == pytest.approx(box)
        assert rt.log_covering_number(lipschitz, epsilon) <= box + 1e-12
        flat, wide = draw("flat", rng)[0], draw("wide", rng)[0]
        assert rt.log_covering_number(flat, epsilon) == pytest.approx(box / CELLS)
        assert rt.log_covering_number(wide, epsilon) == pytest.approx(box)
    kernel = rt.KernelBall(4.0 * np.ones((CELLS, CELLS)), 1.5)  # one dimension
    assert rt.log_covering_number(kernel, 0.1) == pytest.approx(np.log1p(2 * 1.5 * 2.0 / 0.1))


def test_property_covering_number_of_a_lipschitz_class_exceeds_a_packing() -> None:
    """Members pairwise more than 2 epsilon apart in the sup norm need a ball each."""
    rng = np.random.default_rng(6)
    distance = np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0]))
    reward_class = rt.Lipschitz(0.3, distance, MAXIMUM)
    start = rng.uniform(0.0, MAXIMUM, (4000, 1))
    steps = rng.choice([-1.0, 1.0], (4000, 2)) * 0.3 * np.array([1.0, 2.0])
    members = np.clip(np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1), 0, MAXIMUM)
    for epsilon in (0.3, 0.1):
        packing: list[np.ndarray] = []
        for member in members:
            if all(np.abs(member - other).max() > 2 * epsilon for other in packing):
                packing.append(member)
        assert rt.log_covering_number(reward_class, epsilon) >= np.log(len(packing))


def test_closed_form_programs_of_two_variables() -> None:
    with jax.enable_x64(True):
        ones = jnp.ones(2)
        dense = Polyhedron(ones, DenseRows(jnp.array([[1.0, 1.0]])), jnp.array([1.0]))
        optimum = linear_program.solve(jnp.array([-1.0, -2.0]), dense)
        np.testing.assert_allclose(optimum.x, [0.0, 1.0], atol=1e-12)
        projection = polyhedron_projection.project(jnp.array([2.0, 1.5]), dense)
        np.testing.assert_allclose(projection.point, [0.75, 0.25], atol=1e-15)
        np.testing.assert_allclose(projection.duals[4:], [1.25], atol=1e-15)
        differences = Polyhedron(ones, DifferenceRows(), jnp.array([2.0, 0.5, 0.5, 2.0]))
        weights = jnp.arange(8.0)
        rows = jnp.stack([differences.apply(unit) for unit in jnp.eye(2)], axis=1)
        np.testing.assert_allclose(differences.gram(weights), (rows.T * weights) @ rows)
        np.testing.assert_allclose(differences.adjoint(weights), rows.T @ weights)
        chosen = differences.select(jnp.arange(8)) * np.asarray(differences.lengths())[:, None]
        real = np.asarray(differences.all_limits()) < 2.0
        np.testing.assert_allclose(np.asarray(chosen)[real], np.asarray(rows)[real], atol=1e-15)
