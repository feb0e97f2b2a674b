"""What others would write for the tabular box: four solvers of the same problem.

SciPy and CVXPY solve one problem after the other. The two JAX programs are vmapped and jitted: BFGS
of optimistix, which keeps rewards in the box by a sigmoid, and Newton's method on a log barrier.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from rpo_theory.objectives import minimax_objective
from rpo_theory.types import Problem


def scipy_reward(problem: Problem, reward_max: float) -> np.ndarray:
    """Minimize F(r) by L-BFGS-B with its analytic gradient, to the tightest tolerances of SciPy."""
    beta, eta, d0 = float(problem.beta), float(problem.eta), np.asarray(problem.context_weights)
    reference, base = np.asarray(problem.reference_policy), np.asarray(problem.baseline_policy)
    wins = np.asarray(problem.wins) / np.asarray(problem.wins).sum()
    log_reference = np.log(reference)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        reward = flat.reshape(reference.shape)
        logits = log_reference + reward / beta
        margin = reward[:, :, None] - reward[:, None, :]
        flow = wins * expit(-margin)
        log_z = np.asarray(logsumexp(logits, axis=1))
        penalty = d0 @ (beta * log_z - (base * reward).sum(axis=1))
        gradient = eta * d0[:, None] * (softmax(logits, axis=1) - base)
        gradient += flow.sum(axis=1) - flow.sum(axis=2)
        value = eta * penalty + np.sum(wins * np.logaddexp(0, -margin))
        return float(value), gradient.ravel()

    start = np.full(reference.size, reward_max / 2)
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, reward_max)] * start.size,
        options={"gtol": 1e-9, "ftol": 0.0, "maxiter": 10_000, "maxfun": 10_000},
    )
    return result.x.reshape(reference.shape)


def cvxpy_reward(problem: Problem, reward_max: float) -> np.ndarray:
    """Minimize F(r) by CVXPY with Clarabel, including the compilation of the model."""
    import cvxpy as cp

    beta, eta = float(problem.beta), float(problem.eta)
    wins = np.asarray(problem.wins) / np.asarray(problem.wins).sum()
    reward = cp.Variable(np.shape(problem.reference_policy))
    terms = []
    for x in range(len(wins)):
        log_z = cp.log_sum_exp(reward[x] / beta + np.log(problem.reference_policy[x]))
        weight = eta * float(problem.context_weights[x])
        terms.append(weight * (beta * log_z - problem.baseline_policy[x] @ reward[x]))
        won, lost = np.nonzero(wins[x])
        if won.size:
            terms.append(wins[x][won, lost] @ cp.logistic(reward[x][lost] - reward[x][won]))
    bounds: list = [reward >= 0, reward <= reward_max]
    cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))), bounds).solve(solver=cp.CLARABEL)
    return np.asarray(reward.value)


def optimistix_rewards(problems: Problem, reward_max: float, steps: int = 512) -> Any:
    """Minimize F by vmapped BFGS in the logits of ``reward / reward_max``, to its default norm."""
    import optimistix

    solver = optimistix.BFGS(rtol=1e-9, atol=1e-9)

    @jax.jit
    def solve(batch: Problem) -> Any:
        def one(problem: Problem) -> Any:
            def objective(logits: Any, _: Any) -> Any:
                return minimax_objective(problem, reward_max * jax.nn.sigmoid(logits))

            start = jnp.zeros(np.shape(problem.reference_policy))
            options = {"max_steps": steps, "throw": False}
            result = optimistix.minimise(  # codespell:ignore minimise
                objective, solver, start, **options
            )
            return reward_max * jax.nn.sigmoid(result.value)

        return jax.vmap(one)(batch)

    return lambda: jax.block_until_ready(solve(problems))


def barrier_rewards(problems: Problem, reward_max: float, steps: int = 45) -> Any:
    """Minimize F by vmapped Newton steps on a log barrier that falls, one block a context."""

    @jax.jit
    def solve(batch: Problem) -> Any:
        def one(wins: Any, reference: Any, baseline: Any, *scalars: Any) -> Any:
            weight, share, beta = scalars

            def objective(reward: Any, barrier: Any) -> Any:
                log_z = jax.scipy.special.logsumexp(reward / beta, b=reference)
                margin = reward[:, None] - reward[None, :]
                loss = share * jnp.sum(wins * jax.nn.softplus(-margin))
                edge = jnp.sum(jnp.log(reward) + jnp.log(reward_max - reward))
                return weight * (beta * log_z - baseline @ reward) + loss - barrier * edge

            def step(i: Any, reward: Any) -> Any:
                barrier = (weight + share * wins.sum()) * jnp.maximum(0.1 * 0.5**i, 1e-14)
                gradient = jax.grad(objective)(reward, barrier)
                hessian = jax.hessian(objective)(reward, barrier)
                move = -jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")
                room = jnp.where(move > 0, (reward_max - reward) / move, -reward / move)
                return reward + jnp.minimum(1.0, 0.9 * jnp.min(room)) * move

            start = jnp.full(reference.shape, 0.5 * reward_max)
            return jax.lax.fori_loop(0, steps, step, start)

        share = jnp.broadcast_to(1.0 / batch.wins.sum(axis=(1, 2, 3))[:, None], weights.shape)
        beta = jnp.broadcast_to(jnp.asarray(batch.beta)[:, None], weights.shape)
        arguments = (batch.wins, batch.reference_policy, batch.baseline_policy)
        return jax.vmap(jax.vmap(one))(*arguments, weights, share, beta)

    weights = jnp.asarray(problems.eta)[:, None] * jnp.asarray(problems.context_weights)
    return lambda: jax.block_until_ready(solve(problems))
