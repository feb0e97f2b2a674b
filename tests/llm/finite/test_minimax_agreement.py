"""The curve of the minimax agreement; its limit is tested in ``tests/rpo/report``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm.finite import minimax_agreement
from llm.finite.minimax_agreement import train_to_minimax
from rpo_theory.rewards import Unbounded

MOVED = np.array([0.0625, 0.03125])


def test_closed_form_the_curve_is_the_largest_total_variation_over_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exact policy is the initial one with some probability moved; the step changes nothing."""

    def solve(problem: Any, reward_class: Any) -> Any:
        assert isinstance(reward_class, Unbounded)
        policy = np.array(problem.reference_policy)
        assert policy.sum(axis=1) == pytest.approx(np.ones(2))
        policy[:, 0] += MOVED
        policy[:, 1:] -= MOVED[:, None] / (policy.shape[1] - 1)
        return SimpleNamespace(policy=policy)

    trained: list[Any] = []

    def step(state: Any, frozen: Any, batch: Any) -> Any:
        trained.append(batch)
        return state, frozen

    monkeypatch.setattr(minimax_agreement.minimax, "solve", solve)
    monkeypatch.setattr(minimax_agreement, "make_train_step", lambda *_, **__: step)
    curve = train_to_minimax("small", steps=5, measure_every=2)
    assert curve.steps.tolist() == [0, 2, 4]
    np.testing.assert_allclose(curve.variation, np.full(3, 0.0625), rtol=1e-12)
    assert len(trained) == 6
    weights = trained[0].weights  # each comparison, in both orders
    assert float(weights.sum()) == minimax_agreement.LABELS_PER_PAIR * weights.size / 2
