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

**Gauge.** :math:`F` ignores a constant added to the rewards of a context. Where no constraint decides
the constant, the reward of a box is centered between its bounds, that of the unbounded class has
:math:`Z_r=1`, and that of other classes moves by the shortest tangent. The reward also stays where
neither data nor the adversarial term determine it. Policies and values do not depend on the gauge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from . import optimality
from ._tracing import normalized, to_float64
from .rewards import RewardClass
from .types import Problem, Solution

POLISH_STEPS = 3
"""Newton steps on the optimality conditions after the solver; two reach the last digit."""
BatchSolver: TypeAlias = Callable[[Problem, RewardClass], Solution]
"""Pure JAX solver of problems with a leading batch axis."""


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
    problem, reward_class = normalized(problem), to_float64(reward_class)
    minimizer = _minimizer(_mappable(solve_batch), problem, reward_class)
    conditions = optimality.conditions(problem, reward_class)
    policy, reward, value = conditions.solution(minimizer.point)
    return Solution(policy, reward, value, minimizer.status, minimizer.stats)


class _Minimizer(NamedTuple):
    """Minimizer as a table or as a parameter, with the status and stats of its solver."""

    point: Float[Array, "..."]
    status: Int[Array, ""]
    stats: dict[str, Array]


def _mappable(solve_batch: BatchSolver) -> BatchSolver:
    """Return a solver of one problem that ``vmap`` turns into one call for the whole batch."""

    @jax.custom_batching.custom_vmap
    def solve_one(problem: Problem, reward_class: RewardClass) -> Solution:
        batch = jax.tree.map(lambda leaf: leaf[None], (problem, reward_class))
        return jax.tree.map(lambda leaf: leaf[0], solve_batch(*batch))

    @solve_one.def_vmap
    def solve_all(
        axis_size: int, in_batched: Any, problem: Problem, reward_class: RewardClass
    ) -> tuple[Solution, Any]:
        def with_batch_axis(leaf: Array, batched: bool) -> Array:
            return leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

        batch = jax.tree.map(with_batch_axis, (problem, reward_class), tuple(in_batched))
        solutions = solve_batch(*batch)
        return solutions, jax.tree.map(lambda _: True, solutions)

    return solve_one


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _minimizer(solve_one: BatchSolver, problem: Problem, reward_class: RewardClass) -> _Minimizer:
    found = solve_one(problem, reward_class)
    conditions = optimality.conditions(problem, reward_class)
    point = start = conditions.point(found.reward)
    for _ in range(POLISH_STEPS):
        active = conditions.active(point)
        point = point + conditions.step(point, active, conditions.residual(point, active))
    # A problem at the limit of float64 keeps the point of its solver.
    better = conditions.error(point) <= conditions.error(start)
    return _Minimizer(jnp.where(better, point, start), found.status, found.stats)


@_minimizer.defjvp
def _minimizer_jvp(
    solve_one: BatchSolver,
    primals: tuple[Problem, RewardClass],
    tangents: tuple[Problem, RewardClass],
) -> tuple[_Minimizer, _Minimizer]:
    minimizer = _minimizer(solve_one, *primals)
    conditions = optimality.conditions(*primals)
    active = conditions.active(minimizer.point)

    def residual(problem: Problem, reward_class: RewardClass) -> Any:
        return optimality.conditions(problem, reward_class).residual(minimizer.point, active)

    moved = jax.jvp(residual, primals, tangents)[1]
    tangent = jax.tree.map(_no_tangent, minimizer)
    return minimizer, tangent._replace(point=conditions.step(minimizer.point, active, moved))


def _no_tangent(leaf: Array) -> Any:
    """Return a zero tangent, which for whole numbers has a dtype of its own."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
