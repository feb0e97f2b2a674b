"""Batches of problems: solve one, many, or more than fit into memory at once.

A batch is cut into groups of one fixed size, so that one compiled program serves all of them and
the solution of a problem has the same bits whatever else is in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from . import rewards
from .problems import normalize
from .rewards import RewardClass
from .types import Problem, Solution, Status

GroupSolver = Callable[[Problem, RewardClass], Solution]
VECTOR = 8
"""Number of float64 values in the widest vector registers of CPUs."""
Tree: TypeAlias = Any
"""Pytree of arrays."""


def solve_one(solve_batch: GroupSolver, problem: Problem, reward_class: RewardClass) -> Solution:
    """Solve one problem with a solver of batches.

    Args:
        solve_batch: solver of batches.
        problem: one problem, without a batch axis.
        reward_class: its reward class.

    Returns:
        The solution, without a batch axis.
    """
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (problem, reward_class))
    return jax.tree.map(lambda leaf: leaf[0], solve_batch(*batch))


def to_float64(problems: Problem, reward_class: RewardClass) -> tuple[Problem, RewardClass]:
    """Convert a batch to NumPy arrays in float64 with normalized distributions.

    Args:
        problems: problems with a leading batch axis; scalars apply to every problem.
        reward_class: reward class of each problem, with the same leading axis.

    Returns:
        Both, with a batch axis on every array. A distribution that sums to zero, which no valid
        problem has, becomes NaN.
    """
    with np.errstate(invalid="ignore"):
        problems = normalize(problems)
    return broadcast_scalars((problems, rewards.to_float64(reward_class)), len(problems.wins))


def group_size(problems: Problem, entries: int) -> int:
    """Return the number of problems whose win counts together have at most ``entries`` entries.

    Args:
        problems: problems with a leading batch axis.
        entries: upper limit on the number of win counts in a group.

    Returns:
        The size of a group, rounded by :func:`round_group_size`.

    Examples:
        >>> even = np.full((9, 1, 2), 0.5)
        >>> problems = Problem(np.ones((9, 1)), even, even, np.zeros((9, 1, 2, 2)), 1.0, 1.0)
        >>> group_size(problems, 17)
        1
    """
    _, n_contexts, n_actions = np.shape(problems.reference_policy)
    return round_group_size(entries / (n_contexts * n_actions**2))


def round_group_size(limit: float) -> int:
    """Return the largest power of two up to a limit, or 1 if that is smaller than a vector.

    With any other size, the last problems of a group would not fill a vector register, and scalar
    instructions round differently from vector instructions.

    Args:
        limit: upper limit on the size of a group.

    Returns:
        The size of a group, at least 1.

    Examples:
        >>> round_group_size(30.0), round_group_size(7.0)
        (16, 1)
    """
    size = 1 << max(0, int(limit).bit_length() - 1)
    return size if size >= VECTOR else 1


def map_in_groups(function: Callable[..., Tree], *arguments: Tree, size: int) -> Tree:
    """Apply a function of batches to groups of one fixed size, and join the results.

    XLA compiles one program per size, and programs of different sizes round differently. With one
    size, a result has the same bits whatever else is in the batch. Computes in float64 whatever
    the caller's configuration.

    Args:
        function: compiled function of arrays with a leading batch axis.
        arguments: pytrees of numbers with that axis; scalars apply to the whole batch.
        size: size of a group.

    Returns:
        The results as NumPy arrays with the same leading axis.

    Examples:
        >>> map_in_groups(lambda x: x**2, np.arange(5.0), size=2).tolist()
        [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    arguments = tuple(map(_as_float64, arguments))
    n_rows = next(len(leaf) for leaf in jax.tree.leaves(arguments) if leaf.ndim)
    arguments = broadcast_scalars(arguments, n_rows)
    groups = []
    for start in range(0, n_rows, size):
        rows = _padded_indices(start, size, n_rows)
        group = jax.tree.map(lambda leaf, rows=rows: leaf[rows], arguments)
        with jax.enable_x64(True):
            groups.append(jax.device_get(function(*group)))
    return jax.tree.map(lambda *parts: _join(parts, size, n_rows), *groups)


def _as_float64(argument: Tree) -> Tree:
    if isinstance(argument, RewardClass):
        return rewards.to_float64(argument)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), argument)


def broadcast_scalars(tree: Tree, n_rows: int) -> Tree:
    """Return a pytree of arrays with a batch axis, where a scalar applies to the whole batch."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (n_rows,)) if leaf.ndim == 0 else leaf, tree
    )


def _padded_indices(start: int, size: int, n_rows: int) -> Int[np.ndarray, " g"]:
    """Return the row indices of a group, padded by repeating the last row of the batch.

    Compilers may compute the last element of a loop with scalar instructions: a group of more than
    one row therefore gets one row of padding more than it needs.
    """
    padding = int(size > 1)
    return np.minimum(np.arange(start, start + size + padding), n_rows - 1)


def _join(parts: Sequence[np.ndarray], size: int, n_rows: int) -> np.ndarray:
    """Concatenate the results of all groups in order and drop the padding."""
    rows = [group for part in parts for group in np.split(part, len(part) // (size + (size > 1)))]
    return np.concatenate([group[:size] for group in rows])[:n_rows]


def solve_in_groups(
    solve_group: GroupSolver,
    problems: Problem,
    reward_class: RewardClass,
    *,
    size: int,
    parallel: bool = False,
) -> Solution:
    """Cut a batch into groups of one fixed size, solve them, and join the solutions.

    All groups share one compiled program. The arrays of a group are freed when it is done, so
    memory beyond the solutions does not grow with the batch. As in :func:`map_in_groups`, a
    solution depends neither on the rest of the batch nor on the number of devices. The
    computation is in float64 under any JAX configuration.

    Args:
        solve_group: compiled solver of a group, or a partial of one with hashable options.
        problems: problems with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        size: number of problems in a group.
        parallel: whether to solve several groups at once, one on each device or, with one device,
            one on each core. Only for solvers with small factorizations: XLA distributes large
            batched factorizations over its thread pool, and two executions that do so at the same
            time have been seen to deadlock (jaxlib 0.10.2).

    Returns:
        The solutions as NumPy arrays with the same leading axis.
    """
    problems, reward_class = to_float64(problems, reward_class)
    n_problems = len(problems.reference_policy)
    n_groups = -(-n_problems // size)
    devices = tuple(jax.local_devices()) if parallel else (jax.local_devices()[0],)
    at_once = min(len(devices), n_groups)
    solver = _on_devices(solve_group, devices[:at_once]) if at_once > 1 else solve_group
    threads = (os.cpu_count() or 1) if parallel and at_once == 1 else 1
    # JAX's configuration is thread-local: worker threads take over the caller's setting.
    promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    def solve_from(start: int) -> Solution:
        starts = range(start, start + at_once * size, size)
        rows = np.concatenate([_padded_indices(first, size, n_problems) for first in starts])
        with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
            group = jax.tree.map(lambda leaf: leaf[rows], (problems, reward_class))
            return jax.device_get(solver(*group))

    starts = range(0, n_problems, at_once * size)
    if threads == 1:
        groups = list(map(solve_from, starts))
    else:
        with ThreadPoolExecutor(threads) as pool:
            groups = list(pool.map(solve_from, starts))
    return jax.tree.map(lambda *parts: _join(parts, size, n_problems), *groups)


def _on_devices(solve_group: GroupSolver, devices: tuple[Any, ...]) -> GroupSolver:
    """Return a solver of one group per device."""
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
    shard = partial(solve_group, **dict(options))
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def raise_unless_solved(solution: Solution) -> Solution:
    """Return the solution of a batch if every problem of it was solved, and raise otherwise.

    Args:
        solution: solution of a batch.

    Returns:
        The same solution.

    Raises:
        ValueError: if a problem was not solved; the message names the first one.
    """
    status = np.asarray(solution.status)
    failed = np.flatnonzero((status != Status.SOLVED) & (status != Status.NOT_ATTAINED))
    if failed.size:
        sentence = Status(int(status[failed[0]])).sentence
        where = f"problem {failed[0]} of {status.size}: " if status.size > 1 else ""
        raise ValueError(f"{where}{sentence} (`throw=False` returns the last iterate)")
    return solution
