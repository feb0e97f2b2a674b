"""Coverage over tangent cones: convex programs for every class, and differences of coefficients."""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.coverage import coverage_coefficient
from rpo_theory.rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Polytope,
    TabularBox,
    Unbounded,
)
from rpo_theory.tangent_cones import Query, squared_coefficient

CONVEX_PROGRAM = 1e-5
"""Clarabel stops at 1e-8; its norm constraint loses further digits."""
DIFFERENCE = 1e-6
"""Relative error of a central difference with a step of 1e-5."""
STEP = 1e-5
SHAPE = (2, 3)
N = 6


class UserBox(NamedTuple):
    """The box of a user who writes the two required methods only."""

    top: Any

    def project(self, reward: Any) -> Any:
        return jnp.clip(jnp.asarray(reward), 0.0, self.top)

    def linear_minimizer(self, direction: Any) -> Any:
        return jnp.where(jnp.asarray(direction) < 0, self.top, 0.0)


def draw_query(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pairs = rng.uniform(0.2, 1.0, (*SHAPE, SHAPE[1])) * (1.0 - np.eye(SHAPE[1]))
    return {
        "comparator": rng.dirichlet(np.ones(SHAPE[1]), SHAPE[0]),
        "baseline": rng.dirichlet(np.ones(SHAPE[1]), SHAPE[0]),
        "context_weights": rng.dirichlet(np.ones(SHAPE[0])),
        "pair_distribution": pairs / pairs.sum(),
    }


def draw_class(kind: str, seed: int) -> tuple[Any, np.ndarray, list[np.ndarray]]:
    """Return a class, a member on its boundary, and the normals of the active constraints."""
    rng = np.random.default_rng([seed, 7])
    truth = rng.uniform(0.2, 0.8, N)
    rows = []
    if kind in ("box", "user"):
        truth[[0, 4]], truth[2] = 0.0, 1.0
        rows = [np.eye(N)[0], np.eye(N)[4], -np.eye(N)[2]]
        reward_class = TabularBox(1.0) if kind == "box" else UserBox(1.0)
    elif kind == "polytope":
        matrix = rng.normal(size=(3, N))
        truth[1] = 0.0
        limits = matrix @ truth + np.array([0.0, 0.0, 0.3])
        reward_class = Polytope(matrix.reshape(3, *SHAPE), limits, 1.0)
        rows = [-matrix[0], -matrix[1], np.eye(N)[1]]
    elif kind == "lipschitz":
        # A table is 1-Lipschitz in the distance of its own entries: every constraint is active.
        spare = 0.5 * (1.0 - np.eye(N))
        spare[0, 1] = spare[1, 0] = spare[3, 5] = spare[5, 3] = 0.0
        reward_class = Lipschitz(1.0, np.abs(truth[:, None] - truth[None]) + spare, 2.0)
        for i, j in ((0, 1), (3, 5)):
            sign = np.sign(truth[i] - truth[j])
            rows.append(sign * (np.eye(N)[j] - np.eye(N)[i]))
    else:
        features = rng.normal(size=(N, 4))
        theta = rng.normal(size=4)
        truth = features @ theta
        radius = float(np.linalg.norm(theta))
        if kind == "ball":
            reward_class = LinearBall(features.reshape(*SHAPE, 4), radius)
        else:
            gram = features @ features.T
            reward_class = KernelBall(gram, radius)
        # Outside of the range of the features nothing moves: see `program`.
        rows = [-np.linalg.pinv(features).T @ theta]
    return reward_class, truth.reshape(SHAPE), rows


def program(query: dict[str, np.ndarray], rows: list[np.ndarray], span: np.ndarray | None) -> float:
    """Maximize the numerator over directions with denominator at most 1."""
    move = cp.Variable(N)
    weight = (query["context_weights"][:, None] * (query["comparator"] - query["baseline"])).ravel()
    differences = []
    for x, i, j in np.argwhere(query["pair_distribution"] > 0):
        line = np.zeros(SHAPE)
        line[x, i], line[x, j] = 1.0, -1.0
        differences.append(np.sqrt(query["pair_distribution"][x, i, j]) * line.ravel())
    constraints: list[Any] = [cp.norm(np.array(differences) @ move) <= 1]
    constraints += [row @ move >= 0 for row in rows]
    if span is not None:
        constraints.append(move == span @ cp.Variable(span.shape[1]))
    problem = cp.Problem(cp.Maximize(-weight @ move), constraints)
    problem.solve(solver="CLARABEL")
    return float(np.asarray(problem.value))


@pytest.mark.parametrize("kind", ["box", "user", "polytope", "lipschitz", "ball", "kernel"])
def test_parity_coverage_with_a_convex_program(kind: str) -> None:
    for seed in range(3):
        reward_class, truth, rows = draw_class(kind, seed)
        query = draw_query(seed)
        features = np.random.default_rng([seed, 7])
        features.uniform(0.2, 0.8, N)
        span = features.normal(size=(N, 4)) if kind in ("ball", "kernel") else None
        ours = float(coverage_coefficient(reward_class, true_reward=truth, **query))
        exact = max(program(query, rows, span), 0.0)
        np.testing.assert_allclose(ours, exact, rtol=CONVEX_PROGRAM, atol=CONVEX_PROGRAM)


def test_limit_coverage_is_infinite_without_data() -> None:
    for kind in ("box", "user", "polytope", "lipschitz", "ball"):
        reward_class, truth, _ = draw_class(kind, 0)
        query = draw_query(0)
        query["pair_distribution"] = np.zeros_like(query["pair_distribution"])
        query["pair_distribution"][0, 0, 1] = 1.0
        assert np.isinf(coverage_coefficient(reward_class, true_reward=truth, **query)), kind


def tangents(query: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 11])
    moves = {name: rng.normal(size=table.shape) for name, table in query.items()}
    for name in ("comparator", "baseline", "context_weights"):
        moves[name] -= moves[name].mean(axis=-1, keepdims=True)
    moves["pair_distribution"] *= query["pair_distribution"]
    return moves


@pytest.mark.parametrize("kind", ["box", "user", "polytope", "ball", "finite", "unbounded"])
def test_gradient_of_coverage_is_the_difference_of_coefficients(kind: str) -> None:
    query, moves = draw_query(3), tangents(draw_query(3), 3)
    if kind == "finite":
        reward_class, truth = FiniteClass(np.random.default_rng(0).normal(size=(5, *SHAPE))), None
        truth = reward_class.rewards[0]
    elif kind == "unbounded":
        reward_class, truth = Unbounded(), np.zeros(SHAPE)
    else:
        reward_class, truth, _ = draw_class(kind, 3)

    def coefficient(query: dict[str, Any]) -> Any:
        return coverage_coefficient(reward_class, true_reward=truth, **query)

    tangent = jax.jit(lambda q, m: jax.jvp(coefficient, (q,), (m,)))(query, moves)[1]
    gradient = jax.jit(jax.grad(coefficient))(query)
    ends = [
        coefficient({name: table + s * STEP * moves[name] for name, table in query.items()})
        for s in (1.0, -1.0)
    ]
    difference = float(ends[0] - ends[1]) / (2 * STEP)
    assert abs(tangent - difference) <= DIFFERENCE * (1.0 + abs(difference))
    backward = sum(np.vdot(gradient[name], moves[name]) for name in query)
    np.testing.assert_allclose(backward, tangent, rtol=1e-11, atol=1e-13)


def test_closed_form_of_one_pair_without_constraints() -> None:
    table, first = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])
    pairs = jnp.array([[[0.0, 0.25], [0.75, 0.0]]])
    query = Query(table, first, jnp.full((1, 2), 0.5), jnp.ones(1), pairs, jnp.array(1e-15))
    found = squared_coefficient(Unbounded(), query)
    assert float(found.value) == pytest.approx(0.25, rel=1e-14)
    assert bool(found.converged)
