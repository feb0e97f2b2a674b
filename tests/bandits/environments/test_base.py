"""Baseline policies by name and by action, for one problem and for a batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from bandits.environments.base import BaselineName, baseline_policy, best_action_policy

ROUNDING = 1e-12
"""A few operations in float64."""


def test_closed_form_baselines_by_name_and_by_action() -> None:
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1], wins[0, 2, 0] = 3.0, 1.0
    reference = np.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    policy = partial(baseline_policy, wins=wins, reference=reference)
    expected = {"chosen": [0.75, 0.0, 0.25], "data_marginal": [0.5, 0.375, 0.125]}
    for name in ("chosen", "data_marginal"):
        np.testing.assert_allclose(policy(name), [expected[name], reference[1]], atol=ROUNDING)
    np.testing.assert_array_equal(policy("reference"), reference)
    np.testing.assert_array_equal(policy(2), [[0, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize("baseline", ["chosen", "data_marginal", "reference", 1])
def test_property_the_baselines_of_a_batch_are_those_of_its_members(
    baseline: BaselineName | int,
) -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 3, (4, 2, 3, 3)).astype(float)
    wins[1, 0] = 0.0
    reference = rng.dirichlet(np.ones(3), (4, 2))
    batch = baseline_policy(baseline, wins=wins, reference=reference)
    members = [
        baseline_policy(baseline, wins=wins[i], reference=reference[i]) for i in range(len(wins))
    ]
    np.testing.assert_array_equal(batch, members)
    np.testing.assert_allclose(batch.sum(axis=-1), 1.0, atol=ROUNDING)


def test_closed_form_the_best_action_is_the_first_of_highest_reward() -> None:
    reward = np.array([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    assert best_action_policy(reward).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("baseline", [3, -1])
def test_raises_on_an_action_that_does_not_exist(baseline: int) -> None:
    even = np.full((1, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"`baseline` must be .* an action from 0 to 2, got"):
        baseline_policy(baseline, wins=np.zeros((1, 3, 3)), reference=even)
