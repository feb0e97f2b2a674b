"""Environments by name: designs, named instances and data from the pairs of votes."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from bandits.environments import instances
from bandits.environments.designs import Design, draw_design
from bandits.environments.registry import NAMED_INSTANCES, WORST_DEFICIT, draw_environment

SIGMAS = 5.0
"""One false alarm in 1.7 million numbers; the seeds are fixed."""
FIT = 1e-3
"""Accuracy of L-BFGS-B for reward differences that the votes determine."""

VOTES = "context,winner,loser,count\nq,a,b,30\nq,b,a,10\nq,b,c,25\nq,c,b,15\np,c,a,12\np,a,c,8\n"


@pytest.fixture
def votes(tmp_path: Path) -> str:
    path = tmp_path / "votes.csv"
    path.write_text(VOTES)
    return f"votes:{path}"


def test_parity_the_environment_design_is_drawn_by_draw_design() -> None:
    design, seeds = Design(actions=4), np.arange(2)
    by_name = draw_environment("design", 50, seeds, design=design)
    for first, second in zip(
        *map(jax.tree.leaves, (by_name, draw_design(design, 50, seeds))), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_parity_a_named_instance_is_the_same_for_every_seed() -> None:
    batch = draw_environment("named:four_arms", 100, np.array([5, 9]), design=Design())
    single = instances.four_arms(100)
    for stacked, leaf in zip(*map(jax.tree.leaves, (batch, single)), strict=True):
        np.testing.assert_array_equal(stacked, np.stack([leaf, leaf]))


@pytest.mark.parametrize("name", NAMED_INSTANCES)
def test_property_every_named_instance_has_the_number_of_comparisons_as_its_scale(
    name: str,
) -> None:
    batch = draw_environment(f"named:{name}", 64, np.arange(1), design=Design())
    assert float(np.asarray(batch.problem.beta)[0]) == 0.125


def test_closed_form_the_ghost_arm_has_the_deficit_that_costs_rpo_most() -> None:
    grid = np.linspace(0.5, 3.0, 10_001)
    best = grid[np.argmax(grid / (1 + np.exp(grid)))]
    assert pytest.approx(best, abs=1e-3) == WORST_DEFICIT


def test_parity_the_truth_of_votes_is_the_maximum_likelihood_reward(votes: str) -> None:
    batch = draw_environment(votes, 40, np.arange(1), design=Design(reward_max=4.0))
    truth = np.asarray(batch.true_reward)[0]

    def loss(reward: np.ndarray) -> float:
        a, b, c = reward
        margins = np.array([a - b, b - a, b - c, c - b])
        return -float(np.array([30, 10, 25, 15]) @ np.log(expit(margins)))

    fit = minimize(loss, np.full(3, 2.0), bounds=[(0, 4)] * 3, method="L-BFGS-B").x
    np.testing.assert_allclose(np.diff(truth[1]), np.diff(fit), atol=FIT)
    assert truth[0, 2] - truth[0, 0] == pytest.approx(math.log(12 / 8), abs=FIT)
    np.testing.assert_allclose(batch.problem.context_weights, [[0.2, 0.8]])


def test_property_data_are_drawn_from_the_pairs_of_the_votes(votes: str) -> None:
    n = 10**6
    batch = draw_environment(votes, n, np.array([3, 4]), design=Design(reward_max=4.0))
    wins, truth = np.asarray(batch.problem.wins), np.asarray(batch.true_reward)
    expected = np.zeros((2, 3, 3))
    expected[0, 0, 2], expected[1, 0, 1], expected[1, 1, 2] = 0.2, 0.4, 0.4
    counts = wins + wins.swapaxes(2, 3)
    pairs = expected + expected.swapaxes(1, 2)
    np.testing.assert_allclose(counts / n, np.stack([pairs, pairs]), atol=SIGMAS * 5e-4)
    rate = expit(truth[..., :, None] - truth[..., None, :])
    compared = counts > 0
    z = (wins - counts * rate)[compared] / np.sqrt(counts * rate * (1 - rate))[compared]
    assert np.abs(z).max() < SIGMAS
    assert not np.array_equal(wins[0], wins[1])


@pytest.mark.parametrize("name", ["", "named:nobody", "votes:", "design:x", "tabular"])
def test_raises_on_an_unknown_environment(name: str) -> None:
    with pytest.raises(ValueError, match="`environments` must be"):
        draw_environment(name, 10, np.arange(1), design=Design())


def test_raises_on_numbers_out_of_range_whatever_the_environment(votes: str) -> None:
    for name in ("design", "named:four_arms", votes):
        with pytest.raises(ValueError, match="`n_comparisons`"):
            draw_environment(name, 0, np.arange(1), design=Design())
