"""Claims about the tiny task: its data, its truth, and what the curves measure."""

from __future__ import annotations

import numpy as np
import pytest

from llm.known_reward import COMMON, LUCKY, make_task, train_curve
from llm.objective import ObjectiveConfig


def test_closed_form_lucky_responses_are_bad_and_won_their_only_comparison() -> None:
    task = make_task(3, comparisons=50)
    contexts, winners, losers, counts, _ = task.comparisons
    for context in range(2):
        here = contexts == context
        assert counts[here].sum() == 50 + LUCKY
        seen = np.union1d(winners[here], losers[here])
        assert len(seen) <= COMMON + LUCKY
        lucky = [one for one in seen if task.reward[context, one] < 0.2]
        assert len(lucky) == LUCKY
        assert not set(lucky) & set(losers[here].tolist())
        assert counts[here & np.isin(winners, lucky)].sum() == LUCKY


def test_closed_form_the_curve_begins_at_the_reference() -> None:
    task = make_task(0, comparisons=20)
    curve = train_curve(task, ObjectiveConfig(method="dpo", beta=0.1), steps=2, every=1)
    assert curve.steps.tolist() == [0, 1, 2]
    assert curve.true_reward[0] == pytest.approx(task.reward.mean(), abs=0.1)
    assert curve.chosen[0] < -2.0
