"""Entry of the solvers inside ``jit``, ``vmap`` and ``grad``, where values are not known.

Outside tracing a solver validates its arguments and computes on the host in a scoped float64. Inside
a trace it is a pure JAX function: it validates no value, and the caller must have enabled float64.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from .types import Problem

Tree = TypeVar("Tree")


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


def to_float64(tree: Tree) -> Tree:
    """Convert every number of a pytree to a JAX array in float64.

    Args:
        tree: pytree of numbers and arrays, traced or not.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float64), tree)


def normalized(problem: Problem) -> Problem:
    """Convert a traced problem to float64 and divide its distributions by their sums.

    A derivative along a direction that changes such a sum is therefore that of the distribution.

    Args:
        problem: one problem, without a batch axis.
    """
    problem = to_float64(problem)
    return problem._replace(
        context_weights=divided_by_sum(problem.context_weights),
        reference_policy=divided_by_sum(problem.reference_policy),
        baseline_policy=divided_by_sum(problem.baseline_policy),
    )


def divided_by_sum(distribution: Float[Array, "*s a"]) -> Float[Array, "*s a"]:
    """Divide frequencies by their sums over the last axis."""
    return distribution / distribution.sum(axis=-1, keepdims=True)
