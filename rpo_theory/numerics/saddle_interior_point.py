r"""Primal-dual Newton method for :math:`\max_\pi\min_r\phi(\pi, r)` on the policy itself.

The likelihood is written as a maximum over label probabilities :math:`s` in (0, 1) of every pair of
responses,

.. math:: \mathrm{softplus}(-d) = \max_s\{-s d + H(s)\},\qquad H(s) = -s\log s - (1-s)\log(1-s),

so that :math:`\phi` becomes linear in the reward. The maximin problem is then one concave
maximization over policy and label probabilities,

.. math:: \max_{\pi,s}\,-w\beta KL(\pi\|\pi_{ref}) + H(s) +
          \min_{r\in\mathcal R}\langle v(\pi,s), r\rangle,

where the *flow* :math:`v` into a response is the excess of the policy over the baseline plus the
excess of expected losses over observed ones. The reward is the multiplier of the flow. Policy,
label probabilities, reward and bound multipliers are independent variables of one Newton iteration:
logarithms are linearized, and no partition function is evaluated.

A barrier keeps the policy positive while the active constraints of the adversary are found. Both
barriers shrink together, so a small :math:`\beta` is handled like a linear program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import feasible_sets
from .feasible_sets import FeasibleSet, Free

RIDGE = 10.0  # ridge in units of roundoff of the curvature; without curvature it is 1
START = 0.1  # initial barrier parameter, in units of weight times reward
INSIDE = 0.995  # share of the way to the boundary that a step may go
MIN_CENTERING = 1e-3  # smallest factor on the barrier per step: the logarithms must follow


class SaddleProblem(NamedTuple):
    r"""Saddle problem in units in which rewards and the sum of all weights are about one.

    Attributes:
        weights: weight :math:`w` of each context in the adversarial term.
        reference: :math:`\pi_{ref}`; responses with probability zero are ignored.
        baseline: :math:`\pi_{base}`.
        losses: weighted number of comparisons that each response lost.
        comparisons: weighted number of comparisons of each pair, symmetric.
        connected: matrices that average over the connected components of the comparisons.
        beta: weight :math:`\beta` of the KL term, in units of reward.
        temperature: one nat of log-odds, in units of reward.
        rewards: feasible set of the adversary.
    """

    weights: Float[Array, " x"]
    reference: Float[Array, "x a"]
    baseline: Float[Array, "x a"]
    losses: Float[Array, "x a"]
    comparisons: Float[Array, "x a a"]
    connected: Float[Array, "x a a"]
    beta: Float[Array, ""]
    temperature: Float[Array, ""]
    rewards: FeasibleSet


class SaddleState(NamedTuple):
    r"""Iterate of the method.

    Attributes:
        policy: :math:`\pi > 0` on the support of the reference.
        policy_slack: multiplier of :math:`\pi\ge0`, in units of reward.
        level: multiplier of :math:`\sum_a\pi=1`.
        label_probs: probability :math:`s_{ij}` of the label that j beats i; transposes sum to 1.
        adversary: reward, parameter or mixture of the adversary.
        slack: distances of the adversary to its bounds, stored separately to avoid cancellation.
        multiplier: multipliers of these bounds.
    """

    policy: Float[Array, "x a"]
    policy_slack: Float[Array, "x a"]
    level: Float[Array, " x"]
    label_probs: Float[Array, "x a a"]
    adversary: Float[Array, " m"]
    slack: Float[Array, " c"]
    multiplier: Float[Array, " c"]


class Progress(NamedTuple):
    """Iterate, its distance from a saddle point, number of steps, and numerical breakdown."""

    state: SaddleState
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    broken: Bool[Array, ""]


def init(problem: SaddleProblem) -> SaddleState:
    """Return the initial iterate.

    Label probabilities are 1/2, the adversary variable is well inside its set, and the policy is
    the mean of the reference policy and the uniform policy on its support.
    """
    support = problem.reference > 0
    counted = support.astype(problem.reference.dtype)
    uniform = counted / _or_one(counted.sum(axis=-1, keepdims=True))
    policy = 0.5 * (problem.reference + uniform)
    adversary = feasible_sets.start(problem.rewards, problem.reference.shape[-1])
    slack = feasible_sets.slack(problem.rewards, adversary)
    return SaddleState(
        policy=policy,
        policy_slack=jnp.where(support, START * _barrier_scale(problem) / _or_one(policy), 0.0),
        level=jnp.zeros_like(problem.weights),
        label_probs=jnp.full_like(problem.comparisons, 0.5),
        adversary=adversary,
        slack=slack,
        multiplier=START / slack,
    )


def solve(problem: SaddleProblem, *, tolerance: Float[Array, ""], max_steps: int) -> Progress:
    """Solve a saddle problem by Newton steps.

    Args:
        problem: the saddle problem.
        tolerance: value of :func:`residual` at which to stop.
        max_steps: maximum number of Newton steps.

    Returns:
        The last iterate with finite numbers, and how the iteration ended.
    """

    def running(progress: Progress) -> Bool[Array, ""]:
        unfinished = (progress.residual > tolerance) & (progress.steps < max_steps)
        return unfinished & ~progress.broken

    def advance(progress: Progress) -> Progress:
        state = step(problem, progress.state)
        distance = residual(problem, state)
        finite = jnp.isfinite(distance)
        state, distance = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (state, distance),
            (progress.state, progress.residual),
        )
        return Progress(state, distance, progress.steps + 1, ~finite)

    first = init(problem)
    start = Progress(first, residual(problem, first), jnp.array(0, jnp.int32), jnp.array(False))
    return jax.lax.while_loop(running, advance, start)


def residual(problem: SaddleProblem, state: SaddleState) -> Float[Array, ""]:
    r"""Return the distance from a saddle point.

    It is the maximum of the log-error of the policy,
    :math:`(r-\beta\log(\pi/\pi_{ref})-\nu)/\beta` in expectation over the policy; the error of its
    sum; the flow by the error of the label probabilities; and the length of a projected gradient
    step of the adversary.
    """
    stationarity, surprise, gradient = _conditions(problem, state)
    # A probability that is too small by many nats is weighted by about what it would grow to.
    nats = stationarity / problem.beta
    growth = (1.0 + jnp.maximum(nats, 0.0)) ** 3
    policy_error = jnp.sum(state.policy * jnp.abs(nats) * growth, axis=-1)
    # Contexts with a smaller share of the weight are below the precision of the flow.
    resolved = jnp.where(problem.weights > 0, jnp.minimum(1.0, 1e12 * problem.weights), 1.0)
    sum_error = jnp.where(problem.reference.sum(axis=-1) > 0, state.policy.sum(axis=-1) - 1.0, 0.0)
    label_flow = problem.comparisons * _label_response(problem, state) * jnp.abs(surprise)
    return jnp.stack(
        [
            jnp.max(resolved * policy_error),
            jnp.max(jnp.abs(sum_error)),
            jnp.max(label_flow),
            feasible_sets.distance(problem.rewards, state.adversary, gradient, state.multiplier),
        ]
    ).max()


def step(problem: SaddleProblem, state: SaddleState) -> SaddleState:
    """Take one predictor-corrector step; the predictor decides how far the barrier falls."""
    linear = _linearize(problem, state)
    scale = _barrier_scale(problem)
    n_complementarity = jnp.sum(problem.reference > 0, dtype=scale.dtype) + state.slack.size
    smallest = feasible_sets.min_complementarity(problem.rewards, state.multiplier)

    def barrier(length: Float[Array, ""], move: SaddleState) -> Float[Array, ""]:
        moved = _along(state, length, move)
        policy_complementarity = jnp.sum(moved.policy * moved.policy_slack / scale)
        slack_complementarity = jnp.maximum(moved.slack * moved.multiplier - smallest, 0.0).sum()
        return (policy_complementarity + slack_complementarity) / n_complementarity

    predicted = _direction(problem, state, linear, jnp.zeros_like(state.policy), smallest)
    reach = _longest_step(state, predicted)
    now = barrier(jnp.zeros_like(reach), predicted)
    fall = barrier(reach, predicted) / now
    target = jnp.clip(fall**3, MIN_CENTERING, 1.0) * now
    curved = feasible_sets.curvature_loss(
        problem.rewards, state.adversary, predicted.adversary, state.multiplier
    )
    slack_target = jnp.maximum(jnp.maximum(target, smallest), jnp.minimum(0.5 * now, curved))
    # The second-order correction of a short predictor step is unreliable.
    trust = reach**2
    move = _direction(
        problem,
        state,
        linear,
        target * scale - trust * predicted.policy * predicted.policy_slack,
        slack_target - trust * predicted.slack * predicted.multiplier,
    )
    return _along(state, _longest_step(state, move), move)


def _along(state: SaddleState, length: Float[Array, ""], move: SaddleState) -> SaddleState:
    """Move an iterate; each label probability is clipped by itself inside its bounds."""
    moved = jax.tree.map(lambda value, change: value + length * change, state, move)
    shift = jnp.clip(
        length * move.label_probs, -INSIDE * state.label_probs, INSIDE * state.label_probs.mT
    )
    return moved._replace(label_probs=state.label_probs + shift)


class _Linearization(NamedTuple):
    """Quantities that predictor and corrector share."""

    stationarity: Float[Array, "x a"]
    surprise: Float[Array, "x a a"]
    gradient: Float[Array, " m"]
    policy_response: Float[Array, "x a"]
    label_response: Float[Array, "x a a"]
    factor: Float[Array, "m m"]


def _linearize(problem: SaddleProblem, state: SaddleState) -> _Linearization:
    """Eliminate policy and label probabilities from the Newton system of the adversary.

    Both contribute graph Laplacians: the policy moves mass between any two responses, the labels
    between compared ones. Adding their edge weights avoids cancellation on the diagonal.
    """
    policy_response = jnp.where(
        problem.reference > 0, state.policy / (problem.beta + state.policy_slack), 0.0
    )
    label_response = _label_response(problem, state)
    response_sum = _or_one(policy_response.sum(axis=-1))
    pairs = policy_response[:, :, None] * policy_response[:, None, :]
    edge_weights = (problem.weights / response_sum)[:, None, None] * pairs
    edge_weights = edge_weights + problem.comparisons * label_response
    unit = jnp.eye(edge_weights.shape[-1], dtype=edge_weights.dtype)
    edge_weights = edge_weights * (1.0 - unit)
    laplacian = edge_weights.sum(axis=-1)[:, :, None] * unit - edge_weights
    curvature = feasible_sets.adjoint_form(problem.rewards, laplacian)
    stiffness = feasible_sets.ridge_scale(problem.rewards, curvature, problem.weights.sum() > 0)
    precision = jnp.finfo(curvature.dtype)
    ridge = RIDGE * laplacian.shape[-1] * precision.eps * stiffness
    ridge = jnp.where(ridge > 0, ridge, 1.0)
    matrix = curvature + jnp.diag(ridge)
    matrix = matrix + feasible_sets.bound_curvature(
        problem.rewards, state.adversary, state.slack, state.multiplier
    )
    factor = feasible_sets.factor(problem.rewards, matrix)
    return _Linearization(*_conditions(problem, state), policy_response, label_response, factor)


def _direction(
    problem: SaddleProblem,
    state: SaddleState,
    linear: _Linearization,
    policy_target: Float[Array, "x a"],
    slack_target: Float[Array, " c"],
) -> SaddleState:
    """Return the Newton direction for targets of the products with the multipliers."""
    inverse_policy = 1.0 / _or_one(state.policy)
    drive = linear.stationarity + policy_target * inverse_policy
    adversary = _adversary_move(problem, state, linear, drive, slack_target)

    reward = feasible_sets.reward(problem.rewards, adversary)
    policy, level = _policy_move(state, linear, drive + reward)
    policy_slack = (policy_target - state.policy_slack * policy) * inverse_policy
    slack = feasible_sets.slack(problem.rewards, state.adversary) - state.slack
    slack = slack + feasible_sets.bound_maps(problem.rewards, state.adversary)[0](adversary)
    return SaddleState(
        policy=policy,
        policy_slack=jnp.where(problem.reference > 0, policy_slack - state.policy_slack, 0.0),
        level=level,
        label_probs=linear.label_response * (linear.surprise - _margin(reward)),
        adversary=adversary,
        slack=slack,
        multiplier=(slack_target - state.multiplier * slack) / state.slack - state.multiplier,
    )


def _policy_move(
    state: SaddleState, linear: _Linearization, force: Float[Array, "x a"]
) -> tuple[Float[Array, "x a"], Float[Array, " x"]]:
    """Return the moves of policy and level under a force; the policy then sums to one."""
    missing = 1.0 - state.policy.sum(axis=-1)
    response = jnp.sum(linear.policy_response * force, axis=-1)
    level = (response - missing) / _or_one(linear.policy_response.sum(axis=-1))
    return linear.policy_response * (force - level[:, None]), level


def _adversary_move(
    problem: SaddleProblem,
    state: SaddleState,
    linear: _Linearization,
    drive: Float[Array, "x a"],
    slack_target: Float[Array, " c"],
) -> Float[Array, " m"]:
    """Solve the reduced Newton system of the adversary variable."""
    labels = jnp.sum(problem.comparisons * linear.label_response * linear.surprise, axis=-1)
    moved = problem.weights[:, None] * _policy_move(state, linear, drive)[0]
    flow = moved - _balanced(problem, labels)
    infeasible = feasible_sets.slack(problem.rewards, state.adversary) - state.slack
    bound_force = (slack_target - state.multiplier * infeasible) / state.slack
    bound_adjoint = feasible_sets.bound_maps(problem.rewards, state.adversary)[1]
    force = (
        bound_adjoint(bound_force) - linear.gradient - feasible_sets.adjoint(problem.rewards, flow)
    )
    adversary = feasible_sets.newton_move(
        problem.rewards, linear.factor, force, state.adversary, state.slack, state.multiplier
    )
    if isinstance(problem.rewards, Free):
        # Without adversarial term, each component of the comparisons keeps its mean reward.
        return jnp.where(problem.weights[0] > 0, adversary, _balanced(problem, adversary[None])[0])
    return adversary


def _conditions(
    problem: SaddleProblem, state: SaddleState
) -> tuple[Float[Array, "x a"], Float[Array, "x a a"], Float[Array, " m"]]:
    """Return the errors of policy and labels in units of reward, and the adversary's gradient."""
    support = problem.reference > 0
    reward = feasible_sets.table(problem.rewards, state.adversary)
    log_ratio = jnp.log(jnp.where(support, state.policy, 1.0) / _or_one(problem.reference))
    stationarity = reward - problem.beta * log_ratio - state.level[:, None]
    log_label_probs = jnp.log(state.label_probs)
    log_odds = problem.temperature * (log_label_probs.mT - log_label_probs)
    surprise = log_odds - _margin(reward)
    labels = problem.losses - jnp.sum(problem.comparisons * state.label_probs, axis=-1)
    flow = problem.weights[:, None] * (state.policy - problem.baseline) + _balanced(problem, labels)
    gradient = feasible_sets.gradient(problem.rewards, flow, state.adversary)
    return (
        jnp.where(support, stationarity, 0.0),
        jnp.where(problem.comparisons > 0, surprise, 0.0),
        gradient,
    )


def _margin(reward: Float[Array, "x a"]) -> Float[Array, "x a a"]:
    return reward[:, :, None] - reward[:, None, :]


def _balanced(problem: SaddleProblem, flow: Float[Array, "x a"]) -> Float[Array, "x a"]:
    """Subtract the mean over each component, which is roundoff: labels move nothing into one."""
    return flow - jnp.einsum("xab,xb->xa", problem.connected, flow)


def _label_response(problem: SaddleProblem, state: SaddleState) -> Float[Array, "x a a"]:
    """Return the change of a label probability per unit of reward."""
    reverse = state.label_probs.mT
    response = state.label_probs * reverse / (problem.temperature * (state.label_probs + reverse))
    return jnp.where(problem.comparisons > 0, response, 0.0)


def _barrier_scale(problem: SaddleProblem) -> Float[Array, "x 1"]:
    """Return the barrier on the policy per unit of weight; a weight of zero counts as one."""
    return jnp.where(problem.weights > 0, 1.0 / jnp.maximum(problem.weights, 1e-12), 1.0)[:, None]


def _longest_step(state: SaddleState, move: SaddleState) -> Float[Array, ""]:
    """Return the longest step, at most one, that keeps policy, slacks and multipliers positive."""
    positive = ("policy", "policy_slack", "slack", "multiplier")
    longest = jnp.ones_like(state.level[0])
    for name in positive:
        value, change = getattr(state, name), getattr(move, name)
        falls = change < 0
        ratio = jnp.where(falls, -value / jnp.where(falls, change, -1.0), jnp.inf)
        longest = jnp.minimum(longest, INSIDE * jnp.min(ratio, initial=jnp.inf))
    return longest


def _or_one(values: Array) -> Array:
    """Replace values that are not positive by one, for use as denominators."""
    return jnp.where(values > 0, values, 1.0)
