"""Measure the speed of the exact solver relative to SciPy and CVXPY in one run.

    python benchmarks/exact_solver.py [--out DIR] [--quick]

Three measurements, on problems of 8 contexts x 10 actions with beta = eta = 1 / sqrt(N):

* 512 problems with 1,000 comparisons in one batch, against SciPy (L-BFGS-B, analytic gradient) and
  CVXPY with Clarabel, which solve samples of the same problems one by one;
* the time with 10^2 and with 10^7 comparisons;
* 10^5 problems in a separate process, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from rpo_theory import certificate, minimax
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

CONTEXTS, ACTIONS, REWARD_MAX = 8, 10, 2.0


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


def select(batch: Problem, i: int) -> Problem:
    """Return one problem of a batch."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], batch)


def scipy_reward(problem: Problem) -> np.ndarray:
    """Minimize F(r) by L-BFGS-B with its analytic gradient, to the tightest tolerances of SciPy."""
    beta, eta, d0 = float(problem.beta), float(problem.eta), np.asarray(problem.context_weights)
    reference, base = np.asarray(problem.reference_policy), np.asarray(problem.baseline_policy)
    wins = np.asarray(problem.wins) / np.asarray(problem.wins).sum()
    log_reference = np.log(reference)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        reward = flat.reshape(CONTEXTS, ACTIONS)
        logits = log_reference + reward / beta
        margin = reward[:, :, None] - reward[:, None, :]
        flow = wins * expit(-margin)
        log_z = np.asarray(logsumexp(logits, axis=1))
        penalty = d0 @ (beta * log_z - (base * reward).sum(axis=1))
        gradient = eta * d0[:, None] * (softmax(logits, axis=1) - base)
        gradient += flow.sum(axis=1) - flow.sum(axis=2)
        value = eta * penalty + np.sum(wins * np.logaddexp(0, -margin))
        return float(value), gradient.ravel()

    start = np.full(CONTEXTS * ACTIONS, REWARD_MAX / 2)
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, REWARD_MAX)] * start.size,
        options={"gtol": 1e-9, "ftol": 0.0, "maxiter": 10_000, "maxfun": 10_000},
    )
    return result.x.reshape(CONTEXTS, ACTIONS)


def cvxpy_reward(problem: Problem) -> np.ndarray:
    """Minimize F(r) by CVXPY with Clarabel, including the compilation of the model."""
    import cvxpy as cp

    beta, eta = float(problem.beta), float(problem.eta)
    wins = np.asarray(problem.wins) / np.asarray(problem.wins).sum()
    reward = cp.Variable((CONTEXTS, ACTIONS))
    terms = []
    for x in range(CONTEXTS):
        log_z = cp.log_sum_exp(reward[x] / beta + np.log(problem.reference_policy[x]))
        weight = eta * float(problem.context_weights[x])
        terms.append(weight * (beta * log_z - problem.baseline_policy[x] @ reward[x]))
        won, lost = np.nonzero(wins[x])
        if won.size:
            terms.append(wins[x][won, lost] @ cp.logistic(reward[x][lost] - reward[x][won]))
    bounds: list = [reward >= 0, reward <= REWARD_MAX]
    cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))), bounds).solve(solver=cp.CLARABEL)
    return np.asarray(reward.value)


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Return the shortest time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def against_others(n: int, scipy_sample: int, cvxpy_sample: int) -> dict[str, float]:
    """Return the milliseconds per problem of each solver, and the ratios."""
    batch = problems(n)
    solution = minimax.solve_batch(batch, box(n))
    proofs = [
        certificate.certify(select(batch, i), TabularBox(REWARD_MAX), policy, reward)
        for i, (policy, reward) in enumerate(
            zip(solution.policy[:32], solution.reward[:32], strict=True)
        )
    ]
    solve = partial(minimax.solve_batch, batch, box(n))
    exact = seconds(solve, 5) / n
    rewards = [scipy_reward(select(batch, i)) for i in range(scipy_sample)]
    scipy = seconds(lambda: [scipy_reward(select(batch, i)) for i in range(scipy_sample)])
    scipy /= scipy_sample
    cvxpy = seconds(lambda: [cvxpy_reward(select(batch, i)) for i in range(cvxpy_sample)])
    cvxpy /= cvxpy_sample
    exact = min(exact, seconds(solve, 5) / n)
    values = [
        float(certificate.minimax_objective(select(batch, i), r)) for i, r in enumerate(rewards)
    ]
    return {
        "problems": n,
        "largest_newton_residual": float(np.max(solution.stats["residual"])),
        "largest_kkt_residual_of_32": max(float(proof.kkt_residual) for proof in proofs),
        "largest_duality_gap": float(np.max(solution.stats["duality_gap"])),
        "exact_ms": 1e3 * exact,
        "scipy_lbfgsb_ms": 1e3 * scipy,
        "cvxpy_clarabel_ms": 1e3 * cvxpy,
        "ratio_to_scipy": scipy / exact,
        "ratio_to_cvxpy": cvxpy / exact,
        "scipy_value_above_exact": max(
            v - float(solution.objective[i]) for i, v in enumerate(values)
        ),
    }


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
    """Solve ``n`` problems in batches of 4,096, as a study does; called in a separate process."""
    start, largest = time.perf_counter(), 0.0
    size = 4096
    for seed, first in enumerate(range(0, n, size)):
        count = min(size, n - first)
        batch = problems(size, seed)
        gaps = minimax.solve_batch(batch, box(size)).stats["duality_gap"][:count]
        largest = max(largest, float(np.max(gaps)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    elapsed = time.perf_counter() - start
    return {"problems": n, "seconds": elapsed, "peak_gib": peak, "largest_duality_gap": largest}


def main() -> None:
    """Run all measurements and write ``exact_solver.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--many", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.many is not None:
        print(json.dumps(many(args.many)))
        return
    sizes = (64, 4, 2, 4096) if args.quick else (512, 48, 16, 10**5)
    n, scipy_sample, cvxpy_sample, n_many = sizes
    command = [sys.executable, __file__, "--many", str(n_many)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    result = {
        "against_others": against_others(n, scipy_sample, cvxpy_sample),
        "against_comparisons": against_comparisons(n),
        "many": json.loads(process.stdout),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "exact_solver.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
