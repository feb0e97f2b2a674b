"""Claims about solving one problem, and batches of any size."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rpo_theory._batching import (
    group_size,
    map_in_groups,
    raise_unless_solved,
    round_group_size,
    solve_in_groups,
    solve_one,
    to_float64,
)
from rpo_theory.rewards import RewardClass, TabularBox
from rpo_theory.types import Problem, Solution, Status

FOUND = (np.ones((1, 1)), np.ones((1, 1)), np.ones(()))


def problems(count: int) -> tuple[Problem, TabularBox]:
    """Return problems of two responses whose eta is their number."""
    even, number = np.full((count, 1, 2), 0.5), np.arange(count, dtype=float)
    wins = np.zeros((count, 1, 2, 2))
    problem = Problem(np.ones((count, 1)), even, even, wins, np.ones(count), number)
    return problem, TabularBox(10.0 + number)


def echo(problem: Problem, reward_class: RewardClass) -> Solution:
    """Return the width and eta of every problem as reward and objective, like a solver."""
    assert isinstance(reward_class, TabularBox)
    status = np.full(np.shape(problem.eta), Status.SOLVED.value)
    width, eta = np.asarray(reward_class.maximum), np.asarray(problem.eta)
    return Solution(problem.reference_policy, width, eta, status, {})


def test_closed_form_groups_are_solved_and_joined_in_order() -> None:
    sizes = []

    def solver(problem: Problem, reward_class: RewardClass) -> Solution:
        sizes.append(len(problem.wins))
        return echo(problem, reward_class)

    solution = solve_in_groups(solver, *problems(23), size=3)
    # Each group has one row of padding, which is dropped.
    assert sizes == [4] * 8
    np.testing.assert_array_equal(solution.objective, np.arange(23.0))
    np.testing.assert_array_equal(solution.reward, 10.0 + np.arange(23.0))


def test_closed_form_functions_get_groups_of_one_size_in_float64() -> None:
    seen = []

    def function(tree: dict[str, np.ndarray], more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append((tree["a"].tolist(), more.dtype))
        return tree["a"] + more, more.sum(axis=1)

    tree = {"a": np.arange(5, dtype=np.int32)[:, None]}
    doubled, summed = map_in_groups(function, tree, np.full((5, 2), 0.5, np.float32), size=2)
    assert [rows for rows, _ in seen] == [[[0], [1], [2]], [[2], [3], [4]], [[4], [4], [4]]]
    assert {dtype for _, dtype in seen} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(doubled, np.arange(5)[:, None] + np.full((5, 2), 0.5))
    np.testing.assert_array_equal(summed, np.ones(5))


@pytest.mark.parametrize(("most", "size"), [(0.2, 1), (7.9, 1), (8.0, 8), (15.9, 8), (1e3, 512)])
def test_closed_form_a_group_fills_vectors_or_has_one_row(most: float, size: int) -> None:
    assert round_group_size(most) == size
    problem, _ = problems(2)
    assert group_size(problem, int(4 * most)) == size


def test_closed_form_one_problem_is_a_batch_of_one() -> None:
    problem, _ = problems(3)
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[2], problem)
    solution = solve_one(echo, one, TabularBox(np.array(12.0)))
    assert (float(solution.objective), float(solution.reward)) == (2.0, 12.0)
    assert int(solution.status) == Status.SOLVED.value


def test_closed_form_distributions_are_normalized_in_float64() -> None:
    problem, _ = problems(1)
    thirds = np.array([[[1.0, 2.0]]], np.float32)
    got, reward_class = to_float64(
        problem._replace(reference_policy=thirds), TabularBox(np.ones(1, np.float32))
    )
    np.testing.assert_allclose(got.reference_policy, [[[1 / 3, 2 / 3]]], rtol=1e-15)
    assert isinstance(reward_class, TabularBox)
    dtypes = {np.asarray(leaf).dtype for leaf in jax.tree.leaves((got, reward_class))}
    assert dtypes == {np.dtype(np.float64)}


def test_raises_the_first_problem_that_was_not_solved_is_named() -> None:
    good = Status.SOLVED.value
    solution = Solution(*FOUND, np.array([good, Status.NOT_ATTAINED.value]), {})
    assert raise_unless_solved(solution) is solution
    bad = Solution(*FOUND, np.array([good, Status.MAX_STEPS.value, Status.NOT_FINITE.value]), {})
    with pytest.raises(ValueError, match=rf"problem 1 of 3: {Status.MAX_STEPS.sentence}"):
        raise_unless_solved(bad)
