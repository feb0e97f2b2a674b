r"""Preference sampling: independent comparisons of pairs from a distribution, as win counts.

A comparison is of prompt and ordered pair ``(x, a^1, a^0)`` with probability :math:`\mu_D` and is
labeled by the Bradley-Terry model. The win counts of :math:`N` comparisons are therefore one
multinomial draw, at a cost that does not grow with :math:`N`. Every seed has random streams of its
own, so a draw does not depend on the batch it is made in.
"""

from __future__ import annotations

from collections.abc import Iterator

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
) -> Float[np.ndarray, "B x a a"]:
    r"""Draw independent comparisons, label them and count the wins.

    Args:
        true_reward: reward :math:`r^\star` of the Bradley-Terry model that labels.
        pair_distribution: :math:`\mu_D(x, a^1, a^0)`; each member of the batch sums to one. It is
            not normalized here: the rounding of a sum would depend on the rest of the batch.
        comparisons: number of comparisons :math:`N`, at least 1.
        seeds: one seed for each member of the batch, on which alone its draw depends.
        label_noise: probability that a label is flipped.

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
    n_batch, *shape = pair_distribution.shape
    index = np.flatnonzero(pair_distribution.any(axis=0))
    context, first, second = np.unravel_index(index, shape)
    probability = pair_distribution.reshape(n_batch, -1)[:, index]
    rate = expit(true_reward[:, context, first] - true_reward[:, context, second])
    rate = label_noise + (1.0 - 2.0 * label_noise) * rate
    outcomes = np.stack([probability * rate, probability * (1.0 - rate)], axis=2)
    outcomes = outcomes.reshape(n_batch, -1)

    counts = np.empty(outcomes.shape)
    streams = _streams(seeds, comparisons + 1)
    for row, generator, probabilities in zip(counts, streams, outcomes, strict=True):
        row[:] = generator.multinomial(comparisons, probabilities)
    first_wins, second_wins = counts.reshape(n_batch, -1, 2).transpose(2, 0, 1)
    wins = np.zeros((n_batch, *shape))
    wins[:, context, first, second] = first_wins
    wins[:, context, second, first] += second_wins
    return wins


def _streams(seeds: Int[np.ndarray, " B"], stream: int) -> Iterator[np.random.Generator]:
    """Yield one generator, set to the start of the given stream of each seed in turn.

    Philox is a function of a key and a counter, so resetting one costs less than making another.
    """
    bits = np.random.Philox(key=np.zeros(2, np.uint64))
    generator, start = np.random.Generator(bits), bits.state
    for seed in seeds:
        start["state"]["key"] = np.array([seed, stream], np.uint64)
        bits.state = start
        yield generator
