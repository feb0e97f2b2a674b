"""Win rates of one model over another, with bootstrapped confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llm.data.preferences import Message

BOOTSTRAP_RESAMPLES = 10_000
"""Number of bootstrap samples of a win rate; means of other values use a tenth of it."""

RewardFunction = Callable[[Sequence[Message], str], float]
"""Function of a conversation and the reply to it that returns a reward."""


class WinRate(NamedTuple):
    """Result of comparing a model with another one on prompts.

    Attributes:
        wins: number of prompts that the model wins.
        ties: number of prompts that neither model wins.
        losses: number of prompts that the model loses.
        win_rate: share of prompts won; a tie counts one half.
        lower: lower end of the 95 % confidence interval of the win rate.
        upper: upper end of the interval.
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
    """Compute the win rate of one model over another from the rewards of their replies.

    Args:
        first: rewards of the model's replies, one per prompt.
        second: rewards of the other model's replies to the same prompts.
        seed: seed of the bootstrap.

    Returns:
        Counts and win rate, with a 95 % interval over the prompts.

    Raises:
        ValueError: if there are no prompts, or a reward is not finite.

    Examples:
        >>> compare_rewards(np.array([1.0, 2.0]), np.array([0.0, 2.0]))[:4]
        (1, 1, 0, 0.75)
    """
    if not len(first):
        raise ValueError("`first` must have at least one reward, got none")
    for rewards in (first, second):
        if not np.isfinite(rewards).all():
            index = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise ValueError(f"rewards must be finite, got {rewards[index]} for prompt {index}")
    wins, losses = int(np.sum(first > second)), int(np.sum(first < second))
    return win_rate_from_counts(wins, len(first) - wins - losses, losses, seed=seed)


def win_rate_from_counts(wins: int, ties: int, losses: int, *, seed: int = 0) -> WinRate:
    """Compute a win rate from counts.

    Args:
        wins: number of prompts won.
        ties: number of prompts that neither model wins.
        losses: number of prompts lost.
        seed: seed of the bootstrap.

    Returns:
        The counts and the win rate, with a 95 % interval over the prompts.

    Raises:
        ValueError: if all counts are 0.

    Examples:
        >>> win_rate_from_counts(3, 0, 0)
        WinRate(wins=3, ties=0, losses=0, win_rate=1.0, lower=1.0, upper=1.0)
    """
    counts = np.array([wins, ties, losses])
    n_prompts = int(counts.sum())
    if n_prompts == 0:
        raise ValueError("`wins`, `ties` and `losses` must not all be 0")
    scores = np.array([1.0, 0.5, 0.0])
    # Counts of prompts that are resampled with replacement are multinomial.
    generator = np.random.default_rng(seed)
    resampled = generator.multinomial(n_prompts, counts / n_prompts, BOOTSTRAP_RESAMPLES)
    lower, upper = np.quantile(resampled @ scores / n_prompts, [0.025, 0.975])
    win_rate = float(counts @ scores / n_prompts)
    return WinRate(wins, ties, losses, win_rate, float(lower), float(upper))


def score_replies(
    reward_function: RewardFunction,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[str],
) -> Float[np.ndarray, " n"]:
    """Compute the rewards of replies.

    Args:
        reward_function: function of a conversation and the reply to it.
        prompts: the conversations.
        replies: one reply per conversation.

    Returns:
        One reward per reply, float64.

    Raises:
        ValueError: if a reward is not a finite number.

    Examples:
        >>> score_replies(lambda prompt, reply: len(reply), [[Message("user", "a")]], ["four"])
        array([4.])
    """
    rewards = np.zeros(len(prompts))
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        value = reward_function(prompt, reply)
        try:
            rewards[index] = float(value)
        except (TypeError, ValueError):
            rewards[index] = np.nan
        if not np.isfinite(rewards[index]):
            raise ValueError(f"the reward of prompt {index} must be a finite number, got {value!r}")
    return rewards


def bootstrap_mean_interval(
    values: Float[np.ndarray, " n"], *, seed: int = 0
) -> tuple[float, float]:
    """Compute a bootstrapped 95 % confidence interval of a mean.

    Args:
        values: independent values, at least one.
        seed: seed of the bootstrap.

    Returns:
        Lower and upper end of the interval.

    Examples:
        >>> bootstrap_mean_interval(np.ones(3))
        (1.0, 1.0)
    """
    generator = np.random.default_rng(seed)
    # One resample at a time, because all of them together may not fit into memory.
    means = [
        values[generator.integers(len(values), size=len(values))].mean()
        for _ in range(BOOTSTRAP_RESAMPLES // 10)
    ]
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)
