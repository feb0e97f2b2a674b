r"""How good a policy is: on preference data against its reference, and against another model.

What is measured on preference data is what training logs (:mod:`llm.objective`), over a whole data
set at once. A win rate is over prompts, a tie half a win. Intervals are bootstrapped: prompts are
drawn again with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .batches import Batch
from .diagnostics import density_ratio
from .objective import ObjectiveConfig, measure, metrics
from .preference_data import Message
from .score import Score

RESAMPLES = 10_000
Reward = Callable[[Sequence[Message], str], float]


class Comparison(NamedTuple):
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


def preference_metrics(
    config: ObjectiveConfig, policy: Sequence[Score], reference: Sequence[Score], *, seed: int = 0
) -> dict[str, float]:
    r"""Rewards, margins, accuracy, losses and theory of a policy on a data set.

    Args:
        config: the objective; :math:`\beta` scales the rewards
            :math:`\beta\log(\pi/\pi_{ref})`.
        policy: scores of the rows.
        reference: scores of the same rows under the reference.
        seed: of the bootstrap.

    Returns:
        The metrics of :func:`llm.objective.metrics`, the ends of 95 % intervals as
        ``rewards/accuracies_lower`` and so on, also of ``rewards/margins``, quantiles of the chosen
        responses' log-ratio, and the number of ``pairs``.

    Raises:
        ValueError: no rows, or other rows or token counts under the reference.

    Examples:
        >>> first, second = [Score(0, -1.0, -3.0, 2, 2)], [Score(0, -2.0, -2.0, 2, 2)]
        >>> preference_metrics(ObjectiveConfig(beta=0.5), first, second)["rewards/margins"]
        1.0
    """
    if not policy:
        raise ValueError("there must be rows to measure, got none")
    if [(one.row, *one[3:]) for one in policy] != [(one.row, *one[3:]) for one in reference]:
        raise ValueError(
            "`policy` and `reference` must be scores of the same rows and tokens: the two models "
            "need one tokenizer and one chat template"
        )
    log_probs = np.array([one[1:3] for one in policy])
    baseline = np.array([one[1:3] for one in reference])
    rows = np.array([one.row for one in policy])
    absent: Any = None  # tokens have been scored already
    lengths = np.array([one[3:] for one in policy])
    batch = Batch(absent, absent, lengths, np.ones(len(rows), bool), rows)
    totals = measure(config, jnp.asarray(log_probs), jnp.asarray(baseline), batch)
    measured = {name: float(value) for name, value in metrics(config, totals).items()}
    rewards = config.beta * (log_probs - baseline)
    margins = rewards[:, 0] - rewards[:, 1]
    for name, values in (("margins", margins), ("accuracies", (margins > 0).astype(float))):
        lower, upper = interval_of_mean(values, seed=seed)
        measured |= {f"rewards/{name}_lower": lower, f"rewards/{name}_upper": upper}
    return measured | density_ratio(log_probs[:, 0], baseline[:, 0]) | {"pairs": len(rows)}


def compare(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], *, seed: int = 0
) -> Comparison:
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
        >>> compare(np.array([1.0, 2.0]), np.array([0.0, 2.0]))[:4]
        (1, 1, 0, 0.75)
    """
    if not len(first):
        raise ValueError("there must be prompts to compare on, got none")
    for values in (first, second):
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"rewards must be finite, got {values[where]} for prompt {where}")
    wins, losses = int(np.sum(first > second)), int(np.sum(first < second))
    return from_counts(wins, len(first) - wins - losses, losses, seed=seed)


def from_counts(wins: int, ties: int, losses: int, *, seed: int = 0) -> Comparison:
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
        >>> from_counts(3, 0, 0)
        Comparison(wins=3, ties=0, losses=0, win_rate=1.0, lower=1.0, upper=1.0)
    """
    counts = np.array([wins, ties, losses])
    total = int(counts.sum())
    if total == 0:
        raise ValueError("there must be a win, a tie or a loss to compare by, got none")
    worth = np.array([1.0, 0.5, 0.0])
    # Prompts drawn again with replacement: their counts are multinomial.
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, RESAMPLES)
    lower, upper = np.quantile(drawn @ worth / total, [0.025, 0.975])
    return Comparison(wins, ties, losses, float(counts @ worth / total), float(lower), float(upper))


def rewards_of(
    reward: Reward, prompts: Sequence[Sequence[Message]], replies: Sequence[str]
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
        >>> rewards_of(lambda prompt, reply: len(reply), [[Message("user", "a")]], ["four"])
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


def interval_of_mean(values: Float[np.ndarray, " n"], *, seed: int = 0) -> tuple[float, float]:
    """Bootstrapped 95 % interval of a mean.

    Args:
        values: a number a row.
        seed: of the draws.

    Returns:
        Its ends.

    Examples:
        >>> interval_of_mean(np.ones(3))
        (1.0, 1.0)
    """
    key = np.random.default_rng(seed)
    # One resample at a time: all of them at once would not fit for large data.
    means = [
        values[key.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES // 10)
    ]
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)
