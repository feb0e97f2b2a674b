"""One problem, many, or more than the memory holds at once: the same for every solver."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from .problems import normalize
from .rewards import RewardClass
from .types import Problem, Solution, Status

GroupSolver = Callable[[Problem, RewardClass], Solution]
VECTOR = 8
"""Numbers of float64 in the widest vectors of processors."""
Tree = Any
"""Arrays in tuples, named or not, and in dictionaries."""


def solve_one(solve_batch: GroupSolver, problem: Problem, reward_class: RewardClass) -> Solution:
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


def to_float64(problems: Problem, reward_class: RewardClass) -> tuple[Problem, RewardClass]:
    """What a solver works on: NumPy arrays in float64, laws that sum to one in float64.

    Args:
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.

    Returns:
        Both; a law that sums to zero, which no valid problem has, becomes NaN.
    """
    with np.errstate(invalid="ignore"):
        problems = normalize(problems)
    return problems, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), reward_class)


def group_size(problems: Problem, entries: int) -> int:
    """How many problems of a shape have so many win counts together: see :func:`round_group_size`.

    Args:
        problems: the instances, with a leading batch axis.
        entries: of the win counts.

    Examples:
        >>> even = np.full((9, 1, 2), 0.5)
        >>> problems = Problem(np.ones((9, 1)), even, even, np.zeros((9, 1, 2, 2)), 1.0, 1.0)
        >>> group_size(problems, 17)
        1
    """
    _, n_contexts, n_actions = np.shape(problems.reference_policy)
    return round_group_size(entries / (n_contexts * n_actions**2))


def round_group_size(most: float) -> int:
    """The largest power of two that is at most so large, or one where that is less than a vector.

    Of any other number some would be left over from the vectors of the processor, and what is
    computed one by one is rounded differently.

    Args:
        most: of what is computed together.

    Examples:
        >>> round_group_size(30.0), round_group_size(7.0)
        (16, 1)
    """
    size = 1 << max(0, int(most).bit_length() - 1)
    return size if size >= VECTOR else 1


def map_in_groups(function: Callable[..., Tree], *arguments: Tree, size: int) -> Tree:
    """Apply a function of a batch to groups of one size, all filled up.

    A program is compiled for every size, and no two round alike. In groups of one size an answer
    has the same bits whatever is answered beside it: see :func:`round_group_size` and :func:`_filled`.
    Computes in float64 whatever the caller's configuration.

    Args:
        function: compiled, of arrays with a leading batch axis.
        arguments: trees of numbers with that axis.
        size: of a group.

    Returns:
        What it returns, as NumPy arrays with the same leading axis.

    Examples:
        >>> map_in_groups(lambda x: x**2, np.arange(5.0), size=2).tolist()
        [0.0, 1.0, 4.0, 9.0, 16.0]
    """
    arguments = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arguments)
    n_rows = len(jax.tree.leaves(arguments)[0])
    groups = []
    for start in range(0, n_rows, size):
        rows = _filled(start, size, n_rows)
        group = jax.tree.map(lambda leaf, rows=rows: leaf[rows], arguments)
        with jax.enable_x64(True):
            groups.append(jax.device_get(function(*group)))
    return jax.tree.map(lambda *parts: _joined(parts, size, n_rows), *groups)


def _filled(start: int, size: int, n_rows: int) -> Int[np.ndarray, " g"]:
    """Rows of a group; past the last row of all it comes again, and so does one that fills up.

    Compilers may leave the last vector of a loop to be computed one by one: no answer is there.
    """
    filling = int(size > 1)
    return np.minimum(np.arange(start, start + size + filling), n_rows - 1)


def _joined(parts: Sequence[np.ndarray], size: int, n_rows: int) -> np.ndarray:
    """Answers of all groups in order, without those that filled them up."""
    rows = [group for part in parts for group in np.split(part, len(part) // (size + (size > 1)))]
    return np.concatenate([group[:size] for group in rows])[:n_rows]


def solve_in_groups(
    solve_group: GroupSolver,
    problems: Problem,
    reward_class: RewardClass,
    *,
    size: int,
    side_by_side: bool = False,
) -> Solution:
    """Cut a batch into groups of one size, solve them, and join the answers.

    All groups share one compilation, and each is dropped when it is done, so that memory does not
    grow with the number of problems beyond the answers. As with :func:`map_in_groups` an answer does
    not depend on the batch; nor on the machine: devices share the groups out among them. Computes
    in float64 whatever the caller's configuration.

    Args:
        solve_group: compiled solver of a group; a partial of a function with hashable options.
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        size: problems in a group.
        side_by_side: solve groups at once, one on each device or, with one device, on each core.
            Only for solvers whose factorisations are small: XLA deals large batches of them out to
            threads of its own, and two executions that do so at once have been seen to wait for
            each other for ever.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.
    """
    problems, reward_class = to_float64(problems, reward_class)
    n_problems = len(problems.reference_policy)
    n_groups = -(-n_problems // size)
    devices = tuple(jax.local_devices()) if side_by_side else (jax.local_devices()[0],)
    at_once = min(len(devices), n_groups)
    solver = _on_devices(solve_group, devices[:at_once]) if at_once > 1 else solve_group
    threads = (os.cpu_count() or 1) if side_by_side and at_once == 1 else 1
    # The caller's setting is its thread's own; the workers take it over.
    promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    def solve_from(start: int) -> Solution:
        starts = range(start, start + at_once * size, size)
        rows = np.concatenate([_filled(first, size, n_problems) for first in starts])
        with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
            group = jax.tree.map(lambda leaf: leaf[rows], (problems, reward_class))
            return jax.device_get(solver(*group))

    with ThreadPoolExecutor(threads) as pool:
        groups = list(pool.map(solve_from, range(0, n_problems, at_once * size)))
    return jax.tree.map(lambda *parts: _joined(parts, size, n_problems), *groups)


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
