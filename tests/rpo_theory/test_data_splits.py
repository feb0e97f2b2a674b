"""Claims about random halves of preference data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from rpo_theory.data_splits import Counts, split_data
from rpo_theory.preference_data import Choices, DavidsonTies
from rpo_theory.types import Problem

WINS = np.array([[[0, 5, 2], [4, 0, 1], [7, 2, 0]], [[0, 1, 0], [0, 0, 0], [0, 3, 0]]])


def problem(wins: np.ndarray) -> Problem:
    n_contexts, n_actions = wins.shape[:2]
    even = np.full((n_contexts, n_actions), 1.0 / n_actions)
    weights = np.full(n_contexts, 1.0 / n_contexts)
    return Problem(weights, even, even, np.asarray(wins, float), beta=1.0, eta=1.0)


def pair_counts(wins: Any) -> np.ndarray:
    return wins + wins.swapaxes(-1, -2)


def test_property_halves_add_up_and_every_pair_is_halved() -> None:
    splits = split_data(problem(WINS), 5, seed=3)
    for part in (splits.fitting.wins, splits.evaluation.wins):
        assert (np.asarray(part) >= 0).all()
        assert (np.abs(2 * pair_counts(part) - pair_counts(WINS)) <= 1).all()
    np.testing.assert_array_equal(splits.fitting.wins + splits.evaluation.wins, [WINS] * 5)


def test_property_every_second_split_exchanges_the_halves_of_the_preceding_one() -> None:
    splits = split_data(problem(WINS), 4)
    np.testing.assert_array_equal(splits.fitting.wins[1::2], splits.evaluation.wins[::2])


def test_property_equal_seeds_give_equal_splits() -> None:
    one, same, other = (split_data(problem(WINS), 1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.evaluation.wins, same.evaluation.wins)
    assert (one.evaluation.wins != other.evaluation.wins).any()


def test_property_the_size_of_a_half_does_not_depend_on_the_outcomes() -> None:
    flipped = split_data(problem(WINS.swapaxes(1, 2)), 3, seed=5).evaluation.wins
    expected = split_data(problem(WINS), 3, seed=5).evaluation.wins
    np.testing.assert_array_equal(pair_counts(flipped), pair_counts(expected))


def test_closed_form_the_wins_of_a_half_are_hypergeometric() -> None:
    wins = np.array([[[0, 6], [4, 0]]])
    drawn = split_data(problem(wins), 4000).evaluation.wins[::2, 0, 0, 1]
    share = np.bincount(drawn.astype(int), minlength=6) / len(drawn)
    np.testing.assert_allclose(share, hypergeom.pmf(np.arange(6), 10, 6, 5), atol=0.04)


def test_extreme_counts_beyond_the_range_of_the_hypergeometric_distribution() -> None:
    splits = split_data(problem(np.array([[[0, 3e12], [1e12, 0]]])), 1)
    np.testing.assert_allclose(splits.evaluation.wins[0, 0, 0, 1], 1.5e12, rtol=1e-5)
    np.testing.assert_array_equal(
        splits.evaluation.wins + splits.fitting.wins, [[[[0, 3e12], [1e12, 0]]]]
    )


def test_property_comparisons_of_an_action_with_itself_are_left_out() -> None:
    wins = np.array([[[8, 3], [1, 0]]])
    assert split_data(problem(wins), 1).evaluation.wins.trace(axis1=2, axis2=3).sum() == 0


def test_property_ties_and_choices_are_split_with_their_sets() -> None:
    counts = np.array([[[0, 4, 0], [1, 0, 0], [0, 0, 0]]] * 2, float)
    sets = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    choices = Choices(
        np.array([0, 1]), sets, np.array([[3.0, 2.0, 2.0], [4.0, 0.0, 0.0]]), sets[0, :2]
    )
    full = problem(WINS)._replace(ties=DavidsonTies(counts, 0.5), choices=choices)
    evaluation = split_data(full, 1, seed=2).evaluation
    assert evaluation.choices is not None
    assert evaluation.ties is not None
    np.testing.assert_array_equal(evaluation.choices.sum(axis=2)[0, 1], 2.0)
    both = pair_counts(evaluation.wins + evaluation.ties)
    assert (np.abs(2 * both - pair_counts(WINS + counts)) <= 1).all()
    again = Counts.of(Counts.of(full).replace_in(full))
    np.testing.assert_array_equal(again.choices, choices.wins)


@pytest.mark.parametrize(
    ("wins", "rule"),
    [
        ([[[0, 1], [0, 0]]], "at least 2 comparisons of different actions"),
        ([[[5, 1], [0, 5]]], "at least 2 comparisons of different actions"),
        ([[[0, 1.5], [2, 0]]], r"`wins\[0\]\[0\]\[1\]` must be a whole number"),
    ],
)
def test_raises_without_whole_counts_for_two_halves(wins: list, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        split_data(problem(np.array(wins)))


def test_raises_on_rankings_whose_choices_depend_on_each_other() -> None:
    sets = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    choices = Choices(
        np.zeros(2), sets, np.array([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), np.array([1.0, 0.0])
    )
    with pytest.raises(ValueError, match="`choices` must not hold rankings"):
        split_data(problem(WINS)._replace(choices=choices))


@pytest.mark.parametrize(("n_splits", "seed"), [(0, 0), (1, -1), (True, 0)])
def test_raises_on_numbers_out_of_range(n_splits: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        split_data(problem(WINS), n_splits, seed=seed)
