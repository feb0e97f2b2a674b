"""Confidence intervals of a study against those of single problems."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from bandits.environments.designs import Design, draw_design
from bandits.environments.registry import draw_environment
from bandits.methods.registry import METHODS
from bandits.study.config import StudyConfig
from bandits.study.intervals import N_SPLITS, value_intervals
from rpo import api
from rpo_theory.intervals import confidence_interval

DRAWS = draw_design(Design(actions=3), 60, np.arange(4))
SEEDS = np.arange(4) + 7


def test_parity_with_the_interval_of_one_problem() -> None:
    policy = METHODS["two_stage"](DRAWS.problem, DRAWS.reward_class).policy
    columns = value_intervals(policy, DRAWS, SEEDS, confidence=0.9)
    for index in (0, 3):
        problem, reward_class, truth = jax.tree.map(
            lambda leaf, index=index: np.asarray(leaf)[index],
            (DRAWS.problem, DRAWS.reward_class, DRAWS.true_reward),
        )
        arguments = {"confidence": 0.9, "splits": N_SPLITS, "seed": int(SEEDS[index])}
        interval = confidence_interval(problem, reward_class, policy[index], **arguments)
        assert columns["interval_lower"][index] == pytest.approx(float(interval.lower), abs=1e-8)
        assert columns["interval_upper"][index] == pytest.approx(float(interval.upper), abs=1e-8)
        value = ((policy[index] - problem.baseline_policy) * truth).sum()
        covers = float(interval.lower) <= value <= float(interval.upper)
        assert columns["interval_covers"][index] == covers
    np.testing.assert_allclose(
        columns["interval_width"], columns["interval_upper"] - columns["interval_lower"]
    )


def test_property_the_interval_of_a_draw_does_not_depend_on_the_batch() -> None:
    policy = METHODS["two_stage"](DRAWS.problem, DRAWS.reward_class).policy
    together = value_intervals(policy, DRAWS, SEEDS, confidence=0.9)
    few = jax.tree.map(lambda leaf: np.asarray(leaf)[2:], DRAWS)
    separate = value_intervals(policy[2:], few, SEEDS[2:], confidence=0.9)
    for name, column in separate.items():
        np.testing.assert_array_equal(column, together[name][2:])


def test_extreme_data_that_cannot_be_split_have_no_interval() -> None:
    fractions = draw_environment("named:type_i_hacking", 10, np.arange(2), design=Design())
    policy = np.full((2, 1, 3), 1 / 3)
    columns = value_intervals(policy, fractions, np.arange(2), confidence=0.9)
    assert all(np.isnan(column).all() for column in columns.values())


def test_property_a_study_has_the_columns_of_its_intervals(tmp_path: Path) -> None:
    sizes = {"comparisons": [60], "seeds": 3, "design": {"actions": 3}}
    study = StudyConfig(name="a", methods=["two_stage"], intervals=0.95, **sizes)
    result = api.study(study, out=tmp_path / "out")
    for row in result.records.to_pylist():
        assert row["interval_lower"] <= row["interval_upper"]
        inside = row["interval_lower"] <= row["true_value"] <= row["interval_upper"]
        assert row["interval_covers"] == inside
    with pytest.raises(ValueError, match="`intervals` must be a level between 0 and 1, got 95"):
        StudyConfig(name="a", methods=["two_stage"], intervals=95.0, **sizes)
