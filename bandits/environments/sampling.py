r"""Offline preference data: i.i.d. comparisons from a behaviour law over pairs, as win counts.

A comparison falls on ``(x, a^1, a^0)`` with probability :math:`\mu_D` and is then labelled by the
Bradley-Terry model, so the win counts of :math:`N` comparisons are one multinomial draw: the cost
does not grow with :math:`N`. Every seed has streams of its own, so that a draw is the same in
whatever batch it is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

STRUCTURE = 0
"""Stream of a seed that the bandit itself is drawn from; stream ``N + 1`` labels N comparisons."""


def check_draw(n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Refuse a draw that cannot be made.

    Args:
        n_comparisons: at least 1.
        seeds: whole numbers from 0 on.

    Returns:
        The seeds.

    Raises:
        ValueError: a number out of range.

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
    """Uniform numbers of every seed, from its stream for the bandit itself.

    Args:
        seeds: at least 0.
        count: how many for each seed.

    Returns:
        Numbers in [0, 1); a longer row begins with the shorter one.

    Examples:
        >>> rows = draw_uniforms(np.array([3, 4]), 5)
        >>> bool((draw_uniforms(np.array([4]), 2)[0] == rows[1, :2]).all())
        True
    """
    rows = np.empty((len(seeds), count))
    for row, generator in zip(rows, _streams(seeds, STRUCTURE), strict=True):
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
    r"""Draw i.i.d. comparisons and their labels, and count the wins.

    Args:
        true_reward: :math:`r^\star`, that labels.
        pair_distribution: :math:`\mu_D(x, a^1, a^0)`, sums to one. It is not divided by its sum, which
            would round differently with the pairs that only other members of the batch have.
        comparisons: :math:`N`.
        seeds: one for each member of the batch; the draw depends on its own member alone.
        label_noise: probability that a label is flipped.

    Returns:
        ``wins[x, w, l]``, whole numbers that sum to :math:`N`.

    References:
        `liu:24`, eqs. 2.1 and 2.2.

    Examples:
        >>> law = np.array([[[[0.0, 1.0], [0.0, 0.0]]]])
        >>> float(draw_win_counts(np.zeros((1, 1, 2)), law, comparisons=9, seeds=np.array([0])).sum())
        9.0
    """
    n_batch, *shape = pair_distribution.shape
    place = np.flatnonzero(pair_distribution.any(axis=0))
    context, first, second = np.unravel_index(place, shape)
    law = pair_distribution.reshape(n_batch, -1)[:, place]
    rate = expit(true_reward[:, context, first] - true_reward[:, context, second])
    rate = label_noise + (1.0 - 2.0 * label_noise) * rate
    outcomes = np.stack([law * rate, law * (1.0 - rate)], axis=2).reshape(n_batch, -1)

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
    """One generator, set to the start of each seed's stream in turn.

    Philox is a function of key and counter, so to set it costs less than to make another.
    """
    bits = np.random.Philox(key=np.zeros(2, np.uint64))
    generator, start = np.random.Generator(bits), bits.state
    for seed in seeds:
        start["state"]["key"] = np.array([seed, stream], np.uint64)
        bits.state = start
        yield generator
