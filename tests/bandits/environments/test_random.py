"""Random bandits are valid, reproducible, partially covered, Bradley-Terry, and safe to pad."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from bandits.environments.base import Instance
from bandits.environments.random import (
    DATA_PROMPT_PROBABILITY,
    random_linear,
    random_tabular,
)
from rpo_theory import minimax
from rpo_theory.problems import validate
from rpo_theory.rewards import LinearBall

SOLVER = 1e-8
"""Policies of two solves of one problem in different shapes, each to a KKT residual of 1e-11."""
SIGMAS = 5.0
"""One false alarm in 1.7 million numbers; the seeds are fixed."""

FAMILIES = {"tabular": random_tabular, "linear": partial(random_linear, features=3)}
families = pytest.mark.parametrize("family", FAMILIES)
SIZES: dict[str, Any] = {"contexts": 6, "actions": 5, "comparisons": 400}


def drawn(family: str, seed: int = 0, **options: Any) -> Instance:
    return FAMILIES[family](jax.random.key(seed), **{**SIZES, **options})


def compared(instance: Instance) -> np.ndarray:
    pairs = np.asarray(instance.pair_distribution)
    return pairs + pairs.swapaxes(1, 2) > 0


def same(first: Any, second: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


@settings(deadline=None)  # the first example waits for JAX to compile
@given(
    seed=st.integers(0, 2**31),
    contexts=st.integers(1, 20),
    actions=st.integers(2, 30),
    comparisons=st.integers(0, 10**5),
    pair_probability=st.floats(0, 1),
    family=st.sampled_from(list(FAMILIES)),
    baseline=st.sampled_from(["chosen", "reference", "data_marginal", "dirichlet", 0]),
)
def test_property_a_random_instance_is_valid_and_its_class_holds_the_truth(
    seed: int, family: str, comparisons: int, **options: Any
) -> None:
    # All have one padded shape, because JAX compiles for each shape.
    instance = drawn(family, seed, comparisons=comparisons, shape=(20, 30), **options)
    validate(instance.problem, instance.reward_class)
    truth, wins = np.asarray(instance.true_reward), np.asarray(instance.problem.wins)
    with jax.enable_x64(True):
        nearest = instance.reward_class.project(truth)
    np.testing.assert_allclose(nearest, truth, atol=1e-9)
    unpadded = (slice(options["contexts"]), slice(options["actions"]))
    best = np.sum(np.asarray(instance.comparator) * truth, axis=1)[unpadded[0]]
    np.testing.assert_array_equal(best, truth[unpadded].max(axis=1))
    assert wins.sum() == comparisons
    assert not np.any(wins[~compared(instance)])
    assert np.asarray(instance.pair_distribution).sum() == pytest.approx(float(comparisons > 0))


@families
def test_property_an_instance_is_a_function_of_its_key(family: str) -> None:
    assert same(drawn(family, seed=3), drawn(family, seed=3))
    assert not same(drawn(family, seed=3), drawn(family, seed=4))


@families
def test_property_other_baselines_and_weights_change_neither_truth_nor_data(family: str) -> None:
    first, second = drawn(family), drawn(family, baseline="dirichlet", beta=3.0, eta=7.0)
    assert same(first.problem.wins, second.problem.wins)
    assert same(first[1:], second[1:])
    assert not same(first.problem.baseline_policy, second.problem.baseline_policy)


def test_property_coverage_is_partial_and_some_contexts_have_no_data() -> None:
    share = 0.25
    instance = drawn("tabular", contexts=400, actions=6, pair_probability=share)
    ordered = np.asarray(instance.pair_distribution) > 0
    assert not ordered[:, np.arange(6), np.arange(6)].any()
    counts = ordered.sum(axis=(1, 2))
    deviation = np.sqrt(DATA_PROMPT_PROBABILITY * (1 - DATA_PROMPT_PROBABILITY) / 400)
    assert np.mean(counts > 0) == pytest.approx(DATA_PROMPT_PROBABILITY, abs=SIGMAS * deviation)
    pairs = 30 * np.sum(counts > 0)
    deviation = np.sqrt(share * (1 - share) / pairs)
    assert counts.sum() / pairs == pytest.approx(share, abs=SIGMAS * deviation)


def test_extreme_without_coverage_one_pair_is_compared() -> None:
    assert (np.asarray(drawn("tabular", pair_probability=0.0).pair_distribution) > 0).sum() == 1


@families
def test_property_labels_follow_bradley_terry(family: str) -> None:
    n = 10**6
    instance = drawn(family, comparisons=n, pair_probability=1.0)
    wins, reward = np.asarray(instance.problem.wins), np.asarray(instance.true_reward)
    counts = wins + wins.swapaxes(1, 2)
    rate = expit(reward[:, :, None] - reward[:, None, :])
    seen = counts > 0
    z = (wins - counts * rate)[seen] / np.sqrt(counts * rate * (1 - rate))[seen]
    assert np.abs(z).max() < SIGMAS
    # If labels were coin flips, or winners were swapped, z would be far from a standard normal.
    assert np.mean(z**2) == pytest.approx(1.0, abs=SIGMAS * np.sqrt(2 * 2 / z.size))


def test_property_comparisons_follow_the_pair_distribution() -> None:
    n = 10**6
    instance = drawn("tabular", comparisons=n, pair_probability=1.0)
    wins, ordered = np.asarray(instance.problem.wins), np.asarray(instance.pair_distribution)
    counts, pairs = wins + wins.swapaxes(1, 2), ordered + ordered.swapaxes(1, 2)
    deviation = np.sqrt(n * pairs * (1 - pairs))
    assert np.all(np.abs(counts - n * pairs) <= SIGMAS * deviation)


def test_property_the_truth_also_lies_on_the_boundary_of_its_class() -> None:
    table = np.asarray(drawn("tabular", contexts=50, reward_max=2.0).true_reward)
    assert table.min() == 0.0
    assert table.max() == 2.0
    assert 0.5 < np.mean((table > 0) & (table < 2.0)) < 1.0
    norms = []
    for seed in range(40):
        instance = drawn("linear", seed, radius=2.0)
        assert isinstance(instance.reward_class, LinearBall)
        norms.append(float(np.linalg.norm(instance.reward_class.parameter(instance.true_reward))))
    assert max(norms) == pytest.approx(2.0, abs=1e-9)
    assert min(norms) < 1.0
    assert 1 <= np.sum(np.array(norms) > 2.0 - 1e-9) <= 20


@pytest.mark.parametrize("shape", [(6, 5), (9, 5), (6, 8), (7, 9)])
@families
def test_property_padding_changes_nothing(family: str, shape: tuple[int, int]) -> None:
    plain, padded = drawn(family), drawn(family, shape=shape)
    for small, large in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
        inside = tuple(slice(size) for size in np.shape(small))
        np.testing.assert_array_equal(large[inside], small)
    problem, empty = padded.problem, np.asarray(padded.problem.context_weights) == 0
    assert empty.sum() == shape[0] - 6
    point_mass = np.eye(shape[1])[0]
    for policy in (problem.reference_policy, problem.baseline_policy, padded.comparator):
        assert np.all(policy[empty] == point_mass)
        assert not np.any(policy[:, 5:])
    assert np.sum(problem.wins) == np.sum(plain.problem.wins)


@pytest.mark.parametrize("baseline", ["chosen", 3])
def test_property_a_padded_prompt_has_equal_policies_whatever_the_baseline(
    baseline: str | int,
) -> None:
    problem = drawn("tabular", baseline=baseline, shape=(8, 5)).problem
    np.testing.assert_array_equal(problem.baseline_policy[6:], problem.reference_policy[6:])


@families
def test_parity_a_padded_problem_has_the_same_solution(family: str) -> None:
    plain, padded = drawn(family), drawn(family, shape=(7, 8))
    expected = minimax.solve(plain.problem, plain.reward_class)
    solution = minimax.solve(padded.problem, padded.reward_class)
    assert float(solution.objective) == pytest.approx(float(expected.objective), abs=SOLVER)
    np.testing.assert_allclose(solution.policy[:6, :5], expected.policy, atol=SOLVER)
    assert not np.any(np.asarray(solution.policy)[:6, 5:])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: drawn("tabular", contexts=0), "`contexts` must be at least 1, got 0"),
        (lambda: drawn("linear", actions=1), "`actions` must be at least 2, got 1"),
        (lambda: drawn("tabular", comparisons=-1), "`comparisons` must be at least 0, got -1"),
        (
            lambda: drawn("linear", pair_probability=1.5),
            "`pair_probability` must be a probability.* got 1.5",
        ),
        (lambda: drawn("tabular", shape=(5, 5)), r"`shape` must be at least \(6,.*got \(5,"),
        (lambda: drawn("linear", shape=(6, 4)), r"`shape` must be at least \(6, 5.*got \(6, 4"),
        (lambda: drawn("tabular", baseline=5), "`baseline` must be .* from 0 to 4, got 5"),
    ],
)
def test_raises_an_option_out_of_range(build: Callable[[], Instance], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
