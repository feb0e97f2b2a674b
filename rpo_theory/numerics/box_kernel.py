"""The box method compiled by Numba: every context of many problems, on SIMD lanes and threads.

The functions are compiled once for a number of actions and kept on disk. A context has the same
bits in any lane, beside any others and on any thread. Numba is imported at the first call.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..types import Problem
from .box_kernel_source import kernel_source
from .kernel_cache import load_kernel
from .kernel_threads import map_rows

MAX_ACTIONS = 12  # the unrolled code, and the time to compile it, grow with the third power
MAX_WIDTH = 700.0  # exp of half the width must not overflow when two of them are added
CONTEXTS_PER_TASK = 4096  # contexts of one task of a thread: enough to keep the lanes full


class KernelResult(NamedTuple):
    """Solutions of box problems, with a leading problem axis.

    Attributes:
        policy: Gibbs policies of the rewards.
        reward: minimizers, centered in the box.
        value: minimax objectives, nats.
        gap: bounds on the duality gap, nats.
        residual: largest KKT residual of the contexts of a problem, in probabilities.
        steps: largest number of Newton steps of the contexts of a problem.
    """

    policy: Float[np.ndarray, "p x a"]
    reward: Float[np.ndarray, "p x a"]
    value: Float[np.ndarray, " p"]
    gap: Float[np.ndarray, " p"]
    residual: Float[np.ndarray, " p"]
    steps: Int[np.ndarray, " p"]


def applies(n_actions: int, width: Float[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
    """Return for which problems there is a kernel, given the number of actions and the widths."""
    return (2 <= n_actions <= MAX_ACTIONS) & (width <= MAX_WIDTH)


def solve(
    problems: Problem, width: Float[np.ndarray, " p"], *, tolerance: float, max_steps: int
) -> KernelResult:
    """Minimize F over a box for every problem; :func:`applies` must hold.

    Args:
        problems: problems with a leading batch axis on every array, in float64.
        width: width of the box of each problem.
        tolerance: KKT residual at which a context stops, in probabilities.
        max_steps: maximum number of Newton steps of a context.

    Returns:
        The minimizers, and what is known about them.
    """
    n_problems, n_contexts, n_actions = problems.reference_policy.shape
    functions = _functions(n_actions)
    size = max(1, CONTEXTS_PER_TASK // n_contexts)

    def solve_rows(rows: slice) -> KernelResult:
        leaves: list[Any] = [np.asarray(leaf)[rows] for leaf in problems[:6]]
        return _solve_part(functions, Problem(*leaves), width[rows], tolerance, max_steps)

    parts = map_rows(solve_rows, n_problems, size)
    return KernelResult(*map(np.concatenate, zip(*parts, strict=True)))


def _solve_part(
    functions: types.ModuleType,
    problems: Problem,
    width: Float[np.ndarray, " p"],
    tolerance: float,
    max_steps: int,
) -> KernelResult:
    shape = problems.reference_policy.shape
    n_blocks, n_actions = shape[0] * shape[1], shape[2]
    won = np.asarray(problems.wins).sum(axis=(2, 3))
    n_comparisons = won.sum(axis=1, keepdims=True)
    n_comparisons = np.where(n_comparisons > 0, n_comparisons, 1.0)
    adversary = np.asarray(problems.eta)[:, None] * np.asarray(problems.context_weights)
    scale = adversary + won / n_comparisons
    scale = np.where(scale > 0, scale, 1.0)
    scalars = np.empty((*shape[:2], 4))
    scalars[..., 0], scalars[..., 1] = adversary / scale, 1.0 / (n_comparisons * scale)
    scalars[..., 2], scalars[..., 3] = np.asarray(problems.beta)[:, None], width[:, None]
    blocks = (
        *(
            np.ascontiguousarray(table).reshape(n_blocks, n_actions)
            for table in (problems.reference_policy, problems.baseline_policy)
        ),
        np.ascontiguousarray(problems.wins).reshape(n_blocks, n_actions, n_actions),
        scalars.reshape(n_blocks, 4),
    )
    reward, policy = np.empty((n_blocks, n_actions)), np.empty((n_blocks, n_actions))
    value, gap, residual, steps = np.empty((4, n_blocks))
    functions.newton(*blocks, tolerance, max_steps, reward, residual, steps)
    functions.conclude(*blocks, reward, policy, value, gap)
    return KernelResult(
        policy=policy.reshape(shape),
        reward=reward.reshape(shape),
        value=(scale * value.reshape(shape[:2])).sum(axis=1),
        gap=(scale * np.maximum(gap, 0.0).reshape(shape[:2])).sum(axis=1),
        residual=residual.reshape(shape[:2]).max(axis=1),
        steps=steps.reshape(shape[:2]).max(axis=1).astype(np.int32),
    )


@cache
def _functions(n_actions: int) -> types.ModuleType:
    """Return the compiled functions for a number of actions."""
    return load_kernel(f"box_kernel_for_{n_actions}_actions", kernel_source(n_actions))
