r"""FREEHAND: the policy that is best against every reward of high likelihood.

`zhan:23` solve the constrained twin of Algorithm 1,

.. math:: \max_\pi\min_{r\in\mathcal R}\; E_\pi r - E_{\pi_{base}} r
          \quad\text{over } L_D(r) \le \min_{\mathcal R} L_D + \zeta/N,

without a divergence. With a multiplier :math:`1/\eta` on the constraint it *is* the adversarial
problem at that :math:`\eta` and :math:`\beta\to0`. So the exact solver is called at a tiny
:math:`\beta` while bisection finds the :math:`\eta` at which the constraint is tight. Weak duality
then proves the answer, :math:`\beta` and bisection included: a feasible reward bounds the value of
all policies from above, the multiplier bounds that of the policy found from below.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from rpo_theory import minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.adversary import adversarial_reward
from rpo_theory.certificate import reward_gradient
from rpo_theory.objectives import value
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem, Solution, Status

from .base import FitResult, MethodOptions, require_compact_class, reward_range, with_baseline

TEMPERATURE = 1e-5  # the beta that stands for 0, per range of the rewards
BRACKET = (1e-7, 1e5)  # of eta, per range: slacks of 1e-13 and of all the class
GROUP = 8192  # entries of the win counts that are measured at a time
BISECTIONS = 44  # 28 nats of bracket to 2e-12
GAP_TOLERANCE = 1e-3  # of SOLVED, per range: the temperature times a log-probability or two


class _Search(NamedTuple):
    """The largest multipliers known to be feasible, their answers, and the least known not to."""

    feasible: Float[np.ndarray, " b"]
    infeasible: Float[np.ndarray, " b"]
    policy: Float[np.ndarray, "b x a"]
    reward: Float[np.ndarray, "b x a"]


def freehand(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""Best policy against the rewards whose total log-likelihood is within :math:`\zeta` of best.

    Args:
        problem: instances, with a leading batch axis; their :math:`\beta` and :math:`\eta` do not
            count.
        reward_class: tabular boxes or linear balls.
        options: ``baseline`` and ``likelihood_slack`` count.

    Returns:
        The policies, within the support of the reference, and the rewards they are best for; the
        certificate bounds what the policy falls short of the constrained problem's value, in units
        of reward.

    Raises:
        ValueError: another reward class.

    References:
        `zhan:23`, Algorithm 1.
    """
    reward_class = require_compact_class("freehand", reward_class)
    problem = with_baseline(problem, options)
    width = reward_range(reward_class)
    cold = problem._replace(beta=TEMPERATURE * width)
    likely = minimax.solve_batch(cold._replace(eta=np.zeros_like(width)), reward_class, throw=False)
    n_comparisons = np.maximum(np.asarray(problem.wins).sum(axis=(1, 2, 3)), 1.0)
    most = np.asarray(likely.objective) + options.likelihood_slack / n_comparisons
    search = _search(cold, reward_class, width, most)
    found = (cold._replace(eta=search.feasible), reward_class, search.policy, search.reward, most)
    gap = map_in_groups(_shortfalls, *found, size=group_size(problem, GROUP))
    solved = gap <= GAP_TOLERANCE * width
    policy = search.policy
    return FitResult(
        # At so small a beta log-probabilities are rounded to 1e-12.
        policy=policy / policy.sum(axis=-1, keepdims=True),
        reward=search.reward,
        certificate=gap,
        certificate_kind="duality_gap",
        status=np.where(solved, Status.SOLVED.value, Status.MAX_STEPS.value),
    )


def _search(
    problem: Problem,
    reward_class: RewardClass,
    width: Float[np.ndarray, " b"],
    most: Float[np.ndarray, " b"],
) -> _Search:
    """Bisect, on a logarithmic scale, for the largest multiplier that keeps the likelihood."""
    low, high = (edge / width for edge in BRACKET)
    solution, _ = _tried(problem, reward_class, low, most)
    search = _Search(low, high, np.asarray(solution.policy), np.asarray(solution.reward))
    # First the largest multiplier of all: there the constraint may not bind at all.
    trial = high
    for _ in range(1 + BISECTIONS):
        solution, fits = _tried(problem, reward_class, trial, most)
        search = _Search(
            np.where(fits, trial, search.feasible),
            np.where(fits, search.infeasible, trial),
            _select(fits, solution.policy, search.policy),
            _select(fits, solution.reward, search.reward),
        )
        trial = np.sqrt(search.feasible * search.infeasible)
    return search


def _tried(
    problem: Problem,
    reward_class: RewardClass,
    eta: Float[np.ndarray, " b"],
    most: Float[np.ndarray, " b"],
) -> tuple[Solution, Bool[np.ndarray, " b"]]:
    """Answer at a multiplier, and whether its reward is likely enough."""
    problem = problem._replace(eta=eta)
    solution = minimax.solve_batch(problem, reward_class, throw=False)
    size = group_size(problem, GROUP)
    losses = map_in_groups(_log_losses, solution.reward, problem.wins, size=size)
    return solution, losses <= most


def _select(chosen: np.ndarray, new: ArrayLike, old: ArrayLike) -> np.ndarray:
    new, old = np.asarray(new), np.asarray(old)
    return np.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)


_log_losses = jax.jit(jax.vmap(negative_log_likelihood))


@jax.jit
@jax.vmap
def _shortfalls(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
    most: Float[Array, ""],
) -> Float[Array, ""]:
    """Value of the best policy at a feasible reward, less that of the policy by the multiplier."""
    weights, baseline = problem.context_weights, jnp.asarray(problem.baseline_policy)
    possible = jnp.asarray(problem.reference_policy) > 0
    best = jnp.asarray(weights) @ jnp.where(possible, reward, -jnp.inf).max(axis=1)
    above = best - value(baseline, reward, weights)

    worst = adversarial_reward(problem, reward_class, policy)
    slack = reward_class.linear_gap(reward_gradient(problem, policy, worst), worst)
    excess = negative_log_likelihood(worst, problem.wins) - most - jnp.maximum(slack, 0.0)
    below = value(policy - baseline, worst, weights) + excess / problem.eta
    # Where the constraint does not bind its multiplier is 0, which no eta says.
    unbound = reward_class.minimum(jnp.asarray(weights)[:, None] * (policy - baseline))
    below = jnp.maximum(below, unbound)
    return jnp.maximum(above - below, 0.0)
