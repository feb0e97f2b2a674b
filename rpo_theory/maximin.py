r"""Algorithm 1, the adversarial problem: :math:`\hat\pi\in\arg\max_\pi\min_{r\in\mathcal R}\phi`.

Solved on the policy itself, by a method that shares nothing with :mod:`rpo_theory.minimax`: no
Gibbs policy, no :math:`\log Z`, no softmax (see :mod:`rpo_theory.numerics.saddle_interior_point`). That both find
the same policy is Theorem 5.6 of `liu:24`, where it holds; for a finite, non-convex class it does
not, and this is then the answer of Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr
from jaxtyping import Float

from . import unbounded
from ._batching import group_size, raise_unless_solved, solve_in_groups, solve_one
from .certificate import verify_status
from .numerics import saddle_interior_point
from .numerics.feasible_sets import Ball, Box, FeasibleSet, Free, Simplex
from .numerics.saddle_interior_point import Progress, SaddleProblem
from .objectives import saddle_objective
from .policies import kl_divergence
from .preference import negative_log_likelihood
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import Problem, Solution, Status

TOLERANCE = 1e-12
MAX_STEPS = 100
CHUNK = 16_384  # matrix entries that are worked on together: they should stay in the cache
GROUP = 8192  # matrix entries of one call, in which all saddles of a chunk wait for the slowest


def solve(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    throw: bool = True,
) -> Solution:
    r"""Maximise over the policy what it gains, for sure, against the worst reward of a class.

    Computes in float64 whatever the caller's configuration. At a prompt without adversarial term
    (:math:`\eta d_0(x) = 0`) any policy is optimal; the one returned satisfies the condition that
    the others do, :math:`\beta\log(\pi/\pi_{ref}) = r` up to a constant, with a reward of maximal
    likelihood (over all rewards there may be none, and the step limit comes first).

    Args:
        problem: the instance.
        reward_class: the adversary's class.
        tolerance: of the residual of the optimality conditions, in probabilities.
        max_steps: most Newton steps.
        throw: raise if no solution was found, instead of returning its status.

    Returns:
        The policy, the adversary's reward, and the value :math:`\min_r\phi(\hat\pi, r)` by the dual
        of the likelihood: a lower bound on :math:`F` that is exact at the solution. For a finite
        class the reward is the member that carries most of the adversary's weight; for the
        unbounded class rewards are :math:`\beta\log(\pi/\pi_{ref})` on the support, and ``-inf``
        where the infimum is not attained. Solved only where the certificate, which the method
        itself never sees, proves it. Stats: ``residual``, ``steps``; for a finite class
        ``mixture``, the adversary's probabilities of its members.

    Raises:
        ValueError: if a solution was not found and ``throw`` is set.

    References:
        `liu:24`, Algorithm 1, eq. 3.3.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(np.ones(1), even, even, wins, np.array(1.0), np.array(1e-3))
        >>> solve(problem, TabularBox(np.array(2.0))).policy.round(3).tolist()
        [[0.75, 0.25]]
    """
    solver = partial(solve_batch, tolerance=tolerance, max_steps=max_steps, throw=throw)
    return solve_one(solver, problem, reward_class)


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

    Examples:
        >>> even, one = np.full((2, 1, 2), 0.5), np.ones(2)
        >>> problems = Problem(np.ones((2, 1)), even, even, np.zeros((2, 1, 2, 2)), one, one)
        >>> solve_batch(problems, TabularBox(one)).policy.shape
        (2, 1, 2)
    """
    # One group after the other: batched factorisations in two threads at once wait for each other
    # for ever (jaxlib 0.10.2), and use all cores by themselves.
    solver = partial(_solve_group, tolerance=tolerance, max_steps=max_steps)
    size = group_size(problems, GROUP)
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
    """Play every saddle of every problem, a cache-full of them at a time, and read the answers."""
    n_problems, _, n_actions = problems.reference_policy.shape
    reduced = None
    if isinstance(reward_class, Unbounded):
        reduced = jax.vmap(unbounded.reduce)(problems)
        problems = reduced.problem
    saddles = jax.vmap(_saddle_problems)(problems, reward_class)
    n_saddles = n_problems * saddles.weights.shape[1]
    flat = jax.tree.map(lambda leaf: leaf.reshape(n_saddles, *leaf.shape[2:]), saddles)
    solver = partial(
        saddle_interior_point.solve,
        tolerance=jnp.asarray(tolerance, jnp.float64),
        max_steps=max_steps,
    )
    results = _map_by_chunks(solver, flat, CHUNK // (flat.reference.shape[1] * n_actions**2))
    results = jax.tree.map(
        lambda leaf: leaf.reshape(n_problems, n_saddles // n_problems, *leaf.shape[1:]), results
    )
    solutions = jax.vmap(partial(_conclude, tolerance))(problems, reward_class, results)
    if reduced is None:
        return solutions
    return jax.vmap(_in_the_limit)(reduced, solutions)


def _map_by_chunks(
    solver: Callable[[SaddleProblem], Progress], saddles: SaddleProblem, chunk_size: int
) -> Progress:
    """Map over the saddles, a chunk side by side: all of a chunk wait for its slowest."""
    n_saddles = saddles.weights.shape[0]
    n_chunks = -(-n_saddles // max(1, chunk_size))
    size = -(-n_saddles // n_chunks)
    order = jnp.minimum(jnp.arange(n_chunks * size), n_saddles - 1).reshape(n_chunks, size)
    chunks = jax.tree.map(lambda leaf: leaf[order], saddles)
    results = jax.lax.map(jax.vmap(solver), chunks)
    return jax.tree.map(
        lambda leaf: leaf.reshape(n_chunks * size, *leaf.shape[2:])[:n_saddles], results
    )


def _saddle_problems(problem: Problem, reward_class: RewardClass) -> SaddleProblem:
    r"""Cut a problem into saddles that nothing couples, on the first axis of the arrays.

    Tabular rewards make a saddle of every prompt, in units of its own weight, so that inside none is
    a weight tiny or :math:`\eta` large.
    """
    wins = jnp.asarray(problem.wins)
    total = wins.sum()
    share = wins / _or_one(total)
    problem = problem._replace(wins=share)
    match reward_class:
        case TabularBox(maximum):
            return _prompt_problems(problem, Box(), jnp.asarray(maximum))
        case Unbounded():
            return _prompt_problems(problem, Free(), jnp.ones_like(total))
        case LinearBall(features, radius):
            features = jnp.asarray(features)
            longest = _or_one(jnp.linalg.norm(features, axis=-1).max())
            saddle = _saddle_problem(
                problem, Ball(features / longest), jnp.asarray(radius) * longest
            )
        case FiniteClass(rewards):
            members = jnp.moveaxis(jnp.asarray(rewards), 0, -1)
            width = _or_one(jnp.abs(members).max())
            losses = jax.vmap(negative_log_likelihood, (0, None))(rewards, wins)
            scale = jnp.sum(problem.eta * jnp.asarray(problem.context_weights)) + share.sum()
            mixture = Simplex(members / width, losses / (_or_one(scale) * width))
            # The losses of the members say all about the comparisons.
            saddle = _saddle_problem(
                problem._replace(wins=jnp.zeros_like(wins)), mixture, width, scale
            )
    return jax.tree.map(lambda leaf: leaf[None], saddle)


def _prompt_problems(
    problem: Problem, rewards: Box | Free, width: Float[Array, ""]
) -> SaddleProblem:
    def saddle(*prompt: Float[Array, "..."]) -> SaddleProblem:
        weight, reference, baseline, wins = (leaf[None] for leaf in prompt)
        prompt_problem = Problem(weight, reference, baseline, wins, problem.beta, problem.eta)
        return _saddle_problem(prompt_problem, rewards, width)

    return jax.vmap(saddle)(*map(jnp.asarray, problem[:4]))


def _saddle_problem(
    problem: Problem,
    rewards: FeasibleSet,
    width: Float[Array, ""],
    scale: Float[Array, ""] | None = None,
) -> SaddleProblem:
    """SaddleProblem of some prompts, whose wins are shares of all comparisons, per weight and range."""
    weights = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)
    wins = jnp.asarray(problem.wins)
    scale = _or_one(weights.sum() + wins.sum() if scale is None else scale)

    def component_means(unit: Float[Array, " a"]) -> Float[Array, "x a"]:
        return unbounded.component_means(jnp.broadcast_to(unit, wins.shape[:2]), wins)

    return SaddleProblem(
        weights=weights / scale,
        reference=jnp.asarray(problem.reference_policy),
        baseline=jnp.asarray(problem.baseline_policy),
        losses=wins.sum(axis=1) / scale,
        comparisons=(wins + wins.mT) / scale,
        connected=jax.vmap(component_means, out_axes=2)(jnp.eye(wins.shape[1])),
        beta=jnp.asarray(problem.beta) / width,
        temperature=1.0 / width,
        rewards=rewards,
    )


def _conclude(
    tolerance: Float[Array, ""] | float,
    problem: Problem,
    reward_class: RewardClass,
    results: Progress,
) -> Solution:
    """Read policy, reward, value and status from the last states of a problem's saddles."""
    state = results.state
    shape = problem.reference_policy.shape
    policy = state.policy.reshape(shape)
    policy = policy / _or_one(policy.sum(axis=-1, keepdims=True))
    label_probs = state.label_probs.reshape(problem.wins.shape)
    match reward_class:
        case TabularBox(maximum):
            reward = reward_class.project(maximum * state.adversary)
        case Unbounded():
            reward = state.adversary - state.level
        case LinearBall(features, radius):
            parameter = state.adversary[0] / jnp.maximum(1.0, jnp.linalg.norm(state.adversary[0]))
            reward = jnp.asarray(features) @ (radius * parameter)
        case FiniteClass(rewards):
            reward = jnp.asarray(rewards)[jnp.argmax(state.adversary[0])]
    value = _worst_value(problem, reward_class, policy, label_probs)
    residual = results.residual.max()
    reached = residual <= tolerance
    status = jnp.where(
        reached,
        Status.SOLVED.value,
        jnp.where(jnp.any(results.broken), Status.NOT_FINITE.value, Status.MAX_STEPS.value),
    )
    stats = {"residual": residual, "steps": results.steps.max()}
    if isinstance(reward_class, FiniteClass):
        stats["mixture"] = jnp.maximum(state.adversary[0], 0.0) / state.adversary[0].sum()
    return Solution(policy, reward, value, status, stats)


def _worst_value(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    label_probs: Float[Array, "x a a"],
) -> Float[Array, ""]:
    r"""Value of the dual at a policy and label_probs, at most :math:`\min_r\phi(\pi, r)`."""
    if isinstance(reward_class, FiniteClass):
        against = jax.vmap(partial(saddle_objective, problem, policy))
        return against(jnp.asarray(reward_class.rewards)).min()
    wins = jnp.asarray(problem.wins)
    total = _or_one(wins.sum())
    comparisons = wins + wins.mT
    weights = problem.eta * jnp.asarray(problem.context_weights)
    labels = (wins.sum(axis=1) - jnp.sum(comparisons * label_probs, axis=2)) / total
    flow = weights[:, None] * (policy - jnp.asarray(problem.baseline_policy)) + labels
    priced = 0.0 * total if isinstance(reward_class, Unbounded) else reward_class.minimum(flow)
    entropy = jnp.sum(comparisons * entr(label_probs)) / total
    kl = weights @ kl_divergence(policy, problem.reference_policy)
    return entropy + priced - problem.beta * kl


def _in_the_limit(reduced: unbounded.ReducedProblem, solution: Solution) -> Solution:
    """Answer over all rewards from that of what is left when diverging ones are taken out."""
    reward = jnp.where(reduced.kept, solution.reward, -jnp.inf)
    limit = (solution.status == Status.SOLVED) & ~reduced.attained
    status = jnp.where(limit, Status.NOT_ATTAINED.value, solution.status)
    status = jnp.where(reduced.bounded, status, Status.UNBOUNDED.value)
    objective = reduced.share * solution.objective
    return solution._replace(reward=reward, objective=objective, status=status)


def _or_one(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.where(values > 0, values, 1.0)
