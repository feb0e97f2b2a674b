"""Entry of the solvers inside ``jit``, ``vmap`` and ``grad``, where values are not known.

Outside tracing a solver validates its arguments and computes on the host in a scoped float64.
Inside a trace it is a pure JAX function: it validates no value, and the caller must have enabled
float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from .rewards import RewardClass, to_float64
from .types import ArrayLike, Problem, Solution

BatchSolver: TypeAlias = Callable[[Problem, RewardClass], Solution]
"""Pure JAX solver of problems with a leading batch axis."""


def in_trace(*trees: Any) -> bool:
    """Return whether a function is called inside a trace, which must then be in float64.

    Args:
        trees: arguments of the function.

    Returns:
        True if an argument is traced, or if ``jit`` traces the caller.

    Raises:
        RuntimeError: if the call is traced and float64 is not enabled.

    Examples:
        >>> in_trace(1.0)
        False
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))
    # Inside `jit` even constants are staged, so the host drivers cannot run.
    traced = traced or isinstance(jax.lax.add(0.0, 0.0), Tracer)
    if traced and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError(
            "the solvers need float64 inside `jit`, `vmap` and `grad`, got a trace in float32: "
            'call jax.config.update("jax_enable_x64", True) at the start of the program'
        )
    return traced


def traced_arguments(problem: Problem, reward_class: Any, *tables: ArrayLike) -> tuple:
    """Return the arguments of a pure JAX solver in float64, with normalized distributions.

    Args:
        problem: one problem, without a batch axis.
        reward_class: its reward class.
        tables: further arrays.

    Returns:
        The arguments, in the same order.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.full(1, 2.0), even, even, wins, beta=1.0, eta=1.0)
        >>> traced, _, table = traced_arguments(problem, (), np.zeros(2, np.float32))
        >>> traced.context_weights.tolist(), table.dtype.name
        ([1.0], 'float64')
    """
    tables = tuple(jnp.asarray(table).astype(jnp.float64) for table in tables)
    return _normalized(problem), to_float64(reward_class), *tables


def _normalized(problem: Problem) -> Problem:
    """Convert a traced problem to float64 and divide its distributions by their sums.

    A derivative along a direction that changes such a sum is therefore that of the distribution.

    Args:
        problem: one problem, without a batch axis.
    """
    problem = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float64), problem)
    return problem._replace(
        context_weights=divided_by_sum(problem.context_weights),
        reference_policy=divided_by_sum(problem.reference_policy),
        baseline_policy=divided_by_sum(problem.baseline_policy),
    )


def divided_by_sum(distribution: Float[ArrayLike, "*s a"]) -> Float[Array, "*s a"]:
    """Divide frequencies by their sums over the last axis.

    Examples:
        >>> divided_by_sum(jnp.array([[1.0, 3.0]])).tolist()
        [[0.25, 0.75]]
    """
    distribution = jnp.asarray(distribution)
    return distribution / distribution.sum(axis=-1, keepdims=True)


def solver_of_one(solve_batch: BatchSolver) -> BatchSolver:
    """Return a solver of one problem that ``vmap`` turns into one call for the whole batch.

    Args:
        solve_batch: solver of batches.
    """

    @jax.custom_batching.custom_vmap
    def solve_one(problem: Problem, reward_class: RewardClass) -> Solution:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (problem, reward_class))
        return jax.tree.map(lambda leaf: leaf[0], solve_batch(*batch))

    @solve_one.def_vmap
    def solve_all(
        axis_size: int, in_batched: Any, problem: Problem, reward_class: RewardClass
    ) -> tuple[Solution, Any]:
        def with_batch_axis(leaf: Array, batched: bool) -> Array:
            leaf = jnp.asarray(leaf)
            return leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

        batch = jax.tree.map(with_batch_axis, (problem, reward_class), tuple(in_batched))
        solutions = solve_batch(*batch)
        return solutions, jax.tree.map(lambda _: True, solutions)

    return solve_one
