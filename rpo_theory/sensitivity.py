r"""The minimax solution as a differentiable function of its problem and reward class.

Let :math:`\hat r(\theta)=\arg\min_{r\in\mathcal R_\theta}F_\theta(r)`, where :math:`\theta` holds
every number of the problem (wins, policies, weights) and of the class (bounds, radius, features).
The implicit function theorem at the optimality conditions gives its derivative. With the gradient
:math:`g=\nabla_r F`, the Hessian :math:`H`, and a dot for a derivative along a direction:

====================== ========================================================================
class                  linear system
====================== ========================================================================
bounds on entries      :math:`H_{II}\dot r_I=-\dot g_I-H_{IJ}\dot r_J` in each context; the entries
                       :math:`J` at a bound move with it
smooth form            :math:`H\dot u-J^\top\dot\lambda=-\dot g`, :math:`J\dot u=-\dot c`, for the
                       active constraints :math:`c(u)=0` with gradients :math:`J`
projection :math:`P`   :math:`(I-P'(I-tH))\dot r=-tP'\dot g+\dot P`, from :math:`r=P(r-tg)`
====================== ========================================================================

The systems are linear in the direction, so reverse mode transposes them. Their matrices are
differentiable, so second derivatives exist wherever the active constraints do not change.

**Kinks.** Where a constraint is active with multiplier zero the solution has one-sided derivatives
only. A constraint that is touched counts as active: the derivative is that of the side on which it
stays active.

**Gauge.** :math:`F` ignores a constant added to the rewards of a context. Where no constraint
decides the constant, the reward of a box is centered between its bounds, that of the unbounded
class has :math:`Z_r=1`, and that of other classes moves by the shortest tangent. The reward also
stays where neither data nor the adversarial term determine it, as in a context of weight zero
without data. Policies and values do not depend on the gauge.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from . import optimality
from ._tracing import BatchSolver, solver_of_one, traced_arguments
from .certificate import all_proven
from .rewards import RewardClass
from .types import Problem, Solution, Status

POLISH_STEPS = 3
"""Newton steps on the optimality conditions after the solver; two reach the last digit."""


def solution(solve_batch: BatchSolver, problem: Problem, reward_class: RewardClass) -> Solution:
    r"""Return the minimax solution as a differentiable function, for use inside a trace.

    Args:
        solve_batch: solver whose rewards are polished. ``vmap`` calls it once with all problems.
        problem: one problem, without a batch axis. Its distributions are divided by their sums.
        reward_class: its reward class.

    Returns:
        The solution. Policy, reward and objective have derivatives; status and stats have none.

    References:
        `liu:24`, eqs. 4.1 to 4.8.
    """
    problem, reward_class = traced_arguments(problem, reward_class)
    minimizer = _minimizer(solver_of_one(solve_batch), problem, reward_class)
    conditions = optimality.conditions(problem, reward_class)
    policy, reward, value = conditions.solution(minimizer.point)
    return Solution(policy, reward, value, minimizer.status, minimizer.stats)


def solution_without_derivative(
    solve_batch: BatchSolver, problem: Problem, reward_class: RewardClass
) -> Solution:
    """Return the solution of another route, for use inside ``jit`` and ``vmap``.

    Args:
        solve_batch: solver of batches. A status that the certificate does not prove is replaced.
        problem: one problem, without a batch axis. Its distributions are divided by their sums.
        reward_class: its reward class.

    Returns:
        The solution. Its derivative is refused: for a convex class the minimax solution has the
        same policy and value (Theorem 5.6), and an exact derivative.
    """

    def proven(problems: Problem, classes: RewardClass) -> Solution:
        found = solve_batch(problems, classes)
        pairs = (*found[:3], found.stats.get("mixture"))
        holds, finite = all_proven(problems, classes, pairs)
        claimed = (found.status == Status.SOLVED.value) | (
            found.status == Status.NOT_ATTAINED.value
        )
        status = jnp.where(claimed & ~holds, Status.MAX_STEPS.value, found.status)
        return found._replace(status=jnp.where(finite, status, Status.NOT_FINITE.value))

    return _constant(solver_of_one(proven), *traced_arguments(problem, reward_class))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(solve_one: BatchSolver, problem: Problem, reward_class: RewardClass) -> Solution:
    return solve_one(problem, reward_class)


@_constant.defjvp
def _constant_jvp(solve_one: BatchSolver, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "`maximin.solve` and `direct.solve` have no derivative: differentiate `minimax.solve`, "
        "which has the same policy and value for a convex class (Theorem 5.6)"
    )


class _Minimizer(NamedTuple):
    """Minimizer as a table or as a parameter, with the status and stats of its solver."""

    point: Float[Array, "..."]
    status: Int[Array, ""]
    stats: dict[str, Array]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _minimizer(solve_one: BatchSolver, problem: Problem, reward_class: RewardClass) -> _Minimizer:
    found = solve_one(problem, reward_class)
    conditions = optimality.conditions(problem, reward_class)
    start = conditions.point(jnp.asarray(found.reward))
    point = jax.lax.fori_loop(
        0, POLISH_STEPS, lambda _, point: newton_step(point, problem, reward_class), start
    )
    # A problem at the limit of float64 keeps the point of its solver.
    better = conditions.error(point) <= conditions.error(start)
    return _Minimizer(jnp.where(better, point, start), jnp.asarray(found.status), found.stats)


@_minimizer.defjvp
def _minimizer_jvp(
    solve_one: BatchSolver,
    primals: tuple[Problem, RewardClass],
    tangents: tuple[Problem, RewardClass],
) -> tuple[_Minimizer, _Minimizer]:
    minimizer = _minimizer(solve_one, *primals)
    still = jax.tree.map(no_tangent, minimizer)
    return minimizer, still._replace(point=tangent(minimizer.point, primals, tangents))


def tangent(
    point: Float[Array, "..."],
    primals: tuple[Problem, RewardClass],
    tangents: tuple[Problem, RewardClass],
) -> Float[Array, "..."]:
    """Return the derivative of a minimizer along a direction of its problem and class.

    Args:
        point: the minimizer, a table or the parameter of a class with a smooth form.
        primals: problem and reward class, in float64.
        tangents: direction in which they move.

    Returns:
        The derivative, with the shape of the point; linear in the direction.
    """
    conditions = cast(Any, optimality.conditions(*primals))
    active = conditions.active(point)

    def residual(problem: Problem, reward_class: RewardClass) -> Any:
        return optimality.conditions(problem, reward_class).residual(point, active)

    return conditions.step(point, active, jax.jvp(residual, primals, tangents)[1])


def newton_step(
    point: Float[Array, "..."], problem: Problem, reward_class: RewardClass
) -> Float[Array, "..."]:
    """Return a point after one Newton step on the optimality conditions of a problem.

    Args:
        point: a point near the minimizer.
        problem: the problem, in float64.
        reward_class: its reward class.

    Examples:
        >>> from rpo_theory import TabularBox
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=0.0)
        >>> newton_step(jnp.full((1, 2), 2.0), problem, TabularBox(4.0)).round(6).tolist()
        [[2.5, 1.5]]
    """
    conditions = cast(Any, optimality.conditions(problem, reward_class))
    active = conditions.active(point)
    return point + conditions.step(point, active, conditions.residual(point, active))


def no_tangent(leaf: Array) -> Any:
    """Return a zero tangent, which for whole numbers has a dtype of its own.

    Args:
        leaf: array that does not move.

    Examples:
        >>> no_tangent(jnp.ones(2)).tolist(), no_tangent(jnp.array(3)).dtype == jax.dtypes.float0
        ([0.0, 0.0], True)
    """
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
