"""Preference sampling: seeds, sizes and the bandit itself use separate random streams."""

from __future__ import annotations

import numpy as np

from bandits.environments.sampling import (
    count_wins,
    draw_pair_counts,
    draw_uniforms,
    draw_win_counts,
    find_pairs,
    pair_cells,
)

SIGMAS = 5.0
"""One false alarm in 1.7 million numbers; the seeds are fixed."""
SEEDS = np.arange(2000)


def first_wins(n: int, seeds: np.ndarray) -> np.ndarray:
    """Return the standardized wins of the first of two equal responses."""
    pairs = np.zeros((len(seeds), 1, 2, 2))
    pairs[:, 0, 0, 1] = 1.0
    wins = draw_win_counts(np.zeros((len(seeds), 1, 2)), pairs, comparisons=n, seeds=seeds)
    return (wins[:, 0, 0, 1] - n / 2) / np.sqrt(n / 4)


def test_property_seeds_sizes_and_structure_are_independent() -> None:
    bound = SIGMAS / np.sqrt(SEEDS.size)
    wins, wins_of_more = first_wins(1000, SEEDS), first_wins(1001, SEEDS)
    structure = draw_uniforms(SEEDS, 1)[:, 0]
    assert abs(np.mean(wins)) < bound
    assert abs(np.var(wins) - 1.0) < np.sqrt(2.0) * bound
    for first, second in ((wins, wins_of_more), (wins, structure), (wins[1:], wins[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < bound


def test_property_uniform_numbers_are_uniform_and_a_longer_row_begins_with_the_shorter() -> None:
    rows = draw_uniforms(SEEDS, 3)
    np.testing.assert_array_equal(rows[:, :2], draw_uniforms(SEEDS, 2))
    assert np.all(np.abs(rows.mean(axis=0) - 0.5) < SIGMAS / np.sqrt(12 * SEEDS.size))
    assert np.unique(rows).size == rows.size


def test_extreme_a_response_compared_with_itself_wins_as_often_as_it_loses() -> None:
    pairs = np.ones((1, 1, 1, 1))
    wins = draw_win_counts(np.zeros((1, 1, 1)), pairs, comparisons=7, seeds=np.array([0]))
    assert wins.tolist() == [[[[7.0]]]]


def test_closed_form_the_wins_of_pairs_go_to_the_actions_that_their_indices_stand_for() -> None:
    compared = np.zeros((1, 2, 3, 3))
    compared[0, [0, 1, 1], [0, 1, 2], [1, 2, 1]] = 1.0
    pairs = find_pairs(compared)
    counts = np.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]] * 2)
    action_of = np.array([[[2, 0, 1], [0, 1, 2]], [[0, 1, 2], [1, 2, 0]]])
    wins = count_wins(counts, pair_cells(pairs, action_of), (2, 2, 3))
    expected = np.zeros((2, 2, 3, 3))
    for member in range(2):
        for x, i, j, first, second in ((0, 0, 1, 1, 2), (1, 1, 2, 3, 4), (1, 2, 1, 5, 6)):
            a, b = action_of[member, x, [i, j]]
            expected[member, x, a, b] += first
            expected[member, x, b, a] += second
    assert np.array_equal(wins, expected)


def test_closed_form_counts_of_pairs_sum_to_the_comparisons() -> None:
    pairs = find_pairs(np.array([[[[0.0, 0.5], [0.0, 0.5]]]]))
    arguments = {"comparisons": 30, "seeds": np.array([4]), "label_noise": 0.0}
    reward, probability = np.zeros((1, 1, 2)), np.array([[0.5, 0.5]])
    counts = draw_pair_counts(reward, pairs, probability, **arguments)
    assert counts.shape == (1, 2, 2)
    assert counts.sum() == 30
    other = draw_pair_counts(reward, pairs, probability, **arguments, stream=7)
    assert not np.array_equal(counts, other)
