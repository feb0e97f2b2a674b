"""The theorem fails on negative controls; that it holds is tested with ``rpo demo``."""

from __future__ import annotations

import numpy as np
import pytest

from bandits.theorem_check import negative_controls

THREE_DIGITS = 5e-4


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
