"""The curve of the minimax agreement; its limit is tested in ``tests/rpo/report``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import optax
import pytest

from llm.finite import minimax_agreement
from llm.finite.minimax_agreement import train_to_minimax
from llm.parallel.mesh import single_device
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
    training = (optax.sgd(1.0), single_device(), step)
    monkeypatch.setattr(minimax_agreement, "_training", lambda *_: training)
    curve = train_to_minimax("small", steps=5, measure_every=2)
    assert curve.steps.tolist() == [0, 2, 4]
    np.testing.assert_allclose(curve.variation, np.full(3, 0.0625), rtol=1e-12)
    assert len(trained) == 6
    weights = trained[0].weights  # each comparison, in both orders
    assert float(weights.sum()) == minimax_agreement.LABELS_PER_PAIR * weights.size / 2


def test_compiles_once_for_all_seeds_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = []

    def training(graphdef: Any, steps: int) -> Any:
        structures.append(graphdef)
        return optax.sgd(1.0), single_device(), lambda state, frozen, batch: (state, frozen)

    uniform = SimpleNamespace(policy=np.full((2, 15), 1 / 15))
    monkeypatch.setattr(minimax_agreement.minimax, "solve", lambda *_: uniform)
    monkeypatch.setattr(minimax_agreement, "_training", training)
    train_to_minimax("small", steps=1, measure_every=1, seed=0)
    table: Any = minimax_agreement._log_policy_of_split
    n_programs = table._cache_size()
    train_to_minimax("small", steps=1, measure_every=1, seed=1)
    assert table._cache_size() == n_programs
    assert structures[0] == structures[1]
    assert hash(structures[0]) == hash(structures[1])
