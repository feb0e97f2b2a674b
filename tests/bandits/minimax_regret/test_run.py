"""Regret of methods against the best possible: known values, and rules that can be worked out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from bandits.minimax_regret import MinimaxRegretConfig, RuleConfig, run_minimax_regret

TWO_ARMS = MinimaxRegretConfig(
    name="two_arms",
    methods=[
        RuleConfig(label="mle", method="rpo", eta=0.0, baseline="reference"),
        RuleConfig(label="uniform", method="rpo", eta="inverse_sqrt", baseline="reference"),
        RuleConfig(label="theorem", method="rpo", eta="theorem", baseline=0),
        RuleConfig(label="rounded", method="rpo", eta=0.064, baseline=0),
        RuleConfig(label="arm 0", method="rpo", eta="inverse_sqrt", baseline=0),
    ],
    comparisons=[20],
    margins=np.geomspace(0.05, 2.0, 12).tolist(),
    pair_distribution=[[0.75, 0.25], [0.0, 0.0]],
    reward_max=2.0,
)
CERTIFIED = 1e-9


def test_golden_two_arms_have_the_published_regrets() -> None:
    result = run_minimax_regret(TWO_ARMS)
    (optimum,) = result.optima.to_pylist()
    assert optimum["minimax_regret"] == pytest.approx(0.159, abs=5e-4)
    assert abs(optimum["duality_gap"]) <= CERTIFIED
    assert optimum["outcomes"] == 231
    found = {row["label"]: row["worst_case_regret"] for row in result.records.to_pylist()}
    expected = {"mle": 0.170, "uniform": 0.391, "theorem": 0.373, "rounded": 0.374, "arm 0": 1.136}
    assert found == pytest.approx(expected, abs=5e-4)
    for row in result.records.to_pylist():
        assert row["ratio"] == pytest.approx(row["worst_case_regret"] / optimum["minimax_regret"])
        assert row["worst_case_regret"] == max(row["regret"]) == row["regret"][row["worst_world"]]
        assert row["unsolved"] == 0
    support = np.flatnonzero(np.asarray(optimum["least_favorable_prior"]) > 1e-9)
    largest = max(optimum["regret"])
    np.testing.assert_allclose(np.asarray(optimum["regret"])[support], largest, rtol=1e-9)


def test_closed_form_expected_gap_of_cloning_is_the_probability_of_the_worse_arm() -> None:
    config = replace(
        TWO_ARMS,
        methods=[RuleConfig(method="behavior_cloning")],
        comparisons=[3, 2],
        margins=[0.5],
        pair_distribution=None,
    )
    result = run_minimax_regret(config)
    worse = 1.0 / (1.0 + np.exp(0.5))  # share of the wins of the worse arm
    for row in result.records.to_pylist():
        np.testing.assert_allclose(row["regret"], 0.5 * worse, rtol=1e-12)
        assert row["worst_rewards"] == [0.5, 0.0]
    for row in result.optima.to_pylist():
        n = row["comparisons"]
        wrong = binom.cdf((n - 1) // 2, n, 1.0 - worse)
        tied = binom.pmf(n // 2, n, worse) if n % 2 == 0 else 0.0
        assert row["minimax_regret"] == pytest.approx(0.5 * (wrong + 0.5 * tied), rel=1e-9)


def test_property_cloning_does_not_beat_the_minimax_rule_on_three_arms() -> None:
    config = replace(
        TWO_ARMS,
        actions=3,
        methods=[RuleConfig(method="behavior_cloning")],
        comparisons=[4],
        margins=[0.3, 1.5],
        pair_distribution=[[0.0, 0.6, 0.1], [0.0, 0.0, 0.0], [0.0, 0.1, 0.2]],
    )
    result = run_minimax_regret(config)
    (optimum,) = result.optima.to_pylist()
    assert abs(optimum["duality_gap"]) <= CERTIFIED
    for row in result.records.to_pylist():
        assert row["ratio"] >= 1.0
        assert row["worst_case_regret"] >= optimum["minimax_regret"]


def test_limit_with_zero_minimax_regret_there_is_no_ratio() -> None:
    config = replace(
        TWO_ARMS,
        methods=[RuleConfig(method="behavior_cloning")],
        comparisons=[3],
        margins=None,
        rewards=[[0.0, 1.0], [0.0, 0.5]],
        pair_distribution=None,
    )
    row = run_minimax_regret(config).records.to_pylist()[0]
    assert (row["minimax_regret"], row["ratio"]) == (0.0, None)


@pytest.mark.slow
def test_closed_form_a_study_of_three_arms_with_many_outcomes_takes_two_minutes() -> None:
    config = replace(
        TWO_ARMS,
        actions=3,
        comparisons=[22],
        pair_distribution=[[0.0, 0.6, 0.1], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]],
    )
    result = run_minimax_regret(config)
    (optimum,) = result.optima.to_pylist()
    assert optimum["outcomes"] == 80_730
    assert abs(optimum["duality_gap"]) <= CERTIFIED
    assert [row["unsolved"] for row in result.records.to_pylist()] == [0] * 5


def test_closed_form_a_function_of_a_user_that_follows_the_majority_is_minimax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
def majority(wins):
    won = wins.sum(axis=-1)
    best = won == won.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)
"""
    (tmp_path / "rule_of_the_user.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    of_user = RuleConfig(method="rule_of_the_user:majority")
    config = replace(
        TWO_ARMS, methods=[of_user], comparisons=[4], margins=[0.5], pair_distribution=None
    )
    (row,) = run_minimax_regret(config).records.to_pylist()
    assert row["ratio"] == pytest.approx(1.0, rel=1e-9)
    assert row["label"] == "rule_of_the_user:majority"
