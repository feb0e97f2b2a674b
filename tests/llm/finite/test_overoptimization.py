"""Claims about the tiny task: its data, its truth, and what the curves measure."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.finite.overoptimization import ARCHITECTURE, COMMON, LUCKY, make_task, train_curve
from llm.finite.policy_table import log_policy
from llm.models.decoder import Decoder

SINGLE = 1e-5  # float32


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


def test_property_the_better_of_two_common_responses_wins_more_often() -> None:
    task = make_task(1, comparisons=400)
    contexts, winners, losers, counts, _ = task.comparisons
    margins = task.reward[contexts, winners] - task.reward[contexts, losers]
    ordinary = task.reward[contexts, winners] >= 0.4
    rate = counts[ordinary & (margins > 0)].sum() / counts[ordinary & (margins != 0)].sum()
    assert rate > 0.6  # of 800: 0.5 is five standard errors away


def test_closed_form_the_curve_begins_at_the_reference() -> None:
    task = make_task(0, comparisons=20)
    curve = train_curve(task, ObjectiveConfig(method="dpo", beta=0.1), steps=2, every=1)
    table = np.asarray(log_policy(Decoder(ARCHITECTURE, rngs=nnx.Rngs(0)), task.space), np.float64)
    contexts, winners, _, counts, _ = task.comparisons
    likelihood = np.average(table[contexts, winners], weights=counts)
    assert curve.steps.tolist() == [0, 1, 2]
    assert curve.chosen[0] == pytest.approx(likelihood, rel=SINGLE)
    reward = (np.exp(table) * task.reward).sum(axis=1).mean()
    assert curve.true_reward[0] == pytest.approx(reward, rel=SINGLE)
