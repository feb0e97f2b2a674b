"""The overoptimization toy: its data, its true reward, and its curves."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.finite.overoptimization import (
    ARCHITECTURE,
    COMMON,
    LUCKY,
    make_toy_problem,
    train_on_toy_problem,
)
from llm.finite.policy_table import log_policy
from llm.models.decoder import Decoder

SINGLE = 1e-5  # float32


def test_closed_form_lucky_responses_are_bad_and_won_their_only_comparison() -> None:
    toy = make_toy_problem(3, comparisons=50)
    contexts, winners, losers, counts, _ = toy.comparisons
    for context in range(2):
        is_context = contexts == context
        assert counts[is_context].sum() == 50 + LUCKY
        seen = np.union1d(winners[is_context], losers[is_context])
        assert len(seen) <= COMMON + LUCKY
        lucky = [response for response in seen if toy.reward[context, response] < 0.2]
        assert len(lucky) == LUCKY
        assert not set(lucky) & set(losers[is_context].tolist())
        assert counts[is_context & np.isin(winners, lucky)].sum() == LUCKY


def test_property_the_better_of_two_common_responses_wins_more_often() -> None:
    toy = make_toy_problem(1, comparisons=400)
    contexts, winners, losers, counts, _ = toy.comparisons
    margins = toy.reward[contexts, winners] - toy.reward[contexts, losers]
    is_common = toy.reward[contexts, winners] >= 0.4
    rate = counts[is_common & (margins > 0)].sum() / counts[is_common & (margins != 0)].sum()
    assert rate > 0.6  # of 800: 0.5 is five standard errors away


def test_closed_form_the_curve_begins_at_the_reference() -> None:
    toy = make_toy_problem(0, comparisons=20)
    curve = train_on_toy_problem(
        toy, ObjectiveConfig(method="dpo", beta=0.1), steps=2, measure_every=1
    )
    table = np.asarray(log_policy(Decoder(ARCHITECTURE, rngs=nnx.Rngs(0)), toy.space), np.float64)
    contexts, winners, _, counts, _ = toy.comparisons
    likelihood = np.average(table[contexts, winners], weights=counts)
    assert curve.steps.tolist() == [0, 1, 2]
    assert curve.chosen[0] == pytest.approx(likelihood, rel=SINGLE)
    reward = (np.exp(table) * toy.reward).sum(axis=1).mean()
    assert curve.true_reward[0] == pytest.approx(reward, rel=SINGLE)
