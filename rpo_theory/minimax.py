r"""Minimax route: :math:`\min_{r\in\mathcal R}\max_\pi\phi(\pi,r) = \min_r F(r)`, solved exactly.

The inner maximum has a closed form (Lemma 4.1), which leaves one convex problem in the reward
(`liu:24`, eq. 4.4). The Gibbs policy of its minimizer solves both formulations (Theorem 5.6).
Primal-dual Newton methods on win counts solve it to machine precision; their cost does not grow
with the number of comparisons. A solution has status ``SOLVED`` only if its duality gap proves it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from . import rewards, routes, sensitivity, unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from ._kernels import Kernel, check_kernel, solve_by_numba
from ._tracing import in_trace
from .adversary import MAX_STEPS, TOLERANCE
from .certificate import GAP_TOLERANCE, all_finite, duality_gap_bound, is_proven, reduced_residual
from .numerics import box_slots
from .objectives import minimax_objective
from .policies import gibbs_policy
from .rewards import AnyRewardClass, Minimum, RewardClass
from .types import Problem, Solution, Status
from .validation import solver_arguments

GROUP = 32_768  # matrix entries of one call of the solver that refills its slots
WAITING = 8192  # matrix entries of one call in which all problems wait for the slowest


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    r"""Minimize :math:`F(r)` over a reward class and return the Gibbs policy of the minimizer.

    The computation is in float64 under any JAX configuration. Inside ``jit``, ``vmap`` and ``grad``
    the solution is a pure JAX function with exact derivatives (:mod:`rpo_theory.sensitivity`); the
    caller must have enabled float64, no value is checked, and ``throw`` is ignored.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: rewards that the adversary may choose from.
        tolerance: KKT residual at which the Newton iteration stops, in probabilities.
        max_steps: maximum number of Newton steps.
        throw: whether to raise if the problem is not solved, instead of returning the status.

    Returns:
        The saddle point and its status. ``stats`` holds ``duality_gap`` (a proven bound in nats;
        infinite for the unbounded class), ``residual`` and ``steps``. For the unbounded class the
        rewards satisfy :math:`Z_r=1`, and are ``-inf`` where the infimum is not attained.

    Raises:
        ValueError: if an argument is invalid, or the problem is not solved and ``throw`` is true. A
            number that is not finite is an error or, without ``throw``, status ``NOT_FINITE``.

    References:
        `liu:24`, eqs. 4.1 to 4.8.

    Examples:
        >>> import numpy as np
        >>> from rpo_theory.rewards import TabularBox
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> solution = solve(problem, TabularBox(2.0))
        >>> Status(int(solution.status)).name
        'SOLVED'
    """
    if in_trace(problem, reward_class):
        solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
        return sensitivity.solution(solver, problem, reward_class)
    options = {"tolerance": tolerance, "max_steps": max_steps, "throw": throw}
    problem, reward_class = solver_arguments(problem, reward_class, **options, batch=False)
    return solve_one(partial(solve_batch, **options), problem, reward_class)


def solve_batch(
    problems: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
    kernel: Kernel = "jax",
) -> Solution:
    """Solve many problems of one shape; see :func:`solve`.

    Args:
        problems: problems with a leading batch axis on every array; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        tolerance: KKT residual at which the Newton iteration stops, in probabilities.
        max_steps: maximum number of Newton steps.
        throw: whether to raise if a problem is not solved, instead of returning the status.
        kernel: "numba" solves boxes of 2 to 12 actions and a width of at most 700 on CPUs by a
            kernel that is compiled once, in up to 20 seconds, and kept on disk; it is about ten
            times as fast afterwards. All other problems are solved as by "jax". The solutions of
            the two agree to rounding; the bits of each depend neither on the rest of the batch nor
            on the number of threads.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.

    Raises:
        ValueError: if an argument is invalid, or a problem is not solved and ``throw`` is true; the
            message names the first.
    """
    options = {"tolerance": tolerance, "max_steps": max_steps, "throw": throw}
    check_kernel(kernel)
    problems, reward_class = solver_arguments(problems, reward_class, **options, batch=True)
    solve_group = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    n_problems, _, n_actions = problems.reference_policy.shape
    in_slots = routes.has_batch_solver(problems, reward_class)
    size = group_size(problems, GROUP if in_slots else WAITING)
    if not in_slots and not routes.solves_itself(problems, reward_class):
        size = min(size, n_problems)  # these are solved one after the other
    parallel = in_slots and n_actions**2 <= box_slots.CHUNK
    solve = partial(solve_in_groups, solve_group, size=size, parallel=parallel)
    if kernel == "numba":
        limits = {"tolerance": tolerance, "max_steps": max_steps}
        solution = solve_by_numba(problems, reward_class, solve, **limits)
    else:
        solution = solve(problems, reward_class)
    return raise_unless_solved(solution) if throw else solution


@partial(jax.jit, static_argnames=("tolerance", "max_steps"))
def _solve_group(
    problems: Problem, reward_class: AnyRewardClass, tolerance: float, max_steps: int
) -> Solution:
    options = {"tolerance": tolerance, "max_steps": max_steps}
    if rewards.is_compact(reward_class):
        minima = routes.minimize_batch(problems, reward_class, **options)
        if routes.uses_only_wins(problems) and hasattr(reward_class, "conclude_batch"):
            measured = reward_class.conclude_batch(problems, minima.reward)
            solution = jax.vmap(_judge, in_axes=(0, None, 0, 0))(
                problems, reward_class, minima, measured
            )
        else:
            conclude = routes.batched(_conclude, problems, reward_class)
            solution = conclude(problems, reward_class, minima)
    else:
        reduced = jax.vmap(unbounded.reduce)(problems)
        minima = routes.minimize_batch(reduced.problem, reward_class, **options)
        conclude = routes.batched(_conclude_unbounded, problems, reward_class)
        solution = conclude(reduced, minima)
    finite = all_finite(problems, reward_class)
    return solution._replace(status=jnp.where(finite, solution.status, Status.NOT_FINITE.value))


def _conclude(problem: Problem, reward_class: RewardClass, minimum: Minimum) -> Solution:
    """Return the solution at a reward."""
    reward = minimum.reward
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    measured = policy, minimax_objective(problem, reward), gap
    return _judge(problem, reward_class, minimum, measured)


def _judge(
    problem: Problem,
    reward_class: RewardClass,
    minimum: Minimum,
    measured: tuple[Float[Array, "x a"], Float[Array, ""], Float[Array, ""]],
) -> Solution:
    """Return the solution of a policy, value and gap, with the status that the gap proves."""
    policy, value, gap = measured
    proven = is_proven(problem, gap, value)
    if not rewards.is_convex(reward_class):
        # Its own solver is exact: a positive gap comes from the class, which is not convex.
        proven = jnp.ones_like(proven)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    status = jnp.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    stats = {"duality_gap": gap, "residual": minimum.residual, "steps": minimum.steps}
    return Solution(policy, minimum.reward, value, status, stats)


def _conclude_unbounded(reduced: unbounded.ReducedProblem, minimum: Minimum) -> Solution:
    problem, reward = reduced.problem, unbounded.normalized(reduced, minimum.reward)
    finite_reward = jnp.where(reduced.kept, reward, 0.0)
    policy = gibbs_policy(finite_reward, problem.reference_policy, problem.beta)
    value = reduced.share * minimax_objective(problem, minimum.reward)
    residual = reduced_residual(reduced, policy, reward)
    proven = residual <= GAP_TOLERANCE * jnp.maximum(1.0, reduced.share * problem.eta)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    status = jnp.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    gap = jnp.full_like(value, jnp.inf)
    stats = {"duality_gap": gap, "residual": residual, "steps": minimum.steps}
    return unbounded.take_limit(reduced, Solution(policy, reward, value, status, stats))
