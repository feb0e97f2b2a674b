r"""Rules that choose the weight :math:`\eta` of RPO from the data, for whole batches of problems.

- *discrepancy*: the largest :math:`\eta` for which the data loss of the adversarial reward exceeds
  its minimum by at most :math:`\log(1/\delta)/N`, the multiplier of FREEHAND's constraint;
- *heldout*: the value of a grid with the smallest negative log-likelihood of held-out comparisons;
- *hypergradient*: the same, refined by bisection on the sign of its exact derivative in
  :math:`\log\eta`, by the implicit function theorem.

Held-out comparisons are a random part of the data, drawn with the seed of the problem; the fit
itself uses all of them.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory import minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

from .base import FitContext, require_compact_class, reward_range

EtaRule = Literal["given", "discrepancy", "heldout", "hypergradient"]
r"""Rule for :math:`\eta`; "given" for that of the problem."""

DELTA = 0.05
"""Probability of the discrepancy rule."""
HELD_OUT = 0.25
"""Share of the comparisons that is held out."""
RANGE = (1e-4, 1e2)
"""Smallest and largest eta times the range of the rewards."""
GRID = 25
"""Number of values of eta that are tried."""
BISECTIONS = 24
"""Halvings of an interval of log(eta)."""
GROUP = 8192
"""Number of win counts that are processed together."""
STREAM = 20_160_401
"""Second word of the seed of the held-out comparisons, apart from those of the data."""


def choose_eta(
    rule: EtaRule, problem: Problem, reward_class: RewardClass, context: FitContext
) -> Float[np.ndarray, " b"]:
    r"""Return the weight of the adversary that a rule chooses for every problem.

    Args:
        rule: the rule.
        problem: instances, with a leading batch axis.
        reward_class: compact and convex classes with a range, with the same leading axis.
        context: kernel and seeds of the study.

    Returns:
        :math:`\eta` of each, nats per unit of reward.

    Raises:
        ValueError: if the reward class is not compact, not convex or has no ``reward_max``.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> even, wins = np.full((1, 1, 2), 0.5), np.array([[[[0.0, 30.0], [10.0, 0.0]]]])
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.ones(1))
        >>> eta = choose_eta("discrepancy", problem, TabularBox(np.full(1, 4.0)), FitContext())
        >>> bool(0.05 < eta[0] < 5.0)
        True
    """
    if rule == "given":
        return np.asarray(problem.eta)
    reward_class = require_compact_class(f"the rule {rule}", reward_class)
    ends = np.log(np.multiply.outer(RANGE, 1.0 / reward_range(reward_class)))
    if rule == "discrepancy":
        return np.exp(_largest_within(problem, reward_class, ends, context))
    training, held_out = split_wins(problem, context)
    low, high = ends
    grid = np.linspace(low, high, GRID)  # [k b]
    losses = np.stack(
        [
            _losses(_solve(training, reward_class, np.exp(logs), context), held_out, problem)
            for logs in grid
        ]
    )
    best = losses.argmin(axis=0)
    rows = np.arange(best.size)
    if rule == "heldout":
        return np.exp(grid[best, rows])
    left, right = grid[np.maximum(best - 1, 0), rows], grid[np.minimum(best + 1, GRID - 1), rows]
    size = group_size(problem, GROUP)
    for _ in range(BISECTIONS):
        middle = 0.5 * (left + right)
        slope = map_in_groups(_slopes, middle, training, reward_class, held_out, size=size)
        left, right = np.where(slope > 0, left, middle), np.where(slope > 0, middle, right)
    return np.exp(0.5 * (left + right))


def split_wins(
    problem: Problem, context: FitContext
) -> tuple[Problem, Float[np.ndarray, "b x a a"]]:
    """Split the comparisons of every problem into those for training and held-out ones.

    Args:
        problem: instances, with a leading batch axis.
        context: seeds of the study.

    Returns:
        The problems with the training comparisons, and the win counts that are held out. Counts
        that are no whole numbers are divided in proportion.

    Examples:
        >>> even, wins = np.full((1, 1, 2), 0.5), np.array([[[[0.0, 30.0], [10.0, 0.0]]]])
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.ones(1))
        >>> training, held_out = split_wins(problem, FitContext())
        >>> bool((training.wins + held_out == wins).all())
        True
    """
    wins = np.asarray(problem.wins, np.float64)
    seeds = np.zeros(len(wins), int) if context.seeds is None else context.seeds
    held_out = HELD_OUT * wins
    for row, seed in enumerate(seeds):
        counts = wins[row]
        if (counts == np.round(counts)).all():
            generator = np.random.default_rng([int(seed), STREAM])
            held_out[row] = generator.binomial(counts.astype(np.int64), HELD_OUT)
    return problem._replace(wins=wins - held_out), held_out


def _largest_within(
    problem: Problem,
    reward_class: RewardClass,
    ends: Float[np.ndarray, "2 b"],
    context: FitContext,
) -> Float[np.ndarray, " b"]:
    """Bisect for the largest log(eta) whose data loss stays within the discrepancy."""
    wins = np.asarray(problem.wins)
    n_comparisons = np.maximum(wins.sum(axis=(1, 2, 3)), 1.0)
    zero = np.zeros_like(n_comparisons)
    smallest = _losses(_solve(problem, reward_class, zero, context), wins, problem)
    level = smallest + np.log(1.0 / DELTA) / n_comparisons
    left, right = ends
    for step in range(BISECTIONS + 1):
        # The upper end comes first: no weight may reach the level.
        middle = right if step == 0 else 0.5 * (left + right)
        reward = _solve(problem, reward_class, np.exp(middle), context)
        within = _losses(reward, wins, problem) <= level
        left = np.where(within, middle, left)
        right = np.where(within, right, middle)
    return left


def _solve(
    problem: Problem,
    reward_class: RewardClass,
    eta: Float[np.ndarray, " b"],
    context: FitContext,
) -> Float[np.ndarray, "b x a"]:
    weighted = problem._replace(eta=eta)
    solution = minimax.solve_batch(weighted, reward_class, throw=False, kernel=context.kernel)
    return np.asarray(solution.reward)


def _losses(
    reward: Float[np.ndarray, "b x a"], wins: Float[np.ndarray, "b x a a"], problem: Problem
) -> Float[np.ndarray, " b"]:
    return map_in_groups(_log_losses, reward, wins, size=group_size(problem, GROUP))


def _held_out_loss(
    log_eta: Float[Array, ""],
    problem: Problem,
    reward_class: RewardClass,
    held_out: Float[Array, "x a a"],
) -> Float[Array, ""]:
    solution = minimax.solve(problem._replace(eta=jnp.exp(log_eta)), reward_class, throw=False)
    return negative_log_likelihood(solution.reward, held_out)


_log_losses = jax.jit(jax.vmap(negative_log_likelihood))
_slopes = jax.jit(jax.vmap(jax.grad(_held_out_loss)))
