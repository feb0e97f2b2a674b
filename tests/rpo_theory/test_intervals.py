"""Claims about confidence intervals, by exact enumeration of all data sets and convex programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from bandits.environments.designs import Design, draw_design
from bandits.environments.sampling import draw_win_counts
from rpo_theory import bounds
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.data_splits import Counts, DataSplits, split_data
from rpo_theory.intervals import PSEUDO_VOTES, Interval, confidence_interval
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import (
    FiniteClass,
    LinearBall,
    RewardClass,
    TabularBox,
    Unbounded,
    log_covering_number,
)
from rpo_theory.types import Problem

DELTA = 0.05
BATCH = 121  # data sets in one call: all halves of 20 comparisons of two arms
TWO_ARMS = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
THREE = np.array([[[0, 9, 2], [4, 0, 8], [5, 3, 0]], [[0, 6, 1], [0, 0, 4], [3, 2, 0]]])


def problem(wins: np.ndarray) -> Problem:
    n_contexts, n_actions = wins.shape[:2]
    even = np.full((n_contexts, n_actions), 1.0 / n_actions)
    weights = np.arange(1.0, n_contexts + 1.0)
    return Problem(weights / weights.sum(), even, even, np.asarray(wins, float), 1.0, 1.0)


def policies(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.random.default_rng(seed).dirichlet(np.ones(shape[1]), (2, shape[0]))
    return first, second


@partial(jax.jit, static_argnames="confidence")
def intervals_of(
    problem: Problem,
    reward_class: RewardClass,
    policies: tuple,
    splits: DataSplits,
    confidence: float = 1 - DELTA,
) -> Interval:
    """Return the interval of every data set, whose splits are given."""
    return jax.vmap(
        lambda one: confidence_interval(
            problem, reward_class, *policies, splits=one, confidence=confidence
        )
    )(splits)


def in_batches(splits: DataSplits, of_batch: Callable[[DataSplits], Interval]) -> tuple:
    """Return both ends for any number of data sets, by one compiled program."""
    n_sets = len(splits.fitting.wins)
    rows = np.arange(-(-n_sets // BATCH) * BATCH).reshape(-1, BATCH) % n_sets
    parts = [of_batch(jax.tree.map(lambda leaf, i=i: leaf[i], splits)) for i in rows]
    return tuple(
        np.concatenate([np.asarray(part[end]) for part in parts])[:n_sets] for end in (0, 1)
    )


class Halves(NamedTuple):
    """All outcomes of two halves of the comparisons of each pair, and their probabilities."""

    splits: DataSplits
    probability: np.ndarray


def all_halves(sizes: np.ndarray, pairs: list, margins: np.ndarray, n_actions: int) -> Halves:
    """Enumerate the wins of the second action of each pair in both halves."""
    counts = [range(size + 1) for size in sizes for _ in range(2)]
    outcomes = np.array(list(product(*counts)))
    parts = np.zeros((2, len(outcomes), 1, 1, n_actions, n_actions))
    probability = np.ones(len(outcomes))
    for j, ((low, high), size, margin) in enumerate(zip(pairs, sizes, margins, strict=True)):
        for half in (0, 1):
            wins = outcomes[:, 2 * j + half]
            parts[half, :, 0, 0, high, low] = wins
            parts[half, :, 0, 0, low, high] = size - wins
            probability = probability * binom.pmf(wins, size, 1 / (1 + np.exp(-margin)))
    return Halves(DataSplits(Counts(parts[0]), Counts(parts[1])), probability)


@pytest.mark.parametrize(("n_half", "widest"), [(10, 3.21), (30, 2.11)])
def test_theorem_two_arms_the_miss_probability_is_at_most_delta(n_half: int, widest: float) -> None:
    base = problem(np.zeros((1, 2, 2)))
    arguments = (base, TabularBox(jnp.array(2.0)), TWO_ARMS)
    for margin in (0.3, 1.5):
        halves = all_halves(np.array([n_half]), [(0, 1)], np.array([margin]), 2)
        lower, upper = in_batches(halves.splits, lambda one: intervals_of(*arguments, one))
        miss = halves.probability @ ((lower > margin) | (upper < margin))
        assert halves.probability.sum() == pytest.approx(1.0)
        assert miss <= DELTA
        if margin == 0.3:
            assert halves.probability @ (upper - lower) <= widest


ACCURATE = {
    "solver": "CLARABEL",
    **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11),
}
"""Options of a solver whose default tolerances leave errors of 1e-5 in the ends."""


def ends_by_convex_program(
    base: Problem, pair: tuple, splits: DataSplits, constraints: Callable, size: int
) -> tuple[float, float]:
    """Return both ends by CVXPY: the log of the mean likelihood ratio is a constraint."""
    shape = base.reference_policy.shape
    direction = np.asarray(base.context_weights)[:, None] * (pair[0] - pair[1])

    def losses(reward: Any, wins: np.ndarray) -> Any:
        rows = np.argwhere(wins)
        margins = [reward[x * shape[1] + i] - reward[x * shape[1] + j] for x, i, j in rows]
        return wins[tuple(rows.T)] @ cp.logistic(-cp.hstack(margins))

    ratios = []
    for fitting, evaluation in zip(splits.fitting.wins, splits.evaluation.wins, strict=True):
        variable = cp.Variable(size)
        reward, rules = constraints(variable)
        pseudo = PSEUDO_VOTES * (1.0 - np.eye(shape[1]))
        cp.Problem(cp.Minimize(losses(reward, fitting + pseudo)), rules).solve(**ACCURATE)
        fitted = float(losses(reward, evaluation).value)
        ratios.append((evaluation, fitted))
    variable = cp.Variable(size)
    reward, rules = constraints(variable)
    each = cp.hstack([losses(reward, evaluation) - fitted for evaluation, fitted in ratios])
    rules = [*rules, cp.log_sum_exp(each) <= np.log(len(ratios) / DELTA)]
    objective = direction.ravel() @ reward
    goals = (cp.Minimize(objective), cp.Maximize(objective))
    lower, upper = (float(np.asarray(cp.Problem(g, rules).solve(**ACCURATE))) for g in goals)
    return lower, upper


def box_and_ball(seed: int, maximum: float) -> list[tuple[RewardClass, Callable, int]]:
    features = np.random.default_rng(seed).normal(size=(2, 3, 3))
    flat = features.reshape(6, 3)
    return [
        (TabularBox(maximum), lambda r: (r, [r >= 0, r <= maximum]), 6),
        (LinearBall(features, maximum), lambda u: (flat @ u, [cp.norm(u) <= maximum]), 3),
    ]


def assert_convex_programs_agree(seed: int, n_splits: int) -> None:
    rng = np.random.default_rng(seed)
    base = problem(rng.poisson(rng.uniform(1, 40), (2, 3, 3)) * (1 - np.eye(3)))
    pair, splits = policies((2, 3), seed), split_data(base, n_splits, seed=seed)
    for reward_class, constraints, size in box_and_ball(seed, 10 ** rng.uniform(-0.5, 0.7)):
        got = confidence_interval(base, reward_class, *pair, splits=splits)
        expected = ends_by_convex_program(base, pair, splits, constraints, size)
        np.testing.assert_allclose(got[:2], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_parity_ends_agree_with_cvxpy() -> None:
    for seed in range(2):
        assert_convex_programs_agree(seed, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_parity_ends_agree_with_cvxpy_on_many_instances() -> None:
    for seed in range(2, 27):
        for n_splits in (1, 2):
            assert_convex_programs_agree(seed, n_splits)


def box_interval(wins: np.ndarray, pair: tuple, **options: Any) -> Interval:
    return confidence_interval(problem(wins), TabularBox(2.0), *pair, **options)


def test_property_higher_confidence_gives_wider_intervals_within_the_class() -> None:
    pair = policies((2, 3))
    narrow, middle, wide = (
        box_interval(THREE, pair, confidence=level) for level in (0.5, 0.95, 0.999999)
    )
    assert wide.lower < middle.lower < narrow.lower < narrow.upper < middle.upper < wide.upper
    certain = box_interval(THREE, pair, confidence=1 - 1e-15)
    direction = np.array([[1.0], [2.0]]) / 3 * (pair[0] - pair[1])
    assert certain.upper <= 2.0 * np.maximum(direction, 0.0).sum() + 1e-12


def test_property_exchanged_policies_mirror_the_interval() -> None:
    first, second = policies((2, 3))
    got, mirrored = box_interval(THREE, (first, second)), box_interval(THREE, (second, first))
    np.testing.assert_allclose(got[:2], [-mirrored.upper, -mirrored.lower], atol=1e-9)
    same = box_interval(THREE, (first, first))
    np.testing.assert_allclose(same[:2], 0.0, atol=1e-12)


def test_property_the_order_of_actions_and_contexts_is_irrelevant() -> None:
    base, pair = problem(THREE), policies((2, 3))
    splits = split_data(base)
    order = [2, 0, 1]
    permuted = base._replace(
        context_weights=base.context_weights[::-1], wins=base.wins[::-1][:, order][:, :, order]
    )
    moved = jax.tree.map(lambda w: w[:, ::-1][:, :, order][:, :, :, order], splits)
    got = confidence_interval(base, TabularBox(2.0), *pair, splits=splits)
    swapped = [policy[::-1][:, order] for policy in pair]
    again = confidence_interval(permuted, TabularBox(2.0), *swapped, splits=moved)
    np.testing.assert_allclose(got[:2], again[:2], atol=1e-8)


def test_property_ends_are_attained_by_rewards_in_the_confidence_set() -> None:
    base, pair = problem(THREE), policies((2, 3))
    splits = split_data(base, 1)
    got = confidence_interval(base, TabularBox(2.0), *pair, splits=splits)
    direction = np.asarray(base.context_weights)[:, None] * (pair[0] - pair[1])
    for end, proof in ((got.lower, got.lower_proof), (got.upper, got.upper_proof)):
        reward = np.asarray(proof.reward)
        assert reward.min() >= 0.0
        assert reward.max() <= 2.0
        assert np.vdot(direction, reward) == pytest.approx(end, abs=1e-6)
        assert abs(np.vdot(direction, reward) - end) <= proof.gap + 1e-12
    # The likelihood of both ends is below that of any reward in the middle of the set.
    wins = splits.evaluation.wins[0]
    low, high = (np.asarray(p.reward) for p in (got.lower_proof, got.upper_proof))
    losses = [float(negative_log_likelihood(r, wins)) for r in (low, 0.5 * (low + high), high)]
    assert losses[1] < min(losses[0], losses[2])


def test_limit_a_context_without_data_has_the_range_of_the_class() -> None:
    wins = np.stack([THREE[0], np.zeros((3, 3))])
    first, second = policies((2, 3))
    second[0] = first[0]
    got = box_interval(wins, (first, second))
    direction = 2 / 3 * (first[1] - second[1])
    extent = 2.0 * np.maximum(direction, 0.0).sum()
    np.testing.assert_allclose(got[:2], [-extent, extent], atol=1e-12)


def test_limit_the_interval_shrinks_to_the_truth() -> None:
    wins = np.array([[[0, 0.25], [0.75, 0]]]) * 1e10
    got = confidence_interval(problem(wins), TabularBox(2.0), *TWO_ARMS)
    assert got.lower < np.log(3.0) < got.upper
    assert got.upper - got.lower < 2e-4


def test_parity_a_finite_class_is_enumerated() -> None:
    base, pair = problem(THREE), policies((2, 3))
    members = np.random.default_rng(1).uniform(0, 2, (40, 2, 3))
    splits = split_data(base, 1)
    got = confidence_interval(base, FiniteClass(members), *pair, splits=splits)
    fitting, evaluation = (
        np.array([float(negative_log_likelihood(r, part.wins[0])) for r in members])
        for part in splits
    )
    n_half = splits.evaluation.wins.sum()
    inside = n_half * (evaluation - evaluation[fitting.argmin()]) <= np.log(1 / DELTA)
    direction = np.asarray(base.context_weights)[:, None] * (pair[0] - pair[1])
    values = np.einsum("kxa,xa->k", members[inside], direction)
    assert 1 < inside.sum() < len(members)
    np.testing.assert_allclose(got[:2], [values.min(), values.max()], atol=1e-12)


def test_closed_form_the_best_member_within_a_level() -> None:
    members = FiniteClass(np.array([[[0.0, 3.0]], [[0.0, 2.0]], [[0.0, 1.0]]]))
    direction = np.array([[0.0, -1.0]])
    for level, best in ((5.0, 3.0), (2.5, 2.0), (0.0, 1.0)):
        assert members.level_minimizer(direction, jnp.sum, jnp.asarray(level))[0, 1] == best


@jax.tree_util.register_pytree_node_class
class HalfBox:
    """A box written by a user: two methods, and nothing inherited."""

    def __init__(self, top: Any) -> None:
        self.top = top

    def tree_flatten(self) -> tuple:
        return (self.top,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple) -> HalfBox:
        return cls(*children)

    def project(self, reward: Any) -> jax.Array:
        return jnp.clip(jnp.asarray(reward), 0.0, self.top)

    def linear_minimizer(self, direction: Any) -> jax.Array:
        return jnp.where(jnp.asarray(direction) < 0, self.top, 0.0)


def test_parity_the_class_of_a_user_gives_the_interval_of_the_built_in_class() -> None:
    pair, splits = policies((2, 3)), split_data(problem(THREE))
    got = confidence_interval(problem(THREE), HalfBox(np.array(2.0)), *pair, splits=splits)
    expected = box_interval(THREE, pair, splits=splits)
    np.testing.assert_allclose(got[:2], expected[:2], atol=1e-6)


def test_property_the_baseline_is_the_default_comparator() -> None:
    base, (policy, _) = problem(THREE), policies((2, 3))
    explicit = confidence_interval(base, TabularBox(2.0), policy, base.baseline_policy)
    np.testing.assert_array_equal(
        confidence_interval(base, TabularBox(2.0), policy)[:2], explicit[:2]
    )


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, float("nan")])
def test_raises_on_a_confidence_that_is_no_level(confidence: float) -> None:
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1, got"):
        box_interval(THREE, policies((2, 3)), confidence=confidence)


def test_raises_without_splits_in_a_trace_and_on_the_unbounded_class() -> None:
    base, pair = problem(THREE), policies((2, 3))
    with pytest.raises(ValueError, match="`reward_class` must be compact"):
        confidence_interval(base, Unbounded(), *pair)
    with pytest.raises(TypeError, match="`splits` must be a DataSplits inside"):
        jax.jit(lambda p: confidence_interval(base, TabularBox(2.0), p, pair[1]))(pair[0])
    with pytest.raises(ValueError, match="comparator"):
        confidence_interval(base, TabularBox(2.0), pair[0], 2 * pair[1])


@pytest.mark.slow
def test_theorem_two_arms_with_crossed_halves_by_enumeration_of_the_draws() -> None:
    """Averaging the likelihood ratio over both assignments of the halves keeps the level."""
    base = problem(np.zeros((1, 2, 2)))
    arguments = (base, TabularBox(jnp.array(2.0)), TWO_ARMS)
    for n_half, margin in product((10, 30), (0.3, 1.5)):
        halves = all_halves(np.array([n_half]), [(0, 1)], np.array([margin]), 2)
        crossed = jax.tree.map(lambda one, two: np.concatenate([one, two], axis=1), *halves.splits)
        exchanged = jax.tree.map(lambda both: both[:, ::-1], crossed)
        splits = DataSplits(crossed, exchanged)
        lower, upper = in_batches(splits, lambda one: intervals_of(*arguments, one))
        miss = halves.probability @ ((lower > margin) | (upper < margin))
        width = halves.probability @ (upper - lower)
        print(f"two arms, K = 2: N = {2 * n_half}, margin {margin}: {miss:.6f}, {width:.4f}")
        assert miss <= DELTA


@pytest.mark.slow
@pytest.mark.parametrize("n_half", [2, 4, 6])
def test_theorem_three_arms_two_pairs_the_miss_probability_is_at_most_delta(n_half: int) -> None:
    base, truth = problem(np.zeros((1, 3, 3))), np.array([0.0, 0.3, 1.8])
    margins = np.array([truth[1] - truth[0], truth[2] - truth[1]])
    halves = all_halves(np.array([n_half, n_half]), [(0, 1), (1, 2)], margins, 3)
    ends = np.eye(3)[[2]], np.eye(3)[[0]]
    for pair in (ends, (np.eye(3)[[1]], np.full((1, 3), 1 / 3))):
        of_batch = partial(intervals_of, base, TabularBox(jnp.array(2.0)), pair)
        lower, upper = in_batches(halves.splits, of_batch)
        value = float((pair[0] - pair[1])[0] @ truth)
        miss = halves.probability @ ((lower > value) | (upper < value))
        width = halves.probability @ (upper - lower)
        print(f"three arms, N = {4 * n_half}: miss {miss:.6f}, width {width:.4f}")
        assert miss <= DELTA


@pytest.mark.slow
@pytest.mark.parametrize("n_pairs", [100, 1000, 10_000])
def test_theorem_coverage_and_width_on_20_designs(n_pairs: int) -> None:
    """Twenty random bandits with fifty draws of the data each."""
    n_designs, n_draws, reward_max = 20, 50, 2.0
    design = Design(contexts=2, actions=3, reward_max=reward_max, target_coverage=1.5)
    batch = draw_design(design, n_pairs, np.arange(n_designs))
    reward_class = TabularBox(jnp.array(reward_max))
    epsilon = float(bounds.covering_scale(n_pairs, reward_max))
    size = bounds.complexity(log_covering_number(reward_class, epsilon, 6), DELTA)
    rows = []
    for i in range(n_designs):
        instance = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], batch)
        base, truth = instance.problem, instance.true_reward
        best = instance.comparator
        wins = draw_win_counts(
            np.stack([truth] * n_draws),
            np.stack([instance.pair_distribution] * n_draws),
            comparisons=n_pairs,
            seeds=np.arange(n_draws) + 1000 * i,
            label_noise=0.0,
        )
        splits = [split_data(base._replace(wins=w), seed=k) for k, w in enumerate(wins)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *splits)
        pair = (best, np.asarray(base.baseline_policy))
        got = intervals_of(base._replace(wins=wins[0]), reward_class, pair, stacked)
        weights = np.asarray(base.context_weights)
        value = float(weights @ ((pair[0] - pair[1]) * truth).sum(axis=1))
        coverage = coverage_coefficient(
            reward_class,
            true_reward=truth,
            comparator=best,
            baseline=base.baseline_policy,
            context_weights=weights,
            pair_distribution=instance.pair_distribution,
        )
        bound = bounds.theorem_bound_corrected(
            n_pairs=n_pairs, reward_max=reward_max, complexity=size, coverage=coverage, kl=0.0
        )
        missed = np.mean((got.lower > value) | (got.upper < value))
        rows.append([missed, float(np.mean(got.upper - got.lower)), float(bound)])
    missed, width, bound = np.mean(rows, axis=0)
    print(f"N = {n_pairs}: missed {missed:.4f}, mean width {width:.3f}, mean bound {bound:.3g}")
    assert missed <= DELTA
    assert np.max(rows, axis=0)[0] <= 3 * DELTA
