r"""Primal-dual Newton method for :math:`\max_\pi\min_r\phi(\pi, r)` on the policy itself.

The likelihood is resolved by the adversary's own labels: with :math:`s` in (0, 1) for every pair of
responses,

.. math:: \mathrm{softplus}(-d) = \max_s\{-s d + H(s)\},\qquad H(s) = -s\log s - (1-s)\log(1-s),

so that :math:`\phi` becomes linear in the reward and the maximin problem one concave maximisation
over the policy and these beliefs, :math:`\max_{\pi,s}\,-w\beta KL(\pi\|\pi_{ref}) + H(s) +
\min_{r\in\mathcal R}\langle v(\pi,s), r\rangle`, with :math:`v` the *flow* into each response: what
the policy gains on the baseline plus what the labels say. The reward is the multiplier that prices
the flow. Policy, beliefs, reward and bound multipliers are independent variables of one Newton
iteration: logarithms are linearised, nothing is ever normalised by a partition function.

A barrier keeps the policy positive while the adversary's constraints settle; both shrink together,
which leads through small :math:`\beta` as through a linear program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import feasible_sets
from .feasible_sets import ChoiceSet, Free

RIDGE = 10.0  # in units of roundoff: rewards that nothing prices stay where they are
START = 0.1  # first barrier parameter, in units of weight times reward
INSIDE = 0.995  # share of the way to the boundary that a step may go
LEAST_CENTRING = 1e-3  # the barrier never falls faster: the logarithms must keep up


class Game(NamedTuple):
    r"""One saddle problem, in units in which rewards and the sum of all weights are about one.

    Attributes:
        weights: weight :math:`w` of each prompt in the adversarial term.
        reference: :math:`\pi_{ref}`; responses of probability zero are left out.
        baseline: :math:`\pi_{base}`.
        losses: weighted number of comparisons that each response lost.
        comparisons: weighted number of comparisons of each pair, symmetric.
        connected: averages over connected components of the comparisons.
        beta: :math:`\beta`, in units of reward.
        temperature: one nat of log-odds in units of reward.
        rewards: what the adversary may choose from.
    """

    weights: Float[Array, " x"]
    reference: Float[Array, "x a"]
    baseline: Float[Array, "x a"]
    losses: Float[Array, "x a"]
    comparisons: Float[Array, "x a a"]
    connected: Float[Array, "x a a"]
    beta: Float[Array, ""]
    temperature: Float[Array, ""]
    rewards: ChoiceSet


class State(NamedTuple):
    r"""Iterate of the method.

    Attributes:
        policy: :math:`\pi > 0` on the support of the reference.
        policy_slack: multiplier of :math:`\pi\ge0`, in units of reward.
        level: multiplier of :math:`\sum_a\pi=1`.
        beliefs: :math:`s_{ij}`, the adversary's probability that j beats i; transposes sum to 1.
        choice: the adversary's reward, parameter or mixture.
        slack: distances of the choice to its bounds, kept apart so that they never cancel.
        multiplier: of those bounds.
    """

    policy: Float[Array, "x a"]
    policy_slack: Float[Array, "x a"]
    level: Float[Array, " x"]
    beliefs: Float[Array, "x a a"]
    choice: Float[Array, " m"]
    slack: Float[Array, " c"]
    multiplier: Float[Array, " c"]


class Progress(NamedTuple):
    """A state, how far it is from a saddle point, the steps taken, and whether it broke down."""

    state: State
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    broken: Bool[Array, ""]


def init(game: Game) -> State:
    """Start from fair labels, an average reward, and a policy between reference and uniform."""
    support = game.reference > 0
    counted = support.astype(game.reference.dtype)
    uniform = counted / _or_one(counted.sum(axis=-1, keepdims=True))
    policy = 0.5 * (game.reference + uniform)
    choice = feasible_sets.start(game.rewards, game.reference.shape[-1])
    slack = feasible_sets.slack(game.rewards, choice)
    return State(
        policy=policy,
        policy_slack=jnp.where(support, START * _barrier_scale(game) / _or_one(policy), 0.0),
        level=jnp.zeros_like(game.weights),
        beliefs=jnp.full_like(game.comparisons, 0.5),
        choice=choice,
        slack=slack,
        multiplier=START / slack,
    )


def solve(game: Game, *, tolerance: Float[Array, ""], max_steps: int) -> Progress:
    """Newton steps until the residual is at the tolerance.

    Args:
        game: the saddle problem.
        tolerance: residual of :func:`residual` at which to stop.
        max_steps: most Newton steps.

    Returns:
        The last state whose numbers were finite, and how it ended.
    """

    def running(progress: Progress) -> Bool[Array, ""]:
        unfinished = (progress.residual > tolerance) & (progress.steps < max_steps)
        return unfinished & ~progress.broken

    def advance(progress: Progress) -> Progress:
        state = step(game, progress.state)
        distance = residual(game, state)
        finite = jnp.isfinite(distance)
        state, distance = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (state, distance),
            (progress.state, progress.residual),
        )
        return Progress(state, distance, progress.steps + 1, ~finite)

    first = init(game)
    start = Progress(first, residual(game, first), jnp.array(0, jnp.int32), jnp.array(False))
    return jax.lax.while_loop(running, advance, start)


def residual(game: Game, state: State) -> Float[Array, ""]:
    r"""Distance from a saddle point, from policy, beliefs and reward alone.

    The largest of: the policy's log-error :math:`(r-\beta\log(\pi/\pi_{ref})-\nu)/\beta`, summed
    over the policy, and the defect of its sum; the flow that the error of the beliefs is worth;
    and how far a gradient step of the adversary moves its choice.
    """
    stationarity, surprise, gradient = _conditions(game, state)
    # A probability too small by many nats counts for what it would grow to, not for what it is.
    nats = stationarity / game.beta
    growth = (1.0 + jnp.maximum(nats, 0.0)) ** 3
    policy_error = jnp.sum(state.policy * jnp.abs(nats) * growth, axis=-1)
    # Below this share of the total, weights are beyond the precision of the flow.
    resolved = jnp.where(game.weights > 0, jnp.minimum(1.0, 1e12 * game.weights), 1.0)
    sum_error = jnp.where(game.reference.sum(axis=-1) > 0, state.policy.sum(axis=-1) - 1.0, 0.0)
    belief_flow = game.comparisons * _belief_response(game, state) * jnp.abs(surprise)
    return jnp.stack(
        [
            jnp.max(resolved * policy_error),
            jnp.max(jnp.abs(sum_error)),
            jnp.max(belief_flow),
            feasible_sets.distance(game.rewards, state.choice, gradient),
        ]
    ).max()


def step(game: Game, state: State) -> State:
    """One predictor-corrector step: the barrier falls as far as the predictor shows it can."""
    linear = _linearise(game, state)
    scale = _barrier_scale(game)
    n_products = jnp.sum(game.reference > 0, dtype=scale.dtype) + state.slack.size
    least = feasible_sets.least_products(game.rewards, state.multiplier)

    def barrier(length: Float[Array, ""], move: State) -> Float[Array, ""]:
        moved = _along(state, length, move)
        policy_products = jnp.sum(moved.policy * moved.policy_slack / scale)
        slack_products = jnp.maximum(moved.slack * moved.multiplier - least, 0.0).sum()
        return (policy_products + slack_products) / n_products

    predicted = _direction(game, state, linear, jnp.zeros_like(state.policy), least)
    reach = _longest_step(state, predicted)
    now = barrier(jnp.zeros_like(reach), predicted)
    fall = barrier(reach, predicted) / now
    target = jnp.clip(fall**3, LEAST_CENTRING, 1.0) * now
    bent = feasible_sets.bent_products(game.rewards, predicted.choice, state.multiplier)
    slack_target = jnp.maximum(jnp.maximum(target, least), jnp.minimum(0.5 * now, bent))
    # A predictor that gets nowhere says little of what is lost to second order.
    trust = reach**2
    move = _direction(
        game,
        state,
        linear,
        target * scale - trust * predicted.policy * predicted.policy_slack,
        slack_target - trust * predicted.slack * predicted.multiplier,
    )
    return _along(state, _longest_step(state, move), move)


def _along(state: State, length: Float[Array, ""], move: State) -> State:
    """Move a state; each belief stops short of its own bound and holds up nothing else."""
    moved = jax.tree.map(lambda value, change: value + length * change, state, move)
    shift = jnp.clip(length * move.beliefs, -INSIDE * state.beliefs, INSIDE * state.beliefs.mT)
    return moved._replace(beliefs=state.beliefs + shift)


class _Linearisation(NamedTuple):
    """What both directions of a step share."""

    stationarity: Float[Array, "x a"]
    surprise: Float[Array, "x a a"]
    gradient: Float[Array, " m"]
    policy_response: Float[Array, "x a"]
    belief_response: Float[Array, "x a a"]
    factor: Float[Array, "m m"]


def _linearise(game: Game, state: State) -> _Linearisation:
    """Eliminate policy and beliefs: how the adversary's gradient answers its choice.

    Both answers are graph Laplacians: the policy shifts mass between every two responses, the
    beliefs between those compared. Summed as conductances, nothing cancels on the diagonal.
    """
    policy_response = jnp.where(
        game.reference > 0, state.policy / (game.beta + state.policy_slack), 0.0
    )
    belief_response = _belief_response(game, state)
    total = _or_one(policy_response.sum(axis=-1))
    pairs = policy_response[:, :, None] * policy_response[:, None, :]
    conductance = (game.weights / total)[:, None, None] * pairs
    conductance = conductance + game.comparisons * belief_response
    unit = jnp.eye(conductance.shape[-1], dtype=conductance.dtype)
    conductance = conductance * (1.0 - unit)
    laplacian = conductance.sum(axis=-1)[:, :, None] * unit - conductance
    curvature = feasible_sets.pull_matrix(game.rewards, laplacian)
    stiffness = feasible_sets.ridge_scale(game.rewards, curvature, game.weights.sum() > 0)
    precision = jnp.finfo(curvature.dtype)
    ridge = RIDGE * laplacian.shape[-1] * precision.eps * stiffness + precision.tiny
    matrix = curvature + jnp.diag(ridge)
    matrix = matrix + feasible_sets.bound_curvature(
        game.rewards, state.choice, state.slack, state.multiplier
    )
    factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    return _Linearisation(*_conditions(game, state), policy_response, belief_response, factor)


def _direction(
    game: Game,
    state: State,
    linear: _Linearisation,
    policy_target: Float[Array, "x a"],
    slack_target: Float[Array, " c"],
) -> State:
    """Newton direction towards given products of the policy and of the slack with multipliers."""
    inverse_policy = 1.0 / _or_one(state.policy)
    drive = linear.stationarity + policy_target * inverse_policy
    choice = _choice_move(game, state, linear, drive, slack_target)

    reward = feasible_sets.reward(game.rewards, choice)
    policy, level = _policy_move(state, linear, drive + reward)
    policy_slack = (policy_target - state.policy_slack * policy) * inverse_policy
    slack = feasible_sets.slack(game.rewards, state.choice) - state.slack
    slack = slack + feasible_sets.bound_maps(game.rewards, state.choice)[0](choice)
    return State(
        policy=policy,
        policy_slack=jnp.where(game.reference > 0, policy_slack - state.policy_slack, 0.0),
        level=level,
        beliefs=linear.belief_response * (linear.surprise - _margin(reward)),
        choice=choice,
        slack=slack,
        multiplier=(slack_target - state.multiplier * slack) / state.slack - state.multiplier,
    )


def _policy_move(
    state: State, linear: _Linearisation, force: Float[Array, "x a"]
) -> tuple[Float[Array, "x a"], Float[Array, " x"]]:
    """How the policy and the level answer a force, with the sum of the policy brought to one."""
    missing = 1.0 - state.policy.sum(axis=-1)
    pushed = jnp.sum(linear.policy_response * force, axis=-1)
    level = (pushed - missing) / _or_one(linear.policy_response.sum(axis=-1))
    return linear.policy_response * (force - level[:, None]), level


def _choice_move(
    game: Game,
    state: State,
    linear: _Linearisation,
    drive: Float[Array, "x a"],
    slack_target: Float[Array, " c"],
) -> Float[Array, " m"]:
    """Solve the Newton system that is left in the adversary's choice."""
    labels = jnp.sum(game.comparisons * linear.belief_response * linear.surprise, axis=-1)
    moved = game.weights[:, None] * _policy_move(state, linear, drive)[0]
    flow = moved - _balanced(game, labels)
    infeasible = feasible_sets.slack(game.rewards, state.choice) - state.slack
    held = (slack_target - state.multiplier * infeasible) / state.slack
    push_back = feasible_sets.bound_maps(game.rewards, state.choice)[1]
    force = push_back(held) - linear.gradient - feasible_sets.pull(game.rewards, flow)
    choice = feasible_sets.newton_move(
        game.rewards, linear.factor, force, state.choice, state.slack, state.multiplier
    )
    if isinstance(game.rewards, Free):
        # A component of the comparisons that no policy prices stays at its mean reward.
        return jnp.where(game.weights[0] > 0, choice, _balanced(game, choice[None])[0])
    return choice


def _conditions(
    game: Game, state: State
) -> tuple[Float[Array, "x a"], Float[Array, "x a a"], Float[Array, " m"]]:
    """Errors of the policy and of the beliefs in units of reward, and the adversary's gradient."""
    support = game.reference > 0
    reward = feasible_sets.reward(game.rewards, state.choice)
    log_ratio = jnp.log(jnp.where(support, state.policy, 1.0) / _or_one(game.reference))
    stationarity = reward - game.beta * log_ratio - state.level[:, None]
    log_beliefs = jnp.log(state.beliefs)
    log_odds = game.temperature * (log_beliefs.mT - log_beliefs)
    surprise = log_odds - _margin(reward)
    labels = game.losses - jnp.sum(game.comparisons * state.beliefs, axis=-1)
    flow = game.weights[:, None] * (state.policy - game.baseline) + _balanced(game, labels)
    gradient = feasible_sets.gradient(game.rewards, flow)
    return (
        jnp.where(support, stationarity, 0.0),
        jnp.where(game.comparisons > 0, surprise, 0.0),
        gradient,
    )


def _margin(reward: Float[Array, "x a"]) -> Float[Array, "x a a"]:
    return reward[:, :, None] - reward[:, None, :]


def _balanced(game: Game, flow: Float[Array, "x a"]) -> Float[Array, "x a"]:
    """Labels move nothing into a component: take out the roundoff that small weights would see."""
    return flow - jnp.einsum("xab,xb->xa", game.connected, flow)


def _belief_response(game: Game, state: State) -> Float[Array, "x a a"]:
    """How far a belief moves per unit of reward."""
    other = state.beliefs.mT
    response = state.beliefs * other / (game.temperature * (state.beliefs + other))
    return jnp.where(game.comparisons > 0, response, 0.0)


def _barrier_scale(game: Game) -> Float[Array, "x 1"]:
    """Barrier on the policy per unit of weight; prompts of weight zero hold up nobody."""
    return jnp.where(game.weights > 0, 1.0 / jnp.maximum(game.weights, 1e-12), 1.0)[:, None]


def _longest_step(state: State, move: State) -> Float[Array, ""]:
    """Longest step, at most one, that keeps everything positive that must be."""
    positive = ("policy", "policy_slack", "slack", "multiplier")
    longest = jnp.ones_like(state.level[0])
    for name in positive:
        value, change = getattr(state, name), getattr(move, name)
        falls = change < 0
        ratio = jnp.where(falls, -value / jnp.where(falls, change, -1.0), jnp.inf)
        longest = jnp.minimum(longest, INSIDE * jnp.min(ratio, initial=jnp.inf))
    return longest


def _or_one(values: Array) -> Array:
    return jnp.where(values > 0, values, 1.0)
