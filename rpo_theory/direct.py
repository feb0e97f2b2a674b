r"""Direct route (Algorithm 2): minimize the RPO loss itself over the policy.

The objective is the loss that a trainer minimizes (:mod:`rpo_theory.policy_loss`). The method uses
neither :math:`F` nor the solvers of the other two routes, so that agreement with them is evidence.

The policy has logits :math:`\log\pi_{ref} + r/\beta` with :math:`r` in the reward class. Gradients
come from automatic differentiation; the iteration is a projected Newton method whose line search
tries many step lengths at once. It starts near the baseline policy, the minimizer as
:math:`\eta\to\infty`. A start far above the target would be slow: a log-probability falls by at
most about one nat per step.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from . import policy_loss, rewards, routes, unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from ._tracing import in_trace
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
from .rewards import AnyRewardClass, RewardClass
from .sensitivity import solution_without_derivative
from .types import ArrayLike, Problem, Solution, Status
from .validation import solver_arguments

REACH = 32.0
"""Longest step of unconstrained logits, in nats of the policy and of the preferences."""
COARSEST = 1e-7
"""Movement at which a context counts as converged, however small its weight is."""
GROUP = 2_000_000
"""Number of win counts in one call of the solver; it bounds the memory."""
FLOOR = 1e-6
"""Share of the reference policy in the starting policy, so that no probability starts at zero."""


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = 1e-11,
    max_steps: int = 200,
    throw: bool = True,
) -> Solution:
    r"""Minimize the RPO loss over the policies :math:`\pi_r` with :math:`r` in a reward class.

    Shapes are padded to 8, 32, 128, ..., so that problems of many shapes share few compilations.
    The computation is in float64 under any JAX configuration. It works under ``jit`` and ``vmap``,
    where ``throw`` is ignored, and has no derivative: that of :func:`rpo_theory.minimax.solve` is
    the same for a convex class (Theorem 5.6).

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: class of :math:`r`; :class:`Unbounded` leaves the logits unconstrained.
        tolerance: largest change that a full Newton step may still make when the iteration stops,
            of a policy in total variation and of the probability of an observed preference.
        max_steps: maximum number of Newton steps.
        throw: whether to raise if the problem is not solved, instead of returning the status.

    Returns:
        The policy and its reward. ``objective`` is the loss plus its constant, equal to
        :math:`F(r)`. For the unbounded class the rewards satisfy :math:`Z_r=1`, and are ``-inf``
        where the infimum is not attained. ``stats`` holds ``steps``, ``movement`` (in the measure
        of ``tolerance``, reduced for contexts whose weight is so small that rounding moves them)
        and ``gradient_norm`` (largest entry of the projected gradient, divided by the weights of
        the loss).

    Raises:
        ValueError: if an argument is invalid, or the problem is not solved and ``throw`` is true. A
            number that is not finite is an error or, without ``throw``, status ``NOT_FINITE``.

    References:
        `liu:24`, Algorithm 2 and eq. 4.8.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1e-3)
        >>> solve(problem, TabularBox(2.0)).policy.round(3).tolist()
        [[0.75, 0.25]]
    """
    if in_trace(problem, reward_class):
        solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
        return solution_without_derivative(solver, problem, reward_class)
    options = {"tolerance": tolerance, "max_steps": max_steps, "throw": throw}
    problem, reward_class = solver_arguments(problem, reward_class, **options, batch=False)
    n_contexts, n_actions = problem.reference_policy.shape
    solution = solve_one(partial(solve_batch, **options), *_padded(problem, reward_class))
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
    """Solve many problems of one shape, without padding; see :func:`solve`.

    Args:
        problems: problems with a leading batch axis on every array; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        tolerance: largest change that a full Newton step may still make when the iteration stops.
        max_steps: maximum number of Newton steps.
        throw: whether to raise if a problem is not solved, instead of returning the status.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.

    Raises:
        ValueError: if an argument is invalid, or a problem is not solved and ``throw`` is true; the
            message names the first.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> even, wins = np.full((2, 1, 2), 0.5), np.zeros((2, 1, 2, 2))
        >>> problems = Problem(np.ones((2, 1)), even, even, wins, beta=1.0, eta=1.0)
        >>> solve_batch(problems, TabularBox(1.0)).policy.shape
        (2, 1, 2)
    """
    options = {"tolerance": tolerance, "max_steps": max_steps, "throw": throw}
    problems, reward_class = solver_arguments(problems, reward_class, **options, batch=True)
    solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    # Problems are solved one after the other, so no solution depends on the size of the group.
    size = min(len(problems.reference_policy), group_size(problems, GROUP))
    solution = solve_in_groups(solver, problems, reward_class, size=size)
    solution = verify_status(problems, reward_class, solution)
    return raise_unless_solved(solution) if throw else solution


@partial(jax.jit, static_argnames=("tolerance", "max_steps"))
def _solve_group(
    problems: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Solution:
    def solve_next(arguments: tuple[Problem, RewardClass]) -> Solution:
        return _solve_one(*arguments, tolerance, max_steps)

    # One after the other: under vmap all would wait for the slowest.
    return jax.lax.map(solve_next, (problems, reward_class))


def _solve_one(
    problem: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Solution:
    descents = _descend(problem, reward_class, tolerance, max_steps)
    reward = descents.point
    stats = {name: getattr(descents, name).max() for name in ("steps", "movement", "gradient_norm")}
    reached = stats["movement"] <= tolerance
    status = jnp.where(reached, Status.SOLVED.value, Status.MAX_STEPS.value)
    policy = policy_loss.policy(problem, reward)
    objective = policy_loss.adversarial_value(problem, reward)
    solution = Solution(policy, reward, objective, status, stats)
    if not rewards.is_compact(reward_class):
        solution = _take_limit(problem, solution)
    finite = jnp.isfinite(objective)
    return solution._replace(status=jnp.where(finite, solution.status, Status.NOT_FINITE.value))


def _descend(
    problem: Problem, reward_class: AnyRewardClass, tolerance: float, max_steps: int
) -> Descent:
    """Minimize over a class by the method that fits what it provides; the point is a reward."""
    if not rewards.is_convex(reward_class):
        return _best_member(problem, jnp.asarray(reward_class.rewards))
    if not routes.uses_only_wins(problem):
        return _minimize_in_class(problem, reward_class, tolerance, max_steps)
    if hasattr(reward_class, "entry_bounds"):
        lower, upper = reward_class.entry_bounds()
        descents = _minimize_tables(problem, lower, upper, tolerance, max_steps)
        if rewards.is_compact(reward_class):
            return descents
        log_policy, log_reference = policy_loss.log_policy(problem, descents.point)
        return descents._replace(point=problem.beta * (log_policy - log_reference))
    if hasattr(reward_class, "linear_form"):
        features, radius = reward_class.linear_form(jnp.shape(problem.reference_policy))
        descent = _minimize_in_ball(problem, features, radius, tolerance, max_steps)
        return descent._replace(point=jnp.asarray(features) @ descent.point)
    return _minimize_in_class(problem, reward_class, tolerance, max_steps)


def _minimize_in_class(
    problem: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Descent:
    """Minimize over any convex class; the certificate decides whether the residual is small."""
    scale = routes.objective_scale(problem)

    def objective(reward: Array, temperature: Array) -> Array:
        smoothed = problem._replace(beta=jnp.maximum(problem.beta, temperature))
        return policy_loss.loss(smoothed, reward) / scale

    sharp = jnp.minimum(problem.beta, 1.0)
    options = {"tolerance": tolerance, "max_steps": max_steps}
    minimum = routes.minimize_function(problem, reward_class, objective, sharp, **options)
    movement = jnp.where(jnp.isfinite(minimum.residual), 0.0, jnp.inf)
    return Descent(minimum.reward, movement, minimum.residual, minimum.steps)


def _take_limit(problem: Problem, solution: Solution) -> Solution:
    """Replace policy and reward by their limits where logits diverge."""
    reduced = unbounded.reduce(problem)
    reward = unbounded.normalized(reduced, jnp.asarray(solution.reward))
    policy = policy_loss.policy(reduced.problem, jnp.where(reduced.kept, reward, 0.0))
    return unbounded.take_limit(reduced, solution._replace(policy=policy, reward=reward))


def _minimize_tables(
    problem: Problem,
    lower: Float[ArrayLike, ""] | float,
    upper: Float[ArrayLike, ""] | float,
    tolerance: float,
    max_steps: int,
) -> Descent:
    """Minimize over reward tables between bounds; the loss is a sum of one term per context."""
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    comparisons = jnp.asarray(problem.wins).sum()
    reach = jnp.minimum(upper - lower, REACH * (1.0 + problem.beta))

    def minimize_context(weight: Array, reference: Array, baseline: Array, wins: Array) -> Descent:
        prompt = Problem(weight, reference, baseline, wins, problem.beta, problem.eta)
        scale = policy_loss.scale(prompt, comparisons)
        # The smaller the share of the context's weight, the more rounding moves its policy.
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

    return jax.vmap(minimize_context)(*(jnp.asarray(field) for field in problem[:4]))


def _minimize_in_ball(
    problem: Problem,
    features: Float[ArrayLike, "x a d"],
    radius: Float[ArrayLike, ""] | float,
    tolerance: float,
    max_steps: int,
) -> Descent:
    """Minimize over linear rewards; each Newton step minimizes its quadratic model in the ball."""
    features, radius = jnp.asarray(features), jnp.asarray(radius)
    comparisons = jnp.asarray(problem.wins).sum()
    scale = policy_loss.scale(problem, comparisons)

    def direction(theta: Array, gradient: Array) -> Array:
        edge_weights = policy_loss.hessian_weights(problem, features @ theta, comparisons) / scale
        hessian = jnp.einsum("xad,xa,xae->de", features, edge_weights.sum(axis=-1), features)
        hessian = hessian - jnp.einsum("xad,xab,xbe->de", features, edge_weights, features)
        return ball_minimizer(hessian, gradient, theta, radius) - theta

    newton = NewtonProblem(
        objective=lambda theta: policy_loss.loss(problem, features @ theta) / scale,
        direction=direction,
        project=lambda theta: into_ball(theta, radius),
        movement=lambda new, old: _movement(problem, features @ new, features @ old),
    )
    start = jnp.zeros_like(features[0, 0])
    return minimize(newton, start, tolerance=tolerance, max_steps=max_steps)


def _best_member(problem: Problem, rewards: Float[Array, "k x a"]) -> Descent:
    """Return the member of a finite class with the smallest loss."""
    losses = jax.vmap(lambda reward: policy_loss.loss(problem, reward))(rewards)
    zero = jnp.zeros_like(losses[0])
    best = rewards[jnp.argmin(losses)]
    return Descent(best, zero, zero, jnp.zeros((), jnp.int32))


def _movement(
    problem: Problem, new: Float[Array, "*x a"], old: Float[Array, "*x a"]
) -> Float[Array, ""]:
    """Return the largest change of a policy or of the probability of an observed preference."""
    preferences = (preference_probability(*policy_loss.pairs(reward)) for reward in (new, old))
    change = jnp.where(jnp.asarray(problem.wins) > 0, jnp.abs(jnp.subtract(*preferences)), 0.0)
    distance = total_variation(policy_loss.policy(problem, new), policy_loss.policy(problem, old))
    return jnp.maximum(distance.max(), change.max())


def _start(prompt: Problem, upper: Float[ArrayLike, ""] | float) -> Float[Array, " a"]:
    """Return the initial reward: that of nearly the baseline policy, shifted up to the bound."""
    reference = jnp.asarray(prompt.reference_policy)
    target = (1.0 - FLOOR) * jnp.asarray(prompt.baseline_policy) + FLOOR * reference
    drawn = (reference > 0) & (prompt.eta * prompt.context_weights > 0)
    log_ratio = jnp.log(jnp.where(drawn, target, 1.0)) - jnp.log(jnp.where(drawn, reference, 1.0))
    reward = jnp.asarray(prompt.beta) * log_ratio
    return reward + jnp.where(jnp.isfinite(upper), upper - reward.max(), 0.0)


def _padded(problem: Problem, reward_class: AnyRewardClass) -> tuple[Problem, RewardClass]:
    """Pad contexts by weight 0, actions by probability 0 and features by 0, if the class can."""
    n_contexts, n_actions = np.shape(problem.reference_policy)
    if not hasattr(reward_class, "padded") or not routes.uses_only_wins(problem):
        return problem, reward_class
    x, a = (0, _bucket(n_contexts) - n_contexts), (0, _bucket(n_actions) - n_actions)
    reference = np.pad(problem.reference_policy, (x, a))
    baseline = np.pad(problem.baseline_policy, (x, a))
    reference[n_contexts:, 0] = baseline[n_contexts:, 0] = 1
    padded = problem._replace(
        context_weights=np.pad(problem.context_weights, x),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=np.pad(problem.wins, (x, a, a)),
    )
    return padded, reward_class.padded(x[1], a[1], _bucket)


def _bucket(size: int) -> int:
    """Return the smallest of 8, 32, 128, ... that is at least ``size``."""
    bucket = 8
    while bucket < size:
        bucket *= 4
    return bucket
