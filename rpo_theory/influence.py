r"""Influence of single votes on the solution, to first order.

A vote for :math:`w` against :math:`l` in context :math:`x` adds one to :math:`W_{xwl}`. Leaving it
out changes the policy, to first order, by

.. math:: \hat\pi(W - e_{xwl}) - \hat\pi(W) \approx -\frac{\partial\hat\pi}{\partial W_{xwl}},

with the exact derivative of :mod:`rpo_theory.sensitivity`, in which the number :math:`N` of votes
changes too. Two more inputs may come from the votes: with ``baseline="chosen"`` the baseline is the
distribution of the winners, and with ``weights="comparisons"`` the prompt distribution is the share
of the votes. The derivative then includes their change.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from . import minimax, objectives
from .policies import chosen_policy
from .problems import normalize
from .rewards import RewardClass, to_float64
from .types import ArrayLike, Problem
from .validation import InvalidProblemError, solver_arguments, validate_reward

GROUP = 1 << 22
"""Number of entries of the derivatives that are computed together."""


class Influence(NamedTuple):
    r"""First-order influence of each distinct vote.

    Attributes:
        context: context :math:`x` of each distinct vote, shape ``[n]``.
        winner: winner :math:`w`, shape ``[n]``.
        loser: loser :math:`l`, shape ``[n]``.
        policy: :math:`\partial\hat\pi/\partial W_{xwl}`, the change of the policy per added vote,
            shape ``[n x a]``. Its negative predicts the change when one vote is left out.
        value: derivative of :math:`J(\hat\pi)` under the rewards that were given, in units of
            reward per vote, shape ``[n]``; None without rewards.
        objective: derivative of :math:`F(\hat r)`, nats per vote, shape ``[n]``.
    """

    context: Int[np.ndarray, " n"]
    winner: Int[np.ndarray, " n"]
    loser: Int[np.ndarray, " n"]
    policy: Float[np.ndarray, "n x a"]
    value: Float[np.ndarray, " n"] | None
    objective: Float[np.ndarray, " n"]


def influence(
    problem: Problem,
    reward_class: RewardClass,
    rewards: Float[ArrayLike, "x a"] | None = None,
    *,
    baseline: Literal["fixed", "chosen"] = "fixed",
    weights: Literal["fixed", "comparisons"] = "fixed",
) -> Influence:
    r"""Return how every vote moves the minimax policy and its value, to first order.

    Args:
        problem: preference data, policies and weights. Every positive win count is one distinct
            vote, however often it was cast.
        reward_class: rewards that the adversary may choose from.
        rewards: rewards :math:`r(x,a)` for the value :math:`J(\hat\pi)`, such as the true ones.
        baseline: whether the baseline policy stays as it is, or is the distribution of the winners
            and changes with them.
        weights: whether the prompt distribution stays as it is, or is the share of the votes of
            each context and changes with them.

    Returns:
        The derivatives by the count of each distinct vote, in float64. At a kink they are
        one-sided, see :mod:`rpo_theory.sensitivity`.

    Raises:
        ValueError: if an argument is invalid, or there are no votes.

    References:
        `liu:24`, eq. 4.4; `koh:17` for influence functions.

    Examples:
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=0.1)
        >>> found = influence(problem, TabularBox(2.0), baseline="chosen")
        >>> found.winner.tolist(), found.policy[:, 0, 0].round(3).tolist()
        ([0, 1], [0.062, -0.187])
    """
    options = {"tolerance": minimax.TOLERANCE, "max_steps": minimax.MAX_STEPS, "throw": True}
    problem, reward_class = solver_arguments(problem, reward_class, **options, batch=False)
    problem, reward_class = normalize(problem), to_float64(reward_class)
    shape = problem.reference_policy.shape
    if rewards is not None:
        validate_reward("rewards", rewards, shape)
        rewards = np.asarray(rewards, np.float64)
    context, winner, loser = np.nonzero(problem.wins)
    if not len(context):
        raise InvalidProblemError("wins", (), "must hold votes, got none: nothing has an influence")
    chains = {"baseline": (baseline, "chosen"), "weights": (weights, "comparisons")}
    for name, (option, follows) in chains.items():
        if option not in ("fixed", follows):
            raise ValueError(f"`{name}` must be 'fixed' or '{follows}', got {option!r}")
    with jax.enable_x64(True):
        slopes = _slopes(
            problem, reward_class, rewards, (context, winner, loser), (baseline, weights)
        )
        policy, objective, value = jax.device_get(slopes)
    return Influence(context, winner, loser, policy, value, objective)


@partial(jax.jit, static_argnames="options")
def _slopes(
    problem: Problem,
    reward_class: RewardClass,
    rewards: Float[Array, "x a"] | None,
    votes: tuple[Array, Array, Array],
    options: tuple[str, str],
) -> tuple[Array, Array, Array | None]:
    """Return the derivatives of policy, objective and value by the count of each vote."""

    def answer(wins: Float[Array, "x a a"]) -> tuple[Array, Array, Array | None]:
        moved = problem._replace(wins=wins)
        if options[0] == "chosen":
            chosen = chosen_policy(wins, problem.reference_policy)
            moved = moved._replace(baseline_policy=chosen)
        if options[1] == "comparisons":
            moved = moved._replace(context_weights=wins.sum(axis=(1, 2)) / wins.sum())
        solution = minimax.solve(moved, reward_class)
        if rewards is None:
            return solution.policy, solution.objective, None
        worth = objectives.value(solution.policy, rewards, moved.context_weights)
        return solution.policy, solution.objective, worth

    wins = jnp.asarray(problem.wins)
    _, derivative = jax.linearize(answer, wins)

    def slope(vote: tuple[Array, Array, Array]) -> tuple[Array, Array, Array | None]:
        return derivative(jnp.zeros_like(wins).at[vote].set(1.0))

    return jax.lax.map(slope, votes, batch_size=max(1, GROUP // wins.size))
