r"""Recompute certificates with fifty digits, from the formulas and without code of the package.

For a policy and a reward, with :math:`F` and :math:`\phi` as in the paper, the true gap
:math:`F(r) - \min_{r'}\phi(\pi, r')` lies between two numbers. Any challenger :math:`r'` gives the
lower bound :math:`F(r) - \phi(\pi, r')`. By convexity, that plus the linear gap of :math:`r'` along
the gradient of :math:`\phi` is an upper bound. Challengers are the reward itself and a solution by
CVXPY.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import cvxpy
import mpmath
import numpy as np
from mpmath import mpf

from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem

mpmath.mp.dps = 50
Mpf: TypeAlias = Any
"""Number of fifty digits; mpmath has no types."""


class Bounds(NamedTuple):
    """Value and both bounds on the gap, nats, and the resolution of float64."""

    value: Mpf
    lower: Mpf
    upper: Mpf
    roundoff: Mpf


class _ExactProblem(NamedTuple):
    """Problem in numbers of fifty digits."""

    weights: list
    reference: list
    baseline: list
    shares: list
    beta: Mpf
    eta: Mpf


def gap_bounds(
    problem: Problem, reward_class: RewardClass, policy: ArrayLike, reward: ArrayLike
) -> Bounds:
    """Return value and bounds on the duality gap for a box, a ball or a finite class.

    Args:
        problem: one problem.
        reward_class: its reward class.
        policy: any policy; it is divided by its sums, which are one up to rounding.
        reward: a member of the class.

    Returns:
        The bounds, which are equal for a finite class.
    """
    exact, law = _exact(problem), [_normalized(row) for row in _numbers(policy)]
    value = _value(exact, _numbers(reward))
    if isinstance(reward_class, FiniteClass):
        worst = min(_phi(exact, law, _numbers(member)) for member in reward_class.rewards)
        return Bounds(
            value, value - worst, value - worst, _roundoff(exact, value, reward_class.rewards)
        )
    worst_reward = _worst_reward(problem, reward_class, np.asarray(policy))
    challengers: list[Any] = [reward] if worst_reward is None else [reward, worst_reward]
    lower, upper = [], []
    for member in map(_numbers, challengers):
        bound = value - _phi(exact, law, member)
        lower.append(bound)
        upper.append(bound + _linear_gap(reward_class, _gradient(exact, law, member), member))
    roundoff = _roundoff(exact, value, *challengers)
    return Bounds(value, max(lower), min(upper), roundoff)


def _roundoff(exact: _ExactProblem, value: Mpf, *rewards: ArrayLike) -> Mpf:
    """Return the effect of rounding every probability in float64, plus that of fifty digits."""
    largest = max(float(np.abs(np.asarray(reward)).max()) for reward in rewards)
    ulps = 4 * mpf(np.finfo(float).eps) * (exact.eta * (largest + exact.beta) + abs(value))
    return ulps + mpf(10) ** -40


def mixture_gap(
    problem: Problem, reward_class: FiniteClass, policy: ArrayLike, mixture: ArrayLike
) -> Mpf:
    """Return the gap of a finite class whose adversary draws a member by given probabilities."""
    exact, law = _exact(problem), [_normalized(row) for row in _numbers(policy)]
    probabilities = _normalized(_numbers(mixture))
    members = [_numbers(member) for member in reward_class.rewards]
    mean = [
        [
            sum(p * member[x][a] for p, member in zip(probabilities, members, strict=True))
            for a in range(n)
        ]
        for x, n in enumerate(map(len, law))
    ]
    losses = sum(p * _loss(exact, member) for p, member in zip(probabilities, members, strict=True))
    best = _value(exact, mean) - _loss(exact, mean) + losses
    return best - min(_phi(exact, law, member) for member in members)


def excess(problem: Problem, reward_class: FiniteClass, reward: ArrayLike) -> Mpf:
    """Return the excess of F of a reward over the smallest F of a finite class, nats."""
    exact = _exact(problem)
    least = min(_value(exact, _numbers(member)) for member in reward_class.rewards)
    return _value(exact, _numbers(reward)) - least


def stationarity(problem: Problem, policy: ArrayLike, reward: ArrayLike) -> Mpf:
    """Return the largest derivative of phi by a finite reward, nats: the residual of S1."""
    exact, law = _exact(problem), [_normalized(row) for row in _numbers(policy)]
    gradient = _gradient(exact, law, _numbers(reward))
    finite = np.isfinite(np.asarray(reward))
    return max([abs(gradient[x][a]) for x, a in np.argwhere(finite)], default=mpf(0))


def _exact(problem: Problem) -> _ExactProblem:
    wins = _numbers(problem.wins)
    n_comparisons = sum(count for table in wins for row in table for count in row)
    shares = [[[count / (n_comparisons or 1) for count in row] for row in table] for table in wins]
    weights, reference, baseline = map(_numbers, problem[:3])
    weights, reference = _normalized(weights), [_normalized(row) for row in reference]
    baseline = [_normalized(row) for row in baseline]
    beta, eta = _numbers(problem.beta), _numbers(problem.eta)
    return _ExactProblem(weights, reference, baseline, shares, beta, eta)


def _value(exact: _ExactProblem, reward: list) -> Mpf:
    """Return F(r), eq. 4.4."""
    value = _loss(exact, reward)
    for weight, law, base, row in zip(*exact[:3], reward, strict=True):
        top = max(row)
        z = mpmath.fsum(
            p * mpmath.exp((r - top) / exact.beta) for p, r in zip(law, row, strict=True)
        )
        expected = sum(b * r for b, r in zip(base, row, strict=True))
        value += exact.eta * weight * (exact.beta * mpmath.log(z) + top - expected)
    return value


def _phi(exact: _ExactProblem, policy: list, reward: list) -> Mpf:
    """Return phi(pi, r), eq. 4.1."""
    value = _loss(exact, reward)
    for weight, law, base, probs, row in zip(*exact[:3], policy, reward, strict=True):
        terms = zip(law, base, probs, row, strict=True)
        for p, b, q, r in terms:
            kl = q * mpmath.log(q / p) if q > 0 else mpf(0)
            value += exact.eta * weight * ((q - b) * r - exact.beta * kl)
    return value


def _loss(exact: _ExactProblem, reward: list) -> Mpf:
    """Return L_D(r), eq. 3.2."""
    loss = mpf(0)
    for table, row in zip(exact.shares, reward, strict=True):
        for winner, lost in enumerate(table):
            for loser, share in enumerate(lost):
                if share:
                    loss += share * _softplus(row[loser] - row[winner])
    return loss


def _gradient(exact: _ExactProblem, policy: list, reward: list) -> list:
    """Return the gradient of phi in the reward; comparisons of two infinite rewards cancel."""
    gradient = [
        [exact.eta * weight * (q - b) for q, b in zip(probs, base, strict=True)]
        for weight, probs, base in zip(exact.weights, policy, exact.baseline, strict=True)
    ]
    for x, table in enumerate(exact.shares):
        for winner, lost in enumerate(table):
            for loser, share in enumerate(lost):
                high, low = reward[x][winner], reward[x][loser]
                if share and not (mpmath.isinf(high) and mpmath.isinf(low)):
                    surprise = share * _sigmoid(low - high)
                    gradient[x][winner] -= surprise
                    gradient[x][loser] += surprise
    return gradient


def _linear_gap(reward_class: RewardClass, gradient: list, reward: list) -> Any:
    """Return the distance of a reward from the minimum of a linear function over its class."""
    pairs = [
        pair for rows in zip(gradient, reward, strict=True) for pair in zip(*rows, strict=True)
    ]
    attained = sum(v * r for v, r in pairs)
    match reward_class:
        case TabularBox(maximum):
            return attained - mpf(float(maximum)) * sum(min(v, mpf(0)) for v, _ in pairs)
        case LinearBall(features, radius):
            flat = _numbers(np.asarray(features).reshape(len(pairs), -1))
            columns = zip(*flat, strict=True)
            image = [
                sum(v * f for (v, _), f in zip(pairs, column, strict=True)) for column in columns
            ]
            return attained + mpf(float(radius)) * mpmath.sqrt(sum(entry**2 for entry in image))
    raise TypeError(f"no linear gap over {type(reward_class).__name__}")


def _worst_reward(
    problem: Problem, reward_class: RewardClass, policy: np.ndarray
) -> np.ndarray | None:
    """Return the worst reward by CVXPY, projected into the class, or None if it has none."""
    wins = np.asarray(problem.wins, float)
    share = wins / (wins.sum() or 1.0)
    excess = problem.eta * problem.context_weights[:, None] * (policy - problem.baseline_policy)
    size = max(float(problem.eta), 1.0)
    if isinstance(reward_class, TabularBox):
        table = float(reward_class.maximum) * np.eye(policy.size)
    elif isinstance(reward_class, LinearBall):
        table = float(reward_class.radius) * np.reshape(reward_class.features, (policy.size, -1))
    else:
        return None
    unit = cvxpy.Variable(table.shape[1])
    ball = isinstance(reward_class, LinearBall)
    constraints: list[Any] = [cvxpy.norm(unit) <= 1] if ball else [unit >= 0, unit <= 1]
    flat = np.arange(policy.size).reshape(policy.shape)
    terms = [
        share[x, winner, loser]
        / size
        * cvxpy.logistic((table[flat[x, loser]] - table[flat[x, winner]]) @ unit)
        for x, winner, loser in np.argwhere(share > 0)
        if winner != loser
    ]
    objective = (excess.reshape(-1) / size @ table) @ unit + sum(terms)
    try:
        cvxpy.Problem(cvxpy.Minimize(objective), constraints).solve(solver=cvxpy.CLARABEL)
    except (cvxpy.SolverError, ValueError):
        return None
    if unit.value is None or not np.isfinite(unit.value).all():
        return None
    point = unit.value
    if isinstance(reward_class, TabularBox):
        return (table @ np.clip(point, 0.0, 1.0)).reshape(policy.shape)
    return (table @ (point / max(1.0, np.linalg.norm(point)))).reshape(policy.shape)


def _softplus(x: Mpf) -> Mpf:
    return mpmath.log1p(mpmath.exp(-abs(x))) + max(x, mpf(0))


def _sigmoid(x: Mpf) -> Mpf:
    return mpf(1) / (mpf(1) + mpmath.exp(-x))


def _normalized(row: list) -> list:
    """Divide a row by its sum."""
    row_sum = sum(row)
    return [entry / row_sum for entry in row]


def _numbers(array: Any) -> Any:
    """Return an array as nested lists of numbers of fifty digits."""
    array = np.asarray(array, float)
    return [_numbers(part) for part in array] if array.ndim else mpf(float(array))
