r"""Choice of the weight :math:`\eta` of the adversarial term from the data.

Along the path :math:`\eta\mapsto\hat r_\eta` of minimax solutions the data loss
:math:`L_D(\hat r_\eta)` does not decrease and the penalty
:math:`E_{d_0,\pi_{base}}[\beta\log Z - \hat r_\eta]` does not increase. Two rules pick a point:

- *held-out likelihood*: minimize the negative log-likelihood of votes that were held out, whose
  derivative in :math:`\log\eta` follows by the implicit function theorem;
- *discrepancy*: the largest :math:`\eta` for which the data loss exceeds its minimum by at most
  :math:`\log(1/\delta)/N`, so that the adversary stays within the likelihood ratio that the data do
  not reject. (The same multiplier as that of the constraint of FREEHAND.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from . import minimax, objectives
from .array_checks import at_least_zero, numbers
from .observations import n_observations
from .preference import data_loss, negative_log_likelihood
from .problems import normalize
from .rewards import RewardClass, to_float64
from .types import ArrayLike, Problem
from .validation import solver_arguments

GRID = 13
"""Number of points of the path among which the minimum of the held-out loss is bracketed."""
BISECTIONS = 30
"""Halvings of an interval of log eta."""


class EtaPath(NamedTuple):
    r"""Minimax solutions for several weights of the adversarial term.

    Attributes:
        eta: weights :math:`\eta`, shape ``[k]``.
        policy: policies :math:`\hat\pi_\eta`, shape ``[k x a]``.
        data_loss: :math:`L_D(\hat r_\eta)`, nats per observation; it does not decrease.
        penalty: :math:`E[\beta\log Z - \hat r_\eta]`, units of reward; it does not increase.
        held_out_loss: negative log-likelihood of the held-out votes, nats per vote; None without.
    """

    eta: Float[np.ndarray, " k"]
    policy: Float[np.ndarray, "k x a"]
    data_loss: Float[np.ndarray, " k"]
    penalty: Float[np.ndarray, " k"]
    held_out_loss: Float[np.ndarray, " k"] | None


class TunedEta(NamedTuple):
    r"""Weight of the adversarial term that a rule chose.

    Attributes:
        eta: the weight :math:`\eta`.
        loss: held-out loss, or without held-out votes the data loss, at this weight, nats.
        derivative: derivative of the loss in :math:`\log\eta`; 0 at an inner minimum.
        path: solutions along the searched interval.
    """

    eta: float
    loss: float
    derivative: float
    path: EtaPath


def eta_path(
    problem: Problem,
    reward_class: RewardClass,
    etas: Float[ArrayLike, " k"],
    *,
    held_out_wins: Float[ArrayLike, "x a a"] | None = None,
) -> EtaPath:
    r"""Return the minimax solutions along a list of weights :math:`\eta`.

    Args:
        problem: preference data, policies and weights; its ``eta`` is replaced.
        reward_class: rewards that the adversary may choose from.
        etas: weights, at least 0.
        held_out_wins: win counts of votes that are not in the problem.

    Returns:
        The path, in the order of the weights.

    Raises:
        ValueError: if an argument is invalid, or a problem is not solved.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=1.0)
        >>> path = eta_path(problem, TabularBox(2.0), np.array([0.1, 10.0]))
        >>> bool(path.data_loss[0] <= path.data_loss[1]), bool(path.penalty[0] >= path.penalty[1])
        (True, True)
    """
    problem, reward_class, held_out_wins = _arguments(problem, reward_class, held_out_wins)
    etas = np.asarray(etas, np.float64)
    at_least_zero("etas", numbers("etas", etas, np.shape(etas)))
    count = (len(etas),)
    same = (problem._replace(eta=np.float64(0.0)), reward_class)
    repeated = jax.tree.map(lambda leaf: np.broadcast_to(leaf, count + np.shape(leaf)), same)
    problems = repeated[0]._replace(eta=etas)
    solutions = minimax.solve_batch(problems, repeated[1])
    with jax.enable_x64(True):
        losses, penalties, held = jax.device_get(
            _losses(problem, held_out_wins, jnp.asarray(solutions.reward))
        )
    return EtaPath(etas, np.asarray(solutions.policy), losses, penalties, held)


def tune_eta(
    problem: Problem,
    reward_class: RewardClass,
    *,
    held_out_wins: Float[ArrayLike, "x a a"] | None = None,
    delta: float = 0.05,
    bounds: tuple[float, float] = (1e-3, 1e3),
) -> TunedEta:
    r"""Choose the weight :math:`\eta` from data.

    With held-out votes it minimizes their negative log-likelihood, by bisection on the sign of its
    exact derivative around the best of 13 weights. Without, it is the largest :math:`\eta` with
    :math:`N\,(L_D(\hat r_\eta)-\min_r L_D(r)) \le \log(1/\delta)`.

    Args:
        problem: preference data, policies and weights; its ``eta`` is replaced.
        reward_class: a compact class of rewards that the adversary may choose from.
        held_out_wins: win counts of votes that are not in the problem; None for the discrepancy
            rule.
        delta: probability in (0, 1) of the discrepancy rule.
        bounds: smallest and largest weight, greater than 0.

    Returns:
        The weight, within the bounds, with the loss, its derivative and the path.

    Raises:
        ValueError: if an argument is invalid, or a problem is not solved.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> problem = Problem.from_wins(np.array([[[0, 8], [2, 0]]]), beta=1.0, eta=1.0)
        >>> tuned = tune_eta(problem, TabularBox(2.0), held_out_wins=np.array([[[0.0, 6], [4, 0]]]))
        >>> bool(abs(tuned.derivative) < 1e-6)
        True
    """
    low, high = bounds
    if not 0.0 < low < high < np.inf:
        raise ValueError(f"`bounds` must be increasing, finite and greater than 0, got {bounds}")
    if not 0.0 < delta < 1.0:
        raise ValueError(f"`delta` must be greater than 0 and less than 1, got {delta}")
    path = eta_path(
        problem, reward_class, np.geomspace(low, high, GRID), held_out_wins=held_out_wins
    )
    problem, reward_class, held_out_wins = _arguments(problem, reward_class, held_out_wins)
    logs, level = np.log(path.eta), np.inf
    if held_out_wins is None:
        zero = minimax.solve(problem._replace(eta=np.float64(0.0)), reward_class)
        with jax.enable_x64(True):
            n_data = max(float(n_observations(problem)), 1.0)
            level = float(data_loss(problem, zero.reward)) + np.log(1.0 / delta) / n_data
        best = int(np.searchsorted(path.data_loss, level))
        left, right = logs[max(best - 1, 0)], logs[min(best, GRID - 1)]
    else:
        best = int(np.argmin(np.asarray(path.held_out_loss)))
        left, right = logs[max(best - 1, 0)], logs[min(best + 1, GRID - 1)]
    with jax.enable_x64(True):
        for _ in range(BISECTIONS):
            middle = 0.5 * (left + right)
            loss, slope = _loss_and_slope(middle, problem, reward_class, held_out_wins)
            too_far = slope > 0 if held_out_wins is not None else loss > level
            left, right = (left, middle) if too_far else (middle, right)
        middle = 0.5 * (left + right)
        loss, slope = _loss_and_slope(middle, problem, reward_class, held_out_wins)
    return TunedEta(float(np.exp(middle)), float(loss), float(slope), path)


def _arguments(
    problem: Problem, reward_class: RewardClass, held_out_wins: ArrayLike | None
) -> tuple[Problem, RewardClass, np.ndarray | None]:
    options = {"tolerance": minimax.TOLERANCE, "max_steps": minimax.MAX_STEPS, "throw": True}
    problem, reward_class = solver_arguments(problem, reward_class, **options, batch=False)
    if held_out_wins is not None:
        held_out_wins = numbers("held_out_wins", held_out_wins, np.shape(problem.wins))
        at_least_zero("held_out_wins", held_out_wins)
    return normalize(problem), to_float64(reward_class), held_out_wins


@jax.jit
def _losses(
    problem: Problem, held_out_wins: Array | None, rewards: Float[Array, "k x a"]
) -> tuple[Array, Array, Array | None]:
    """Return data loss, penalty and held-out loss of a list of rewards."""

    def of_one(reward: Float[Array, "x a"]) -> tuple[Array, Array, Array | None]:
        loss = data_loss(problem, reward)
        one = problem._replace(eta=jnp.ones_like(loss))
        penalty = objectives.minimax_objective(one, reward) - loss
        held = None if held_out_wins is None else negative_log_likelihood(reward, held_out_wins)
        return loss, penalty, held

    return jax.vmap(of_one)(rewards)


@jax.jit
@jax.value_and_grad
def _loss_and_slope(
    log_eta: Float[Array, ""] | float,
    problem: Problem,
    reward_class: RewardClass,
    held_out_wins: Float[Array, "x a a"] | None,
) -> Float[Array, ""]:
    solution = minimax.solve(problem._replace(eta=jnp.exp(log_eta)), reward_class)
    if held_out_wins is None:
        return data_loss(problem, solution.reward)
    return negative_log_likelihood(solution.reward, held_out_wins)
