"""Metrics and win rates against arithmetic by hand; intervals against normal ones."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from llm.config import ObjectiveConfig
from llm.data.preferences import Message
from llm.evaluation.metrics import preference_metrics
from llm.evaluation.win_rates import (
    bootstrap_mean_interval,
    compare_rewards,
    exact_rate_interval,
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
    # One accurate pair of three, by the exact interval.
    assert measured["rewards/accuracies_lower"] == pytest.approx(1 - 0.975 ** (1 / 3))


def test_closed_form_a_tie_counts_half_a_win() -> None:
    comparison = compare_rewards(np.array([1.0, 2.0, 0.0, 3.0]), np.array([0.0, 2.0, 1.0, -1.0]))
    assert comparison[:4] == (2, 1, 1, 0.625)
    swapped = compare_rewards(np.array([0.0, 2.0, 1.0, -1.0]), np.array([1.0, 2.0, 0.0, 3.0]))
    assert swapped[:4] == (1, 1, 2, 0.375)


def test_limit_intervals_of_many_prompts_are_normal() -> None:
    wins, ties, losses = 3000, 0, 7000
    got = win_rate_from_counts(wins, ties, losses)
    error = math.sqrt(0.3 * 0.7 / 10_000)
    assert abs(got.lower - (0.3 - 1.96 * error)) < SAMPLING * error
    assert abs(got.upper - (0.3 + 1.96 * error)) < SAMPLING * error
    values = np.repeat([1.0, 0.0], [wins, losses])
    np.testing.assert_allclose(bootstrap_mean_interval(values), got[4:], atol=10 * SAMPLING * error)


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (0, 3), (1, 7), (4, 9), (20, 20), (645, 805)])
def test_closed_form_intervals_of_rates_are_those_of_clopper_and_pearson(wins: int, n: int) -> None:
    binomtest = pytest.importorskip("scipy.stats").binomtest
    expected = binomtest(wins, n).proportion_ci(0.95, method="exact")
    got = win_rate_from_counts(wins, 0, n - wins)
    np.testing.assert_allclose(got[4:], expected, atol=1e-10)
    if wins == 0:  # no win in n trials does not show that the rate is 0
        assert got[4:] == pytest.approx((0.0, 1 - 0.025 ** (1 / n)), abs=ROUNDING)
    # An even number of ties counts as half as many wins; an odd one is rounded outward.
    assert (
        win_rate_from_counts(wins, 2, n - wins)[3:]
        == win_rate_from_counts(wins + 1, 0, n - wins + 1)[3:]
    )
    odd = win_rate_from_counts(wins, 1, n - wins)
    assert odd.lower == win_rate_from_counts(wins, 0, n - wins + 1).lower
    assert odd.upper == win_rate_from_counts(wins + 1, 0, n - wins).upper


def test_property_intervals_with_ties_cover_the_rate_at_least_as_often_as_promised() -> None:
    # Exact distributions of the sum of n values in {0, 1/2, 1}, for many rates and shares of ties.
    for n in (1, 2, 5, 9, 30):
        ends = np.array([exact_rate_interval(k / 2, n) for k in range(2 * n + 1)])
        for rate in np.linspace(0.01, 0.99, 50):
            for share in (0.0, 0.3, 0.7, 1.0):
                tie = share * min(2 * rate, 2 * (1 - rate))
                one = np.array([1 - rate - tie / 2, tie, rate - tie / 2])
                distribution = np.array([1.0])
                for _ in range(n):
                    distribution = np.convolve(distribution, one)
                missed_above = distribution[ends[:, 0] > rate + ROUNDING].sum()
                missed_below = distribution[ends[:, 1] < rate - ROUNDING].sum()
                assert max(missed_above, missed_below) <= 0.025, (n, rate, share)


def test_limit_a_model_against_itself_ties_every_pair() -> None:
    measured = preference_metrics(CONFIG, POLICY, POLICY)
    assert measured["rewards/win_rate"] == 0.5
    assert measured["rewards/ties"] == measured["pairs"] == 3
    assert measured["rewards/accuracies"] == 0.0  # strict, as in TRL
    ends = [measured[f"rewards/accuracies_{end}"] for end in ("lower", "upper")]
    assert ends == pytest.approx([0.0, 1 - 0.025 ** (1 / 3)])
    ends = [measured[f"rewards/win_rate_{end}"] for end in ("lower", "upper")]
    assert ends[0] < 0.5 < ends[1]
    # One win, one loss and one tie.
    mixed = preference_metrics(CONFIG, POLICY, REFERENCE)
    assert mixed["rewards/win_rate"] == 0.5
    assert [mixed[f"rewards/{name}"] for name in ("wins", "ties", "losses")] == [1, 1, 1]


def test_raises_with_the_metric_that_is_not_finite() -> None:
    config = ObjectiveConfig(beta=1e38, eta=1e38)
    scores = [[score._replace(chosen_logp=value) for score in POLICY] for value in (-1e300, -1.0)]
    with pytest.raises(ValueError, match=r"metric `loss` is nan, which is not finite: `beta` 1e"):
        preference_metrics(config, *scores)


def test_property_the_seed_determines_the_bootstrap() -> None:
    values = np.arange(9.0) ** 2
    assert bootstrap_mean_interval(values, seed=1) == bootstrap_mean_interval(values, seed=1)
    assert bootstrap_mean_interval(values, seed=1) != bootstrap_mean_interval(values, seed=2)


def test_closed_form_reward_functions_receive_prompt_and_reply() -> None:
    def reward(prompt: Any, reply: str) -> int:
        return len(prompt[-1].content) + reply.count("!")

    np.testing.assert_array_equal(score_replies(reward, PROMPTS, ["a!", "b!!"]), [15.0, 16.0])


def test_property_bools_and_scalars_of_numpy_and_jax_are_rewards() -> None:
    each: list[Any] = [True, np.float32(2.5), np.array(3), jnp.float32(4.5), np.int64(5)]
    values = iter(each)
    rewards = score_replies(lambda prompt, reply: next(values), PROMPTS[:1] * 5, ["a"] * 5)
    np.testing.assert_array_equal(rewards, [1.0, 2.5, 3.0, 4.5, 5.0])


async def asynchronous(prompt: Any, reply: str) -> float:
    return 1.0


@pytest.mark.parametrize(
    "value",
    [
        *(None, "high", "1.0", b"1", math.nan, math.inf, 10**400, 10**5000, [1.0], 1j),
        *(np.ones(1), np.ones(2), np.complex64(1), np.float32("nan"), {"reward": 1.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_raises_for_a_reward_that_is_not_a_finite_number(value: Any) -> None:
    def rate(prompt: Any, reply: str) -> Any:
        return 1.0 if reply == "a" else value

    message = r"rows.jsonl:2: reward function `rate`: the reward of prompt 1 must be a finite numb"
    with pytest.raises(ValueError, match=message) as caught:
        score_replies(rate, PROMPTS, ["a", "b"], sources=["rows.jsonl:1", "rows.jsonl:2"])
    assert len(str(caught.value)) < 300


def test_raises_for_a_reward_function_that_is_asynchronous() -> None:
    with pytest.raises(ValueError, match=r"`asynchronous`.*the function must not be `async`"):
        score_replies(asynchronous, PROMPTS, ["a", "b"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "error",
    [KeyError("score"), SystemExit(3), AssertionError("no"), GeneratorExit(), MemoryError()],
)
def test_raises_for_a_reward_function_that_fails_or_exits(error: BaseException) -> None:
    def rate(prompt: Any, reply: str) -> float:
        raise error

    message = f"rows.jsonl:1: reward function `rate` failed for prompt 0: {type(error).__name__}"
    with pytest.raises(ValueError, match=message):
        score_replies(rate, PROMPTS, ["a", "b"], sources=["rows.jsonl:1", "rows.jsonl:2"])


def test_raises_without_rows_prompts_or_counts() -> None:
    with pytest.raises(ValueError, match="`policy` must have at least one score"):
        preference_metrics(CONFIG, [], [])
    with pytest.raises(ValueError, match="`first` must have at least one reward"):
        compare_rewards(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="must be at least 0 and must not all be 0, got 0, 0 "):
        win_rate_from_counts(0, 0, 0)
    with pytest.raises(ValueError, match=r"must be at least 0 .* got 3, -1 and 2"):
        win_rate_from_counts(3, -1, 2)
    with pytest.raises(ValueError, match="must be finite, got nan for prompt 1"):
        compare_rewards(np.zeros(2), np.array([0.0, np.nan]))


@pytest.mark.parametrize("change", [{"row": 1}, {"chosen_tokens": 2}])
def test_raises_for_a_reference_with_other_rows_or_token_counts(change: dict[str, int]) -> None:
    changed = [REFERENCE[0]._replace(**change), *REFERENCE[1:]]
    with pytest.raises(ValueError, match="one tokenizer and one chat template"):
        preference_metrics(CONFIG, POLICY, changed)
