"""Linear programs over recession directions: an oracle for infima over all rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import lil_matrix

from rpo_theory.types import Problem, Status

NEGATIVE = 1e-8
"""A smallest rate of growth below minus this number is negative."""
DIVERGES = 1e-5
"""A direction of rate zero that separates responses by more than this number is one."""


def random_problem(
    rng: np.random.Generator, *, contexts: int, actions: int, eta: float | None = None
) -> Problem:
    """Return a problem with sparse supports, and baseline mass off the support in most contexts."""
    shape = (contexts, actions)
    support = rng.random(shape) < rng.uniform(0.3, 1.0)
    support[np.arange(contexts), rng.integers(actions, size=contexts)] = True
    reference = np.where(support, rng.dirichlet(np.ones(actions), contexts) + 0.02, 0.0)
    picked = rng.random(shape) < rng.uniform(0.2, 1.0)
    picked[np.arange(contexts), rng.integers(actions, size=contexts)] = True
    baseline = np.where(picked, rng.dirichlet(np.ones(actions), contexts) + 0.02, 0.0)
    mean = rng.choice([0.2, 0.6, 1.5, 4.0])
    wins = rng.poisson(mean, (*shape, actions)).astype(float) * (1 - np.eye(actions))
    weights = rng.dirichlet(np.ones(contexts))
    if contexts > 1 and rng.random() < 0.2:
        weights[0] = 0.0
    return Problem(
        context_weights=weights / weights.sum(),
        reference_policy=reference / reference.sum(axis=1, keepdims=True),
        baseline_policy=baseline / baseline.sum(axis=1, keepdims=True),
        wins=wins,
        beta=np.array(rng.uniform(0.2, 2.0)),
        eta=np.array(float(np.exp(rng.uniform(-5.0, 0.5))) if eta is None else eta),
    )


def status(problem: Problem, rng: np.random.Generator) -> Status:
    """Return the status of a problem over all rewards by linear programs over directions."""
    cost, rows, limits, bounds = _program(problem)
    lowest = linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    if lowest.fun < -NEGATIVE:
        return Status.UNBOUNDED
    # A random form that is zero on directions of constancy separates the others almost surely.
    form = np.zeros_like(cost)
    form[: problem.baseline_policy.size] = _random_form(problem, rng).ravel()
    rate_zero = lil_matrix((rows.shape[0] + 1, rows.shape[1]))
    rate_zero[:-1], rate_zero[-1] = rows, cost
    for sign in (1.0, -1.0):
        widest = linprog(
            sign * form,
            A_ub=rate_zero.tocsr(),
            b_ub=np.append(limits, 0.0),
            bounds=bounds,
            method="highs",
        )
        if widest.fun < -DIVERGES:
            return Status.NOT_ATTAINED
    return Status.SOLVED


def _program(problem: Problem) -> tuple:
    """Return the rate of growth as a linear program in direction, its maxima, and losses."""
    contexts, actions = np.shape(problem.baseline_policy)
    n_rewards = contexts * actions
    weights = float(problem.eta) * np.asarray(problem.context_weights)
    wins = np.argwhere(np.asarray(problem.wins) > 0)
    size = n_rewards + contexts + len(wins)
    cost = np.zeros(size)
    cost[:n_rewards] = -(weights[:, None] * np.asarray(problem.baseline_policy)).ravel()
    cost[n_rewards : n_rewards + contexts] = weights
    pairs, highest = [], []
    for x, a in np.argwhere(np.asarray(problem.reference_policy) > 0):
        highest.append((x * actions + a, n_rewards + x))
    for i, (x, won, lost) in enumerate(wins):
        cost[n_rewards + contexts + i] = problem.wins[x, won, lost] / np.sum(problem.wins)
        pairs.append((x * actions + lost, x * actions + won, n_rewards + contexts + i))
    rows: Any = lil_matrix((len(highest) + len(pairs), size))
    for row, (reward, maximum) in enumerate(highest):
        rows[row, reward], rows[row, maximum] = 1.0, -1.0
    for row, (lost, won, loss) in enumerate(pairs, start=len(highest)):
        rows[row, lost], rows[row, won], rows[row, loss] = 1.0, -1.0, -1.0
    bounds = [(-1.0, 1.0)] * (n_rewards + contexts) + [(0.0, 2.0)] * len(wins)
    return cost, rows.tocsr(), np.zeros(rows.shape[0]), bounds


def _random_form(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Return a combination of differences within comparisons, and within supports."""
    form = np.zeros(np.shape(problem.baseline_policy))
    weights = float(problem.eta) * np.asarray(problem.context_weights)
    for x in range(len(form)):
        joined = np.asarray(problem.wins)[x] > 0
        support = np.asarray(problem.reference_policy)[x] > 0
        if weights[x] > 0:
            joined = joined | (support[:, None] & support[None, :])
        for first, second in np.argwhere(joined):
            size = rng.normal()
            form[x, first] += size
            form[x, second] -= size
    return form / max(1.0, np.abs(form).sum())
