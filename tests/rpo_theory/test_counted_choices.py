"""Rankings and choices are summed into counts of sets, and mistakes are named by their row."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from rpo_theory.array_checks import InvalidProblemError
from rpo_theory.counted_choices import count_choices, fold_pairs
from rpo_theory.preference import data_loss
from rpo_theory.types import Problem

EXACT = 1e-14


def test_closed_form_a_ranking_is_a_chain_of_choices() -> None:
    counts = count_choices([(1, [2, 0, 1], 2), (1, (2, 1, 0), 1.5)], shape=(2, 3))
    assert counts is not None
    assert counts.contexts.tolist() == [1, 1]
    assert counts.subsets.tolist() == [[True, True, True], [True, True, False]]
    assert counts.wins.tolist() == [[0.0, 0.0, 3.5], [2.0, 1.5, 0.0]]
    assert counts.first.tolist() == [True, False]


def test_closed_form_equal_sets_add_up_and_first_choices_stay_apart() -> None:
    counts = count_choices(
        [(0, [2, 1, 0], 1)], [(0, [1, 0], 0, 3), (0, {0, 1}, 1, 2)], shape=(1, 3)
    )
    assert counts is not None
    assert counts.subsets.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert counts.wins.tolist() == [[3.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert counts.first.tolist() == [True, True, False]
    assert count_choices([(0, [0, 1], 0)], shape=(1, 2)) is None


def test_closed_form_the_probabilities_of_all_rankings_sum_to_one() -> None:
    reward = np.array([[0.3, -1.1, 0.8]])
    uniform = np.full((1, 3), 1 / 3)
    probability = 0.0
    for ranking in permutations(range(3)):
        counts = count_choices([(0, list(ranking), 4)], shape=(1, 3))
        problem = Problem(np.ones(1), uniform, uniform, np.zeros((1, 3, 3)), 1.0, 1.0, counts)
        probability += math.exp(-float(data_loss(problem, reward)))
    assert abs(probability - 1.0) < EXACT


def test_property_pairs_join_the_wins_and_later_ranks_do_not() -> None:
    counts = count_choices([(0, [1, 0], 2), (0, [2, 0, 1], 1)], shape=(1, 3))
    assert counts is not None
    wins, rest = fold_pairs(np.zeros((1, 3, 3)), counts)
    assert wins.tolist() == [[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    assert rest is not None
    assert rest.subsets.sum(axis=1).tolist() == [3, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"rankings": [(0, [0, 1, 0], 1)]}, "`rankings[0][1][2]` must not repeat an action, got"),
        ({"rankings": [(0, [0, 3], 1)]}, "`rankings[0][1][1]` must be the index of an action"),
        (
            {"rankings": [(2, [0, 1], 1)]},
            "`rankings[0][0]` must be the index of a context, a",
        ),
        ({"rankings": [(0, [0], 1)]}, "`rankings[0][1]` must have at least two actions, got 1"),
        ({"rankings": [(0, [0, 1], -1)]}, "`rankings[0][2]` must be at least 0, got -1"),
        ({"rankings": [(0, [0, 1], np.nan)]}, "`rankings[0][2]` must be finite, got nan"),
        ({"rankings": [(0, "01", 1)]}, "`rankings[0][1]` must be a list of actions, got '01'"),
        ({"rankings": [(0, [0, 1])]}, "`rankings[0]` must be [context, [best, ..., worst], count]"),
        ({"rankings": [7]}, "`rankings[0]` must be [context, [best, ..., worst], count], got 7"),
        ({"choices": [(0, [0, 1], 2, 1)]}, "`choices[0][2]` must be in the set of the choice, got"),
        ({"choices": [(0, [0, True], 0, 1)]}, "`choices[0][1][1]` must be the index of an action"),
        ({"choices": [(0, [1], 1, 1)]}, "`choices[0][1]` must have at least two actions, got 1"),
    ],
)
def test_raises_and_names_the_row(rows: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidProblemError) as raised:
        count_choices(**rows, shape=(2, 3))
    assert str(raised.value).startswith(message)
