"""Maximum likelihood rewards, which several methods start from."""

from __future__ import annotations

import numpy as np

from bandits.methods.base import mle_reward
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem


def test_closed_form_maximum_likelihood_rewards_fit_the_shares_of_the_votes() -> None:
    wins = np.array([[[[0.0, 3.0], [1.0, 0.0]]], [[[0.0, 1.0], [1.0, 0.0]]]])
    even = np.full((2, 1, 2), 0.5)
    problem = Problem(np.ones((2, 1)), even, even, wins, np.ones(2), np.full(2, 7.0))
    reward = mle_reward(problem, TabularBox(np.array([5.0, 5.0])))
    np.testing.assert_allclose(reward[:, 0, 0] - reward[:, 0, 1], [np.log(3.0), 0.0], atol=1e-6)
