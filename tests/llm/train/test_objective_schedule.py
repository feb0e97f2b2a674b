"""Schedules of beta and eta: their formulas, and the same program for every step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from llm.config import ObjectiveConfig, ScheduleConfig
from llm.train.objective_schedule import make_constants_schedule, make_schedule

STEPS = np.arange(12)
FORMULAS: dict[str, Any] = {
    "linear": lambda x: x,
    "cosine": lambda x: np.sin(np.pi * x / 2) ** 2,
    "stepwise": lambda x: np.digitize(x, [1 / 3, 2 / 3, 1.0]) / 3,
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_closed_form_schedules_move_between_their_ends(kind: Any) -> None:
    config = ScheduleConfig(kind=kind, end=0.2, share=0.75, drops=3)
    schedule = jax.jit(make_schedule(0.8, config, 12))
    fraction = np.minimum(STEPS / 9, 1.0)
    expected = 0.8 - 0.6 * FORMULAS[kind](fraction)
    np.testing.assert_allclose([float(schedule(step)) for step in STEPS], expected, atol=1e-12)
    assert schedule._cache_size() == 1  # type: ignore[attr-defined]


def test_limit_constant_objectives_have_no_schedule() -> None:
    assert make_constants_schedule(ObjectiveConfig(), 10) is None
    config = ObjectiveConfig(eta=0.0, beta=0.4, eta_schedule=ScheduleConfig(kind="linear", end=0.1))
    schedule = make_constants_schedule(config, 10)
    assert schedule is not None
    assert config.trains_sft
    values = [float(value) for value in schedule(5)]
    assert values == pytest.approx([0.4, 0.05])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "linear"}, "`end` must be given for the kind 'linear'"),
    ({"end": 1.0}, "`end` has no effect for the kind 'constant'"),
    ({"kind": "linear", "end": -1.0}, "`end` must be 0 or more"),
    ({"kind": "linear", "end": 1.0, "share": 0.0}, r"`share` must be in \(0, 1\]"),
    ({"kind": "stepwise", "end": 1.0, "drops": 0}, "`drops` must be a whole number from 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_raises_schedules_without_an_end_or_out_of_range(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)
    with pytest.raises(ValueError, match=r"`objective.beta_schedule.end` must be positive"):
        ObjectiveConfig(beta_schedule=ScheduleConfig(kind="linear", end=0.0))
