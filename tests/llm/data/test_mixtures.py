"""Mixtures of sources: proportions of an epoch, and streams without gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.loader import BatchSampler
from llm.data.mixtures import MixturePart, epoch_indices, mix_by_count, mix_by_weight
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10.0), min_size=4, max_size=4),
)
def test_property_weights_give_proportions_without_repeating_a_pair(
    sizes: list[int], weights: list[float]
) -> None:
    weights = weights[: len(sizes)]
    parts = mix_by_weight(sizes, weights)
    assert all(1 <= part.pairs <= part.stop - part.start for part in parts)
    assert any(part.pairs == part.stop - part.start for part in parts)
    epoch = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    for part, weight in zip(parts, weights, strict=True):
        assert part.pairs == 1 or abs(part.pairs - weight * epoch) <= 1.0
    assert mix_by_weight(sizes, [3.0 * weight for weight in weights]) == parts


@pytest.mark.parametrize("pairs", [1, 3, 5, 7, 12])
def test_property_epochs_go_through_a_source_without_gaps(pairs: int) -> None:
    parts = [MixturePart(0, 4, 2), MixturePart(4, 9, pairs)]
    epochs = [epoch_indices(parts, 3, epoch) for epoch in range(20)]
    stream = np.concatenate([epoch[epoch >= 4] for epoch in epochs])
    assert all(len(epoch) == 2 + pairs for epoch in epochs)
    for start in range(0, len(stream) - 4, 5):
        assert sorted(stream[start : start + 5]) == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(epochs[7], epoch_indices(parts, 3, 7))
    assert not np.array_equal(
        np.concatenate(epochs),
        np.concatenate([epoch_indices(parts, 4, epoch) for epoch in range(20)]),
    )


def test_property_steps_of_a_mixture_use_the_pairs_of_their_epoch() -> None:
    pairs = PairTable.from_pairs(
        PairTokens((1,), (2,) * (1 + row % 3), (3,), None, row) for row in range(9)
    )
    parts = mix_by_count([4, 5], [6, 2])
    sampler = BatchSampler(pairs, "shared", 3, mixture=parts, seed=1)
    assert (sampler.pairs_per_epoch, sampler.steps_per_epoch) == (8, 3)
    for epoch in range(3):
        steps = [sampler.pair_indices(3 * epoch + step) for step in range(3)]
        expected = sorted(epoch_indices(parts, 1, epoch))
        assert sorted(np.concatenate(steps)) == expected
    whole = BatchSampler(pairs, "shared", 3, mixture=mix_by_count([4, 5], [4, 5]), seed=1)
    steps = [whole.pair_indices(step) for step in range(3)]
    assert sorted(np.concatenate(steps)) == list(range(9))
