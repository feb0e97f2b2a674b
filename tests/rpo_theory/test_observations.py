"""Counts of observations, first places, pairs and outcomes agree with counting by hand."""

from __future__ import annotations

import numpy as np

from rpo_theory.counted_choices import count_choices
from rpo_theory.observations import (
    compared_pairs,
    n_observations,
    outcome_counts,
    preferred_counts,
    winner_counts,
)
from rpo_theory.preference_data import DavidsonTies, RaoKupperTies
from rpo_theory.types import Problem

EXACT = 1e-14
WINS = np.array([[[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
TIES = np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
CHOICES = count_choices([(0, [2, 0, 1], 4)], [(0, [0, 1, 2], 1, 3)], shape=(1, 3))
EVEN = np.full((1, 3), 1 / 3)
PROBLEM = Problem(np.ones(1), EVEN, EVEN, WINS, 1.0, 1.0, CHOICES, DavidsonTies(TIES, 0.5))


def test_closed_form_every_observation_counts_once() -> None:
    assert float(n_observations(PROBLEM)) == 3.0 + 3.0 + 4.0 + 3.0
    first = winner_counts(WINS, CHOICES, TIES)
    assert first.tolist() == [[2.0 + 1.5, 1.0 + 0.5 + 3.0, 1.0 + 4.0]]
    pairs = np.asarray(compared_pairs(WINS, CHOICES, PROBLEM.ties))
    both = pairs + pairs.transpose(0, 2, 1)
    # Each of seven sets of three is shared by its three pairs.
    np.testing.assert_allclose(both[0, 0, 1], 3.0 + 1.0 + 7 / 3, rtol=EXACT)
    np.testing.assert_allclose(both[0, 0, 2], 2.0 + 7 / 3, rtol=EXACT)
    np.testing.assert_allclose(pairs.sum(), 13.0, rtol=EXACT)


def test_closed_form_outcomes_bound_the_evidence() -> None:
    won, lost = outcome_counts(PROBLEM)
    # Action 0: 2 wins, second in 4 rankings, 3 ties at half weight.
    np.testing.assert_array_equal(won[0], [2.0 + 4.0 + 1.5, 1.0 + 3.0 + 0.5, 4.0 + 1.0])
    np.testing.assert_array_equal(lost[0], [1.0 + 4.0 + 3.0 + 1.5, 2.0 + 8.0 + 0.5, 3.0 + 1.0])


def test_closed_form_choices_prefer_the_winner_to_the_rest_of_the_set() -> None:
    counts = np.asarray(preferred_counts(PROBLEM))[0]
    expected = WINS[0] + 0.5 * (TIES[0] + TIES[0].T)
    expected += np.array([[0.0, 4.0, 0.0], [3.0, 0.0, 3.0], [4.0, 4.0, 0.0]])
    np.testing.assert_array_equal(counts, expected)
    full = PROBLEM._replace(choices=None, ties=RaoKupperTies(TIES, 2.0))
    np.testing.assert_array_equal(preferred_counts(full)[0], WINS[0] + TIES[0] + TIES[0].T)
