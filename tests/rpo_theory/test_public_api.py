"""Claims about the public names of the package, and about scalars given as Python floats."""

from __future__ import annotations

from types import ModuleType

import jax
import numpy as np
import pytest

import rpo_theory as rt

EVEN = np.full((2, 2), 0.5)
WINS = np.array([[[0.0, 3.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
PROBLEM = rt.Problem(np.array([0.5, 0.5]), EVEN, EVEN, WINS, beta=0.5, eta=0.25)
ARRAYS = PROBLEM._replace(beta=np.array(0.5), eta=np.array(0.25))
FEATURES = np.eye(4).reshape(2, 2, 4)
SOLVERS = [rt.minimax, rt.maximin, rt.direct]
CLASSES = [
    (rt.TabularBox(2.0), rt.TabularBox(np.array(2.0))),
    (rt.LinearBall(FEATURES, 1.5), rt.LinearBall(FEATURES, np.array(1.5))),
]


def test_property_dir_shows_the_public_names_only_and_all_are_documented() -> None:
    assert dir(rt) == sorted(rt.__all__)
    for name in rt.__all__:
        assert getattr(rt, name).__doc__, name


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
@pytest.mark.parametrize(("floats", "arrays"), CLASSES, ids=["box", "ball"])
def test_property_python_floats_give_the_same_bits_as_arrays(
    solver: ModuleType, floats: rt.RewardClass, arrays: rt.RewardClass
) -> None:
    got, expected = solver.solve(PROBLEM, floats), solver.solve(ARRAYS, arrays)
    assert int(got.status) == rt.Status.SOLVED
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    proof = rt.certify(PROBLEM, floats, got.policy, got.reward)
    jax.tree.map(
        np.testing.assert_array_equal, proof, rt.certify(ARRAYS, arrays, got.policy, got.reward)
    )


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
def test_property_a_scalar_applies_to_every_problem_of_a_batch(solver: ModuleType) -> None:
    batch = jax.tree.map(lambda field: np.stack([np.asarray(field)] * 2), PROBLEM)
    shared = batch._replace(beta=0.5, eta=0.25)
    got = solver.solve_batch(shared, rt.TabularBox(2.0))
    expected = solver.solve_batch(batch, rt.TabularBox(np.full(2, 2.0)))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_property_python_floats_work_in_every_function_of_a_problem() -> None:
    box, reward = rt.TabularBox(2.0), np.array([[1.0, 0.5], [0.0, 2.0]])
    rt.validate(PROBLEM, box)
    worst = rt.adversarial_reward(PROBLEM, box, EVEN)
    assert float(rt.saddle_objective(PROBLEM, EVEN, worst)) <= float(
        rt.saddle_objective(PROBLEM, EVEN, reward)
    )
    assert float(rt.minimax_objective(PROBLEM, reward)) == float(
        rt.minimax_objective(ARRAYS, reward)
    )
    for function in (rt.stationarity.s1_residual,):
        np.testing.assert_array_equal(
            function(PROBLEM, EVEN, reward), function(ARRAYS, EVEN, reward)
        )
    np.testing.assert_array_equal(
        rt.stationarity.s2_violation(PROBLEM, EVEN), rt.stationarity.s2_violation(ARRAYS, EVEN)
    )
    coverage = rt.coverage_coefficient(
        box,
        true_reward=reward,
        comparator=np.eye(2),
        baseline=EVEN,
        context_weights=PROBLEM.context_weights,
        pair_distribution=WINS,
    )
    assert np.isfinite(coverage)
    assert rt.log_covering_number(box, 0.5, 4) == pytest.approx(4 * np.log(2.0))


def test_compiles_once_a_solution_is_a_pytree_that_vmaps() -> None:
    solution = rt.minimax.solve(PROBLEM, rt.TabularBox(2.0))
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), solution)
    objective = jax.vmap(lambda s: rt.minimax_objective(ARRAYS, s.reward))(stacked)
    np.testing.assert_allclose(objective, [float(solution.objective)] * 2, rtol=1e-12)
