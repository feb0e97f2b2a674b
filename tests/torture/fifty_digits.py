"""Certificates recomputed at fifty digits, from the formulas alone: nothing of the package's code.

For a pair of policy and reward, with :math:`F` and :math:`\\phi` as in the paper, the true gap
:math:`F(r) - \\min_{r'}\\phi(\\pi, r')` lies between two numbers. Below: any challenger r' gives
:math:`F(r) - \\phi(\\pi, r')`. Above: by convexity no reward beats r' by more than the regret of r'
against the slope of :math:`\\phi`. Challengers are the reward itself and CVXPY's answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy
import mpmath
import numpy as np
from mpmath import mpf

from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem

mpmath.mp.dps = 50


class Bounds(NamedTuple):
    """The value and both bounds on the gap, nats, and what float64 can resolve of them."""

    value: mpf
    lower: mpf
    upper: mpf
    roundoff: mpf


class _Game(NamedTuple):
    """A problem in exact numbers."""

    weights: list
    reference: list
    baseline: list
    shares: list
    beta: mpf
    eta: mpf


def gap_bounds(
    problem: Problem, reward_class: RewardClass, policy: ArrayLike, reward: ArrayLike
) -> Bounds:
    """Value and bounds on the duality gap of a pair, for a box, a ball or a finite class.

    Args:
        problem: one instance.
        reward_class: its class.
        policy: any policy; divided by its sums, which float64 makes one only nearly.
        reward: a reward of the class.

    Returns:
        The bounds; equal where the class is finite.
    """
    game, law = _exact(problem), [_law(row) for row in _numbers(policy)]
    value = _value(game, _numbers(reward))
    if isinstance(reward_class, FiniteClass):
        worst = min(_phi(game, law, _numbers(member)) for member in reward_class.rewards)
        return Bounds(
            value, value - worst, value - worst, _roundoff(game, value, reward_class.rewards)
        )
    answer = _worst_reward(problem, reward_class, np.asarray(policy))
    challengers: list[Any] = [reward] if answer is None else [reward, answer]
    lower, upper = [], []
    for member in map(_numbers, challengers):
        below = value - _phi(game, law, member)
        lower.append(below)
        upper.append(below + _regret(reward_class, _slope(game, law, member), member))
    roundoff = _roundoff(game, value, *challengers)
    return Bounds(value, max(lower), min(upper), roundoff)


def _roundoff(game: _Game, value: mpf, *rewards: ArrayLike) -> mpf:
    """What a unit in the last place of every probability is worth, and of these fifty digits."""
    largest = max(float(np.abs(np.asarray(reward)).max()) for reward in rewards)
    ulps = 4 * mpf(np.finfo(float).eps) * (game.eta * (largest + game.beta) + abs(value))
    return ulps + mpf(10) ** -40


def mixture_gap(
    problem: Problem, reward_class: FiniteClass, policy: ArrayLike, mixture: ArrayLike
) -> mpf:
    """Gap of a finite class whose adversary draws a member with the given probabilities."""
    game, law = _exact(problem), [_law(row) for row in _numbers(policy)]
    drawn = _law(_numbers(mixture))
    members = [_numbers(member) for member in reward_class.rewards]
    mean = [
        [sum(p * member[x][a] for p, member in zip(drawn, members, strict=True)) for a in range(n)]
        for x, n in enumerate(map(len, law))
    ]
    losses = sum(p * _loss(game, member) for p, member in zip(drawn, members, strict=True))
    best = _value(game, mean) - _loss(game, mean) + losses
    return best - min(_phi(game, law, member) for member in members)


def excess(problem: Problem, reward_class: FiniteClass, reward: ArrayLike) -> mpf:
    """By how much F of a reward exceeds the least F of a finite class, nats."""
    game = _exact(problem)
    least = min(_value(game, _numbers(member)) for member in reward_class.rewards)
    return _value(game, _numbers(reward)) - least


def stationarity(problem: Problem, policy: ArrayLike, reward: ArrayLike) -> mpf:
    """Largest slope of phi in a reward that stays finite, nats: identity S1."""
    game, law = _exact(problem), [_law(row) for row in _numbers(policy)]
    slope = _slope(game, law, _numbers(reward))
    finite = np.isfinite(np.asarray(reward))
    return max([abs(slope[x][a]) for x, a in np.argwhere(finite)], default=mpf(0))


def _exact(problem: Problem) -> _Game:
    wins = _numbers(problem.wins)
    total = sum(count for table in wins for row in table for count in row)
    shares = [[[count / (total or 1) for count in row] for row in table] for table in wins]
    weights, reference, baseline = map(_numbers, problem[:3])
    weights, reference = _law(weights), [_law(row) for row in reference]
    baseline = [_law(row) for row in baseline]
    beta, eta = _numbers(problem.beta), _numbers(problem.eta)
    return _Game(weights, reference, baseline, shares, beta, eta)


def _value(game: _Game, reward: list) -> mpf:
    """F(r), eq. 4.4."""
    total = _loss(game, reward)
    for weight, law, base, row in zip(*game[:3], reward, strict=True):
        top = max(row)
        z = mpmath.fsum(
            p * mpmath.exp((r - top) / game.beta) for p, r in zip(law, row, strict=True)
        )
        expected = sum(b * r for b, r in zip(base, row, strict=True))
        total += game.eta * weight * (game.beta * mpmath.log(z) + top - expected)
    return total


def _phi(game: _Game, policy: list, reward: list) -> mpf:
    """phi(pi, r), eq. 4.1."""
    total = _loss(game, reward)
    for weight, law, base, mine, row in zip(*game[:3], policy, reward, strict=True):
        terms = zip(law, base, mine, row, strict=True)
        for p, b, q, r in terms:
            kl = q * mpmath.log(q / p) if q > 0 else mpf(0)
            total += game.eta * weight * ((q - b) * r - game.beta * kl)
    return total


def _loss(game: _Game, reward: list) -> mpf:
    """L_D(r), eq. 3.2."""
    total = mpf(0)
    for table, row in zip(game.shares, reward, strict=True):
        for winner, lost in enumerate(table):
            for loser, share in enumerate(lost):
                if share:
                    total += share * _softplus(row[loser] - row[winner])
    return total


def _slope(game: _Game, policy: list, reward: list) -> list:
    """Gradient of phi in the reward; two rewards of minus infinity pull at each other alone."""
    slope = [
        [game.eta * weight * (q - b) for q, b in zip(mine, base, strict=True)]
        for weight, mine, base in zip(game.weights, policy, game.baseline, strict=True)
    ]
    for x, table in enumerate(game.shares):
        for winner, lost in enumerate(table):
            for loser, share in enumerate(lost):
                high, low = reward[x][winner], reward[x][loser]
                if share and not (mpmath.isinf(high) and mpmath.isinf(low)):
                    pull = share * _sigmoid(low - high)
                    slope[x][winner] -= pull
                    slope[x][loser] += pull
    return slope


def _regret(reward_class: RewardClass, slope: list, reward: list) -> Any:
    """How far a reward is from the minimum of a linear function over the class."""
    pairs = [pair for rows in zip(slope, reward, strict=True) for pair in zip(*rows, strict=True)]
    reached = sum(v * r for v, r in pairs)
    match reward_class:
        case TabularBox(maximum):
            return reached - mpf(float(maximum)) * sum(min(v, mpf(0)) for v, _ in pairs)
        case LinearBall(features, radius):
            flat = _numbers(np.asarray(features).reshape(len(pairs), -1))
            columns = zip(*flat, strict=True)
            image = [
                sum(v * f for (v, _), f in zip(pairs, column, strict=True)) for column in columns
            ]
            return reached + mpf(float(radius)) * mpmath.sqrt(sum(entry**2 for entry in image))
    raise TypeError(f"no regret over {type(reward_class).__name__}")


def _worst_reward(
    problem: Problem, reward_class: RewardClass, policy: np.ndarray
) -> np.ndarray | None:
    """CVXPY's answer to the policy, pulled back into the class; None where it has none."""
    wins = np.asarray(problem.wins, float)
    share = wins / (wins.sum() or 1.0)
    pull = problem.eta * problem.context_weights[:, None] * (policy - problem.baseline_policy)
    size = max(float(problem.eta), 1.0)
    if isinstance(reward_class, TabularBox):
        table = float(reward_class.maximum) * np.eye(policy.size)
    elif isinstance(reward_class, LinearBall):
        table = float(reward_class.radius) * np.reshape(reward_class.features, (policy.size, -1))
    else:
        return None
    unit = cvxpy.Variable(table.shape[1])
    inside = isinstance(reward_class, LinearBall)
    room: list[Any] = [cvxpy.norm(unit) <= 1] if inside else [unit >= 0, unit <= 1]
    flat = np.arange(policy.size).reshape(policy.shape)
    terms = [
        share[x, winner, loser]
        / size
        * cvxpy.logistic((table[flat[x, loser]] - table[flat[x, winner]]) @ unit)
        for x, winner, loser in np.argwhere(share > 0)
        if winner != loser
    ]
    goal = (pull.reshape(-1) / size @ table) @ unit + sum(terms)
    try:
        cvxpy.Problem(cvxpy.Minimize(goal), room).solve(solver=cvxpy.CLARABEL)
    except (cvxpy.SolverError, ValueError):
        return None
    if unit.value is None or not np.isfinite(unit.value).all():
        return None
    found = unit.value
    if isinstance(reward_class, TabularBox):
        return (table @ np.clip(found, 0.0, 1.0)).reshape(policy.shape)
    return (table @ (found / max(1.0, np.linalg.norm(found)))).reshape(policy.shape)


def _softplus(x: mpf) -> mpf:
    return mpmath.log1p(mpmath.exp(-abs(x))) + max(x, mpf(0))


def _sigmoid(x: mpf) -> mpf:
    return mpf(1) / (mpf(1) + mpmath.exp(-x))


def _law(row: list) -> list:
    total = sum(row)
    return [entry / total for entry in row]


def _numbers(array: Any) -> Any:
    """Nested lists of exact numbers."""
    array = np.asarray(array, float)
    return [_numbers(part) for part in array] if array.ndim else mpf(float(array))
