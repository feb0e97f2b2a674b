"""Metrics and win rates against arithmetic by hand; intervals against normal ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llm.config import ObjectiveConfig
from llm.data.preferences import Message
from llm.evaluation.metrics import preference_metrics
from llm.evaluation.win_rates import (
    bootstrap_mean_interval,
    compare_rewards,
    score_replies,
    win_rate_from_counts,
)
from llm.inference.score import PairScore

ROUNDING = 1e-12  # float64
SAMPLING = 0.03  # of quantiles of 10,000 draws or of 1,000, relative to a standard error
POLICY = [
    PairScore(0, -4.0, -9.0, 3, 4),
    PairScore(5, -7.0, -2.0, 2, 2),
    PairScore(6, -1.0, -1.5, 1, 1),
]
REFERENCE = [
    PairScore(0, -5.0, -8.0, 3, 4),
    PairScore(5, -6.0, -2.5, 2, 2),
    PairScore(6, -1.0, -1.5, 1, 1),
]
CONFIG = ObjectiveConfig(beta=0.1, eta=0.5)
PROMPTS = [(Message("user", "Say something."),)] * 2


def test_closed_form_metrics_are_means_over_rows() -> None:
    measured = preference_metrics(CONFIG, POLICY, REFERENCE)
    margins = np.array([0.2, -0.15, 0.0])
    expected = {
        "rewards/chosen": 0.1 * (1.0 - 1.0 + 0.0) / 3,
        "rewards/rejected": 0.1 * (-1.0 + 0.5 + 0.0) / 3,
        "rewards/margins": margins.mean(),
        "rewards/accuracies": 1 / 3,
        "logps/chosen": -4.0,
        "logps/rejected": -12.5 / 3,
        "loss/dpo": np.log1p(np.exp(-margins)).mean(),
        "loss/sft": 4.0,
        "loss": np.log1p(np.exp(-margins)).mean() + 0.5 * 0.1 * 4.0,
        "theory/log_ratio_median": 0.0,
        "pairs": 3,
    }
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=ROUNDING), name
    assert math.isfinite(measured["theory/adversarial_value"])
    ends = (measured["rewards/margins_lower"], measured["rewards/margins_upper"])
    assert ends == pytest.approx(bootstrap_mean_interval(margins, seed=0), abs=ROUNDING)
    assert ends[0] <= margins.mean() <= ends[1]
    assert measured["rewards/accuracies_lower"] == 0.0


def test_closed_form_a_tie_counts_half_a_win() -> None:
    comparison = compare_rewards(np.array([1.0, 2.0, 0.0, 3.0]), np.array([0.0, 2.0, 1.0, -1.0]))
    assert comparison[:4] == (2, 1, 1, 0.625)
    swapped = compare_rewards(np.array([0.0, 2.0, 1.0, -1.0]), np.array([1.0, 2.0, 0.0, 3.0]))
    assert swapped[:4] == (1, 1, 2, 0.375)


def test_limit_intervals_of_many_prompts_are_normal() -> None:
    wins, ties, losses = 300, 200, 500
    got = win_rate_from_counts(wins, ties, losses)
    second_moment = (wins + ties / 4) / 1000
    error = math.sqrt((second_moment - got.win_rate**2) / 1000)
    assert abs(got.lower - (got.win_rate - 1.96 * error)) < 3 * SAMPLING * error
    assert abs(got.upper - (got.win_rate + 1.96 * error)) < 3 * SAMPLING * error
    values = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    # A tenth of the resamples: their quantiles are noisier.
    np.testing.assert_allclose(bootstrap_mean_interval(values), got[4:], atol=10 * SAMPLING * error)


def test_property_the_seed_determines_the_intervals() -> None:
    assert win_rate_from_counts(5, 1, 7, seed=3) == win_rate_from_counts(5, 1, 7, seed=3)
    values = np.arange(9.0) ** 2
    assert bootstrap_mean_interval(values, seed=1) == bootstrap_mean_interval(values, seed=1)
    assert bootstrap_mean_interval(values, seed=1) != bootstrap_mean_interval(values, seed=2)


def test_closed_form_reward_functions_receive_prompt_and_reply() -> None:
    def reward(prompt: Any, reply: str) -> int:
        return len(prompt[-1].content) + reply.count("!")

    np.testing.assert_array_equal(score_replies(reward, PROMPTS, ["a!", "b!!"]), [15.0, 16.0])


@pytest.mark.parametrize("value", [None, "high", float("nan"), float("inf")])
def test_raises_for_a_reward_that_is_not_a_finite_number(value: Any) -> None:
    with pytest.raises(ValueError, match="prompt 1 must be a finite number"):
        score_replies(lambda prompt, reply: 1.0 if reply == "a" else value, PROMPTS, ["a", "b"])


def test_raises_without_rows_prompts_or_counts() -> None:
    with pytest.raises(ValueError, match="`policy` must have at least one score"):
        preference_metrics(CONFIG, [], [])
    with pytest.raises(ValueError, match="`first` must have at least one reward"):
        compare_rewards(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="`wins`, `ties` and `losses` must not all be 0"):
        win_rate_from_counts(0, 0, 0)
    with pytest.raises(ValueError, match="must be finite, got nan for prompt 1"):
        compare_rewards(np.zeros(2), np.array([0.0, np.nan]))


@pytest.mark.parametrize("change", [{"row": 1}, {"chosen_tokens": 2}])
def test_raises_for_a_reference_with_other_rows_or_token_counts(change: dict[str, int]) -> None:
    changed = [REFERENCE[0]._replace(**change), *REFERENCE[1:]]
    with pytest.raises(ValueError, match="one tokenizer and one chat template"):
        preference_metrics(CONFIG, POLICY, changed)
