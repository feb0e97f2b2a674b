"""Claims about off-policy evaluation, by enumeration of all logs of a few comparisons."""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from bandits.off_policy import (
    LoggedPairs,
    WinRateEstimate,
    doubly_robust_win_rate,
    ips_win_rate,
    snips_win_rate,
)

ROUNDING = 1e-13
WEIGHTS = np.array([0.3, 0.7])
POLICY = np.array([[0.8, 0.2], [0.4, 0.6]])
BASELINE = np.array([[0.5, 0.5], [0.1, 0.9]])
PAIRS = np.array([[[0.1, 0.25], [0.15, 0.0]], [[0.0, 0.35], [0.15, 0.0]]])
"""Distribution of the pairs; a response of the first context is also shown against itself."""
RATE = np.array([[[0.5, 0.8], [0.2, 0.5]], [[0.5, 0.3], [0.7, 0.5]]])
"""Probability that the first of a pair wins, whatever the order."""
BIASED = np.array([[[0.5, 0.9], [0.4, 0.5]], [[0.5, 0.3], [0.8, 0.5]]])
"""The same with a bias towards the response that is shown first."""
REWARD = np.array([[0.7, -0.2], [0.0, 0.5]])
TARGET = WEIGHTS[:, None, None] * POLICY[:, :, None] * BASELINE[:, None, :]
OFF_DIAGONAL = ~np.eye(2, dtype=bool)
N = 3


class Logs(NamedTuple):
    """All logs of N comparisons with their probabilities."""

    log: LoggedPairs
    probability: np.ndarray


def win_rate(rate: np.ndarray) -> float:
    """Return the true win rate; a response against itself counts one half."""
    return float((TARGET * np.where(OFF_DIAGONAL, rate, 0.5)).sum())


def all_logs(rate: np.ndarray) -> Logs:
    cells = [*np.argwhere(PAIRS > 0)]
    outcomes = [(tuple(cell), won) for cell in cells for won in (True, False)]
    chances = [PAIRS[cell] * (rate[cell] if won else 1.0 - rate[cell]) for cell, won in outcomes]
    wins, losses, probability = [], [], []
    for sequence in itertools.product(range(len(outcomes)), repeat=N):
        tables = np.zeros((2, *PAIRS.shape))
        for index in sequence:
            cell, won = outcomes[index]
            tables[0 if won else 1][cell] += 1.0
        wins.append(tables[0])
        losses.append(tables[1])
        probability.append(np.prod([chances[index] for index in sequence]))
    pairs = np.broadcast_to(PAIRS, np.shape(wins))
    return Logs(LoggedPairs(np.array(wins), np.array(losses), pairs), np.array(probability))


class Setting(NamedTuple):
    """What an estimate needs besides the log."""

    policy: np.ndarray = POLICY
    baseline: np.ndarray = BASELINE
    context_weights: np.ndarray = WEIGHTS
    reward: np.ndarray = REWARD


@partial(jax.jit, static_argnames="both_orders")
def estimates(log: LoggedPairs, setting: Setting, both_orders: bool) -> dict[str, WinRateEstimate]:
    def of_one(one: LoggedPairs) -> dict[str, WinRateEstimate]:
        arguments = (one, *setting[:3])
        return {
            "ips": ips_win_rate(*arguments, both_orders=both_orders),
            "snips": snips_win_rate(*arguments, both_orders=both_orders),
            "dr": doubly_robust_win_rate(*arguments, setting.reward, both_orders=both_orders),
        }

    return jax.vmap(of_one)(log)


DEFAULT, LOGS = Setting(), all_logs(RATE)


def estimates_of(
    log: LoggedPairs, setting: Setting = DEFAULT, both_orders: bool = True
) -> dict[str, WinRateEstimate]:
    """Return the estimates of one log; it is repeated, so that nothing is compiled for it."""
    repeated = jax.tree.map(lambda table: np.broadcast_to(table, LOGS.log[0].shape), log)
    found = estimates(repeated, setting, both_orders)
    return jax.tree.map(lambda values: np.asarray(values[0]), found)


def moments(logs: Logs, both_orders: bool, name: str) -> tuple[float, float, float]:
    """Return the exact mean and variance of an estimate, and its mean squared standard error."""
    found = estimates(logs.log, DEFAULT, both_orders)[name]
    values, p = np.asarray(found.win_rate), logs.probability
    mean = float(p @ values)
    variance = float(p @ (values - mean) ** 2)
    return mean, variance, float(p @ np.square(found.standard_error))


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize("name", ["ips", "dr"])
def test_closed_form_ips_and_dr_are_unbiased_with_the_variance_of_their_payoffs(
    name: str, both_orders: bool
) -> None:
    assert LOGS.probability.sum() == pytest.approx(1.0, abs=ROUNDING)
    mean, variance, squared_error = moments(LOGS, both_orders, name)
    assert mean == pytest.approx(win_rate(RATE), abs=ROUNDING)
    # The variance by a sum over the outcomes of one comparison.
    model = 1.0 / (1.0 + np.exp(REWARD[:, None, :] - REWARD[:, :, None]))
    model = model if name == "dr" else np.zeros_like(RATE)
    payoffs, chances = [], []
    for x, i, j in np.argwhere(PAIRS > 0):
        for won in (1.0, 0.0):
            chances.append(PAIRS[x, i, j] * (RATE[x, i, j] if won else 1 - RATE[x, i, j]))
            if i == j:
                payoffs.append(0.0)
                continue
            density = PAIRS[x, i, j] + (PAIRS[x, j, i] if both_orders else 0.0)
            payoff = TARGET[x, i, j] / density * (won - model[x, i, j])
            if both_orders:
                payoff += TARGET[x, j, i] / density * (1 - won - model[x, j, i])
            payoffs.append(payoff)
    payoff, chance = np.array(payoffs), np.array(chances)
    expected = (chance @ payoff**2 - (chance @ payoff) ** 2) / N
    assert variance == pytest.approx(expected, abs=ROUNDING)
    assert squared_error == pytest.approx(variance, abs=ROUNDING)


def test_theorem_both_orders_are_the_conditional_mean_and_lower_the_variance() -> None:
    both = np.asarray(estimates(LOGS.log, DEFAULT, True)["ips"].win_rate)
    one = np.asarray(estimates(LOGS.log, DEFAULT, False)["ips"].win_rate)
    wins = LOGS.log.first_wins + np.swapaxes(LOGS.log.first_losses, 2, 3)
    _, group = np.unique(wins.reshape(len(wins), -1), axis=0, return_inverse=True)
    group = group.ravel()
    mass = np.bincount(group, LOGS.probability)
    conditional = np.bincount(group, LOGS.probability * one) / mass
    np.testing.assert_allclose(both, conditional[group], rtol=0, atol=ROUNDING)
    variances = [moments(LOGS, both_orders, "ips")[1] for both_orders in (True, False)]
    assert variances[0] < 0.8 * variances[1]


def test_property_under_a_position_bias_only_one_order_is_unbiased() -> None:
    logs = all_logs(BIASED)
    for name in ("ips", "dr"):
        mean, _, _ = moments(logs, False, name)
        assert mean == pytest.approx(win_rate(BIASED), abs=ROUNDING)
    assert abs(moments(logs, True, "ips")[0] - win_rate(BIASED)) > 0.01


@pytest.mark.parametrize("both_orders", [True, False])
def test_property_snips_is_a_win_rate_and_exact_for_labels_that_never_vary(
    both_orders: bool,
) -> None:
    found = estimates(LOGS.log, DEFAULT, both_orders)["snips"]
    rate = np.asarray(found.win_rate)
    known = ~np.isnan(rate)
    certain = 0.5 * TARGET[:, ~OFF_DIAGONAL].sum()
    assert rate[known].min() >= certain - ROUNDING
    assert rate[known].max() <= 1.0 - certain + ROUNDING
    # Only logs of a response against itself have no estimate.
    drawn = (LOGS.log.first_wins + LOGS.log.first_losses)[:, :, OFF_DIAGONAL].sum(axis=(1, 2)) > 0
    np.testing.assert_array_equal(known, drawn)
    if not both_orders:
        always = LoggedPairs(LOGS.log.first_wins + LOGS.log.first_losses, *_no_losses())
        constant = np.asarray(estimates(always, DEFAULT, False)["snips"].win_rate)
        np.testing.assert_allclose(constant[drawn], 1.0 - certain, rtol=0, atol=ROUNDING)


def _no_losses() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(np.asarray(LOGS.log.first_losses)), np.asarray(LOGS.log.pair_distribution)


def test_limit_snips_approaches_the_win_rate_and_its_error_that_of_the_ratio() -> None:
    wins = 1e8 * PAIRS * RATE
    for both_orders in (True, False):
        log = LoggedPairs(wins, 1e8 * PAIRS * (1 - RATE), PAIRS)
        found = estimates_of(log, both_orders=both_orders)["snips"]
        assert float(found.win_rate) == pytest.approx(win_rate(RATE), abs=1e-12)
        # The variance of N draws of the ratio, by its linearization.
        mass = TARGET[:, OFF_DIAGONAL].sum()
        ratio = (win_rate(RATE) - 0.5 * (1 - mass)) / mass
        variance = 0.0
        for x, i, j in np.argwhere(PAIRS > 0):
            if i == j:
                continue
            density = PAIRS[x, i, j] + (PAIRS[x, j, i] if both_orders else 0.0)
            for won in (1.0, 0.0):
                payoff = TARGET[x, i, j] / density * (won - ratio)
                if both_orders:
                    payoff += TARGET[x, j, i] / density * (1 - won - ratio)
                chance = PAIRS[x, i, j] * (RATE[x, i, j] if won else 1 - RATE[x, i, j])
                variance += chance * payoff**2
        assert float(found.standard_error) == pytest.approx((variance / 1e8) ** 0.5, rel=1e-6)


def test_property_a_true_model_makes_doubly_robust_more_precise_than_ips() -> None:
    reward = np.array([[np.log(4.0), 0.0], [0.0, np.log(7 / 3)]])
    expected = LoggedPairs(1e3 * PAIRS * RATE, 1e3 * PAIRS * (1 - RATE), PAIRS)
    found = estimates_of(expected, Setting(reward=reward))
    assert float(found["dr"].win_rate) == pytest.approx(win_rate(RATE), abs=ROUNDING)
    assert found["dr"].standard_error < 0.95 * found["ips"].standard_error


def test_closed_form_overlap_counts_weights_of_comparisons() -> None:
    first, second = np.eye(2)
    setting = Setting(np.array([first] * 2), np.array([second] * 2), np.array([0.5, 0.5]))
    pairs = np.array([[[0.0, 0.75], [0.0, 0.0]], [[0.0, 0.0], [0.25, 0.0]]])
    wins = np.array([[[0.0, 2.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    log = LoggedPairs.from_wins(wins, pairs)
    found = estimates_of(log, setting)["ips"]
    # Three comparisons of weight 2/3 and one of weight 2.
    assert float(found.effective_sample_size) == pytest.approx(4.0**2 / (3 * 4 / 9 + 4))
    assert float(found.largest_weight) == pytest.approx(2.0)
    assert float(found.uncovered_mass) == 0.0
    assert float(found.win_rate) == pytest.approx((2 * (2 / 3) + 0 * 2) / 4)
    # In the order in which it was shown, the pair of the second context is never compared.
    one_order = estimates_of(log, setting, both_orders=False)["ips"]
    assert np.isnan([one_order.win_rate, one_order.standard_error]).all()
    assert float(one_order.uncovered_mass) == 0.5
    assert one_order.refusal() == (
        "the log never shows pairs that the two policies draw with probability 0.5"
    )


def test_extreme_no_data_and_a_policy_against_itself() -> None:
    empty = LoggedPairs.from_wins(np.zeros((2, 2, 2)), PAIRS)
    for found in estimates_of(empty).values():
        assert found.refusal() == "the log has no comparison that the two policies can draw"
    for found in estimates_of(empty, Setting(np.eye(2), np.eye(2))).values():
        assert float(found.win_rate) == 0.5
        assert float(found.standard_error) == 0.0
        assert found.refusal() is None


def test_extreme_an_uncovered_mass_of_the_size_of_rounding_is_accepted() -> None:
    pairs = np.array([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    first, second = np.eye(2)
    weights = np.array([1.0 - 1e-14, 1e-14])
    setting = Setting(np.array([first] * 2), np.array([second] * 2), weights)
    found = estimates_of(LoggedPairs.from_wins(3.0 * pairs, pairs), setting)["ips"]
    assert float(found.win_rate) == pytest.approx(1.0, abs=1e-12)
    assert 0 < float(found.uncovered_mass) < 1e-12


def test_gradient_of_the_estimate_in_the_policy_is_the_linear_form_of_the_payoffs() -> None:
    log = jax.tree.map(lambda table: table[7], LOGS.log)

    def rate(policy: jax.Array) -> jax.Array:
        return ips_win_rate(log, policy, BASELINE, WEIGHTS).win_rate

    value, gradient = jax.jit(jax.value_and_grad(rate))(POLICY)
    # IPS is linear in the policy.
    assert float(np.sum(gradient * POLICY)) == pytest.approx(float(value), abs=ROUNDING)
