"""Instances of further reward classes: the true reward is a member, and draws are independent."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bandits.theorem_check.class_instances import (
    SMALL_SHAPE,
    ClassFamily,
    draw_class_batch,
    random_class_instance,
)
from rpo_theory.problems import validate
from rpo_theory.rewards import KernelBall, Lipschitz, Polytope, TabularBox

KEY = jax.random.key(3)


def room(reward_class: KernelBall | Lipschitz | Polytope, reward: np.ndarray) -> float:
    """Return how far a reward is inside a class, by the definition of the class."""
    flat = reward.reshape(-1)
    if isinstance(reward_class, KernelBall):
        norm = flat @ np.linalg.solve(np.asarray(reward_class.gram), flat)
        return float(np.asarray(reward_class.radius) - np.sqrt(norm))
    bounds = min(flat.min(), float(reward_class.maximum) - flat.max())
    if isinstance(reward_class, Lipschitz):
        limits = np.asarray(reward_class.constant) * np.asarray(reward_class.distance)
        return min(bounds, float((limits - np.abs(flat[:, None] - flat)).min()))
    sums = np.einsum("mxa,xa->m", np.asarray(reward_class.matrix), reward)
    return min(bounds, float((np.asarray(reward_class.limits) - sums).min()))


@pytest.mark.parametrize("family", ["kernel", "lipschitz", "polytope"])
def test_property_the_true_reward_lies_in_the_class(family: ClassFamily) -> None:
    batch = draw_class_batch(KEY, 10, family)
    assert batch.instance.true_reward.shape == (10, *SMALL_SHAPE)
    assert (batch.contexts.tolist(), batch.actions.tolist()) == ([2] * 10, [3] * 10)
    for i in range(10):
        instance = jax.tree.map(lambda leaf, i=i: leaf[i], batch.instance)
        validate(instance.problem, instance.reward_class)
        assert room(instance.reward_class, instance.true_reward) >= -1e-12
        single = random_class_instance(jax.random.fold_in(KEY, i), family)
        same = jax.tree.map(np.array_equal, single, instance)
        assert all(jax.tree.leaves(same))
    for weight in (batch.instance.problem.beta, batch.instance.problem.eta):
        assert np.unique(weight).size == 10
        assert np.min(weight) >= 0.1
        assert np.max(weight) <= 10.0


def test_property_every_instance_has_a_given_class_and_shape() -> None:
    batch = draw_class_batch(KEY, 3, TabularBox(1.5), shape=(1, 4))
    assert isinstance(batch.instance.reward_class, TabularBox)
    np.testing.assert_array_equal(batch.instance.reward_class.maximum, [1.5] * 3)
    assert batch.instance.true_reward.shape == (3, 1, 4)
