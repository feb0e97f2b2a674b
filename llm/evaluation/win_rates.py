"""Win rates of one model over another, with bootstrapped intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llm.data.preferences import Message

BOOTSTRAP_RESAMPLES = 10_000


RewardFunction = Callable[[Sequence[Message], str], float]


class WinRate(NamedTuple):
    """A model against another.

    Attributes:
        wins: prompts won.
        ties: prompts that neither won.
        losses: prompts lost.
        win_rate: share won, a tie half.
        lower: end of the bootstrapped interval of the win rate.
        upper: its other end.
    """

    wins: int
    ties: int
    losses: int
    win_rate: float
    lower: float
    upper: float


def compare_rewards(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], *, seed: int = 0
) -> WinRate:
    """Win rate of one model over another by the rewards of their replies.

    Args:
        first: rewards of its replies, one a prompt.
        second: rewards of the other's.
        seed: of the bootstrap.

    Returns:
        The comparison, with a 95 % interval.

    Raises:
        ValueError: no prompts, or a reward that is not finite.

    Examples:
        >>> compare_rewards(np.array([1.0, 2.0]), np.array([0.0, 2.0]))[:4]
        (1, 1, 0, 0.75)
    """
    if not len(first):
        raise ValueError("there must be prompts to compare on, got none")
    for values in (first, second):
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"rewards must be finite, got {values[where]} for prompt {where}")
    wins, losses = int(np.sum(first > second)), int(np.sum(first < second))
    return win_rate_from_counts(wins, len(first) - wins - losses, losses, seed=seed)


def win_rate_from_counts(wins: int, ties: int, losses: int, *, seed: int = 0) -> WinRate:
    """Win rate from counts, with its bootstrapped interval.

    Args:
        wins: prompts won.
        ties: prompts that neither won.
        losses: prompts lost.
        seed: of the bootstrap.

    Returns:
        The comparison, with a 95 % interval.

    Raises:
        ValueError: if all counts are 0.

    Examples:
        >>> win_rate_from_counts(3, 0, 0)
        WinRate(wins=3, ties=0, losses=0, win_rate=1.0, lower=1.0, upper=1.0)
    """
    counts = np.array([wins, ties, losses])
    total = int(counts.sum())
    if total == 0:
        raise ValueError("there must be a win, a tie or a loss to compare by, got none")
    worth = np.array([1.0, 0.5, 0.0])
    # Prompts drawn again with replacement: their counts are multinomial.
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, BOOTSTRAP_RESAMPLES)
    lower, upper = np.quantile(drawn @ worth / total, [0.025, 0.975])
    return WinRate(wins, ties, losses, float(counts @ worth / total), float(lower), float(upper))


def score_replies(
    reward: RewardFunction, prompts: Sequence[Sequence[Message]], replies: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Rewards of replies.

    Args:
        reward: of a conversation and the reply to it.
        prompts: the conversations.
        replies: one each.

    Returns:
        The rewards, float64.

    Raises:
        ValueError: one is not a finite number.

    Examples:
        >>> score_replies(lambda prompt, reply: len(reply), [[Message("user", "a")]], ["four"])
        array([4.])
    """
    values = np.zeros(len(prompts))
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        value = reward(prompt, reply)
        try:
            values[index] = float(value)
        except (TypeError, ValueError):
            values[index] = np.nan
        if not np.isfinite(values[index]):
            raise ValueError(f"the reward of prompt {index} must be a finite number, got {value!r}")
    return values


def bootstrap_mean_interval(
    values: Float[np.ndarray, " n"], *, seed: int = 0
) -> tuple[float, float]:
    """Bootstrapped 95 % interval of a mean.

    Args:
        values: a number a row.
        seed: of the draws.

    Returns:
        Its ends.

    Examples:
        >>> bootstrap_mean_interval(np.ones(3))
        (1.0, 1.0)
    """
    key = np.random.default_rng(seed)
    # One resample at a time: all of them at once would not fit for large data.
    means = [
        values[key.integers(len(values), size=len(values))].mean()
        for _ in range(BOOTSTRAP_RESAMPLES // 10)
    ]
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)
