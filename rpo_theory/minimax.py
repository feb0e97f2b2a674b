r"""Algorithm 2's exact solution: :math:`\min_{r\in\mathcal R}\max_\pi\phi(\pi,r) = \min_r F(r)`.

The inner maximum is known in closed form (Lemma 4.1), so one convex problem in the reward is left
(`liu:24`, eq. 4.4), and its Gibbs policy is the answer of both formulations (Theorem 5.6). It is
solved to machine precision by primal-dual Newton methods on win counts, whose cost does not grow
with the number of comparisons. Every answer carries its certificate: a solution is called solved
only where its duality gap proves it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import unbounded
from ._batching import group_size, raise_unless_solved, round_group_size, solve_in_groups, solve_one
from .adversary import MAX_STEPS, TOLERANCE, prompt_blocks, unit_ball_reward
from .certificate import GAP_TOLERANCE, all_finite, duality_gap_bound, is_proven, reduced_residual
from .numerics import ball_interior_point, box_interior_point
from .objectives import minimax_objective
from .policies import gibbs_policy, log_partition
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import Problem, Solution, Status

CHUNK = 4096  # matrix entries worked on together: they should stay in the cache
STRIDE = 2  # Newton steps between two refills of the slots
GROUP = 32_768  # matrix entries of a call that fills slots
WAITING = 8192  # of a call in which all wait for the slowest
UNBOUNDED_WIDTH = 64.0  # nats; where the unbounded class is solved in a box, widened as needed
WIDENINGS = 5


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    r"""Minimise :math:`F(r)` over a reward class; the RPO policy is the Gibbs policy of the answer.

    Computes in float64 whatever the caller's configuration.

    Args:
        problem: the instance.
        reward_class: the adversary's class.
        tolerance: KKT residual at which the Newton iteration stops, in probabilities.
        max_steps: most Newton steps.
        throw: raise if no solution was found, instead of returning its status.

    Returns:
        The saddle point, its status, and ``stats``: ``duality_gap`` (nats, proven; infinite for
        the unbounded class), ``residual`` and ``steps``. For the unbounded class rewards are
        normalised to :math:`Z_r=1`, and are ``-inf`` where the infimum is not attained.

    Raises:
        ValueError: if a solution was not found and ``throw`` is set.

    References:
        `liu:24`, eqs. 4.1 to 4.8.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(1.0))
        >>> solution = solve(problem, TabularBox(np.array(2.0)))
        >>> Status(int(solution.status)).name
        'SOLVED'
    """
    options = {"tolerance": tolerance, "max_steps": max_steps, "throw": throw}
    return solve_one(partial(solve_batch, **options), problem, reward_class)


def solve_batch(
    problems: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    """Solve many problems of one shape: every array has a leading batch axis.

    Args:
        problems: the instances.
        reward_class: their reward classes.
        tolerance: see :func:`solve`.
        max_steps: see :func:`solve`.
        throw: raise if any problem was not solved.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.

    Raises:
        ValueError: if a solution was not found and ``throw`` is set; it names the first.
    """
    solve_group = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    n_actions = problems.reference_policy.shape[-1]
    small = isinstance(reward_class, TabularBox) and n_actions**2 <= CHUNK
    in_slots = isinstance(reward_class, TabularBox | Unbounded)
    size = group_size(problems, GROUP if in_slots else WAITING)
    solution = solve_in_groups(solve_group, problems, reward_class, size=size, parallel=small)
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
            one = partial(_solve_ball, tolerance=tolerance, max_steps=max_steps)
            solution = jax.vmap(one)(problems, reward_class)
        case FiniteClass():
            solution = jax.vmap(_solve_finite)(problems, reward_class)
    finite = all_finite(problems, reward_class)
    return solution._replace(status=jnp.where(finite, solution.status, Status.NOT_FINITE.value))


def _solve_box(
    problems: Problem, reward_class: TabularBox, tolerance: float, max_steps: int
) -> Solution:
    state = _newton_in_slots(problems, jnp.asarray(reward_class.maximum), tolerance, max_steps)
    # Nothing depends on a constant added to the rewards of a prompt: leave them amid their box.
    middle = 0.5 * (state.reward.max(axis=-1) + state.reward.min(axis=-1))
    reward = jax.vmap(lambda box, centred: box.project(centred + 0.5 * box.maximum))(
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
    policy, reward, value, gap = _answer(problem, reward_class, rewards[jnp.argmin(values)])
    # Enumeration is exact; the gap is then that of the class, not of the solver.
    status = jnp.where(jnp.isfinite(value), Status.SOLVED.value, Status.NOT_FINITE.value)
    stats = {"duality_gap": gap, "residual": 0.0 * value, "steps": jnp.zeros_like(status)}
    return Solution(policy, reward, value, status, stats)


def _solve_unbounded(problems: Problem, tolerance: float, max_steps: int) -> Solution:
    """Solve in a box so wide that no kept response feels it."""
    reduced = jax.vmap(unbounded.reduce)(problems)
    felt = reduced.kept & (reduced.problem.reference_policy > 0)
    felt = felt & reduced.attained[:, None, None]

    def newton(width: Float[Array, " p"]) -> _BoxResult:
        return _newton_in_slots(reduced.problem, width, tolerance, max_steps)

    def too_narrow(width: Float[Array, " p"], state: _BoxResult) -> Bool[Array, " p"]:
        reach = jnp.where(felt, jnp.abs(state.reward), 0.0).max(axis=(1, 2))
        return reach > 0.4 * width

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


def _conclude_unbounded(reduced: unbounded.ReducedProblem, state: _BoxResult) -> Solution:
    problem, reward = reduced.problem, state.reward
    adversarial = (problem.eta * jnp.asarray(problem.context_weights) > 0)[:, None]
    reward = reward - jnp.where(
        adversarial, 0.0, unbounded.component_means(reward, jnp.asarray(problem.wins))
    )
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    value = reduced.share * minimax_objective(problem, reward)
    log_z = log_partition(reward, problem.reference_policy, problem.beta)
    shown = jnp.where(reduced.kept, reward - problem.beta * log_z[:, None], -jnp.inf)

    residual = reduced_residual(reduced, policy, shown)
    proven = residual <= GAP_TOLERANCE * jnp.maximum(1.0, reduced.share * problem.eta)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    solved = jnp.where(reduced.attained, Status.SOLVED.value, Status.NOT_ATTAINED.value)
    status = jnp.where(proven, solved, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    status = jnp.where(reduced.bounded, status, Status.UNBOUNDED.value)
    gap = jnp.full_like(value, jnp.inf)
    stats = {"duality_gap": gap, "residual": residual, "steps": state.steps}
    return Solution(policy, shown, value, status, stats)


def _answer(
    problem: Problem, reward_class: RewardClass, reward: Float[Array, "x a"]
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Float[Array, ""]]:
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    return policy, reward, minimax_objective(problem, reward), gap


def _conclude(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    reward: Float[Array, "x a"],
    residual: Float[Array, ""],
    steps: Array,
) -> Solution:
    """Answer with its certificate; the status is what the certificate says."""
    policy, reward, value, gap = _answer(problem, reward_class, reward)
    proven = is_proven(problem, gap, value)
    finite = jnp.isfinite(value) & jnp.isfinite(policy).all()
    status = jnp.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    stats = {"duality_gap": gap, "residual": residual, "steps": steps}
    return Solution(policy, reward, value, status, stats)


class _BoxResult(NamedTuple):
    """Final Newton states, with a leading problem axis."""

    reward: Float[Array, "p x a"]
    residual: Float[Array, " p"]
    steps: Array


def _newton_in_slots(
    problems: Problem, width: Float[Array, " p"], tolerance: float, max_steps: int
) -> _BoxResult:
    """Solve every prompt of every problem, a cache-full at a time, each slot refilled when done.

    Waiting for the slowest of a fixed set would take half as long again.
    """
    n_problems, n_contexts, n_actions = problems.reference_policy.shape
    n_blocks = n_problems * n_contexts
    rows = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, -1, 1).reshape(n_blocks, *leaf.shape[1:-1]),
        jax.vmap(prompt_blocks)(problems, width),
    )
    slots = min(round_group_size(CHUNK / n_actions**2), n_blocks)

    def load(index: Int[Array, " b"]) -> box_interior_point.Blocks:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.at[index].get(mode="clip"), 0, -1), rows)

    def advance(carry: tuple) -> tuple:
        index, upcoming, state, answers = carry
        blocks = load(index)
        for _ in range(STRIDE):
            state = box_interior_point.step(blocks, None, state, tolerance)
        found = (state.reward.T, state.residual, state.steps)
        answers = jax.tree.map(
            lambda kept, new: kept.at[index].set(new, mode="drop"), answers, found
        )
        free = state.done | (state.steps >= max_steps)
        taken = jnp.cumsum(free.astype(jnp.int32))
        index = jnp.where(free, upcoming + taken - 1, index)
        fresh = box_interior_point.init(load(index))
        state = jax.tree.map(lambda old, new: jnp.where(free, new, old), state, fresh)
        return index, upcoming + taken[-1], state, answers

    first = jnp.arange(slots, dtype=jnp.int32)
    state = box_interior_point.init(load(first))
    answers = (
        jnp.zeros((n_blocks, n_actions), width.dtype),
        jnp.zeros(n_blocks, width.dtype),
        jnp.zeros(n_blocks, jnp.int32),
    )
    reward, residual, steps = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] < n_blocks),
        advance,
        (first, jnp.int32(slots), state, answers),
    )[-1]
    return _BoxResult(
        reward=reward.reshape(n_problems, n_contexts, n_actions),
        residual=residual.reshape(n_problems, n_contexts).max(axis=1),
        steps=steps.reshape(n_problems, n_contexts).max(axis=1),
    )
