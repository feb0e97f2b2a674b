"""The theorem on random instances by three routes, and its failure on negative controls."""

from __future__ import annotations

import numpy as np
import pytest

from bandits.theorem_check import negative_controls
from bandits.theorem_check.agreement import Agreement, measure_agreement
from rpo.report.demo import INSTANCES, PADDED_SHAPES

GAP = 1e-10  # relative to max(1, |value|)
DISTANCE = 1e-6  # total variation
THREE_DIGITS = 5e-4


@pytest.fixture(scope="module")
def records() -> list[Agreement]:
    return list(measure_agreement(INSTANCES, 0, padded_shapes=PADDED_SHAPES))


def test_property_three_routes_agree_on_random_instances(records: list[Agreement]) -> None:
    """Theorem 5.6 and Algorithm 2, with eta and beta over four decades."""
    assert max(record.relative_gap() for record in records) <= GAP
    assert max(record.policy_tv_maximin for record in records) <= DISTANCE
    assert max(record.policy_tv_loss for record in records) <= DISTANCE


def test_property_the_instances_cover_their_ranges(records: list[Agreement]) -> None:
    assert len(records) == INSTANCES
    assert {record.family for record in records} == {"tabular", "linear"}
    for name, low, high in (("eta", 0.01, 100), ("beta", 0.01, 100)):
        values = np.array([getattr(record, name) for record in records])
        assert low <= values.min()
        assert values.max() <= high
        assert values.max() / values.min() > 1e3
    assert max(record.contexts for record in records) > 10
    assert max(record.actions for record in records) > 20


def best_bet(beta: float, steepness: float, angles: int) -> float:
    """Return the gain of the best policy over the uniform one, minus KL, for the worst neuron."""
    gains = []
    for angle in 2 * np.pi * np.arange(angles) / angles:
        reward = 1 / (1 + np.exp(-steepness * np.cos(angle - 2 * np.pi * np.arange(3) / 3)))
        policy = np.exp(reward / beta) / np.exp(reward / beta).sum()
        gains.append((policy - 1 / 3) @ reward - beta * policy @ np.log(3 * policy))
    return min(gains)


def test_golden_negative_controls_have_the_gap_known_in_advance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = negative_controls.two_rewards()
    neuron, policies = negative_controls.one_neuron(), negative_controls.two_policies()
    known = [0.145, 0.268, 0.347, 0.388, best_bet(0.1, 4.0, 24), 0.5]
    controls = [*two, neuron, policies]
    assert [control.duality_gap for control in controls] == pytest.approx(known, abs=THREE_DIGITS)
    assert [control.expected for control in controls] == pytest.approx(known, abs=1e-12)
    for name, made in (("two_rewards", two), ("one_neuron", neuron), ("two_policies", policies)):
        monkeypatch.setattr(negative_controls, name, lambda made=made: made)
    assert negative_controls.solve_negative_controls() == controls
