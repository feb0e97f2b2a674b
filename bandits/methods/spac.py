r"""Self-play against an adversarial critic, in the manner of SPAC.

In `ji:24` a policy plays against a critic. The critic answers the policy with the reward that
minimizes the log loss plus :math:`\eta` times the advantage of the policy over the baseline, and
the policy follows the rewards by mirror descent from the reference. The average policy approaches
the best one against the adversary *without* a divergence, at the rate of Hedge: after :math:`T`
rounds of rewards with range :math:`R` it is within :math:`R\sqrt{\log(1/\min\pi_{ref})/2T}`. The
critic's answers are exact here, so the guarantee applies, and the duality gap of the averages
measures how close they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.adversary import adversarial_reward
from rpo_theory.certificate import reward_gradient
from rpo_theory.objectives import value
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import RewardClass, linear_gap
from rpo_theory.types import Problem, Status

from .base import (
    FitContext,
    FitResult,
    Method,
    require_compact_class,
    reward_range,
    with_baseline,
)
from .options import BaselineOptions

GROUP = 1024  # entries of the win counts that are fitted at a time
ROUNDING = 1e-9  # by which a gap may exceed Hedge's bound


@dataclass(frozen=True, kw_only=True)
class SpacOptions(BaselineOptions):
    """Options of SPAC.

    Attributes:
        self_play_rounds: number of rounds, at least 1.

    Raises:
        ValueError: if an option is out of range.
    """

    self_play_rounds: int = 100

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        BaselineOptions.__post_init__(self)
        if self.self_play_rounds < 1:
            raise ValueError(f"`self_play_rounds` must be at least 1, got {self.self_play_rounds}")


def spac(
    problem: Problem, reward_class: RewardClass, options: SpacOptions, context: FitContext
) -> FitResult:
    r"""Fit the average policy of mirror descent against the best answers of the adversary.

    Args:
        problem: instances, with a leading batch axis; :math:`\beta` is ignored.
        reward_class: compact and convex classes, with the same leading axis.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The average policies and rewards. The certificate is the duality gap of
        :math:`\eta E_{\pi,\pi_{base}}[r(a^1)-r(a^0)]+L_D(r)` at them, nats. The status is SOLVED if
        the gap is within the bound that Hedge guarantees for this number of rounds.

    Raises:
        ValueError: if the reward class is not compact, not convex or has no ``reward_max``.

    References:
        `ji:24`, Algorithm 1.
    """
    del context
    reward_class = require_compact_class("spac", reward_class)
    problem = with_baseline(problem, options)
    play = partial(_play, np.asarray(options.self_play_rounds, np.int32))
    policy, reward, gap, bound = map_in_groups(
        play,
        problem,
        reward_class,
        reward_range(reward_class),
        size=group_size(problem, GROUP),
    )
    solved = gap <= bound + ROUNDING
    status = np.where(solved, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


def _play_one(
    rounds: Int[Array, ""],
    problem: Problem,
    reward_class: RewardClass,
    width: Float[Array, ""],
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Float[Array, ""]]:
    """Return the average policy and reward, their duality gap, and Hedge's bound on it."""
    reference = jnp.asarray(problem.reference_policy)
    possible = reference > 0
    surprise = -jnp.log(jnp.where(possible, reference, 1.0).min())
    # It is 0 if each prompt has one response; then every step size serves.
    surprise = jnp.maximum(surprise, 1e-12)
    n_rounds = rounds.astype(reference.dtype)
    step = jnp.sqrt(8.0 * surprise / n_rounds) / width

    def play(_: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        policies, rewards = sums
        policy = jax.nn.softmax(jnp.log(reference) + step * rewards, axis=1)
        answer = adversarial_reward(problem, reward_class, policy)
        return policies + policy, rewards + answer

    zero = jnp.zeros_like(reference)
    policies, rewards = jax.lax.fori_loop(0, rounds, play, (zero, zero))
    policy = policies / policies.sum(axis=1, keepdims=True)
    reward = rewards / n_rounds
    bound = width * jnp.sqrt(surprise / (2.0 * n_rounds)) * problem.eta
    return policy, reward, _gap(problem, reward_class, policy, reward), bound


def _gap(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
) -> Float[Array, ""]:
    """Return the duality gap of the saddle problem without a divergence."""
    weights, baseline = jnp.asarray(problem.context_weights), jnp.asarray(problem.baseline_policy)
    possible = jnp.asarray(problem.reference_policy) > 0
    best = weights @ jnp.where(possible, reward, -jnp.inf).max(axis=1)
    upper = problem.eta * (best - value(baseline, reward, weights))
    upper = upper + negative_log_likelihood(reward, problem.wins)
    worst = adversarial_reward(problem, reward_class, policy)
    slack = linear_gap(reward_class, reward_gradient(problem, policy, worst), worst)
    lower = problem.eta * value(policy - baseline, worst, weights)
    lower = lower + negative_log_likelihood(worst, problem.wins) - jnp.maximum(slack, 0.0)
    return jnp.maximum(upper - lower, 0.0)


_play = jax.jit(jax.vmap(_play_one, (None, 0, 0, 0)))


METHODS = (Method("spac", spac, "SPAC", SpacOptions, uses_beta=False),)
"""Methods of this module."""
