r"""Optimistic RPO: the adversary's sign flipped, so that the reward is as high as the data allow.

.. math::
    \max_{r\in\mathcal R} G(r),\qquad
    G(r) = \max_\pi\psi(\pi, r)
         = \eta\,E_{d_0,\pi_{base}}[\beta\log Z_r(x) - r(x,a^0)] - L_D(r),

.. math::
    \psi(\pi, r) = \eta\,E_{d_0,\pi,\pi_{base}}[r(x,a^1)-r(x,a^0)-\beta KL(\pi\|\pi_{ref})]-L_D(r).

With :math:`\eta` replaced by :math:`-\eta`, :math:`-G` is the minimax objective :math:`F` of RPO.
With :math:`\eta=\alpha/N` it is the objective of VPO online (`cen:24`). With :math:`\pi_{ref}` as
baseline and :math:`\alpha=\eta\beta` it is that of XPO (`xie:24`).

:math:`G` is a **difference of convex functions**: :math:`\beta\log Z_r` and :math:`L_D` are both
convex. Its maximization is not a convex problem. The convex-concave procedure replaces
:math:`\log Z_r` by its tangent at the present reward, whose gradient is :math:`\pi_r`. Each step is
therefore one exact convex program, and the procedure alternates between the two arguments of
:math:`\psi`:

.. math::
    r \leftarrow \arg\max_{r\in\mathcal R}\psi(\pi, r), \qquad \pi \leftarrow \pi_r .

What is guaranteed: :math:`G` never falls from step to step, and the limit is a stationary point.
Nothing more is known about one limit, so the procedure starts from every response and from
:math:`\pi_{ref}`, and the best limit is taken. How far it is from the global maximum is bounded
afterwards, for every problem (:func:`optimistic_bound`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.adversary import worst_reward
from rpo_theory.objectives import minimax_objective
from rpo_theory.policies import gibbs_policy, log_partition
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem, Status

from .base import FitContext, FitResult, Method, require_compact_class, with_baseline
from .options import BaselineOptions

GROUP = 2048  # entries of the win counts of the problems that are solved at a time
POLICY_TOLERANCE = 1e-9  # change of a probability at which the procedure stops
MAX_STEPS = 200  # of the procedure; the typical number is 10 to 50


class Optimum(NamedTuple):
    r"""Best stationary point of the optimistic objective that was found.

    Attributes:
        policy: :math:`\pi_r(a|x)` of the optimistic reward.
        reward: optimistic reward :math:`r(x,a)`.
        objective: :math:`G(r)`, nats.
        bound: upper bound on the global maximum of :math:`G`, nats; ``inf`` if none is known.
        change: largest change of a probability in the last step of the chosen starts.
        steps: number of steps of the start that took longest.
    """

    policy: Float[ArrayLike, "x a"]
    reward: Float[ArrayLike, "x a"]
    objective: Float[ArrayLike, ""]
    bound: Float[ArrayLike, ""]
    change: Float[ArrayLike, ""]
    steps: Int[ArrayLike, ""]


class _Iterate(NamedTuple):
    """State of the procedure for one start.

    Attributes:
        policy: policy that the next step answers.
        table: reward whose Gibbs policy it is; only the differences within a prompt matter.
        reward: best reward so far, and the answer to the accepted table before it.
        accepted: the table that ``reward`` answers.
        first_reward: the answer to the start.
        objective: value of ``reward``.
        change: largest change of a probability in the last step.
        steps: number of steps.
    """

    policy: Float[Array, "x a"]
    table: Float[Array, "x a"]
    reward: Float[Array, "x a"]
    accepted: Float[Array, "x a"]
    first_reward: Float[Array, "x a"]
    objective: Float[Array, ""]
    change: Float[Array, ""]
    steps: Int[Array, ""]


def optimistic_objective(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""Return the optimistic objective :math:`G(r)`, a difference of convex functions.

    Args:
        problem: preference data, policies and weights.
        reward: :math:`r(x,a)`; a constant added to the rewards of a context changes nothing.

    Returns:
        Nats.

    References:
        `cen:24` and `xie:24`, the objectives of the online algorithms.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> round(float(optimistic_objective(problem, jnp.array([[1.0, 0.0]]))), 4)
        0.1201
    """
    return -minimax_objective(problem._replace(eta=-jnp.asarray(problem.eta)), reward)


def optimistic_reward(
    problem: Problem, reward_class: RewardClass, policy: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return the reward of a class that maximizes :math:`\psi(\pi, r)` for a fixed policy.

    The program is convex. It is that of Algorithm 1's adversary with the roles of the policy and
    the baseline exchanged: :math:`\min_r\,\eta E_{d_0,\pi_{base},\pi}[r(x,a^1)-r(x,a^0)]+L_D(r)`.

    Args:
        problem: preference data, policies and weights, as arrays in float64.
        reward_class: a compact reward class.
        policy: :math:`\pi(a|x)`.

    Returns:
        A maximizer.

    Examples:
        >>> even, policy = np.full((1, 2), 0.5), np.array([[0.9, 0.1]])
        >>> problem = Problem(np.ones(1), even, even, np.zeros((1, 2, 2)), beta=1.0, eta=1.0)
        >>> with jax.enable_x64(True):
        ...     optimistic_reward(problem, TabularBox(2.0), policy).round(6).tolist()
        [[2.0, 0.0]]
    """
    exchanged = problem._replace(baseline_policy=jnp.asarray(policy))
    return worst_reward(exchanged, reward_class, jnp.asarray(problem.baseline_policy))


def optimistic_bound(
    problem: Problem, response_values: Float[ArrayLike, "a x"]
) -> Float[Array, " x"]:
    r"""Return an upper bound on the global maximum of each prompt's part of :math:`G`.

    Without its divergence, :math:`\max_r\psi(\pi,r)` is a maximum of linear functions of the
    policy, hence convex, and at most its mean over the responses (Jensen). With :math:`h_a` for its
    value at the policy that always gives response :math:`a`,

    .. math::
        \max_r G(r)\le\max_\pi\,\sum_a\pi(a)h_a-\eta\beta d_0 KL(\pi\|\pi_{ref})
        =\eta\beta d_0\log\sum_a\pi_{ref}(a)\,e^{h_a/(\eta\beta d_0)} .

    The bound is attained in the limits :math:`\beta\to0` and :math:`\eta\to0`.

    Args:
        problem: preference data, policies and weights.
        response_values: :math:`h_a` of every response and prompt, nats.

    Returns:
        Nats, one bound per prompt.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> optimistic_bound(problem, jnp.array([[0.25], [0.25]])).tolist()
        [0.25]
    """
    values, reference = jnp.asarray(response_values).T, jnp.asarray(problem.reference_policy)
    weight = jnp.asarray(problem.context_weights) * problem.eta * problem.beta
    possible = jnp.where(reference > 0, values, -jnp.inf)
    top = possible.max(axis=-1)
    # At weight zero the bound is the largest value, and the exponent is replaced.
    safe_weight = jnp.where(weight > 0, weight, 1.0)
    scaled = jnp.where(reference > 0, (values - top[:, None]) / safe_weight[:, None], 0.0)
    above = jax.scipy.special.logsumexp(scaled, axis=-1, b=reference)
    return top + jnp.where(weight > 0, weight * above, 0.0)


def maximize_optimistic(problem: Problem, reward_class: RewardClass) -> Optimum:
    r"""Maximize :math:`G` by the convex-concave procedure from several starts.

    The starts are the policies that always give one response, the same in every prompt, and
    :math:`\pi_{ref}`. In a tabular box prompts do not interact, so the best start is chosen for
    each prompt; in any other class one start is chosen for all of them.

    Args:
        problem: win counts, policies and weights, as arrays in float64.
        reward_class: a compact reward class.

    Returns:
        The best of the limits. Its bound is finite for a tabular box, and for any class if there
        is a single prompt.

    Examples:
        >>> even = np.full((1, 2), 0.5)
        >>> problem = Problem(np.ones(1), even, even, np.zeros((1, 2, 2)), beta=0.1, eta=1.0)
        >>> with jax.enable_x64(True):
        ...     optimum = maximize_optimistic(problem, TabularBox(1.0))
        >>> optimum.reward.round(6).tolist(), bool(optimum.bound >= optimum.objective)
        ([[1.0, 0.0]], True)
    """
    reference = jnp.asarray(problem.reference_policy)
    n_contexts, n_actions = reference.shape
    responses = jnp.broadcast_to(
        jnp.eye(n_actions, dtype=reference.dtype)[:, None], (n_actions, n_contexts, n_actions)
    )
    starts = jnp.concatenate([responses, reference[None]])
    ends = jax.vmap(partial(_ascend, problem, reward_class))(starts)

    separable = isinstance(reward_class, TabularBox)
    values = jax.vmap(partial(_objective_by_prompt, problem))(ends.reward)
    if not separable:
        values = jnp.broadcast_to(values.sum(axis=1, keepdims=True), values.shape)
    best = values.argmax(axis=0)  # start of each prompt
    prompts = jnp.arange(n_contexts)
    reward = ends.reward[best, prompts]

    bound = jnp.asarray(jnp.inf)
    if separable or n_contexts == 1:
        gains = jax.vmap(partial(_linear_objective_by_prompt, problem))
        bound = optimistic_bound(problem, gains(responses, ends.first_reward[:-1])).sum()
    return Optimum(
        policy=gibbs_policy(reward, reference, problem.beta),
        reward=reward,
        objective=optimistic_objective(problem, reward),
        bound=bound,
        change=ends.change[best].max(),
        steps=ends.steps.max(),
    )


def rpo_optimistic(
    problem: Problem, reward_class: RewardClass, options: BaselineOptions, context: FitContext
) -> FitResult:
    r"""Fit optimistic RPO, the policy :math:`\pi_r` of the best stationary point of :math:`G`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies. The certificate bounds the distance of their objective from the global
        maximum, nats; it is infinite for several prompts with a class that is not a tabular box.
        The status is ``SOLVED`` if the procedure converged, that is, for a stationary point.

    Raises:
        ValueError: if the reward class is not compact and convex: without bounds an optimist's
            rewards are infinite.

    References:
        `cen:24`, VPO online; `xie:24`, XPO; `zhang:24`, SELM; `yuille:03` for the procedure.
    """
    del context
    reward_class = require_compact_class("rpo_optimistic", reward_class)
    problem = with_baseline(problem, options)
    size = group_size(problem, GROUP)
    optimum = map_in_groups(_maximize_group, problem, reward_class, size=size)
    converged = optimum.change <= POLICY_TOLERANCE
    finite = np.isfinite(optimum.objective) & np.isfinite(optimum.policy).all(axis=(1, 2))
    status = np.where(converged, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(
        policy=optimum.policy,
        reward=optimum.reward,
        certificate=np.maximum(optimum.bound - optimum.objective, 0.0),
        certificate_kind="duality_gap",
        status=np.where(finite, status, Status.NOT_FINITE.value),
    )


_maximize_group = jax.jit(jax.vmap(maximize_optimistic))


def _ascend(problem: Problem, reward_class: RewardClass, start: Float[Array, "x a"]) -> _Iterate:
    """Alternate between the two arguments of psi until the policy stops changing."""

    def goes_on(state: _Iterate) -> Array:
        return (state.change > POLICY_TOLERANCE) & (state.steps < MAX_STEPS)

    def step(state: _Iterate) -> _Iterate:
        answer = optimistic_reward(problem, reward_class, state.policy)
        objective = optimistic_objective(problem, answer)
        # The answer to the best reward itself is never worse than it, up to rounding.
        plain = jnp.all(state.table == state.reward)
        better = plain | (objective > state.objective)
        extrapolated = _extrapolate(answer, state.table, state.reward, state.accepted)
        table = jnp.where(better, jnp.where(state.steps < 2, answer, extrapolated), state.reward)
        policy = gibbs_policy(answer, problem.reference_policy, problem.beta)
        return _Iterate(
            policy=gibbs_policy(table, problem.reference_policy, problem.beta),
            table=table,
            reward=jnp.where(better, answer, state.reward),
            accepted=jnp.where(better, state.table, state.accepted),
            first_reward=jnp.where(state.steps == 0, answer, state.first_reward),
            objective=jnp.where(better, objective, state.objective),
            change=jnp.abs(policy - state.policy).max(),
            steps=state.steps + 1,
        )

    zeros = jnp.zeros_like(start)
    far = jnp.full((), jnp.inf, start.dtype)
    state = _Iterate(start, zeros, zeros, zeros, zeros, -far, far, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(goes_on, step, state)


def _extrapolate(
    answer: Float[Array, "x a"],
    table: Float[Array, "x a"],
    last_answer: Float[Array, "x a"],
    last_table: Float[Array, "x a"],
) -> Float[Array, "x a"]:
    """Combine two steps so that their remainders cancel as far as possible (Anderson)."""
    answer, table, last_answer, last_table = (
        value - value.mean(axis=1, keepdims=True)
        for value in (answer, table, last_answer, last_table)
    )
    remainder, last_remainder = answer - table, last_answer - last_table
    difference = remainder - last_remainder
    squared = (difference**2).sum(axis=1, keepdims=True)
    share = (remainder * difference).sum(axis=1, keepdims=True) / jnp.where(squared > 0, squared, 1)
    return answer - share * (answer - last_answer)


def _objective_by_prompt(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, " x"]:
    """Return the part of every prompt in the optimistic objective."""
    log_z = log_partition(reward, problem.reference_policy, problem.beta)
    return _gain(problem, jnp.asarray(problem.beta) * log_z, reward) - _loss_by_prompt(
        problem, reward
    )


def _linear_objective_by_prompt(
    problem: Problem, policy: Float[Array, "x a"], reward: Float[Array, "x a"]
) -> Float[Array, " x"]:
    """Return the part of every prompt in psi, without the divergence of the policy."""
    return _gain(problem, (policy * reward).sum(axis=1), reward) - _loss_by_prompt(problem, reward)


def _gain(
    problem: Problem, best: Float[Array, " x"], reward: Float[Array, "x a"]
) -> Float[Array, " x"]:
    """Return the weighted advantage of each prompt's best value over the baseline policy."""
    baseline = (jnp.asarray(problem.baseline_policy) * reward).sum(axis=1)
    return jnp.asarray(problem.context_weights) * problem.eta * (best - baseline)


def _loss_by_prompt(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, " x"]:
    """Return the part of every prompt in the average loss of all data."""
    wins = jnp.asarray(problem.wins)
    counts = wins.sum(axis=(1, 2))
    losses = jax.vmap(negative_log_likelihood)(reward[:, None], wins[:, None])
    return losses * counts / jnp.maximum(counts.sum(), jnp.finfo(counts.dtype).tiny)


METHODS = (Method("rpo_optimistic", rpo_optimistic, "optimistic RPO", BaselineOptions),)
"""Methods of this module."""
