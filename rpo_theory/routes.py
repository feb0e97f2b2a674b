r"""Minimizers over any reward class: by its own solver, its smooth form, or its projection.

============================ =====================================================================
what a class provides        method
============================ =====================================================================
``minimize``                 its own solver, such as the Newton method of a box on win counts
``interior``, ``slack``, ... :mod:`rpo_theory.numerics.constrained_newton` on its smooth form
the two required methods     :mod:`rpo_theory.numerics.projected_minimization`
============================ =====================================================================

The solver of the ball is specialized to win counts. With choices or ties in the data its smooth
form is used instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from . import rewards
from .numerics import constrained_newton, projected_minimization
from .numerics.constrained_newton import ConstrainedProblem, Objective
from .numerics.projected_minimization import ProjectedProblem
from .objectives import minimax_objective, value
from .observations import n_observations
from .preference import data_loss
from .rewards import AnyRewardClass, Minimum, RewardClass
from .rewards.unbounded import in_wide_box
from .types import ArrayLike, Problem


def uses_only_wins(problem: Problem) -> bool:
    """Return whether win counts are all data, so that the code specialized to them applies.

    Args:
        problem: one problem, or a batch.

    Examples:
        >>> even = np.full((1, 2), 0.5)
        >>> uses_only_wins(Problem(np.ones(1), even, even, np.zeros((1, 2, 2)), 1.0, 1.0))
        True
    """
    return problem.choices is None and problem.ties is None


def solves_itself(problem: Problem, reward_class: RewardClass) -> bool:
    """Return whether the class's own solver applies to a problem.

    Args:
        problem: one problem, or a batch.
        reward_class: any reward class.

    Examples:
        >>> even = np.full((1, 2), 0.5)
        >>> problem = Problem(np.ones(1), even, even, np.zeros((1, 2, 2)), 1.0, 1.0)
        >>> solves_itself(problem, rewards.TabularBox(1.0))
        True
    """
    needs_only_wins = getattr(reward_class, "solves_only_wins", False)
    return hasattr(reward_class, "minimize") and (uses_only_wins(problem) or not needs_only_wins)


def minimizer(
    problem: Problem,
    reward_class: AnyRewardClass,
    policy: Float[ArrayLike, "x a"] | None = None,
    *,
    tolerance: float,
    max_steps: int,
) -> Minimum:
    r"""Minimize :math:`F(r)`, or :math:`\phi(\pi, r)` for a fixed policy, over a compact class.

    Args:
        problem: one problem, as arrays in float64.
        reward_class: a compact class; one that is not convex must have its own solver.
        policy: fixed policy :math:`\pi(a|x)`; if None, the best response :math:`\pi_r`.
        tolerance: residual of the optimality conditions at which to stop.
        max_steps: maximum number of steps.

    Returns:
        The minimizer.

    Examples:
        >>> even = jnp.full((1, 2), 0.5)
        >>> problem = Problem(jnp.ones(1), even, even, jnp.zeros((1, 2, 2)), beta=1.0, eta=1.0)
        >>> box, policy = rewards.TabularBox(2.0), jnp.array([[0.9, 0.1]])
        >>> minimizer(problem, box, policy, tolerance=1e-9, max_steps=50).reward.round(6).tolist()
        [[0.0, 2.0]]
    """
    options = {"tolerance": tolerance, "max_steps": max_steps}
    if solves_itself(problem, reward_class):
        return reward_class.minimize(problem, policy, **options)
    sharp = 1.0 if policy is not None else jnp.minimum(problem.beta, 1.0)
    objective = partial(smoothed_objective, problem, policy)
    return minimize_function(problem, reward_class, objective, sharp, **options)


def minimize_batch(
    problems: Problem, reward_class: AnyRewardClass, *, tolerance: float, max_steps: int
) -> Minimum:
    """Minimize F for every problem of a batch over its own class.

    Args:
        problems: problems with a leading batch axis on every array.
        reward_class: reward class of each problem, with the same leading axis.
        tolerance: residual of the optimality conditions at which to stop.
        max_steps: maximum number of steps.

    Returns:
        The minimizers, with the same leading axis.
    """
    options = {"tolerance": tolerance, "max_steps": max_steps}
    if has_batch_solver(problems, reward_class):
        return reward_class.minimize_batch(problems, **options)
    solver = partial(minimizer, **options)
    return batched(solver, problems, reward_class)(problems, reward_class)


def batched(
    function: Callable[..., Any], problems: Problem, reward_class: RewardClass
) -> Callable[..., Any]:
    """Apply a function of one problem to a batch.

    Args:
        function: function of arrays without a batch axis.
        problems: problems with a leading batch axis on every array.
        reward_class: reward class of each problem.

    Returns:
        Function of arrays with that axis. A class without a solver of its own has its problems
        solved one after the other: together all would wait for the slowest.
    """
    if solves_itself(problems, reward_class) or has_batch_solver(problems, reward_class):
        return jax.vmap(function)
    return lambda *arguments: jax.lax.map(lambda items: function(*items), arguments)


def has_batch_solver(problems: Problem, reward_class: RewardClass) -> bool:
    """Return whether the class solves groups of problems by itself.

    Args:
        problems: problems with a leading batch axis on every array.
        reward_class: reward class of each problem.
    """
    return hasattr(reward_class, "minimize_batch") and uses_only_wins(problems)


def objective_scale(problem: Problem) -> Float[Array, ""]:
    r"""Return the weight of the objective, :math:`\eta` plus 1 with data; 1 if it is zero.

    Args:
        problem: preference data, policies and weights.
    """
    scale = jnp.asarray(problem.eta) + jnp.where(n_observations(problem) > 0, 1.0, 0.0)
    return jnp.where(scale > 0, scale, 1.0)


def smoothed_objective(
    problem: Problem,
    policy: Float[ArrayLike, "x a"] | None,
    reward: Float[Array, "x a"],
    temperature: Float[ArrayLike, ""] | float,
) -> Float[Array, ""]:
    r"""Return the objective of the adversary, smoothed at a temperature.

    The best response has :math:`\beta` raised to the temperature :math:`T`, and the data loss
    becomes :math:`T L_D(r/T)` if the temperature is above 1. At a low temperature nothing changes.

    Args:
        problem: preference data, policies and weights.
        policy: fixed policy of :math:`\phi(\pi, r)`, whose KL term is left out; None for
            :math:`F(r)`.
        reward: :math:`r(x,a)`.
        temperature: :math:`T`, in units of reward.

    Returns:
        Nats, divided by the weight of the objective.
    """
    unit = jnp.maximum(temperature, 1.0)
    loss = data_loss(problem, reward / unit) * unit
    if policy is None:
        wins = jnp.zeros_like(jnp.asarray(problem.wins))
        without_data = problem._replace(
            beta=jnp.maximum(problem.beta, temperature), wins=wins, choices=None, ties=None
        )
        penalty = minimax_objective(without_data, reward)
    else:
        excess = jnp.asarray(policy) - jnp.asarray(problem.baseline_policy)
        penalty = value(excess, reward, problem.context_weights) * problem.eta
    return (penalty + loss) / objective_scale(problem)


def minimize_function(
    problem: Problem,
    reward_class: AnyRewardClass,
    objective: Objective,
    sharp: Float[ArrayLike, ""] | float,
    *,
    tolerance: float,
    max_steps: int,
) -> Minimum:
    """Minimize a convex function of the reward over a class, by its smooth form or its projection.

    Args:
        problem: problem that sets the shape and the scale of the rewards.
        reward_class: a convex class. Over all tables the function must attain its minimum.
        objective: function of reward and temperature, with weights of about one.
        sharp: temperature at which the function is the original one.
        tolerance: residual of the optimality conditions at which to stop.
        max_steps: maximum number of steps.

    Returns:
        The minimizer; over all tables, rewards around zero.
    """
    options = {"tolerance": tolerance, "max_steps": max_steps}
    if not rewards.is_compact(reward_class):

        def solver(width: Float[Array, ""]) -> Minimum:
            box = reward_class.bounded(width)
            minimum = _minimize_smooth(problem, box, objective, sharp, **options)
            return minimum._replace(reward=minimum.reward - 0.5 * width)

        return in_wide_box(solver, jnp.asarray(problem.beta))
    if rewards.is_smooth(reward_class):
        return _minimize_smooth(problem, reward_class, objective, sharp, **options)
    minimum = projected_minimization.solve(
        ProjectedProblem(
            objective=lambda reward: objective(reward, jnp.zeros_like(reward[0, 0])),
            project=reward_class.project,
            linear_minimizer=reward_class.linear_minimizer,
        ),
        jnp.zeros_like(jnp.asarray(problem.reference_policy)),
        **options,
    )
    return Minimum(minimum.point, minimum.gap, minimum.steps)


def _minimize_smooth(
    problem: Problem,
    reward_class: AnyRewardClass,
    objective: Objective,
    sharp: Float[ArrayLike, ""] | float,
    *,
    tolerance: float,
    max_steps: int,
) -> Minimum:
    """Minimize by Newton's method on the parameter of the class's smooth form."""
    shape = jnp.shape(problem.reference_policy)
    interior = reward_class.interior(shape)
    slopes = jax.jacfwd(lambda parameter: reward_class.to_reward(parameter, shape))(interior)
    slopes = slopes - slopes.mean(axis=1, keepdims=True)
    reach = slopes * constrained_newton.half_widths(reward_class.slack, interior)

    def distance(move: Float[Array, " m"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        rise = slopes @ move
        extent = (rise.max(axis=-1) - rise.min(axis=-1)).max()
        return extent / jnp.maximum(sharp, temperature)

    newton = ConstrainedProblem(
        objective=lambda parameter, temperature: objective(
            reward_class.to_reward(parameter, shape), temperature
        ),
        slack=reward_class.slack,
        distance=distance,
        hottest=jnp.linalg.norm(reach, axis=-1).max(),
        sharp=jnp.asarray(sharp, reach.dtype),
    )
    minimum = constrained_newton.solve(newton, interior, tolerance=tolerance, max_steps=max_steps)
    reward = reward_class.to_reward(minimum.point, shape)
    return Minimum(reward, minimum.residual, minimum.steps)
