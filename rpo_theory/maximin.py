r"""Maximin route (Algorithm 1): :math:`\hat\pi\in\arg\max_\pi\min_{r\in\mathcal R}\phi`.

The method works on the policy itself and shares nothing with :mod:`rpo_theory.minimax`: it uses no
Gibbs policy, no :math:`\log Z` and no softmax (see
:mod:`rpo_theory.numerics.saddle_interior_point`). By Theorem 5.6 of `liu:24` both routes find the
same policy if the class is convex. For a finite class, which is not convex, they can differ, and
this module computes the policy of Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import entr
from jaxtyping import Float

from . import rewards, routes, saddle_columns, saddle_forms, unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from ._tracing import in_trace
from .certificate import verify_status
from .numerics import saddle_interior_point
from .numerics.saddle_interior_point import Progress, SaddleProblem
from .policies import kl_divergence
from .rewards import AnyRewardClass, RewardClass
from .rewards.unbounded import in_wide_box
from .sensitivity import solution_without_derivative
from .types import Problem, Solution, Status
from .validation import solver_arguments

TOLERANCE = 1e-12
MAX_STEPS = 100
ROUNDING = float(np.finfo(np.float64).eps)  # relative to one, of one number in a sum
CHUNK = 16_384  # matrix entries that fit into the cache together
GROUP = 8192  # matrix entries of one call, in which all problems of a chunk wait for the slowest


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    r"""Maximize over policies the objective under the worst reward of a class.

    The computation is in float64 under any JAX configuration. It works under ``jit`` and ``vmap``,
    where ``throw`` is ignored, and has no derivative: that of :func:`rpo_theory.minimax.solve` is
    the same for a convex class (Theorem 5.6).
    In a context without adversarial term
    (:math:`\eta d_0(x) = 0`) every policy is optimal. The policy returned there satisfies
    :math:`\beta\log(\pi/\pi_{ref}) = r` up to a constant, as in the other contexts, for a reward of
    maximum likelihood. For the unbounded class there may be none; the status is then
    ``MAX_STEPS``.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: rewards that the adversary may choose from.
        tolerance: residual of the optimality conditions at which to stop, in probabilities.
        max_steps: maximum number of Newton steps.
        throw: whether to raise if the problem is not solved, instead of returning the status.

    Returns:
        The policy and the adversary's reward. ``objective`` is :math:`\min_r\phi(\hat\pi, r)`,
        computed by the dual of the likelihood: a lower bound on :math:`F`, exact at the solution.
        For a finite class the reward is the member with the largest probability under the
        adversary's mixed strategy. For the unbounded class the reward is
        :math:`\beta\log(\pi/\pi_{ref})` on the support, and ``-inf`` where the infimum is not
        attained. The status is ``SOLVED`` only if the certificate, which the method does not use,
        proves it. ``stats`` holds ``residual`` and ``steps``, and for a finite class ``mixture``,
        the adversary's probabilities of the members.

    Raises:
        ValueError: if an argument is invalid, or the problem is not solved and ``throw`` is true. A
            number that is not finite is an error or, without ``throw``, status ``NOT_FINITE``.

    References:
        `liu:24`, Algorithm 1, eq. 3.3.

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
    return solve_one(partial(solve_batch, **options), problem, reward_class)


def solve_batch(
    problems: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    """Solve many problems of one shape; see :func:`solve`.

    Args:
        problems: problems with a leading batch axis on every array; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        tolerance: residual of the optimality conditions at which to stop, in probabilities.
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
    # One group after the other: batched factorizations use all cores by themselves, and two at the
    # same time deadlock (jaxlib 0.10.2).
    solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    size = group_size(problems, GROUP)
    if not _is_fast(problems, reward_class):
        size = min(size, len(problems.reference_policy))  # these are solved one after the other
    solution = solve_in_groups(solver, problems, reward_class, size=size)
    solution = verify_status(problems, reward_class, solution)
    return raise_unless_solved(solution) if throw else solution


@partial(jax.jit, static_argnames=("max_steps",))
def _solve_group(
    problems: Problem,
    reward_class: RewardClass,
    tolerance: Float[Array, ""] | float,
    *,
    max_steps: int,
) -> Solution:
    """Solve every problem; without bounds on the rewards, its part that attains the minimum."""
    options = {"tolerance": tolerance, "max_steps": max_steps}
    if rewards.is_compact(reward_class):
        return _solve_saddles(problems, reward_class, **options)
    reduced = jax.vmap(unbounded.reduce)(problems)
    if routes.uses_only_wins(problems):
        solutions = _solve_saddles(reduced.problem, reward_class, **options)
    else:
        all_tables: AnyRewardClass = reward_class

        def solve_in_box(width: Float[Array, " p"]) -> Solution:
            box = jax.vmap(all_tables.bounded)(width)
            solutions = _solve_saddles(reduced.problem, box, **options)
            return solutions._replace(reward=solutions.reward - 0.5 * width[:, None, None])

        solutions = in_wide_box(solve_in_box, jnp.asarray(problems.beta))
        reward = jax.vmap(unbounded.normalized)(reduced, jnp.asarray(solutions.reward))
        solutions = solutions._replace(reward=reward)
    solutions = solutions._replace(objective=reduced.share * solutions.objective)
    return jax.vmap(unbounded.take_limit)(reduced, solutions)


def _solve_saddles(
    problems: Problem,
    reward_class: RewardClass,
    *,
    tolerance: Float[Array, ""] | float,
    max_steps: int,
) -> Solution:
    """Solve the saddle problems of every problem, in chunks that fit into the cache."""
    n_problems, _, n_actions = problems.reference_policy.shape
    if not saddle_forms.has_saddle_form(problems, reward_class):
        solver = partial(saddle_columns.solve, tolerance=tolerance, max_steps=max_steps)
        return jax.lax.map(lambda pair: solver(*pair), (problems, reward_class))
    saddles = jax.vmap(saddle_forms.saddle_problems)(problems, reward_class)
    n_saddles = n_problems * saddles.weights.shape[1]
    flat = jax.tree.map(lambda leaf: leaf.reshape(n_saddles, *leaf.shape[2:]), saddles)
    solver = partial(
        saddle_interior_point.solve,
        tolerance=jnp.asarray(tolerance, jnp.float64),
        max_steps=max_steps,
    )
    chunk = CHUNK // (flat.reference.shape[1] * n_actions**2)
    results = _map_by_chunks(solver, flat, chunk if _is_fast(problems, reward_class) else 1)
    results = jax.tree.map(
        lambda leaf: leaf.reshape(n_problems, n_saddles // n_problems, *leaf.shape[1:]), results
    )
    return jax.vmap(partial(_conclude, tolerance))(problems, reward_class, results)


def _is_fast(problems: Problem, reward_class: RewardClass) -> bool:
    """Return whether problems of a class are solved many at a time."""
    by_labels = saddle_forms.uses_label_probs(problems, reward_class)
    return by_labels or not rewards.is_convex(reward_class)


def _map_by_chunks(
    solver: Callable[[SaddleProblem], Progress], saddles: SaddleProblem, chunk_size: int
) -> Progress:
    """Solve the saddle problems chunk by chunk; all of a chunk wait for its slowest."""
    n_saddles = saddles.weights.shape[0]
    n_chunks = -(-n_saddles // max(1, chunk_size))
    size = -(-n_saddles // n_chunks)
    order = jnp.minimum(jnp.arange(n_chunks * size), n_saddles - 1).reshape(n_chunks, size)
    chunks = jax.tree.map(lambda leaf: leaf[order], saddles)
    results = jax.lax.map(jax.vmap(solver), chunks)
    return jax.tree.map(
        lambda leaf: leaf.reshape(n_chunks * size, *leaf.shape[2:])[:n_saddles], results
    )


def _conclude(
    tolerance: Float[Array, ""] | float,
    problem: Problem,
    reward_class: RewardClass,
    results: Progress,
) -> Solution:
    """Assemble the solution of a problem from the last iterates of its saddle problems."""
    state = results.state
    shape = problem.reference_policy.shape
    policy = state.policy.reshape(shape)
    policy = policy / _or_one(policy.sum(axis=-1, keepdims=True))
    label_probs = state.label_probs.reshape(problem.wins.shape)
    reward = saddle_forms.adversary_reward(problem, reward_class, state)
    value = _worst_value(problem, reward_class, policy, label_probs, reward)
    residual = results.residual.max()
    reached = residual <= tolerance
    status = jnp.where(
        reached,
        Status.SOLVED.value,
        jnp.where(jnp.any(results.broken), Status.NOT_FINITE.value, Status.MAX_STEPS.value),
    )
    stats = {"residual": residual, "steps": results.steps.max()}
    if not rewards.is_convex(reward_class):
        stats["mixture"] = jnp.maximum(state.adversary[0], 0.0) / state.adversary[0].sum()
    return Solution(policy, reward, value, status, stats)


def _worst_value(
    problem: Problem,
    reward_class: AnyRewardClass,
    policy: Float[Array, "x a"],
    label_probs: Float[Array, "x a a"],
    reward: Float[Array, "x a"],
) -> Float[Array, ""]:
    r"""Return the dual value of policy and labels, at most :math:`\min_r\phi(\pi, r)`."""
    if not rewards.is_convex(reward_class):
        return reward_class.objectives(problem, policy).min()
    if not saddle_forms.uses_label_probs(problem, reward_class):
        return saddle_columns.lower_bound(problem, reward_class, policy, reward)
    wins = jnp.asarray(problem.wins)
    n_comparisons = _or_one(wins.sum())
    comparisons = wins + wins.mT
    weights = problem.eta * jnp.asarray(problem.context_weights)
    labels = (wins.sum(axis=1) - jnp.sum(comparisons * label_probs, axis=2)) / n_comparisons
    flow = weights[:, None] * (policy - jnp.asarray(problem.baseline_policy)) + labels
    lowest = 0.0 * n_comparisons
    if rewards.is_compact(reward_class):
        lowest = rewards.linear_minimum(reward_class, flow)
    entropy = jnp.sum(comparisons * entr(label_probs)) / n_comparisons
    reference = jnp.asarray(problem.reference_policy)
    # A reference without the responses that lose their probability sums to less than one.
    missing = 1.0 - reference.sum(axis=-1)
    missing = jnp.where(missing > ROUNDING * reference.shape[-1], missing, 0.0)
    kl = weights @ (kl_divergence(policy, reference) + missing)
    return entropy + lowest - problem.beta * kl


def _or_one(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by one, for use as denominators."""
    return jnp.where(values > 0, values, 1.0)
