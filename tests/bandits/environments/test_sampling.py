"""Preference data: seeds, sizes and the bandit itself draw from streams of their own."""

from __future__ import annotations

import numpy as np

from bandits.environments.sampling import draw_uniforms, draw_win_counts

SIGMAS = 5.0
"""One false alarm in 1.7 million per number, and the seeds are fixed."""
SEEDS = np.arange(2000)


def first_wins(n: int, seeds: np.ndarray) -> np.ndarray:
    """Standardised wins of the first response of two that are alike."""
    law = np.zeros((len(seeds), 1, 2, 2))
    law[:, 0, 0, 1] = 1.0
    wins = draw_win_counts(np.zeros((len(seeds), 1, 2)), law, comparisons=n, seeds=seeds)
    return (wins[:, 0, 0, 1] - n / 2) / np.sqrt(n / 4)


def test_property_seeds_sizes_and_structure_are_independent() -> None:
    spread = SIGMAS / np.sqrt(SEEDS.size)
    one, other = first_wins(1000, SEEDS), first_wins(1001, SEEDS)
    structure = draw_uniforms(SEEDS, 1)[:, 0]
    assert abs(np.mean(one)) < spread
    assert abs(np.var(one) - 1.0) < np.sqrt(2.0) * spread
    for first, second in ((one, other), (one, structure), (one[1:], one[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < spread


def test_property_uniform_numbers_are_uniform_and_a_longer_row_begins_with_the_shorter() -> None:
    rows = draw_uniforms(SEEDS, 3)
    np.testing.assert_array_equal(rows[:, :2], draw_uniforms(SEEDS, 2))
    assert np.all(np.abs(rows.mean(axis=0) - 0.5) < SIGMAS / np.sqrt(12 * SEEDS.size))
    assert np.unique(rows).size == rows.size


def test_extreme_a_response_compared_with_itself_wins_as_often_as_it_loses() -> None:
    law = np.ones((1, 1, 1, 1))
    wins = draw_win_counts(np.zeros((1, 1, 1)), law, comparisons=7, seeds=np.array([0]))
    assert wins.tolist() == [[[[7.0]]]]
