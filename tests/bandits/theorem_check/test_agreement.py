"""The theorem fails on negative controls; that it holds is tested with ``rpo demo``."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from bandits.theorem_check import agreement, negative_controls
from bandits.theorem_check.instances import draw_verification_batches
from rpo_theory.certificate import duality_gap_bound
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Solution

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
    positive = negative_controls.convex_like()
    monkeypatch.setattr(negative_controls, "convex_like", lambda: positive)
    assert abs(positive.duality_gap) <= 1e-12
    assert positive.expected == 0.0
    assert negative_controls.solve_negative_controls() == [*controls, positive]


def test_property_the_instances_of_both_families_are_measured_in_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []

    def run_in_processes(calls: Any, *, environment: Any) -> Any:
        started.extend((call.func, *call.args, environment) for call in calls)
        return iter([[], []])

    monkeypatch.setattr(agreement, "run_in_processes", run_in_processes)
    shapes, environment = ((20, 30),), {"JAX_PLATFORMS": "cpu"}
    measured = agreement.measure_agreement(3, 5, padded_shapes=shapes, environment=environment)
    assert list(measured) == []
    for family, n_instances, (function, batch, *rest) in zip(
        agreement.FAMILIES, (2, 1), started, strict=True
    ):
        assert function is agreement._measure_batch
        assert len(batch.number) == n_instances
        assert rest == [family, 5, environment]


def test_property_many_instances_include_the_further_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []

    def run_in_processes(calls: Any, *, environment: Any) -> Any:
        started.extend((call.args[1], call.args[0]) for call in calls)
        return iter([])

    monkeypatch.setattr(agreement, "run_in_processes", run_in_processes)
    monkeypatch.setattr(agreement, "CLASS_SHARE", 5)
    few = 11
    for many, counts in ((few, [3, 2, 2, 2, 2]), (few + 1, [6, 5])):
        started.clear()
        monkeypatch.setattr(agreement, "MANY", many)
        list(agreement.measure_agreement(few, 5, padded_shapes=((20, 30),)))
        assert [len(batch.number) for _, batch in started] == counts
        names = ["tabular", "linear", "kernel", "lipschitz", "polytope"]
        assert [family for family, _ in started] == names[: len(counts)]
        # The first instances do not depend on what else is drawn.
        key = jax.random.split(jax.random.key(5))[1]
        fewer = draw_verification_batches(key, 2, "linear", padded_shapes=((20, 30),))[0]
        linear = started[1][1].instance.problem
        np.testing.assert_array_equal(linear.beta[:2], fewer.instance.problem.beta)


def test_property_a_given_class_is_measured_under_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[Any] = []

    def measure(batch: Any, *options: Any, rigorous: bool) -> list[Any]:
        measured.extend([batch.instance, *options, rigorous])
        return []

    monkeypatch.setattr(agreement, "_measure_batch", measure)
    box = TabularBox(1.5)
    records = agreement.measure_class(4, 5, box, name="a:Box", shape=(1, 2), rigorous=True)
    assert records == []
    np.testing.assert_array_equal(measured[0].reward_class.maximum, [1.5] * 4)
    assert measured[0].true_reward.shape == (4, 1, 2)
    assert measured[1:] == ["a:Box", 5, True]


def test_property_a_family_is_measured_in_this_process_like_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = agreement.Agreement("", 0, 0, 1, 2, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def measure(batch: Any, family: str, seed: int) -> list[Any]:
        numbers = batch.number.tolist()
        return [record._replace(family=family, seed=seed, number=number) for number in numbers]

    monkeypatch.setattr(agreement, "_measure_batch", measure)
    for family, n_instances in zip(agreement.FAMILIES, (2, 1), strict=True):
        measured = agreement.measure_family(3, 5, family, ((20, 30),))
        assert [found[:3] for found in measured] == [(family, 5, i) for i in range(n_instances)]


def test_property_the_gap_of_every_instance_of_a_batch_is_proven() -> None:
    batch = draw_verification_batches(jax.random.key(3), 3, "linear", padded_shapes=((20, 30),))[0]
    problems, ball = batch.instance.problem, batch.instance.reward_class
    policies, rewards = np.asarray(problems.reference_policy), np.zeros((3, 20, 30))
    pairs = Solution(policies, rewards, np.zeros(3), np.zeros(3, int), {})
    proven = agreement._proven_gaps(batch, pairs)
    with jax.enable_x64(True):
        gaps = jax.vmap(duality_gap_bound)(problems, ball, policies, rewards)
    np.testing.assert_allclose(proven, gaps, rtol=1e-9)


def test_closed_form_a_proven_gap_is_relative_to_the_value() -> None:
    record = agreement.Agreement("", 0, 0, 1, 2, 1.0, 1.0, -2.0, 0.0, 0.0, 0.0, 0.0)
    assert record._replace(proven_duality_gap=0.5).relative_proven_gap() == 0.25
    assert record._replace(proven_duality_gap=0.5, value=0.1).relative_proven_gap() == 0.5
    assert np.isnan(record.relative_proven_gap())
