"""Verification instances: their ranges, one shape for each batch, and independent draws."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bandits.theorem_check.instances import (
    MAX_ACTIONS,
    MAX_CONTEXTS,
    PADDED_SHAPES,
    Family,
    draw_verification_batches,
)
from rpo_theory.problems import validate

KEY = jax.random.key(7)
N = 60


@pytest.mark.parametrize("family", ["tabular", "linear"])
def test_property_batches_hold_every_instance_once_in_the_first_shape_that_fits(
    family: Family,
) -> None:
    batches = draw_verification_batches(KEY, N, family)
    numbers = np.concatenate([batch.number for batch in batches])
    assert sorted(numbers.tolist()) == list(range(N))
    for batch in batches:
        shape = batch.instance.true_reward.shape[1:]
        for contexts, actions in zip(batch.contexts, batch.actions, strict=True):
            fits = [s for s in PADDED_SHAPES if s[0] >= contexts and s[1] >= actions]
            assert shape == fits[0]
        for i in range(batch.number.size):
            instance = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), batch.instance)
            validate(instance.problem, instance.reward_class)
            assert np.sum(instance.problem.context_weights > 0) == batch.contexts[i]
            assert np.sum(instance.problem.reference_policy[0] > 0) == batch.actions[i]


def test_property_sizes_and_weights_fill_their_ranges() -> None:
    batches = draw_verification_batches(KEY, 300, "tabular", padded_shapes=[(20, 30)])
    contexts, actions = batches[0].contexts, batches[0].actions
    assert (contexts.min(), contexts.max()) == (1, MAX_CONTEXTS)
    assert (actions.min(), actions.max()) == (2, MAX_ACTIONS)
    problem = batches[0].instance.problem
    for weight in (np.asarray(problem.beta), np.asarray(problem.eta)):
        decades = np.histogram(np.log10(weight), bins=[-2, -1, 0, 1, 2])[0]
        assert decades.sum() == 300
        assert decades.min() > 40  # 75 expected, standard deviation 7.5
    pairs = np.asarray(problem.wins).sum(axis=(1, 2, 3))
    assert pairs.min() < 10
    assert pairs.max() > 1_000
    assert not np.array_equal(problem.beta, problem.eta)


@pytest.mark.parametrize("family", ["tabular", "linear"])
def test_property_an_instance_does_not_depend_on_its_batch_or_its_padding(
    family: Family,
) -> None:
    few = draw_verification_batches(KEY, 5, family, padded_shapes=[(20, 30)])[0]
    for batch in draw_verification_batches(KEY, 12, family):
        for i, number in enumerate(batch.number):
            if number < 5:
                leaves = jax.tree.leaves((few.instance, batch.instance))
                half = len(leaves) // 2
                for wide, narrow in zip(leaves[:half], leaves[half:], strict=True):
                    inside = tuple(slice(size) for size in narrow.shape[1:])
                    np.testing.assert_array_equal(wide[number][inside], narrow[i])


def test_property_another_key_gives_other_instances() -> None:
    first, second = (
        draw_verification_batches(jax.random.key(seed), 3, "tabular", padded_shapes=[(20, 30)])[0]
        for seed in (0, 1)
    )
    assert not np.any(first.instance.problem.beta == second.instance.problem.beta)


def test_raises_if_no_padded_shape_is_large_enough() -> None:
    with pytest.raises(
        ValueError, match=r"`padded_shapes` must include one of at least \(20, 30\)"
    ):
        draw_verification_batches(KEY, 1, "tabular", padded_shapes=[(20, 29), (19, 30)])
