"""Worlds and outcomes: probabilities against SciPy's distributions and enumeration by hand."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from bandits.minimax_regret import (
    Worlds,
    action_gaps,
    count_outcomes,
    enumerate_outcomes,
    rewards_from_margins,
)

QUARTER = np.array([[0.75, 0.25], [0.0, 0.0]])  # one comparison in four is informative
THREE = np.array([[0.1, 0.2, 0.1], [0.0, 0.0, 0.25], [0.05, 0.1, 0.2]])


def test_closed_form_outcomes_of_two_arms_are_two_binomials() -> None:
    rewards = np.array([[0.0, 0.7], [1.3, 0.0], [2.0, 2.0]])
    outcomes = enumerate_outcomes(Worlds(rewards, QUARTER, 20))
    wins = outcomes.wins[:, 1, 0]
    informative = wins + outcomes.wins[:, 0, 1]
    for reward, log_probability in zip(rewards, outcomes.log_probability, strict=True):
        rate = expit(reward[1] - reward[0])
        expected = binom.pmf(informative, 20, 0.25) * binom.pmf(wins, informative, rate)
        np.testing.assert_allclose(np.exp(log_probability), expected, rtol=1e-12)


def test_closed_form_outcomes_of_three_arms_sum_over_all_sequences_of_comparisons() -> None:
    reward = np.array([0.3, -0.4, 1.1])
    outcomes = enumerate_outcomes(Worlds(reward[None], THREE, 3))
    expected: dict[bytes, float] = {}
    pairs = list(itertools.product(range(3), repeat=2))
    for sequence in itertools.product(itertools.product(pairs, (0, 1)), repeat=3):
        wins, probability = np.zeros((3, 3)), 1.0
        for pair, upset in sequence:
            winner, loser = pair[::-1] if upset else pair
            wins[winner, loser] += 1
            probability *= THREE[pair] * expit(reward[winner] - reward[loser])
        expected[wins.tobytes()] = expected.get(wins.tobytes(), 0.0) + probability
    found = {
        wins.tobytes(): float(np.exp(value))
        for wins, value in zip(outcomes.wins, outcomes.log_probability[0], strict=True)
    }
    assert len(found) == len(outcomes.wins)
    for table, probability in expected.items():
        assert found.get(table, 0.0) == pytest.approx(probability, rel=1e-12)


def test_parity_log_probabilities_are_those_of_mpmath() -> None:
    reward = np.array([0.0, 9.5])
    outcomes = enumerate_outcomes(Worlds(reward[None], QUARTER, 300))
    for index in (0, 40, 4_000, 45_000):
        counts = [int(outcomes.wins[(index, *cell)]) for cell in ((0, 1), (1, 0), (0, 0))]
        with mpmath.workdps(40):
            rate = 1 / (1 + mpmath.exp(-mpmath.mpf(9.5)))
            chances = (mpmath.mpf("0.25") * (1 - rate), mpmath.mpf("0.25") * rate, 0.75)
            exact = mpmath.log(mpmath.factorial(300))
            for count, chance in zip(counts, chances, strict=True):
                exact += count * mpmath.log(chance) - mpmath.log(mpmath.factorial(count))
        assert float(outcomes.log_probability[0, index]) == pytest.approx(
            float(exact), rel=1e-13, abs=2e-12
        )


@pytest.mark.parametrize(("pairs", "comparisons"), [(QUARTER, 20), (THREE, 4), (np.eye(2) / 2, 5)])
def test_property_probabilities_sum_to_one_and_tables_to_n(
    pairs: np.ndarray, comparisons: int
) -> None:
    rewards = np.random.default_rng(0).normal(size=(5, len(pairs)))
    outcomes = enumerate_outcomes(Worlds(rewards, pairs, comparisons))
    np.testing.assert_allclose(np.exp(outcomes.log_probability).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(outcomes.wins.sum(axis=(1, 2)), comparisons)
    assert len(np.unique(outcomes.wins, axis=0)) == count_outcomes(pairs, comparisons)


def test_extreme_labels_are_certain_at_huge_differences() -> None:
    rewards = np.array([[0.0, 1e6]])
    outcomes = enumerate_outcomes(Worlds(rewards, np.array([[0.0, 1.0], [0.0, 0.0]]), 30))
    probability = np.exp(outcomes.log_probability[0])
    assert probability[outcomes.wins[:, 1, 0] == 30].tolist() == [1.0]
    assert probability.sum() == 1.0


def test_closed_form_gaps_are_zero_at_the_best_action_of_each_margin() -> None:
    rewards = rewards_from_margins(np.array([0.5, 2.0]), 3)
    assert rewards.shape == (6, 3)
    gaps = action_gaps(rewards - 7.0)
    assert gaps[1].tolist() == [0.0, 2.0, 2.0]
    assert gaps[4].tolist() == [0.5, 0.5, 0.0]


def test_raises_too_many_outcomes_before_they_are_enumerated() -> None:
    pairs = np.triu(np.ones((3, 3)), 1) / 3
    with pytest.raises(ValueError, match=r"at most 100,000 outcomes, got 142,506 with N = 25"):
        enumerate_outcomes(Worlds(np.zeros((1, 3)), pairs, 25))
    with pytest.raises(ValueError, match="compare fewer pairs"):
        enumerate_outcomes(Worlds(np.zeros((1, 3)), pairs, 10**9))
