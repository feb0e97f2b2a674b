"""The reward of a misspecified class that explains the labels best, and gaps at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from bandits.environments.base import Instance
from bandits.environments.designs import Design, draw_design
from bandits.methods.method_config import MethodConfig
from bandits.study.config import StudyConfig
from bandits.study.metrics import compute_bound_inputs
from bandits.study.projection import ProjectedTruth, gap_at_projection, project_truth
from rpo import api


def draws(misspecification: float) -> Instance:
    design = Design(
        actions=4, reward="linear", features=2, misspecification=misspecification, reward_max=2.0
    )
    return draw_design(design, 100, np.arange(2))


def projected(instance: Instance, noise: float = 0.0) -> ProjectedTruth:
    inputs = compute_bound_inputs(instance, np.full(2, 100.0), 0.05)
    rows = np.ones(2, bool)
    return project_truth(instance, inputs, rows, label_noise=np.full(2, noise), kernel="jax")


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_parity_with_cvxpy_the_projection_minimizes_the_divergence_of_labels(noise: float) -> None:
    instance: Any = draws(0.5)
    found = projected(instance, noise)
    features = np.asarray(instance.reward_class.features)
    for i in range(2):
        parameter = cp.Variable(2)
        loss: Any = 0.0
        truth, pairs = instance.true_reward[i, 0], instance.pair_distribution[i, 0]
        for j, k in np.argwhere(pairs > 0):
            rate = 1 / (1 + np.exp(truth[k] - truth[j]))
            rate = noise + (1 - 2 * noise) * rate
            margin = (features[i, 0, j] - features[i, 0, k]) @ parameter
            loss += pairs[j, k] * (rate * cp.logistic(-margin) + (1 - rate) * cp.logistic(margin))
        ball: Any = [cp.norm(parameter) <= float(instance.reward_class.radius[i])]
        cp.Problem(cp.Minimize(loss), ball).solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(found.reward[i, 0], features[i, 0] @ parameter.value, atol=1e-4)


def test_limit_without_misspecification_the_projection_is_the_truth() -> None:
    instance = draws(0.0)
    found = projected(instance)
    np.testing.assert_allclose(found.reward, instance.true_reward, atol=1e-6)
    np.testing.assert_allclose(found.shift, 0.0, atol=1e-6)
    at_truth = compute_bound_inputs(instance, np.full(2, 100.0), 0.05)
    np.testing.assert_allclose(found.inputs.coverage, at_truth.coverage, rtol=1e-4)
    gap = gap_at_projection(np.asarray(instance.problem.baseline_policy), instance, found)
    advantage = np.asarray(instance.comparator) - np.asarray(instance.problem.baseline_policy)
    np.testing.assert_allclose(gap, (advantage * instance.true_reward).sum(axis=(1, 2)), atol=1e-6)


def test_property_instances_whose_truth_is_in_the_class_are_left_out() -> None:
    instance = draws(0.5)
    inputs = compute_bound_inputs(instance, np.full(2, 100.0), 0.05)
    rows = np.array([False, True])
    found = project_truth(instance, inputs, rows, label_noise=np.zeros(2), kernel="jax")
    assert np.isnan(found.reward).all(axis=(1, 2)).tolist() == [True, False]
    assert np.isnan(found.shift).tolist() == [True, False]


def test_property_a_study_has_the_bounds_that_its_assumptions_allow(
    tmp_path: Path,
) -> None:
    study = StudyConfig(
        name="a",
        methods=[MethodConfig(method="rpo", options={"baseline": "given"}, label="given")],
        comparisons=[100],
        seeds=4,
        design={"actions": 4, "reward": "linear", "features": 2, "misspecification": [0.0, 0.4]},
    )
    result = api.study(study, out=tmp_path / "out")
    rows = result.records.to_pylist()
    given = [row for row in rows if row["label"] == "given"]
    assert sum(row["bound_projected"] is not None for row in given) == 4
    for row in given:
        misspecified = row["design.misspecification"] > 0
        assert (row["bound"] is None) == misspecified
        assert (row["bound_projected"] is None) != misspecified
        if misspecified:
            assert row["gap_projected"] <= row["bound_projected"]
        else:
            assert row["gap_regularized"] <= row["bound_regularized"]
