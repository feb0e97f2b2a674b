"""Choice of the compiled code that solves a batch of box problems.

What solves a problem follows from the class, the number of actions, the width, the platform and the
caller's explicit choice, never from the number of problems: its bits are the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from ._batching import to_float64
from .certificate import is_proven
from .numerics import box_kernel
from .rewards import AnyRewardClass, RewardClass
from .types import Problem, Solution, Status

Kernel: TypeAlias = Literal["jax", "numba"]
"""Name of the code that solves box problems: compiled by XLA, or by Numba."""
KERNELS = ("jax", "numba")


def check_kernel(kernel: str) -> None:
    """Raise if a kernel is unknown.

    Args:
        kernel: name of the kernel.

    Raises:
        ValueError: if it is not one of :data:`KERNELS`.
    """
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` must be 'jax' or 'numba', got {kernel!r}")


def solve_by_numba(
    problems: Problem,
    reward_class: AnyRewardClass,
    solve_rest: Callable[[Problem, RewardClass], Solution],
    *,
    tolerance: float,
    max_steps: int,
) -> Solution:
    """Solve a batch by the Numba kernel, and the problems it does not apply to otherwise.

    Args:
        problems: valid problems with a leading batch axis; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        solve_rest: solver of the other problems.
        tolerance: KKT residual at which the Newton iteration stops, in probabilities.
        max_steps: maximum number of Newton steps.

    Returns:
        The solutions, as NumPy arrays with the same leading axis.
    """
    has_only_wins = problems.choices is None and problems.ties is None
    width_of = getattr(reward_class, "kernel_width", None)
    if width_of is None or not has_only_wins or jax.default_backend() != "cpu":
        return solve_rest(problems, reward_class)
    problems, reward_class = to_float64(problems, reward_class)
    n_problems, _, n_actions = problems.reference_policy.shape
    width = np.broadcast_to(reward_class.kernel_width(), n_problems)
    applies = box_kernel.applies(n_actions, width)
    if applies.all():
        return _solve(problems, width, tolerance, max_steps)
    if not applies.any():
        return solve_rest(problems, reward_class)

    def select(rows: np.ndarray) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], (problems, reward_class))

    solved = _solve(select(applies)[0], width[applies], tolerance, max_steps)
    return jax.tree.map(
        lambda inside, outside: _merge(applies, inside, outside),
        solved,
        solve_rest(*select(~applies)),
    )


def _solve(problems: Problem, width: np.ndarray, tolerance: float, max_steps: int) -> Solution:
    """Return the solutions of the kernel, with the status that the duality gaps prove."""
    policy, reward, value, gap, residual, steps = box_kernel.solve(
        problems, width, tolerance=tolerance, max_steps=max_steps
    )
    with jax.enable_x64(True):
        proven = np.asarray(is_proven(problems, gap, value))
    status = np.where(proven, Status.SOLVED.value, Status.MAX_STEPS.value)
    # A number of a problem that is not finite makes its value NaN or infinite.
    status[~np.isfinite(value)] = Status.NOT_FINITE.value
    stats: dict[str, Any] = {"duality_gap": gap, "residual": residual, "steps": steps}
    return Solution(policy, reward, value, status, stats)


def _merge(applies: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    merged = np.empty((len(applies), *inside.shape[1:]), inside.dtype)
    merged[applies], merged[~applies] = inside, outside
    return merged
