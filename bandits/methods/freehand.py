r"""FREEHAND: the policy that is best against every reward of high likelihood.

The method of `zhan:23` is Algorithm 1 with a constraint in place of the likelihood term, and
without a divergence:

.. math:: \max_\pi\min_{r\in\mathcal R}\; E_\pi r - E_{\pi_{base}} r
          \quad\text{over } L_D(r) \le \min_{\mathcal R} L_D + \zeta/N.

With a multiplier :math:`1/\eta` on the constraint it *is* the adversarial problem at that
:math:`\eta` and :math:`\beta\to0`. The exact solver is therefore called at a tiny :math:`\beta`,
while a bisection searches for the :math:`\eta` at which the constraint is tight. Weak duality then
certifies the result, including the effects of :math:`\beta` and of the bisection: a feasible reward
bounds the value of every policy from above, and the multiplier bounds the value of the fitted
policy from below.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from rpo_theory.minimax import Kernel
from rpo_theory.objectives import value
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import RewardClass, linear_gap, linear_minimum
from rpo_theory.types import ArrayLike, Problem, Solution, Status

from .base import (
    FitContext,
    FitResult,
    Method,
    require_compact_class,
    reward_range,
    with_baseline,
)
from .options import BaselineOptions, check_number

TEMPERATURE = 1e-5  # KL weight per unit of reward range; approximates 0
BRACKET = (1e-7, 1e5)  # limits of eta times reward range: almost no slack, and the whole class
GROUP = 8192  # number of win counts that are processed together
BISECTIONS = 44  # number of halvings of log(eta): from 28 nats to 2e-12
GAP_TOLERANCE = 1e-3  # largest gap of SOLVED per unit of reward range


@dataclass(frozen=True, kw_only=True)
class FreehandOptions(BaselineOptions):
    r"""Options of FREEHAND.

    Attributes:
        likelihood_slack: :math:`\zeta`, nats of the log-likelihood of all data.

    Raises:
        ValueError: if an option is out of range.
    """

    likelihood_slack: float = 3.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        BaselineOptions.__post_init__(self)
        check_number("likelihood_slack", self.likelihood_slack, above=0.0)


class _Search(NamedTuple):
    """State of the bisection.

    Attributes:
        feasible: largest multipliers eta known to satisfy the constraint.
        infeasible: smallest multipliers known to violate it.
        policy: policies at the feasible multipliers.
        reward: rewards at the feasible multipliers.
    """

    feasible: Float[np.ndarray, " b"]
    infeasible: Float[np.ndarray, " b"]
    policy: Float[np.ndarray, "b x a"]
    reward: Float[np.ndarray, "b x a"]


def freehand(
    problem: Problem, reward_class: RewardClass, options: FreehandOptions, context: FitContext
) -> FitResult:
    r"""Fit the best policy against all rewards within :math:`\zeta` nats of maximum likelihood.

    Args:
        problem: instances, with a leading batch axis; their :math:`\beta` and :math:`\eta` are
            ignored.
        reward_class: compact and convex classes, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies, within the support of the reference, and the rewards against which they are
        best. The certificate bounds the distance between a policy's value and that of the
        constrained problem, in units of reward.

    Raises:
        ValueError: if the reward class is not compact, not convex or has no ``reward_max``.

    References:
        `zhan:23`, Algorithm 1.
    """
    reward_class = require_compact_class("freehand", reward_class)
    problem = with_baseline(problem, options)
    width = reward_range(reward_class)
    cold = problem._replace(beta=TEMPERATURE * width)
    likelihood_only = cold._replace(eta=np.zeros_like(width))
    kernel = context.kernel
    mle = minimax.solve_batch(likelihood_only, reward_class, throw=False, kernel=kernel)
    n_comparisons = np.maximum(np.asarray(problem.wins).sum(axis=(1, 2, 3)), 1.0)
    max_loss = np.asarray(mle.objective) + options.likelihood_slack / n_comparisons
    search = _search(cold, reward_class, width, max_loss, kernel)
    gap = map_in_groups(
        _shortfalls,
        cold._replace(eta=search.feasible),
        reward_class,
        search.policy,
        search.reward,
        max_loss,
        size=group_size(problem, GROUP),
    )
    solved = gap <= GAP_TOLERANCE * width
    return FitResult(
        # At so small a beta the log-probabilities are rounded to 1e-12.
        policy=search.policy / search.policy.sum(axis=-1, keepdims=True),
        reward=search.reward,
        certificate=gap,
        certificate_kind="duality_gap",
        status=np.where(solved, Status.SOLVED.value, Status.MAX_STEPS.value),
    )


def _search(
    problem: Problem,
    reward_class: RewardClass,
    width: Float[np.ndarray, " b"],
    max_loss: Float[np.ndarray, " b"],
    kernel: Kernel,
) -> _Search:
    """Bisect on a logarithmic scale for the largest multiplier that satisfies the constraint."""
    low, high = (edge / width for edge in BRACKET)
    solution, _ = _solve_at(problem, reward_class, low, max_loss, kernel)
    search = _Search(low, high, np.asarray(solution.policy), np.asarray(solution.reward))
    # The upper end comes first: the constraint may not bind at all.
    trial = high
    for _ in range(1 + BISECTIONS):
        solution, is_feasible = _solve_at(problem, reward_class, trial, max_loss, kernel)
        search = _Search(
            np.where(is_feasible, trial, search.feasible),
            np.where(is_feasible, search.infeasible, trial),
            _select(is_feasible, solution.policy, search.policy),
            _select(is_feasible, solution.reward, search.reward),
        )
        trial = np.sqrt(search.feasible * search.infeasible)
    return search


def _solve_at(
    problem: Problem,
    reward_class: RewardClass,
    eta: Float[np.ndarray, " b"],
    max_loss: Float[np.ndarray, " b"],
    kernel: Kernel,
) -> tuple[Solution, Bool[np.ndarray, " b"]]:
    """Solve at a multiplier, and check whether the reward satisfies the constraint."""
    problem = problem._replace(eta=eta)
    solution = minimax.solve_batch(problem, reward_class, throw=False, kernel=kernel)
    size = group_size(problem, GROUP)
    losses = map_in_groups(_log_losses, solution.reward, problem.wins, size=size)
    return solution, losses <= max_loss


def _select(condition: np.ndarray, new: ArrayLike, old: ArrayLike) -> np.ndarray:
    """Take the new entries of a batch where the condition holds, and the old ones elsewhere."""
    new, old = np.asarray(new), np.asarray(old)
    return np.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)


_log_losses = jax.jit(jax.vmap(negative_log_likelihood))


@jax.jit
@jax.vmap
def _shortfalls(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
    max_loss: Float[Array, ""],
) -> Float[Array, ""]:
    """Return an upper bound on the constrained value minus a lower bound on the policy's value."""
    weights, baseline = problem.context_weights, jnp.asarray(problem.baseline_policy)
    possible = jnp.asarray(problem.reference_policy) > 0
    best = jnp.asarray(weights) @ jnp.where(possible, reward, -jnp.inf).max(axis=1)
    upper = best - value(baseline, reward, weights)

    worst = adversarial_reward(problem, reward_class, policy)
    slack = linear_gap(reward_class, reward_gradient(problem, policy, worst), worst)
    excess = negative_log_likelihood(worst, problem.wins) - max_loss - jnp.maximum(slack, 0.0)
    lower = value(policy - baseline, worst, weights) + excess / problem.eta
    # A constraint that does not bind has the multiplier 0, which no eta represents.
    direction = jnp.asarray(weights)[:, None] * (policy - baseline)
    unconstrained = linear_minimum(reward_class, direction)
    lower = jnp.maximum(lower, unconstrained)
    return jnp.maximum(upper - lower, 0.0)


METHODS = (
    Method("freehand", freehand, "FREEHAND", FreehandOptions, uses_eta=False, uses_beta=False),
)
"""Methods of this module."""
