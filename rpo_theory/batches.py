"""One problem, many, or more than the memory holds at once: the same for every solver."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from .problems import normalised
from .rewards import RewardClass
from .types import Problem, Solution, Status

GroupSolver = Callable[[Problem, RewardClass], Solution]
GROUPS = 8
"""Groups that a batch is cut into at least, if they are not too small to be worth it."""
LEAST = 16_384
"""Entries of the win counts that make a group worth it."""


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


def in_float64(problems: Problem, reward_class: RewardClass) -> tuple[Problem, RewardClass]:
    """What a solver works on: NumPy arrays in float64, laws that sum to one in float64.

    Args:
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.

    Returns:
        Both; a law that sums to zero, which no valid problem has, becomes NaN.
    """
    with np.errstate(invalid="ignore"):
        problems = normalised(problems)
    return problems, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), reward_class)


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
    grow with the number of problems beyond the answers. How a batch is cut does not depend on the
    machine, so that neither do the answers: devices share the groups out among them. Computes in
    float64 whatever the caller's configuration.

    Args:
        solve_group: compiled solver of a group; a partial of a function with hashable options.
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        entries: most entries of the win counts in a group.
        side_by_side: solve groups at once, one on each device or, with one device, on each core.
            Only for solvers whose factorisations are small: XLA deals large batches of them out to
            threads of its own, and two executions that do so at once have been seen to wait for
            each other for ever.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.
    """
    problems, reward_class = in_float64(problems, reward_class)
    n_problems, n_contexts, n_actions = problems.reference_policy.shape
    per_problem = n_contexts * n_actions**2
    most, least = max(1, entries // per_problem), -(-LEAST // per_problem)
    per_group = min(most, max(least, -(-n_problems // GROUPS)))
    n_groups = -(-n_problems // per_group)
    per_group = -(-n_problems // n_groups)

    devices = tuple(jax.local_devices()) if side_by_side else (jax.local_devices()[0],)
    at_once = min(len(devices), n_groups)
    solver = _on_devices(solve_group, devices[:at_once]) if at_once > 1 else solve_group
    threads = (os.cpu_count() or 1) if side_by_side and at_once == 1 else 1
    # The caller's setting is its thread's own; the workers take it over.
    promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    def solve_from(start: int) -> Solution:
        rows = np.minimum(np.arange(start, start + at_once * per_group), n_problems - 1)
        with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
            group = jax.tree.map(lambda leaf: leaf[rows], (problems, reward_class))
            return jax.device_get(solver(*group))

    with ThreadPoolExecutor(threads) as pool:
        groups = list(pool.map(solve_from, range(0, n_problems, at_once * per_group)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n_problems], *groups)


def _on_devices(solve_group: GroupSolver, devices: tuple[Any, ...]) -> GroupSolver:
    """A solver of as many groups as there are devices, each on its own."""
    if isinstance(solve_group, partial):
        options = tuple(sorted(solve_group.keywords.items()))
        return _sharded(solve_group.func, options, devices)
    return _sharded(solve_group, (), devices)


@lru_cache(maxsize=32)
def _sharded(
    solve_group: GroupSolver, options: tuple[tuple[str, Any], ...], devices: tuple[Any, ...]
) -> GroupSolver:
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    share = partial(solve_group, **dict(options))
    return jax.jit(jax.shard_map(share, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


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
