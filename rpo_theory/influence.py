r"""Influence of single votes on the solution, to first order.

A vote for :math:`w` against :math:`l` in context :math:`x` adds one to :math:`W_{xwl}`. Leaving it
out changes the policy, to first order, by

.. math:: \hat\pi(W - e_{xwl}) - \hat\pi(W) \approx -\frac{\partial\hat\pi}{\partial W_{xwl}},

with the exact derivative of :mod:`rpo_theory.sensitivity`, in which the number :math:`N` of votes
changes too. Where a comparison was made a few times only, one vote is not a small change. The
rewards without it are then better predicted by a few Newton steps on the optimality conditions of
the problem without the vote, started at the solution; where these do not bring the point nearer to
optimality, the first order stands.

Two more inputs may come from the votes. With ``baseline="chosen"`` the baseline is the distribution
of the winners; with ``weights="comparisons"`` the prompt distribution is the share of the votes.
The derivative then includes their change.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from . import minimax, objectives, optimality, sensitivity
from ._batching import map_in_groups
from .policies import chosen_policy
from .problems import normalize
from .rewards import RewardClass, to_float64
from .types import ArrayLike, Problem
from .validation import InvalidProblemError, solver_arguments, validate_reward

Votes: TypeAlias = tuple[Any, Any, Any]
"""Contexts, winners and losers of distinct votes."""
Chains: TypeAlias = tuple[str, str]
"""Options ``baseline`` and ``weights`` of :func:`influence`."""
NEWTON_STEPS = 6
"""Newton steps from the solution towards that without a vote."""
LENGTHS = 0.5 ** np.arange(6)
"""Fractions of a Newton step, of which the one with the smallest objective is taken."""
GROUP = 1 << 22
"""Number of win counts of the votes whose derivatives are computed together."""


class Influence(NamedTuple):
    r"""First-order influence of each distinct vote.

    Attributes:
        context: context :math:`x` of each distinct vote, shape ``[n]``.
        winner: winner :math:`w`, shape ``[n]``.
        loser: loser :math:`l`, shape ``[n]``.
        policy: :math:`\partial\hat\pi/\partial W_{xwl}`, the change of the policy per added vote,
            shape ``[n x a]``.
        left_out: predicted change of the policy if one vote is left out, by a few Newton steps,
            shape ``[n x a]``.
        value: derivative of :math:`J(\hat\pi)` under the rewards that were given, in units of
            reward per vote, shape ``[n]``; None without rewards.
        objective: derivative of :math:`F(\hat r)`, nats per vote, shape ``[n]``.
    """

    context: Int[np.ndarray, " n"]
    winner: Int[np.ndarray, " n"]
    loser: Int[np.ndarray, " n"]
    policy: Float[np.ndarray, "n x a"]
    left_out: Float[np.ndarray, "n x a"]
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
        >>> from rpo_theory.rewards import TabularBox
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=0.1)
        >>> found = influence(problem, TabularBox(2.0), baseline="chosen")
        >>> found.winner.tolist(), found.policy[:, 0, 0].round(2).tolist()
        ([0, 1], [0.06, -0.19])
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
    reward = minimax.solve(problem, reward_class).reward
    votes = (context, winner, loser)
    follow = (baseline, weights)
    with jax.enable_x64(True):
        problem, reward_class, reward = jax.tree.map(jnp.asarray, (problem, reward_class, reward))
        # One program after the other: two batched factorizations at a time deadlock (jaxlib
        # 0.10.2).
        point = jax.block_until_ready(_polished_point(problem, reward_class, reward, follow))
    base = (problem, reward_class, point)
    size = min(len(context), max(1, GROUP // problem.wins.size))
    policy_slope, objective_slope, value_slope = map_in_groups(
        lambda *some: _slopes(*base, rewards, some, follow), *votes, size=size
    )
    left_out = map_in_groups(
        lambda slope, *some: _left_out(*base, slope, some, follow), policy_slope, *votes, size=size
    )
    return Influence(*votes, policy_slope, left_out, value_slope, objective_slope)


def _problem_of(problem: Problem, wins: Float[Array, "x a a"], follow: Chains) -> Problem:
    """Return the problem with other votes, and with what follows from them."""
    moved = problem._replace(wins=wins)
    if follow[0] == "chosen":
        chosen = chosen_policy(wins, problem.reference_policy)
        moved = moved._replace(baseline_policy=chosen)
    if follow[1] == "comparisons":
        n_comparisons = jnp.maximum(wins.sum(), jnp.finfo(wins.dtype).tiny)
        moved = moved._replace(context_weights=wins.sum(axis=(1, 2)) / n_comparisons)
    return moved


@partial(jax.jit, static_argnums=3)
def _polished_point(
    problem: Problem, reward_class: RewardClass, reward: Float[Array, "x a"], follow: Chains
) -> Array:
    """Return the point of a solution, after Newton steps on the optimality conditions."""
    base = _problem_of(problem, jnp.asarray(problem.wins), follow)
    point = optimality.conditions(base, reward_class).point(reward)
    for _ in range(sensitivity.POLISH_STEPS):
        point = sensitivity.newton_step(point, base, reward_class)
    return point


@partial(jax.jit, static_argnums=5)
def _slopes(
    problem: Problem,
    reward_class: RewardClass,
    point: Array,
    rewards: Float[Array, "x a"] | None,
    votes: Votes,
    follow: Chains,
) -> tuple[Array, Array, Array | None]:
    """Return the derivatives of policy, objective and value in the count of each vote."""
    base = _problem_of(problem, jnp.asarray(problem.wins), follow)
    still = jax.tree.map(sensitivity.no_tangent, reward_class)

    def answer(problem: Problem, point: Array) -> tuple[Array, Array, Array | None]:
        policy, _, value = optimality.conditions(problem, reward_class).solution(point)
        if rewards is None:
            return policy, value, None
        return policy, value, objectives.value(policy, rewards, problem.context_weights)

    def of_one(vote: Votes) -> tuple[Array, Array, Array | None]:
        added = jnp.zeros_like(problem.wins).at[vote].set(1.0)
        direction = jax.jvp(lambda w: _problem_of(problem, w, follow), (problem.wins,), (added,))[1]
        move = sensitivity.tangent(point, (base, reward_class), (direction, still))
        return jax.jvp(answer, (base, point), (direction, move))[1]

    return jax.vmap(of_one)(_indices(votes))


@partial(jax.jit, static_argnums=5)
def _left_out(
    problem: Problem,
    reward_class: RewardClass,
    point: Array,
    slopes: Float[Array, "n x a"],
    votes: Votes,
    follow: Chains,
) -> Float[Array, "n x a"]:
    """Return the predicted change of the policy if one vote is left out."""
    base = _problem_of(problem, jnp.asarray(problem.wins), follow)
    policy = optimality.conditions(base, reward_class).solution(point)[0]

    def of_one(vote: Votes, slope: Float[Array, "x a"]) -> Float[Array, "x a"]:
        removed = jnp.zeros_like(problem.wins).at[vote].set(1.0)
        fewer = _problem_of(problem, jnp.maximum(problem.wins - removed, 0.0), follow)
        conditions = optimality.conditions(fewer, reward_class)

        def step(without: Array, _: None) -> tuple[Array, None]:
            move = sensitivity.newton_step(without, fewer, reward_class) - without
            moved = without + LENGTHS.reshape(-1, *(1,) * move.ndim) * move
            tried = jax.vmap(lambda one: conditions.point(conditions.solution(one)[1]))(moved)
            values = jax.vmap(lambda one: conditions.solution(one)[2])(tried)
            return tried[jnp.argmin(values)], None

        without = jax.lax.scan(step, point, None, length=NEWTON_STEPS)[0]
        closer = conditions.error(without) < 0.1 * conditions.error(point)
        return jnp.where(closer, conditions.solution(without)[0] - policy, -slope)

    return jax.vmap(of_one)(_indices(votes), slopes)


def _indices(votes: Votes) -> Votes:
    """Return votes as whole numbers: groups are float64."""
    return jax.tree.map(lambda index: jnp.asarray(index, jnp.int32), votes)
