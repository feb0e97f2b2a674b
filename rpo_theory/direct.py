r"""Algorithm 2: minimise the RPO loss itself over the policy, a third route to the saddle point.

The objective is the loss that a trainer minimises (:mod:`rpo_theory.policy_loss`). Neither
:math:`F` nor the solvers of the other two formulations appear, so that agreement with them means
something.

The policy is given by its logits :math:`\log\pi_{ref} + r/\beta` with :math:`r` in the reward
class. Gradients are JAX's; the iteration is a projected Newton method whose line search tries many
lengths at once. It starts near the baseline policy, the minimiser as :math:`\eta\to\infty`: far
above its target a log-probability comes down by one nat a step.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from . import policy_loss, unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from .certificate import verify_status
from .numerics.projected_newton import (
    ROUNDING,
    Descent,
    NewtonProblem,
    ball_minimizer,
    box_direction,
    into_ball,
    minimize,
    positive_or_one,
)
from .policies import total_variation
from .preference import preference_probability
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike, Problem, Solution, Status

REACH = 32.0
"""Farthest that free logits go in a step, in nats of the policy and of the preferences."""
COARSEST = 1e-7
"""Movement that is small enough for any prompt, however small its weight."""
GROUP = 2_000_000
"""Win counts handed to one thread at a time: they bound the memory."""
FLOOR = 1e-6
"""Share of the reference in the starting policy: no response starts at probability zero."""


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = 1e-11,
    max_steps: int = 200,
    throw: bool = True,
) -> Solution:
    r"""Minimise the RPO loss over the policies :math:`\pi_r`, :math:`r` in the class.

    Shapes are padded to 8, 32, 128, ..., so that problems of many shapes share few compilations.

    Args:
        problem: the instance.
        reward_class: what :math:`r` may be; :class:`Unbounded` leaves the logits free.
        tolerance: done when a full Newton step moves no policy by more, in total variation, nor the
            probability of any observed preference.
        max_steps: most Newton steps.
        throw: raise if the problem was not solved, rather than return the status.

    Returns:
        Policy, reward and value (loss plus its constant, equal to :math:`F(r)`), in float64. For
        the unbounded class rewards are normalised to :math:`Z_r=1`, and are ``-inf`` where the
        infimum is not attained. Stats:
        ``"steps"``, ``"movement"`` (as for ``tolerance``; less where rounding alone moves a prompt
        of tiny weight), ``"gradient_norm"`` (largest entry of the projected gradient, divided by
        the weights of the loss).

    Raises:
        ValueError: not solved, and ``throw``.

    References:
        `liu:24`, Algorithm 2 and eq. 4.8.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(1e-3))
        >>> solve(problem, TabularBox(np.array(2.0))).policy.round(3).tolist()
        [[0.75, 0.25]]
    """
    n_contexts, n_actions = np.shape(problem.reference_policy)
    solver = partial(solve_batch, tolerance=tolerance, max_steps=max_steps, throw=throw)
    solution = solve_one(solver, *_padded(problem, reward_class))
    return solution._replace(
        policy=solution.policy[:n_contexts, :n_actions],
        reward=solution.reward[:n_contexts, :n_actions],
    )


def solve_batch(
    problems: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = 1e-11,
    max_steps: int = 200,
    throw: bool = True,
) -> Solution:
    """Solve problems of one shape; every array has a leading batch axis. Nothing is padded.

    Args:
        problems: the instances.
        reward_class: their classes, all of one kind.
        tolerance: as for :func:`solve`.
        max_steps: as for :func:`solve`.
        throw: raise if any problem was not solved.

    Returns:
        As :func:`solve`, with a leading batch axis on every array.

    Raises:
        ValueError: some problem was not solved, and ``throw``.

    Examples:
        >>> even, one = np.full((2, 1, 2), 0.5), np.ones(2)
        >>> problems = Problem(np.ones((2, 1)), even, even, np.zeros((2, 1, 2, 2)), one, one)
        >>> solve_batch(problems, TabularBox(one)).policy.shape
        (2, 1, 2)
    """
    solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    # One problem after the other is solved: no answer depends on how many there are.
    size = min(len(problems.reference_policy), group_size(problems, GROUP))
    solution = solve_in_groups(solver, problems, reward_class, size=size)
    solution = verify_status(problems, reward_class, solution)
    return raise_unless_solved(solution) if throw else solution


@partial(jax.jit, static_argnames=("tolerance", "max_steps"))
def _solve_group(
    problems: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Solution:
    def solve_one(arguments: tuple[Problem, RewardClass]) -> Solution:
        return _solve_one(*arguments, tolerance, max_steps)

    # One after the other: side by side, all would wait for the slowest.
    return jax.lax.map(solve_one, (problems, reward_class))


def _solve_one(
    problem: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Solution:
    match reward_class:
        case TabularBox(maximum):
            descents = _descend_tables(problem, 0.0, maximum, tolerance, max_steps)
            reward = descents.point
        case Unbounded():
            descents = _descend_tables(problem, -jnp.inf, jnp.inf, tolerance, max_steps)
            log_policy, log_reference = policy_loss.log_policy(problem, descents.point)
            reward = problem.beta * (log_policy - log_reference)
        case LinearBall():
            descents = _descend_ball(problem, reward_class, tolerance, max_steps)
            reward = reward_class.reward(descents.point)
        case FiniteClass():
            descents = _least_member(problem, jnp.asarray(reward_class.rewards))
            reward = descents.point
    stats = {name: getattr(descents, name).max() for name in ("steps", "movement", "gradient_norm")}
    reached = stats["movement"] <= tolerance
    status = jnp.where(reached, Status.SOLVED.value, Status.MAX_STEPS.value)
    policy = policy_loss.policy(problem, reward)
    objective = policy_loss.adversarial_value(problem, reward)
    solution = Solution(policy, reward, objective, status, stats)
    if isinstance(reward_class, Unbounded):
        solution = _take_limit(problem, solution)
    finite = jnp.isfinite(objective)
    return solution._replace(status=jnp.where(finite, solution.status, Status.NOT_FINITE.value))


def _take_limit(problem: Problem, solution: Solution) -> Solution:
    """Replace policy and reward by their limits where logits tend to minus infinity."""
    _, _, kept, attained, bounded = unbounded.reduce(problem)
    policy = jnp.where(kept, solution.policy, 0.0)
    diverging = (solution.status == Status.SOLVED.value) & ~attained
    status = jnp.where(diverging, Status.NOT_ATTAINED.value, solution.status)
    return solution._replace(
        policy=policy / policy.sum(axis=1, keepdims=True),
        reward=jnp.where(kept, solution.reward, -jnp.inf),
        status=jnp.where(bounded, status, Status.UNBOUNDED.value),
    )


def _descend_tables(
    problem: Problem,
    lower: Float[ArrayLike, ""] | float,
    upper: Float[ArrayLike, ""] | float,
    tolerance: float,
    max_steps: int,
) -> Descent:
    """Free rewards between bounds: the loss separates over prompts, and so does the descent."""
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    comparisons = jnp.asarray(problem.wins).sum()
    reach = jnp.minimum(upper - lower, REACH * (1.0 + problem.beta))

    def descend(weight: Array, reference: Array, baseline: Array, wins: Array) -> Descent:
        prompt = Problem(weight, reference, baseline, wins, problem.beta, problem.eta)
        scale = policy_loss.scale(prompt, comparisons)
        # The smaller the share of the prompt's weight, the more rounding moves its policy.
        share = positive_or_one(problem.eta * weight / scale)
        floor = jnp.minimum(ROUNDING / share, COARSEST)
        discount = tolerance / jnp.maximum(floor, tolerance)

        def direction(reward: Array, gradient: Array) -> Array:
            edge_weights = policy_loss.hessian_weights(prompt, reward, comparisons) / scale
            return box_direction(edge_weights, gradient, reward - lower, upper - reward, reach)

        newton = NewtonProblem(
            objective=lambda reward: (
                policy_loss.loss(prompt, reward, comparisons=comparisons) / scale
            ),
            direction=direction,
            project=lambda reward: jnp.clip(reward, lower, upper),
            movement=lambda new, old: discount * _movement(prompt, new, old),
        )
        start = newton.project(_start(prompt, upper))
        return minimize(newton, start, tolerance=tolerance, max_steps=max_steps)

    return jax.vmap(descend)(*(jnp.asarray(field) for field in problem[:4]))


def _descend_ball(problem: Problem, ball: LinearBall, tolerance: float, max_steps: int) -> Descent:
    """Linear rewards: the model of each Newton step is minimised over the ball itself."""
    features, radius = jnp.asarray(ball.features), jnp.asarray(ball.radius)
    comparisons = jnp.asarray(problem.wins).sum()
    scale = policy_loss.scale(problem, comparisons)

    def direction(theta: Array, gradient: Array) -> Array:
        edge_weights = policy_loss.hessian_weights(problem, ball.reward(theta), comparisons) / scale
        hessian = jnp.einsum("xad,xa,xae->de", features, edge_weights.sum(axis=-1), features)
        hessian = hessian - jnp.einsum("xad,xab,xbe->de", features, edge_weights, features)
        return ball_minimizer(hessian, gradient, theta, radius) - theta

    newton = NewtonProblem(
        objective=lambda theta: policy_loss.loss(problem, ball.reward(theta)) / scale,
        direction=direction,
        project=lambda theta: into_ball(theta, radius),
        movement=lambda new, old: _movement(problem, ball.reward(new), ball.reward(old)),
    )
    start = jnp.zeros_like(features[0, 0])
    return minimize(newton, start, tolerance=tolerance, max_steps=max_steps)


def _least_member(problem: Problem, rewards: Float[Array, "k x a"]) -> Descent:
    losses = jax.vmap(lambda reward: policy_loss.loss(problem, reward))(rewards)
    nothing = jnp.zeros_like(losses[0])
    best = rewards[jnp.argmin(losses)]
    return Descent(best, nothing, nothing, jnp.zeros((), jnp.int32))


def _movement(
    problem: Problem, new: Float[Array, "*x a"], old: Float[Array, "*x a"]
) -> Float[Array, ""]:
    """Largest change of a policy or of the probability of an observed preference."""
    preferences = (preference_probability(*policy_loss.pairs(reward)) for reward in (new, old))
    change = jnp.where(jnp.asarray(problem.wins) > 0, jnp.abs(jnp.subtract(*preferences)), 0.0)
    distance = total_variation(policy_loss.policy(problem, new), policy_loss.policy(problem, old))
    return jnp.maximum(distance.max(), change.max())


def _start(prompt: Problem, upper: Float[ArrayLike, ""] | float) -> Float[Array, " a"]:
    """Implicit reward of nearly the baseline policy, its largest entry at the upper bound."""
    reference = jnp.asarray(prompt.reference_policy)
    target = (1.0 - FLOOR) * jnp.asarray(prompt.baseline_policy) + FLOOR * reference
    drawn = (reference > 0) & (prompt.eta * prompt.context_weights > 0)
    log_ratio = jnp.log(jnp.where(drawn, target, 1.0)) - jnp.log(jnp.where(drawn, reference, 1.0))
    reward = jnp.asarray(prompt.beta) * log_ratio
    return reward + jnp.where(jnp.isfinite(upper), upper - reward.max(), 0.0)


def _padded(problem: Problem, reward_class: RewardClass) -> tuple[Problem, RewardClass]:
    """Pad contexts, actions and features: weight 0, probability 0, feature 0."""
    n_contexts, n_actions = np.shape(problem.reference_policy)
    if isinstance(reward_class, Unbounded):
        return problem, reward_class  # a response that nothing ties down would never be attained
    x, a = (0, _bucket(n_contexts) - n_contexts), (0, _bucket(n_actions) - n_actions)
    reference = np.pad(problem.reference_policy, (x, a))
    baseline = np.pad(problem.baseline_policy, (x, a))
    reference[n_contexts:, 0] = baseline[n_contexts:, 0] = 1
    match reward_class:
        case LinearBall(features):
            d = (0, _bucket(features.shape[-1]) - features.shape[-1])
            reward_class = reward_class._replace(features=np.pad(features, (x, a, d)))
        case FiniteClass(rewards):
            reward_class = FiniteClass(np.pad(rewards, ((0, 0), x, a)))
    padded = problem._replace(
        context_weights=np.pad(problem.context_weights, x),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=np.pad(problem.wins, (x, a, a)),
    )
    return padded, reward_class


def _bucket(size: int) -> int:
    """The next of 8, 32, 128, ..."""
    bucket = 8
    while bucket < size:
        bucket *= 4
    return bucket
