"""Laplacian quadratic programs against rational arithmetic, circuits and dense solves."""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.numerics import laplacian_qp
from rpo_theory.numerics.laplacian_qp import (
    LaplacianQP,
    connected_components,
    solve,
    solve_active_set,
)

RATIONAL_TOLERANCE = 1e-13
"""Tens of roundings; edge weights of 1e-12 and 1 in one graph lose no digits."""
DENSE_TOLERANCE = 1e-11
"""Accuracy of the dense solve of a few hundred well-conditioned equations."""
ROUNDOFF = 1e-14
"""Sum of the linear term over a component that counts as zero."""

compiled_solve = jax.jit(solve)


def problem_of(edge_weights: np.ndarray, linear: np.ndarray, **signs: np.ndarray) -> LaplacianQP:
    nowhere = np.zeros(linear.size, bool)
    fields = (
        edge_weights,
        linear,
        signs.get("nonnegative", nowhere),
        signs.get("nonpositive", nowhere),
    )
    return LaplacianQP(*map(jnp.asarray, fields))


def objective_of(problem: LaplacianQP) -> float:
    objective, _, converged = compiled_solve(problem, jnp.array(ROUNDOFF))
    assert bool(converged)
    return float(objective)


def random_weights(rng: np.random.Generator, n: int, decades: float) -> np.ndarray:
    upper = np.triu(10.0 ** -rng.uniform(0.0, decades, (n, n)), 1)
    return upper + upper.T


def exact_laplacian(edge_weights: jax.Array) -> list[list[Fraction]]:
    w = [[Fraction(float(g)) for g in row] for row in edge_weights]
    n = range(len(w))
    return [[(sum(w[i], Fraction(0)) if i == j else -w[i][j]) for j in n] for i in n]


def solve_exactly(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    n = len(rows)
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k] != 0)
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [entry / rows[k][k] for entry in rows[k]]
        for i in range(n):
            if i != k and rows[i][k] != 0:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]


def objective_by_enumeration(problem: LaplacianQP) -> float:
    """All ways in which signs can conduct, in rational arithmetic: the one without a wrong sign.

    For a connected problem with signs and a net linear, so that some diode conducts.
    """
    laplacian = exact_laplacian(problem.edge_weights)
    c = [Fraction(float(i)) for i in problem.linear]
    n = len(c)
    sign = np.asarray(problem.nonnegative, int) - np.asarray(problem.nonpositive, int)
    tied = [i for i in range(n) if sign[i] != 0]
    for size in range(1, len(tied) + 1):
        for ground in itertools.combinations(tied, size):
            free = [i for i in range(n) if i not in ground]
            solved = solve_exactly(
                [[laplacian[i][j] for j in free] for i in free], [c[i] for i in free]
            )
            d = [Fraction(0)] * n
            for i, value in zip(free, solved, strict=True):
                d[i] = value
            multiplier = [sum(laplacian[i][j] * d[j] for j in range(n)) - c[i] for i in range(n)]
            if all(int(sign[i]) * d[i] >= 0 and int(sign[i]) * multiplier[i] >= 0 for i in tied):
                return float(sum(a * b for a, b in zip(c, d, strict=True)))
    raise AssertionError("no state of the signs is right")


@pytest.mark.parametrize("seed", range(30))
def test_parity_with_rational_arithmetic_over_twelve_decades(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    kind = rng.integers(0, 3, n)
    kind[:2] = 1, 2
    problem = problem_of(
        random_weights(rng, n, 12.0),
        rng.standard_normal(n),
        nonnegative=kind == 1,
        nonpositive=kind == 2,
    )
    expected = objective_by_enumeration(problem)
    np.testing.assert_allclose(objective_of(problem), expected, rtol=RATIONAL_TOLERANCE)


def test_closed_form_series_adds_resistances_and_parallel_adds_conductances() -> None:
    chain = np.zeros((4, 4))
    for i, edge_weights in enumerate((1e-12, 1.0, 1e3)):
        chain[i, i + 1] = chain[i + 1, i] = edge_weights
    through = np.array([1.0, 0.0, 0.0, -1.0])
    expected = 1e12 + 1.0 + 1e-3
    np.testing.assert_allclose(
        objective_of(problem_of(chain, through)), expected, rtol=RATIONAL_TOLERANCE
    )
    doubled = chain.copy()
    doubled[0, 3] = doubled[3, 0] = 2.0
    expected = 1.0 / (2.0 + 1.0 / expected)
    np.testing.assert_allclose(
        objective_of(problem_of(doubled, through)), expected, rtol=RATIONAL_TOLERANCE
    )


def test_closed_form_a_sign_constraint_reduces_the_value() -> None:
    chain = np.diag(np.ones(2), 1)
    chain = chain + chain.T
    through = np.array([1.0, 0.0, -1.0])
    middle = np.array([False, True, False])
    # The solution is (1, 0, -1): a constraint on the middle node has no effect.
    assert objective_of(problem_of(chain, through, nonnegative=middle)) == 2.0
    # With the last node at least 0 and the middle at most 0, one edge remains.
    last = np.array([False, False, True])
    assert objective_of(problem_of(chain, through, nonnegative=last, nonpositive=middle)) == 1.0


@pytest.mark.parametrize(
    ("linear", "signs", "finite"),
    [
        ([1.0, 1.0], {"nonpositive": [True, False]}, True),
        ([1.0, 1.0], {"nonnegative": [True, True]}, False),
        ([-1.0, -1.0], {"nonnegative": [False, True]}, True),
        ([-1.0, -1.0], {"nonpositive": [True, True]}, False),
        ([1.0, -1.0], {}, True),
        ([1.0, -1.0 + 1e-12], {}, False),
        ([1.0, -1.0 + 1e-15], {}, True),
    ],
)
def test_extreme_infinite_exactly_if_a_shift_is_unbounded(
    linear: list[float], signs: dict[str, list[bool]], finite: bool
) -> None:
    wire = np.array([[0.0, 1.0], [1.0, 0.0]])
    tied = {name: np.array(nodes) for name, nodes in signs.items()}
    assert np.isfinite(objective_of(problem_of(wire, np.array(linear), **tied))) == finite


@pytest.mark.parametrize("tied", [False, True])
def test_extreme_rounding_of_the_linear_term_has_no_effect_across_a_weak_edge(tied: bool) -> None:
    """A sum of the linear term within roundoff is removed at the nodes where it arose."""
    weak = np.zeros((3, 3))
    weak[0, 1] = weak[1, 0] = 1e-12
    weak[1, 2] = weak[2, 1] = 1.0
    ground = np.array([tied, False, False])
    problem = problem_of(weak, np.array([0.0, 1.0, -1.0 + 1e-7]), nonnegative=ground)
    objective, _, converged = compiled_solve(problem, jnp.array(1e-6))
    assert bool(converged)
    np.testing.assert_allclose(objective, 1.0, rtol=1e-6)


@pytest.mark.parametrize("panel", [3, 64])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_parity_active_set_solution_with_a_dense_solve_for_any_panel_width(
    n: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laplacian_qp, "PANEL", panel)
    rng = np.random.default_rng(n)
    problem = problem_of(random_weights(rng, n, 1.0), rng.standard_normal(n))
    active = rng.random(n) < 0.2
    active[-1] = True
    laplacian = np.diag(problem.edge_weights.sum(axis=1)) - np.asarray(problem.edge_weights)
    expected = np.zeros(n)
    free = ~active
    expected[free] = np.linalg.solve(
        laplacian[np.ix_(free, free)], np.asarray(problem.linear)[free]
    )
    multiplier = laplacian @ expected - np.asarray(problem.linear)
    # A new function for every width: the cache of ``jit`` cannot know of the patch.
    actual = jax.jit(lambda *given: solve_active_set(*given))(problem, jnp.asarray(active))
    np.testing.assert_allclose(actual.point, expected, atol=DENSE_TOLERANCE)
    np.testing.assert_allclose(actual.multiplier, multiplier, atol=DENSE_TOLERANCE)
    objective = float(np.asarray(problem.linear) @ expected)
    np.testing.assert_allclose(actual.objective, objective, atol=DENSE_TOLERANCE)


def test_property_rounding_errors_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(3)
    n = 12
    problem = problem_of(random_weights(rng, n, 8.0), rng.standard_normal(n))
    active = np.arange(n) == 0
    laplacian = [row[1:] for row in exact_laplacian(problem.edge_weights)[1:]]
    exact = solve_exactly(laplacian, [Fraction(float(i)) for i in problem.linear[1:]])
    actual = solve_active_set(problem, jnp.asarray(active))
    error = np.abs(np.asarray(actual.point)[1:] - np.array([float(d) for d in exact]))
    assert np.all(error <= np.asarray(actual.point_error)[1:])


def test_closed_form_components_of_a_long_path_and_an_isolated_node() -> None:
    path = np.zeros((40, 40))
    i = np.arange(38)
    path[i, i + 1] = path[i + 1, i] = 1e-300
    together = np.asarray(connected_components(jnp.asarray(path)))
    assert together[:39, :39].all()
    assert together[39].sum() == together[:, 39].sum() == 1


def test_extreme_the_method_converges_where_only_one_node_changes_a_step() -> None:
    n = 120
    path = np.diag(np.ones(n - 1), 1)
    linear = np.zeros(n)
    linear[0], linear[-1] = 1.0, -1.0
    problem = problem_of(path + path.T, linear, nonnegative=np.ones(n, bool))
    np.testing.assert_allclose(objective_of(problem), n - 1.0, rtol=DENSE_TOLERANCE)


def test_compiles_once_under_vmap() -> None:
    rng = np.random.default_rng(0)
    batched = jax.jit(jax.vmap(solve, in_axes=(0, None)))
    for _ in range(2):
        members = [
            problem_of(random_weights(rng, 4, 1.0), np.array([1.0, 0.0, 0.0, -1.0]))
            for _ in range(3)
        ]
        stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *members)
        objective, _, _ = batched(stacked, jnp.array(ROUNDOFF))
        np.testing.assert_allclose(
            objective, [objective_of(m) for m in members], rtol=DENSE_TOLERANCE
        )
    assert batched._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
