r"""Loss of the data and its gradient in balls.

Each loss is a function of one margin, written as a truncated power series: its derivative comes
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np

from rpo_theory.preference_data import Choices, DavidsonTies, RaoKupperTies, Ties
from rpo_theory.types import Problem

from .balls import Ball, Balls, exact, exact_number

Series: TypeAlias = Any
"""An ``arb_series``: a value and the derivative by the margin."""
Loss: TypeAlias = Callable[[Series], Series]


def loss_and_gradient(problem: Problem, reward: Balls) -> tuple[Ball, Balls]:
    r"""Return the average loss :math:`L_D(r)` of the data and its gradient.

    Args:
        problem: preference data, whose counts are exact.
        reward: table of balls, shape ``[x a]``.

    Returns:
        The loss, nats per observation, and its derivative by each reward; zeros without data.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> loss, gradient = loss_and_gradient(problem, exact(np.zeros((1, 2))))
        >>> round(float(loss), 4), [float(slope) for slope in gradient[0]]
        (0.6931, [-0.5, 0.5])
    """
    wins, choices, ties = np.asarray(problem.wins), problem.choices, problem.ties
    loss, gradient = exact_number(0.0), exact(np.zeros(reward.shape))
    n_data = exact(wins).sum()
    win_loss, tie_loss = _pair_losses(ties)
    loss += _add_pairs(gradient, reward, wins, win_loss)
    if ties is not None:
        counts = np.asarray(ties.counts)
        n_data += exact(counts).sum()
        loss += _add_pairs(gradient, reward, counts, tie_loss)
    if choices is not None:
        first = np.asarray(choices.first).astype(bool)
        n_data += exact(np.asarray(choices.wins)[first]).sum()
        loss += _add_choices(gradient, reward, choices)
    if n_data == 0:
        return loss, gradient
    return loss / n_data, gradient / n_data


def _pair_losses(ties: Ties | None) -> tuple[Loss, Loss]:
    r"""Return :math:`-\log P(i\succ j)` and :math:`-\log P(i\sim j)` of a margin."""

    def bradley_terry(margin: Series) -> Series:
        return (1 + (-margin).exp()).log()

    match ties:
        case None:
            return bradley_terry, bradley_terry
        case DavidsonTies(_, parameter):
            nu = exact_number(parameter)

            def davidson_win(margin: Series) -> Series:
                return (1 + (-margin).exp() + nu * (-margin / 2).exp()).log()

            def davidson_tie(margin: Series) -> Series:
                return (1 + ((margin / 2).exp() + (-margin / 2).exp()) / nu).log()

            return davidson_win, davidson_tie
        case RaoKupperTies(_, parameter):
            theta = exact_number(parameter)

            def rao_kupper_win(margin: Series) -> Series:
                return (1 + theta * (-margin).exp()).log()

            def rao_kupper_tie(margin: Series) -> Series:
                return rao_kupper_win(margin) + rao_kupper_win(-margin) - (theta**2 - 1).log()

            return rao_kupper_win, rao_kupper_tie


def _add_pairs(gradient: Balls, reward: Balls, counts: np.ndarray, pair_loss: Loss) -> Ball:
    """Add the gradient of all pairs ``counts[x, i, j]`` in place, and return their loss."""
    from flint import arb_series

    loss = exact_number(0.0)
    for x, i, j in zip(*np.nonzero(counts), strict=True):
        margin: list[Any] = [reward[x, i] - reward[x, j], 1]  # and its derivative
        series = pair_loss(arb_series(margin, 2))
        count = exact_number(counts[x, i, j])
        loss += count * series[0]
        gradient[x, i] += count * series[1]
        gradient[x, j] -= count * series[1]
    return loss


def _add_choices(gradient: Balls, reward: Balls, choices: Choices) -> Ball:
    """Add the gradient of all choices from sets in place, and return their loss."""
    loss = exact_number(0.0)
    contexts = np.asarray(choices.contexts).astype(int)
    subsets = np.asarray(choices.subsets).astype(bool)
    for x, subset, wins in zip(contexts, subsets, np.asarray(choices.wins), strict=True):
        members = np.flatnonzero(subset)
        top = max(members, key=lambda a: float(reward[x, a].mid()))
        scaled = {a: (reward[x, a] - reward[x, top]).exp() for a in members}
        normalizer = cast(Any, sum(scaled.values()))
        count = exact(wins[members]).sum()
        for a in members:
            won = exact_number(wins[a])
            loss += won * (normalizer.log() + reward[x, top] - reward[x, a])
            gradient[x, a] += count * scaled[a] / normalizer - won
    return loss
