r"""Preference sampling: independent comparisons of pairs from a distribution, as win counts.

A comparison is of prompt and ordered pair ``(x, a^1, a^0)`` with probability :math:`\mu_D` and is
labeled by the Bradley-Terry model. The win counts of :math:`N` comparisons are therefore one
multinomial draw, at a cost that does not grow with :math:`N`. Every seed has random streams of its
own, so a draw does not depend on the batch it is made in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

STRUCTURE_STREAM = 0
"""Random stream of a seed for the bandit itself; stream ``N + 1`` labels N comparisons."""


def check_draw(n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Refuse a number of comparisons or a seed that is out of range.

    Args:
        n_comparisons: number of comparisons, at least 1.
        seeds: whole numbers, at least 0.

    Returns:
        The seeds.

    Raises:
        ValueError: if a number is out of range.

    Examples:
        >>> check_draw(1, np.array([3, 0])).tolist()
        [3, 0]
        >>> check_draw(1, np.array([3, -1]))
        Traceback (most recent call last):
        ValueError: `seeds` must be at least 0, got -1
    """
    if n_comparisons < 1:
        raise ValueError(f"`n_comparisons` must be at least 1, got {n_comparisons}")
    if np.any(seeds < 0):
        raise ValueError(f"`seeds` must be at least 0, got {seeds.min()}")
    return seeds


def draw_uniforms(seeds: Int[np.ndarray, " B"], count: int) -> Float[np.ndarray, "B k"]:
    """Draw uniform numbers for every seed, from its stream for the bandit itself.

    Args:
        seeds: whole numbers, at least 0.
        count: how many numbers to draw for each seed.

    Returns:
        Numbers in [0, 1). A longer row begins with the shorter row of the same seed.

    Examples:
        >>> rows = draw_uniforms(np.array([3, 4]), 5)
        >>> bool((draw_uniforms(np.array([4]), 2)[0] == rows[1, :2]).all())
        True
    """
    rows = np.empty((len(seeds), count))
    for row, generator in zip(rows, _streams(seeds, STRUCTURE_STREAM), strict=True):
        generator.random(out=row)
    return rows


def draw_win_counts(
    true_reward: Float[np.ndarray, "B x a"],
    pair_distribution: Float[np.ndarray, "B x a a"],
    *,
    comparisons: int,
    seeds: Int[np.ndarray, " B"],
    label_noise: float = 0.0,
    stream: int | None = None,
) -> Float[np.ndarray, "B x a a"]:
    r"""Draw independent comparisons, label them and count the wins.

    Args:
        true_reward: reward :math:`r^\star` of the Bradley-Terry model that labels.
        pair_distribution: :math:`\mu_D(x, a^1, a^0)`; each member of the batch sums to one. It is
            not normalized here: the rounding of a sum would depend on the rest of the batch.
        comparisons: number of comparisons :math:`N`, at least 1.
        seeds: one seed for each member of the batch, on which alone its draw depends.
        label_noise: probability that a label is flipped.
        stream: random stream of the seeds, from 0 to :math:`2^{64}-1`; None for the stream of a
            data set of :math:`N` comparisons. Draws that follow each other need streams of their
            own.

    Returns:
        ``wins[b, x, winner, loser]``, whole numbers that sum to :math:`N` for each member.

    References:
        `liu:24`, eqs. 2.1 and 2.2.

    Examples:
        >>> pairs = np.array([[[[0.0, 1.0], [0.0, 0.0]]]])
        >>> reward, seeds = np.zeros((1, 1, 2)), np.array([0])
        >>> float(draw_win_counts(reward, pairs, comparisons=9, seeds=seeds).sum())
        9.0
    """
    pairs = find_pairs(pair_distribution)
    counts = draw_pair_counts(
        true_reward,
        pairs,
        pair_distribution[:, *pairs],
        comparisons=comparisons,
        seeds=seeds,
        label_noise=label_noise,
        stream=stream,
    )
    actions = np.broadcast_to(np.arange(true_reward.shape[2]), true_reward.shape)
    return count_wins(counts, pair_cells(pairs, actions), true_reward.shape)


class PairIndices(NamedTuple):
    """Ordered pairs that are compared, the same ones for all members of a batch.

    Attributes:
        context: prompt of each pair.
        first: its first action.
        second: its second action.
    """

    context: Int[np.ndarray, " p"]
    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]


def find_pairs(pair_distribution: Float[np.ndarray, "b x a a"]) -> PairIndices:
    """Return the pairs that some member of a batch compares.

    Args:
        pair_distribution: probabilities of ordered pairs.
    """
    return PairIndices(*np.nonzero(pair_distribution.any(axis=0)))


def pair_cells(pairs: PairIndices, action_of: Int[np.ndarray, "B x a"]) -> Int[np.ndarray, "2 B p"]:
    """Return the flat indices of pairs and of reversed pairs in tables of shape ``[B x a a]``.

    Args:
        pairs: the pairs.
        action_of: action that each index stands for, a permutation of the actions per context.
    """
    n_batch, contexts, actions = action_of.shape
    first = action_of[:, pairs.context, pairs.first]
    second = action_of[:, pairs.context, pairs.second]
    row = actions * (contexts * np.arange(n_batch)[:, None] + pairs.context)
    return np.stack([(row + first) * actions + second, (row + second) * actions + first])


def draw_pair_counts(
    true_reward: Float[np.ndarray, "B x a"],
    pairs: PairIndices,
    probability: Float[np.ndarray, "#B p"],
    *,
    comparisons: int,
    seeds: Int[np.ndarray, " B"],
    label_noise: float,
    stream: int | None = None,
) -> Float[np.ndarray, "B p 2"]:
    """Draw how often the first and the second action of every pair wins.

    Args:
        true_reward: reward of the Bradley-Terry model that labels.
        pairs: the compared pairs.
        probability: probability of each pair; sums to one.
        comparisons: number of comparisons, at least 1.
        seeds: one seed for each member of the batch, on which alone its draw depends.
        label_noise: probability that a label is flipped.
        stream: random stream of the seeds, see :func:`draw_win_counts`.

    Returns:
        Whole numbers that sum to the number of comparisons for each member.
    """
    context, first, second = pairs
    rate = expit(true_reward[:, context, first] - true_reward[:, context, second])
    rate = label_noise + (1.0 - 2.0 * label_noise) * rate
    outcomes = np.stack([probability * rate, probability * (1.0 - rate)], axis=2)
    outcomes = outcomes.reshape(len(seeds), -1)
    counts = np.empty(outcomes.shape)
    streams = _streams(seeds, comparisons + 1 if stream is None else stream)
    for row, generator, probabilities in zip(counts, streams, outcomes, strict=True):
        row[:] = generator.multinomial(comparisons, probabilities)
    return counts.reshape(len(seeds), -1, 2)


def count_wins(
    counts: Float[np.ndarray, "B p 2"], cells: Int[np.ndarray, "2 B p"], shape: tuple[int, int, int]
) -> Float[np.ndarray, "B x a a"]:
    """Write the wins of pairs into tables.

    Args:
        counts: wins of the first and of the second action of every pair.
        cells: cells of the pairs, see :func:`pair_cells`.
        shape: numbers of members, contexts and actions.

    Returns:
        ``wins[b, x, winner, loser]``.
    """
    wins = np.zeros((*shape, shape[-1]))
    flat = wins.reshape(-1)
    flat[cells[0]] = counts[..., 0]
    flat[cells[1]] += counts[..., 1]
    return wins


def _streams(seeds: Int[np.ndarray, " B"], stream: int) -> Iterator[np.random.Generator]:
    """Yield one generator, set to the start of the given stream of each seed in turn.

    Philox is a function of a key and a counter, so resetting one costs less than making another.
    """
    bits = np.random.Philox(key=np.zeros(2, np.uint64))
    generator, start = np.random.Generator(bits), bits.state
    keys = np.stack([seeds, np.full_like(seeds, stream)], axis=1).astype(np.uint64)
    for key in keys:
        start["state"]["key"] = key
        bits.state = start
        yield generator
