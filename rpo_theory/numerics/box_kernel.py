"""The box method compiled by Numba: every context of many problems, on SIMD lanes and threads.

The functions are compiled once for a number of actions and kept on disk. A context has the same
bits in any lane, beside any others and on any thread. Numba is imported at the first call.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..types import Problem
from .box_kernel_source import kernel_source

MAX_ACTIONS = 12  # the unrolled code, and the time to compile it, grow with the third power
MAX_WIDTH = 700.0  # exp of half the width must not overflow when two of them are added
CONTEXTS_PER_TASK = 4096  # contexts of one task of a thread: enough to keep the lanes full
_lock = threading.Lock()


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

    def solve_from(start: int) -> KernelResult:
        rows = slice(start, start + size)
        leaves: list[Any] = [np.asarray(leaf)[rows] for leaf in problems[:6]]
        return _solve_part(functions, Problem(*leaves), width[rows], tolerance, max_steps)

    starts = range(0, n_problems, size)
    n_threads = min(len(starts), os.cpu_count() or 1)
    if n_threads <= 1:
        parts = list(map(solve_from, starts))
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            parts = list(pool.map(solve_from, starts))
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


def _functions(n_actions: int) -> types.ModuleType:
    """Return the compiled functions for a number of actions; one thread compiles them."""
    with _lock:
        return _compiled(n_actions)


@cache
def _compiled(n_actions: int) -> types.ModuleType:
    source = kernel_source(n_actions)
    folder = _cache_folder()
    if folder is not None:
        # Whatever is wrong with a folder or a file in it, the kernel compiles without them.
        with suppress(Exception):
            path = _stored(folder / _digest(source), source)
            return _run(source, n_actions, filename=str(path), cache=True)
    return _run(source, n_actions, filename="<box kernel>", cache=False)


def _run(source: str, n_actions: int, *, filename: str, cache: bool) -> types.ModuleType:
    """Execute the source code as a module; Numba reads or writes its cache beside the file."""
    module = types.ModuleType(f"rpo_theory.numerics.box_kernel_for_{n_actions}_actions")
    module.__file__ = filename
    module.__dict__["CACHE"] = cache
    sys.modules[module.__name__] = module  # Numba looks the functions of its cache up by name
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


def _cache_folder() -> Path | None:
    """Return the folder of compiled kernels, or None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache and not os.environ.get("HOME", "unset"):
        return None
    with suppress(RuntimeError):
        return (Path(cache) if cache else Path.home() / ".cache") / "rpo" / "kernels"
    return None


def _digest(source: str) -> str:
    """Return a name for the code and for everything that the compiled code depends on."""
    import llvmlite
    import llvmlite.binding as llvm
    import numba

    facts = [
        source,
        *(numba.__version__, llvmlite.__version__, platform.python_version()),
        *(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


def _stored(folder: Path, source: str) -> Path:
    """Write the source code once; a process that reads it never sees a part of it."""
    path = folder / "box_kernel.py"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source)
        os.replace(part, path)
    return path
