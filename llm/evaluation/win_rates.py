"""Win rates of one model over another, with confidence intervals.

Intervals of rates are those of Clopper and Pearson, which hold for every number of trials: after 0
wins of ``n`` the upper end is ``1 - 0.025 ** (1 / n)``, not 0. Means of other values, such as
margins, have bootstrapped intervals.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from llm.data.preferences import Message

BOOTSTRAP_RESAMPLES = 1000
"""Number of bootstrap samples of a mean."""
TAIL = 0.025
"""Probability outside each end of a 95 % interval."""

RewardFunction = Callable[[Sequence[Message], str], float]
"""Function of a conversation and the reply to it that returns a reward."""


class WinRate(NamedTuple):
    """Result of comparing a model with another one on prompts.

    Attributes:
        wins: number of prompts that the model wins.
        ties: number of prompts that neither model wins.
        losses: number of prompts that the model loses.
        win_rate: share of prompts won; a tie counts one half.
        lower: lower end of the 95 % confidence interval of the win rate, see
            :func:`exact_rate_interval`.
        upper: upper end of the interval.
    """

    wins: int
    ties: int
    losses: int
    win_rate: float
    lower: float
    upper: float


def compare_rewards(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> WinRate:
    """Compute the win rate of one model over another from the rewards of their replies.

    Args:
        first: rewards of the model's replies, one per prompt.
        second: rewards of the other model's replies to the same prompts.

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
    return win_rate_from_counts(wins, len(first) - wins - losses, losses)


def win_rate_from_counts(wins: int, ties: int, losses: int) -> WinRate:
    """Compute a win rate from counts; a tie counts one half.

    Args:
        wins: number of prompts won.
        ties: number of prompts that neither model wins.
        losses: number of prompts lost.

    Returns:
        The counts and the win rate, with the 95 % interval of :func:`exact_rate_interval`.

    Raises:
        ValueError: if a count is negative, or all of them are 0.

    Examples:
        >>> win_rate_from_counts(3, 2, 0)[:4]
        (3, 2, 0, 0.8)
    """
    n_prompts = wins + ties + losses
    if min(wins, ties, losses) < 0 or n_prompts == 0:
        raise ValueError(
            "`wins`, `ties` and `losses` must be at least 0 and must not all be 0, got "
            f"{wins}, {ties} and {losses}"
        )
    won = wins + ties / 2
    return WinRate(wins, ties, losses, won / n_prompts, *exact_rate_interval(won, n_prompts))


def exact_rate_interval(successes: float, trials: int) -> tuple[float, float]:
    r"""Compute the 95 % interval of Clopper and Pearson for a rate.

    Trials that count a fraction, such as ties, make the number of successes fractional. It is then
    rounded outward: down for the lower end, up for the upper one. The interval stays conservative:
    in the tails a sum of values in [0, 1] is no more likely to be extreme than a binomial number
    with the same mean.

    Args:
        successes: sum of the successes, from 0 to ``trials``.
        trials: number of independent trials, at least 1.

    Returns:
        Lower and upper end, in [0, 1]. The lower end is 0 only if less than one trial succeeds,
        the upper end is 1 only if less than one fails.

    References:
        Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of
        the binomial", 1934.

    Examples:
        >>> [round(end, 4) for end in exact_rate_interval(0.0, 10)]
        [0.0, 0.3085]
    """
    from scipy.special import betaincinv

    # A mean of probabilities has rounding errors: 3 times 0.1 must not count as above 0.3.
    nearest = round(successes)
    whole = abs(successes - nearest) <= 1e-9 * trials
    low, high = (nearest, nearest) if whole else (math.floor(successes), math.ceil(successes))
    lower = 0.0 if low == 0 else float(betaincinv(low, trials - low + 1, TAIL))
    upper = 1.0 if high == trials else float(betaincinv(high + 1, trials - high, 1 - TAIL))
    return lower, upper


def score_replies(
    reward_function: RewardFunction,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
) -> Float[np.ndarray, " n"]:
    """Compute the rewards of replies.

    Args:
        reward_function: function of a conversation and the reply to it. A number, a bool, and a
            NumPy or JAX scalar are rewards.
        prompts: the conversations.
        replies: one reply per conversation.
        sources: source of each conversation, such as ``file:line``, for error messages.

    Returns:
        One reward per reply, float64.

    Raises:
        ValueError: if the function raises an error or exits, or a reward is not a finite number;
            the message names the function and the prompt.

    Examples:
        >>> score_replies(lambda prompt, reply: len(reply), [[Message("user", "a")]], ["four"])
        array([4.])
    """
    rewards = np.zeros(len(prompts))
    name = getattr(reward_function, "__name__", type(reward_function).__name__)
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        source = "" if sources is None else f"{sources[index]}: "
        try:
            value = reward_function(prompt, reply)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's function may raise anything, or exit
            raise ValueError(
                f"{source}reward function `{name}` failed for prompt {index}: "
                f"{type(error).__name__}: {error}"
            ) from error
        rewards[index] = _as_number(value)
        if not np.isfinite(rewards[index]):
            raise ValueError(
                f"{source}reward function `{name}`: the reward of prompt {index} must be a finite "
                f"number, got {_shown(value)}"
            )
    return rewards


def _as_number(value: Any) -> float:
    """Return the float of a real scalar, and nan for anything else."""
    is_text = isinstance(value, str | bytes | bytearray)
    if is_text or getattr(value, "shape", ()) != () or np.iscomplexobj(value):
        return math.nan
    try:
        return float(value)
    except Exception:  # no number, one beyond float64, or an object whose conversion fails
        return math.nan


def _shown(value: Any) -> str:
    """Return a short text of any value, also of an integer that Python refuses to print."""
    if inspect.iscoroutine(value):
        value.close()  # it would warn that nobody awaited it
        return "a coroutine: the function must not be `async`"
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"


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
        for _ in range(BOOTSTRAP_RESAMPLES)
    ]
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)
