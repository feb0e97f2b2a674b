"""Mixtures of sources: how many pairs of each source an epoch has, and which.

The pairs of a source form an endless stream: one random order of all pairs after another. An epoch
takes the next pairs of every stream, so that over many epochs all pairs of a source are used
equally often. The pairs of an epoch are a function of the seed and the number of the epoch alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class MixturePart(NamedTuple):
    """The share of one source in an epoch.

    Attributes:
        start: index of the first pair of the source.
        stop: index after its last pair.
        pairs: number of its pairs in an epoch; more than it has repeats pairs.
    """

    start: int
    stop: int
    pairs: int


def mix_by_weight(sizes: Sequence[int], weights: Sequence[float]) -> tuple[MixturePart, ...]:
    """Mix sources in given proportions, as many pairs as an epoch can have without repeating any.

    Args:
        sizes: number of pairs of each source, at least 1.
        weights: proportions of the sources in an epoch, positive; they need not add up to 1.

    Returns:
        The parts. One source is used as a whole, the others in proportion, at least one pair.

    Examples:
        >>> [part.pairs for part in mix_by_weight([100, 1000], [0.25, 0.75])]
        [100, 300]
    """
    epoch = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    # A whole number that rounding has made smaller is still that number.
    counts = [max(1, math.floor(weight * epoch * (1 + 1e-12))) for weight in weights]
    return mix_by_count(sizes, counts)


def mix_by_count(sizes: Sequence[int], counts: Sequence[int]) -> tuple[MixturePart, ...]:
    """Mix given numbers of pairs of each source.

    Args:
        sizes: number of pairs of each source, at least 1.
        counts: number of pairs of each source in an epoch.

    Returns:
        The parts.

    Examples:
        >>> mix_by_count([2, 3], [4, 1])[1]
        MixturePart(start=2, stop=5, pairs=1)
    """
    stops = np.cumsum(sizes).tolist()
    return tuple(
        MixturePart(stop - size, stop, count)
        for stop, size, count in zip(stops, sizes, counts, strict=True)
    )


def epoch_indices(parts: Sequence[MixturePart], seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Return the pairs of an epoch, source by source.

    Args:
        parts: the mixture.
        seed: seed of the order of every source.
        epoch: number of the epoch, from 0.

    Returns:
        Indices of pairs.

    Examples:
        >>> parts = mix_by_count([3], [2])
        >>> two_epochs = [epoch_indices(parts, 0, epoch) for epoch in range(2)]
        >>> sorted(np.concatenate(two_epochs)[:3].tolist())
        [0, 1, 2]
    """
    return np.concatenate(
        [_next_of_stream(part, [seed, index], epoch) for index, part in enumerate(parts)]
    )


def _next_of_stream(part: MixturePart, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Return pairs ``epoch * pairs`` to ``(epoch + 1) * pairs`` of the stream of a source."""
    size, first = part.stop - part.start, epoch * part.pairs
    passes = range(first // size, -(-(first + part.pairs) // size))
    orders = [np.random.default_rng([*seed, each]).permutation(size) for each in passes]
    start = first - passes.start * size
    return part.start + np.concatenate(orders)[start : start + part.pairs]
