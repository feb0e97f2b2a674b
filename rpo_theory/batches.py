"""One problem, many, or more than the memory holds at once: the same for every solver."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from .rewards import RewardClass
from .types import Problem, Solution, Status

GroupSolver = Callable[[Problem, RewardClass], Solution]


def solve_alone(solve_batch: GroupSolver, problem: Problem, reward_class: RewardClass) -> Solution:
    """Solve a batch of one.

    Args:
        solve_batch: solver of batches.
        problem: one instance.
        reward_class: its reward class.

    Returns:
        The solution, without a batch axis.
    """
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (problem, reward_class))
    return jax.tree.map(lambda leaf: leaf[0], solve_batch(*batch))


def solve_in_groups(
    solve_group: GroupSolver,
    problems: Problem,
    reward_class: RewardClass,
    *,
    entries: int,
    side_by_side: bool = False,
) -> Solution:
    """Cut a batch into groups of one shape, solve them, and join the answers.

    All groups share one compilation, and each is dropped when it is done, so that memory does not
    grow with the number of problems beyond the answers. Computes in float64 whatever the caller's
    configuration.

    Args:
        solve_group: compiled solver of a group.
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        entries: most entries of the win counts in a group.
        side_by_side: solve a group on each core at once. Only for solvers whose factorisations are
            small: XLA deals large batches of them out to threads of its own, and two executions
            that do so at once have been seen to wait for each other for ever.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.
    """
    problems, reward_class = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (problems, reward_class)
    )
    n_problems, n_contexts, n_actions = problems.reference_policy.shape
    per_group = max(1, entries // (n_contexts * n_actions**2))
    cores = (os.cpu_count() or 1) if side_by_side else 1
    n_groups = max(-(-n_problems // per_group), min(n_problems, cores))
    per_group = -(-n_problems // n_groups)

    # The caller's setting is its thread's own; the workers take it over.
    promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    def solve_from(start: int) -> Solution:
        rows = np.minimum(np.arange(start, start + per_group), n_problems - 1)
        with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
            group = jax.tree.map(lambda leaf: leaf[rows], (problems, reward_class))
            return jax.device_get(solve_group(*group))

    with ThreadPoolExecutor(cores) as threads:
        groups = list(threads.map(solve_from, range(0, n_problems, per_group)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n_problems], *groups)


def raise_unless_solved(solution: Solution) -> Solution:
    """Pass on the solution of a batch if every problem of it was solved.

    Args:
        solution: of a batch.

    Returns:
        The same solution.

    Raises:
        ValueError: some problem was not solved; names the first.
    """
    status = np.asarray(solution.status)
    failed = np.flatnonzero((status != Status.SOLVED) & (status != Status.NOT_ATTAINED))
    if failed.size:
        sentence = Status(int(status[failed[0]])).sentence
        where = f"problem {failed[0]} of {status.size}: " if status.size > 1 else ""
        raise ValueError(f"{where}{sentence} (`throw=False` returns what was found)")
    return solution
