"""Laplacian quadratic programs of many problems, compiled by Numba; see :mod:`.laplacian_qp`.

The kernel is compiled once for all sizes and kept on disk. A program has the same bits beside any
others and on any thread. Numba is imported at the first call.
"""

from __future__ import annotations

import types
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .kernel_cache import load_kernel
from .kernel_threads import map_rows

PROGRAMS_PER_TASK = 4096  # a few milliseconds of one thread


class KernelOptimum(NamedTuple):
    """Solutions of Laplacian programs.

    Attributes:
        objective: values, at least 0 and possibly ``inf``.
        converged: whether the active-set method converged within its step limit.
    """

    objective: Float[np.ndarray, " q"]
    converged: Bool[np.ndarray, " q"]


def solve(
    pairs: Float[np.ndarray, "q a a"],
    linear: Float[np.ndarray, "q a"],
    nonnegative: Bool[np.ndarray, "q a"],
    nonpositive: Bool[np.ndarray, "q a"],
    roundoff: Float[np.ndarray, " q"],
) -> KernelOptimum:
    r"""Solve many programs, as :func:`rpo_theory.numerics.laplacian_qp.solve` does one.

    Args:
        pairs: the edge between ``i`` and ``j`` has the weight ``pairs[i, j] + pairs[j, i]``; the
            diagonal is ignored.
        linear: linear terms :math:`c`.
        nonnegative: nodes with the constraint :math:`d_i\ge0`.
        nonpositive: nodes with the constraint :math:`d_i\le0`; no node has both.
        roundoff: largest absolute sum of the linear term over a component that counts as zero.

    Returns:
        Value and convergence of every program.

    Examples:
        >>> one_way = np.array([[[0.0, 2.0], [0.0, 0.0]]])
        >>> linear, free = np.array([[1.0, -1.0]]), np.zeros((1, 2), bool)
        >>> solve(one_way, linear, free, free, np.array([1e-6])).objective.tolist()
        [0.5]
    """
    arguments = [
        np.ascontiguousarray(array) for array in (pairs, linear, nonnegative, nonpositive, roundoff)
    ]
    n_programs = len(linear)
    found = KernelOptimum(np.empty(n_programs), np.empty(n_programs, bool))

    def solve_rows(rows: slice) -> None:
        _functions().solve(*(array[rows] for array in (*arguments, *found)))

    map_rows(solve_rows, n_programs, PROGRAMS_PER_TASK)
    return found


@cache
def _functions() -> types.ModuleType:
    source = Path(__file__).with_name("laplacian_kernel_source.py").read_text(encoding="utf-8")
    return load_kernel("laplacian_kernel", source)
