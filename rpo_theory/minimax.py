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
from jaxtyping import Bool, Float

from . import unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from ._kernels import Kernel, check_kernel, solve_by_numba
from .adversary import MAX_STEPS, TOLERANCE, unit_ball_reward
from .certificate import GAP_TOLERANCE, all_finite, duality_gap_bound, is_proven, reduced_residual
from .numerics import ball_interior_point, box_slots
from .numerics.box_slots import SlotsResult
from .objectives import minimax_objective
from .policies import gibbs_policy
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import Problem, Solution, Status
from .validation import solver_arguments

GROUP = 32_768  # matrix entries of one call of the solver that refills its slots
WAITING = 8192  # matrix entries of one call in which all problems wait for the slowest
UNBOUNDED_WIDTH = 64.0  # nats; first width of the box that stands in for the unbounded class
WIDENINGS = 5  # number of times that this box may be widened


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    r"""Minimize :math:`F(r)` over a reward class and return the Gibbs policy of the minimizer.

    The computation is in float64 under any JAX configuration.

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
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> solution = solve(problem, TabularBox(2.0))
        >>> Status(int(solution.status)).name
        'SOLVED'
    """
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
    n_actions = problems.reference_policy.shape[-1]
    small = isinstance(reward_class, TabularBox) and n_actions**2 <= box_slots.CHUNK
    in_slots = isinstance(reward_class, TabularBox | Unbounded)
    size = group_size(problems, GROUP if in_slots else WAITING)
    solve = partial(solve_in_groups, solve_group, size=size, parallel=small)
    if kernel == "numba":
        limits = {"tolerance": tolerance, "max_steps": max_steps}
        solution = solve_by_numba(problems, reward_class, solve, **limits)
    else:
        solution = solve(problems, reward_class)
    return raise_unless_solved(solution) if throw else solution


@partial(jax.jit, static_argnames=("tolerance", "max_steps"))
def _solve_group(
    problems: Problem, reward_class: RewardClass, tolerance: float, max_steps: int
) -> Solution:
    match reward_class:
        case TabularBox():
            solution = _solve_box(problems, reward_class, tolerance, max_steps)
        case Unbounded():
            solution = _solve_unbounded(problems, tolerance, max_steps)
        case LinearBall():
            solve_ball = partial(_solve_ball, tolerance=tolerance, max_steps=max_steps)
            solution = jax.vmap(solve_ball)(problems, reward_class)
        case FiniteClass():
            solution = jax.vmap(_solve_finite)(problems, reward_class)
    finite = all_finite(problems, reward_class)
    return solution._replace(status=jnp.where(finite, solution.status, Status.NOT_FINITE.value))


def _solve_box(
    problems: Problem, reward_class: TabularBox, tolerance: float, max_steps: int
) -> Solution:
    state = box_slots.solve_in_slots(
        problems, jnp.asarray(reward_class.maximum), tolerance=tolerance, max_steps=max_steps
    )
    # A constant added to the rewards of a context changes nothing: center them in the box.
    middle = 0.5 * (state.reward.max(axis=-1) + state.reward.min(axis=-1))
    reward = jax.vmap(lambda box, centered: box.project(centered + 0.5 * box.maximum))(
        reward_class, state.reward - middle[..., None]
    )
    return jax.vmap(_conclude)(problems, reward_class, reward, state.residual, state.steps)


def _solve_ball(
    problem: Problem, reward_class: LinearBall, tolerance: float, max_steps: int
) -> Solution:
    scaled = jnp.asarray(reward_class.features) * reward_class.radius
    state = ball_interior_point.solve(problem, scaled, tolerance=tolerance, max_steps=max_steps)
    reward = unit_ball_reward(scaled, state.parameter)
    return _conclude(problem, reward_class, reward, state.residual, state.steps)


def _solve_finite(problem: Problem, reward_class: FiniteClass) -> Solution:
    rewards = jnp.asarray(reward_class.rewards)
    values = jax.vmap(lambda reward: minimax_objective(problem, reward))(rewards)
    best = rewards[jnp.argmin(values)]
    policy, value, gap = _policy_value_gap(problem, reward_class, best)
    # Enumeration is exact: a positive gap comes from the class, which is not convex.
    status = jnp.where(jnp.isfinite(value), Status.SOLVED.value, Status.NOT_FINITE.value)
    stats = {"duality_gap": gap, "residual": 0.0 * value, "steps": jnp.zeros_like(status)}
    return Solution(policy, best, value, status, stats)


def _solve_unbounded(problems: Problem, tolerance: float, max_steps: int) -> Solution:
    """Solve in a box that is wide enough for its bounds to be inactive."""
    reduced = jax.vmap(unbounded.reduce)(problems)

    def newton(width: Float[Array, " p"]) -> SlotsResult:
        return box_slots.solve_in_slots(
            reduced.problem, width, tolerance=tolerance, max_steps=max_steps
        )

    def too_narrow(width: Float[Array, " p"], state: SlotsResult) -> Bool[Array, " p"]:
        return jnp.abs(state.reward).max(axis=(1, 2)) > 0.4 * width

    def widen(carry: tuple) -> tuple:
        width, state, tries = carry
        width = jnp.where(too_narrow(width, state), 8.0 * width, width)
        return width, newton(width), tries + 1

    width = UNBOUNDED_WIDTH * jnp.maximum(1.0, jnp.asarray(problems.beta))
    _, state, _ = jax.lax.while_loop(
        lambda carry: jnp.any(too_narrow(*carry[:2])) & (carry[2] < WIDENINGS),
        widen,
        (width, newton(width), 0),
    )
    return jax.vmap(_conclude_unbounded)(reduced, state)


def _conclude_unbounded(reduced: unbounded.ReducedProblem, state: SlotsResult) -> Solution:
    problem, reward = reduced.problem, unbounded.normalized(reduced, state.reward)
    finite_reward = jnp.where(reduced.kept, reward, 0.0)
    policy = gibbs_policy(finite_reward, problem.reference_policy, problem.beta)
    value = reduced.share * minimax_objective(problem, state.reward)
    residual = reduced_residual(reduced, policy, reward)
    proven = residual <= GAP_TOLERANCE * jnp.maximum(1.0, reduced.share * problem.eta)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    status = jnp.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    gap = jnp.full_like(value, jnp.inf)
    stats = {"duality_gap": gap, "residual": residual, "steps": state.steps}
    return unbounded.take_limit(reduced, Solution(policy, reward, value, status, stats))


def _policy_value_gap(
    problem: Problem, reward_class: RewardClass, reward: Float[Array, "x a"]
) -> tuple[Float[Array, "x a"], Float[Array, ""], Float[Array, ""]]:
    """Return the Gibbs policy of a reward, its objective, and a bound on the duality gap."""
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    return policy, minimax_objective(problem, reward), gap


def _conclude(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    reward: Float[Array, "x a"],
    residual: Float[Array, ""],
    steps: Array,
) -> Solution:
    """Return the solution at a reward, with the status that its duality gap proves."""
    policy, value, gap = _policy_value_gap(problem, reward_class, reward)
    proven = is_proven(problem, gap, value)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    status = jnp.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    stats = {"duality_gap": gap, "residual": residual, "steps": steps}
    return Solution(policy, reward, value, status, stats)
