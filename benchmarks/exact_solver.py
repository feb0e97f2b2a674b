"""Measure the speed of the exact solver relative to what others would write, in one run.

    python benchmarks/exact_solver.py [--out DIR] [--quick] [--earlier CHECKOUT]

The problems have 8 contexts x 10 actions, beta = eta = 1 / sqrt(N):

* 512 problems with 1,000 comparisons, by both kernels (Numba: 16 copies in a call) and by the
  solvers of ``exact_solver_peers.py`` in turns; the ratios are of the shortest times;
* the time with 10^2 and with 10^7 comparisons;
* 10^5 problems in one call, in a separate process, with its peak memory;
* with ``--earlier``, the JAX path of another checkout, in alternating processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import exact_solver_peers as peers
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from rpo_theory import certificate, minimax
from rpo_theory.objectives import minimax_objective
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

CONTEXTS, ACTIONS, REWARD_MAX = 8, 10, 2.0
REPEATED = 16
"""Copies of the problems in a call of the Numba kernel, whose fixed costs are those of a study."""


def problems(n: int, seed: int = 0, comparisons: float = 1000.0) -> Problem:
    """Draw problems with random pairs, baseline "chosen", and beta = eta = 1 / sqrt(N)."""
    rng = np.random.default_rng(seed)
    shape = (n, CONTEXTS, ACTIONS)
    reward = rng.uniform(0, REWARD_MAX, shape)
    pairs = np.triu(np.ones((*shape, ACTIONS)), 1)
    trials = rng.poisson(pairs * comparisons / pairs[0].sum())
    won = rng.binomial(trials, expit(reward[..., :, None] - reward[..., None, :]))
    wins = (won + np.swapaxes(trials - won, -1, -2)).astype(float)
    reference = rng.dirichlet(np.ones(ACTIONS), shape[:2])
    counts = wins.sum(axis=-1)
    sums = counts.sum(axis=-1, keepdims=True)
    chosen = np.where(sums > 0, counts / np.maximum(sums, 1), reference)
    weight = np.full(n, comparisons**-0.5)
    return Problem(rng.dirichlet(np.ones(CONTEXTS), n), reference, chosen, wins, weight, weight)


def box(n: int) -> TabularBox:
    """Return the reward classes of a batch."""
    return TabularBox(np.full(n, REWARD_MAX))


def select(batch: Problem, i: int | slice) -> Problem:
    """Return one problem of a batch, or some."""
    leaves: list[Any] = [np.asarray(leaf)[i] for leaf in batch[:6]]
    return Problem(*leaves)


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Return the shortest time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def against_others(n: int, scipy_sample: int, cvxpy_sample: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds per problem of each solver, measured in turns, and the ratios."""
    batch = problems(n)
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, batch)
        sample = jax.tree.map(lambda leaf: leaf[:64], arrays)
    bfgs = peers.optimistix_rewards(sample, REWARD_MAX)
    barrier = peers.barrier_rewards(arrays, REWARD_MAX)
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf] * REPEATED), batch)
    many = n * REPEATED
    solvers: dict[str, tuple[Callable[[], Any], int]] = {
        "numba": (lambda: minimax.solve_batch(repeated, box(many), kernel="numba").reward, many),
        "jax": (lambda: minimax.solve_batch(batch, box(n)).reward, n),
        "scipy_lbfgsb": (
            lambda: [peers.scipy_reward(select(batch, i), REWARD_MAX) for i in range(scipy_sample)],
            scipy_sample,
        ),
        "cvxpy_clarabel": (
            lambda: [peers.cvxpy_reward(select(batch, i), REWARD_MAX) for i in range(cvxpy_sample)],
            cvxpy_sample,
        ),
        "optimistix_bfgs": (bfgs, 64),
        "barrier_newton": (barrier, n),
    }
    first, best, errors = {}, dict.fromkeys(solvers, np.inf), {}
    exact = minimax.solve_batch(batch, box(n))
    with jax.enable_x64(True):
        for name, (solve, count) in solvers.items():
            start = time.perf_counter()
            rewards = np.asarray(solve())
            first[name] = time.perf_counter() - start
            values = [
                float(minimax_objective(select(batch, i), rewards[i])) - exact.objective[i]
                for i in range(min(count, 64))
            ]
            errors[name] = max(values)
        for _ in range(rounds):
            for name, (solve, count) in solvers.items():
                repeats = 5 if name in ("numba", "jax") else 1
                best[name] = min(best[name], seconds(solve, repeats) / count)
    proofs = [
        certificate.certify(select(batch, i), TabularBox(REWARD_MAX), policy, reward)
        for i, (policy, reward) in enumerate(zip(exact.policy[:32], exact.reward[:32], strict=True))
    ]
    return {
        "problems": n,
        "load_average": os.getloadavg()[0],
        "largest_kkt_residual_of_32": max(float(proof.kkt_residual) for proof in proofs),
        "largest_duality_gap": float(np.max(exact.stats["duality_gap"])),
        "seconds_of_first_call": first,
        "ms_per_problem": {name: 1e3 * best[name] for name in solvers},
        "value_above_exact": errors,
        "times_slower_than_numba": {name: best[name] / best["numba"] for name in solvers},
        "times_slower_than_jax": {name: best[name] / best["jax"] for name in solvers},
    }


def against_earlier(folder: Path, n: int, rounds: int) -> dict[str, float]:
    """Return the times of the JAX path here and in another checkout, in alternating processes."""
    here = Path(__file__).resolve().parents[1]
    best = {here: np.inf, folder: np.inf}
    for _ in range(rounds):
        for root in best:
            command = [sys.executable, "-c", EARLIER, str(root), str(n)]
            process = subprocess.run(command, check=True, capture_output=True, text=True)
            best[root] = min(best[root], float(process.stdout))
    names = {"ms_here": 1e3 * best[here] / n, "ms_earlier": 1e3 * best[folder] / n}
    return names | {"times_faster": best[folder] / best[here]}


EARLIER = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
from exact_solver import box, minimax, problems, seconds
n = int(sys.argv[2])
batch = problems(n)
minimax.solve_batch(batch, box(n))
print(seconds(lambda: minimax.solve_batch(batch, box(n)), 5))
"""


def against_comparisons(n: int) -> dict[str, float]:
    """Return the time with 10^2 and with 10^7 comparisons per problem, all else equal."""
    batch = problems(n, comparisons=1e2)
    batches = [batch._replace(wins=np.asarray(batch.wins) * factor) for factor in (1.0, 1e5)]
    times = []
    for rescaled in batches:
        minimax.solve_batch(rescaled, box(n))
        times.append(seconds(partial(minimax.solve_batch, rescaled, box(n)), 5))
    return {"ms_at_1e2": 1e3 * times[0] / n, "ms_at_1e7": 1e3 * times[1] / n}


def many(n: int) -> dict[str, float]:
    """Solve ``n`` problems in one call of the Numba kernel; called in a separate process."""
    batch = problems(4096)
    repeats = -(-n // 4096)
    leaves: list[Any] = [np.concatenate([leaf] * repeats)[:n] for leaf in batch[:6]]
    batch = Problem(*leaves)
    start = time.perf_counter()
    minimax.solve_batch(select(batch, slice(8)), box(8), kernel="numba")
    compilation = time.perf_counter() - start
    start = time.perf_counter()
    gaps = minimax.solve_batch(batch, box(n), kernel="numba").stats["duality_gap"]
    elapsed = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "problems": n,
        "seconds": elapsed,
        "seconds_of_compilation_or_cache": compilation,
        "peak_gib": peak,
        "largest_duality_gap": float(np.max(gaps)),
    }


def main() -> None:
    """Run all measurements and write ``exact_solver.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--earlier", type=Path, help="another checkout, for the JAX path")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all solvers")
    parser.add_argument("--many", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.many is not None:
        print(json.dumps(many(args.many)))
        return
    sizes = (64, 4, 2, 4096) if args.quick else (512, 48, 16, 10**5)
    n, scipy_sample, cvxpy_sample, n_many = sizes
    command = [sys.executable, __file__, "--many", str(n_many)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = {
        "against_others": against_others(n, scipy_sample, cvxpy_sample, args.rounds),
        "against_comparisons": against_comparisons(n),
        "many": json.loads(process.stdout),
    }
    if args.earlier is not None:
        result["against_earlier"] = against_earlier(args.earlier.resolve(), n, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "exact_solver.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
