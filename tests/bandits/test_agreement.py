"""The theorem on random instances, three routes, and its failure where it must fail."""

from __future__ import annotations

import numpy as np
import pytest

from bandits.agreement import Agreement, measure_agreement
from bandits.negative_controls import negative_controls
from rpo.demo import CEILINGS, INSTANCES

GAP = 1e-10  # relative to max(1, |value|)
DISTANCE = 1e-6  # total variation
THREE_DIGITS = 5e-4


@pytest.fixture(scope="module")
def records() -> list[Agreement]:
    return list(measure_agreement(INSTANCES, 0, ceilings=CEILINGS))


def test_property_three_routes_agree_on_random_instances(records: list[Agreement]) -> None:
    """Theorem 5.6 and Algorithm 2, with eta and beta over four decades."""
    assert max(record.relative_gap() for record in records) <= GAP
    assert max(record.policy_tv_maximin for record in records) <= DISTANCE
    assert max(record.policy_tv_loss for record in records) <= DISTANCE


def test_property_the_instances_are_spread_as_promised(records: list[Agreement]) -> None:
    assert len(records) == INSTANCES
    assert {record.family for record in records} == {"tabular", "linear"}
    for name, low, high in (("eta", 0.01, 100), ("beta", 0.01, 100)):
        values = np.array([getattr(record, name) for record in records])
        assert low <= values.min()
        assert values.max() <= high
        assert values.max() / values.min() > 1e3
    assert max(record.contexts for record in records) > 10
    assert max(record.actions for record in records) > 20


def test_golden_negative_controls_have_the_gap_known_in_advance() -> None:
    for control in negative_controls():
        assert control.duality_gap == pytest.approx(control.expected, abs=THREE_DIGITS)
        assert control.duality_gap > 0.1
