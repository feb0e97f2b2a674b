"""Claims about batches by step: every pair once an epoch, reproducible, balanced, few shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.loader import BALANCING_WINDOW, BatchSampler, iterate_batches
from llm.data.packing import PackingMode, packed_token_counts
from llm.data.preferences import PairTokens
from llm.types import Batch

LAYOUTS: tuple[PackingMode, ...] = ("shared", "separate")
BALANCED = 0.03
"""Range of the tokens of 64 steps over their mean: 8 pairs, lengths 1 to 100; measured 0.016."""
FULL = 0.95
"""Least share of real tokens in a row; measured 0.98, and 0.83 without balanced microbatches."""


def make_pairs(count: int, *, longest: int = 6, seed: int = 0) -> list[PairTokens]:
    """Make pairs of log-uniform lengths; rows differ from indices, and no token is 0."""
    rng = np.random.default_rng(seed)

    def tokens() -> tuple[int, ...]:
        length = int(np.exp(rng.uniform(0, np.log(longest))))
        return tuple(rng.integers(1, 9, size=length).tolist())

    return [PairTokens(tokens(), tokens(), tokens(), None, 1000 + row) for row in range(count)]


def tokens_of(pairs: Sequence[PairTokens], layout: PackingMode) -> int:
    return int(packed_token_counts(pairs, layout=layout, roles=2).sum())


def assert_same(first: Batch, second: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 300),
    per_microbatch=st.integers(1, 4),
    accumulation_steps=st.integers(1, 3),
    seed=st.none() | st.integers(0, 5),
)
def test_property_an_epoch_is_a_permutation_split_into_full_steps(
    count: int, per_microbatch: int, accumulation_steps: int, seed: int | None
) -> None:
    sampler = BatchSampler(make_pairs(count), "shared", per_microbatch, accumulation_steps, seed)
    per_step = per_microbatch * accumulation_steps
    n_steps = sampler.steps_per_epoch
    assert n_steps == -(-count // per_step)
    for epoch in range(2):
        steps = [sampler.pair_indices(epoch * n_steps + step) for step in range(n_steps)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(count))
        # Only the last step of an epoch may be short, whatever the windows.
        assert [len(step) for step in steps[:-1]] == [per_step] * (n_steps - 1)


def test_closed_form_without_a_seed_every_epoch_has_the_order_of_the_data() -> None:
    sampler = BatchSampler(make_pairs(7), "shared", 3, 1, None)
    assert [sampler.pair_indices(step).tolist() for step in range(6)] == 2 * [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]


def test_property_the_order_depends_on_seed_and_epoch_only() -> None:
    pairs = make_pairs(40)

    def order(seed: int, epoch: int) -> list[int]:
        sampler = BatchSampler(pairs, "shared", 4, 1, seed)
        first = epoch * sampler.steps_per_epoch
        steps = range(first, first + sampler.steps_per_epoch)
        return np.concatenate([sampler.pair_indices(step) for step in steps]).tolist()

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert orders == [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(first != second for first, second in itertools.combinations(orders, 2))


def test_property_pairs_stay_in_their_balancing_window() -> None:
    sampler = BatchSampler(make_pairs(2 * BALANCING_WINDOW + 3), "shared", 1, 1, 0)
    shuffled = np.random.default_rng([0, 0]).permutation(2 * BALANCING_WINDOW + 3)
    order = [sampler.pair_indices(step)[0] for step in range(2 * BALANCING_WINDOW + 3)]
    for start in range(0, len(shuffled), BALANCING_WINDOW):
        window = slice(start, start + BALANCING_WINDOW)
        assert sorted(order[window]) == sorted(shuffled[window])


@settings(max_examples=10, deadline=None)
@given(steps=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_property_batches_do_not_depend_on_the_order_of_access(steps: list[int]) -> None:
    pairs = make_pairs(13)
    sampler = BatchSampler(pairs, "shared", 2, 2, 1)
    for step in steps:
        assert_same(sampler.batch(step), BatchSampler(pairs, "shared", 2, 2, 1).batch(step))


@pytest.mark.parametrize("stopped", [1, 3, 4, 9])
def test_roundtrip_a_stopped_reader_resumes_with_the_same_batches(stopped: int) -> None:
    pairs = make_pairs(13)
    sampler = BatchSampler(pairs, "shared", 2, 2, 1)  # four steps an epoch
    whole = list(iterate_batches(sampler, 0, 10))
    assert [step for step, _ in whole] == list(range(10))
    reader = iterate_batches(sampler, 0, 10)
    read = list(itertools.islice(reader, stopped))  # batches that were prefetched are lost
    resumed = list(iterate_batches(BatchSampler(pairs, "shared", 2, 2, 1), stopped, 10))
    for (step, batch), (number, other) in zip(whole, read + resumed, strict=True):
        assert step == number
        assert_same(batch, other)


def test_limit_an_empty_range_of_steps_has_no_batches() -> None:
    sampler = BatchSampler(make_pairs(3), "shared", 2)
    assert list(iterate_batches(sampler, 4, 4)) == list(iterate_batches(sampler, 5, 4)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_property_steps_have_nearly_equal_numbers_of_tokens(layout: PackingMode) -> None:
    pairs = make_pairs(2 * BALANCING_WINDOW * 8, longest=100)
    sampler = BatchSampler(pairs, layout, 4, 2, 0)
    shuffled = np.random.default_rng(1).permutation(len(pairs)).reshape(-1, 8)
    for window in range(2):
        steps = range(window * BALANCING_WINDOW, (window + 1) * BALANCING_WINDOW)
        tokens = [
            tokens_of([pairs[k] for k in sampler.pair_indices(step)], layout) for step in steps
        ]
        assert np.ptp(tokens) < BALANCED * np.mean(tokens)
    unbalanced = [tokens_of([pairs[k] for k in step], layout) for step in shuffled]
    assert np.ptp(unbalanced) > 20 * BALANCED * np.mean(unbalanced)


def test_property_microbatches_of_a_step_have_nearly_equal_numbers_of_tokens() -> None:
    sampler = BatchSampler(make_pairs(BALANCING_WINDOW * 8, longest=100), "shared", 4, 2, 0)
    steps = range(sampler.steps_per_epoch)
    real = np.array([np.sum(sampler.batch(step).rows.segments > 0, axis=(1, 2)) for step in steps])
    assert np.mean(real) > FULL * np.mean(np.max(real, axis=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_property_a_batch_holds_the_pairs_of_its_step_only(layout: PackingMode) -> None:
    pairs = make_pairs(9)
    sampler = BatchSampler(pairs, layout, 2, 2, 0)
    for step in range(2 * sampler.steps_per_epoch):
        batch, indices = sampler.batch(step), sampler.pair_indices(step)
        present = np.asarray(batch.present)
        assert present.shape == (2, 2)
        rows = np.asarray(batch.row_ids)
        assert sorted(rows[present]) == sorted(1000 + indices)
        assert np.all(rows[~present] == -1)
        real = np.asarray(batch.rows.segments) > 0
        assert real.sum() == tokens_of([pairs[index] for index in indices], layout)
        by_row = {pair.row: (len(pair.chosen), len(pair.rejected)) for pair in pairs}
        lengths = np.asarray(batch.lengths)
        assert [by_row[row] for row in rows[present]] == [tuple(each) for each in lengths[present]]
        assert np.all(lengths[~present] == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_property_an_epoch_has_few_batch_shapes(layout: PackingMode) -> None:
    pairs = make_pairs(BALANCING_WINDOW * 8, longest=400)
    sampler = BatchSampler(pairs, layout, 4, 2, 0)
    batches = [sampler.batch(step) for step in range(sampler.steps_per_epoch)]
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in batches}
    widths = {batch.rows.tokens.shape[-1] for batch in batches}
    assert len(shapes) == len(widths)  # all other sizes are constant in an epoch
    assert len(shapes) <= 8 < len(batches)


def test_closed_form_one_baseline_response_gives_all_pairs_three_roles() -> None:
    pairs = make_pairs(3)
    with_one = [pairs[0], pairs[1]._replace(baseline=(1, 2)), pairs[2]]
    assert [BatchSampler(each, "shared", 1).n_roles for each in (pairs, with_one)] == [2, 3]
    assert BatchSampler(pairs, "shared", 1, roles=3).batch(0).lengths.shape == (1, 1, 3)
