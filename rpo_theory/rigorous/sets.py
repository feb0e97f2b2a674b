r"""Exact forms of reward classes in balls: bounded minima, and proven members.

Linear programs and least squares in float64 propose; balls check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from rpo_theory.rewards import ROUNDING
from rpo_theory.rewards.exact_forms import ExactForm, FeatureBall, Inequalities, Members

from .balls import Ball, Balls, exact, exact_number, upper

_SHRINKAGES = 60
_UNREACHED = 1e30  # HiGHS refuses infinite limits
_LP_TOLERANCE = 1e-10  # the smallest that HiGHS accepts


def least(form: Inequalities | FeatureBall, direction: Balls) -> Ball:
    r"""Return a ball whose lower end is at most :math:`\min_{r\in\mathcal R}\langle v,r\rangle`.

    Args:
        form: exact form of a convex class.
        direction: :math:`v`, shape ``[x a]``.

    Examples:
        >>> float(least(Inequalities(0.0, 2.0), exact(np.array([[3.0, -1.0]]))))
        -2.0
    """
    match form:
        case FeatureBall(features, radius, gram):
            image = (exact(features) * direction[:, :, None]).sum(axis=(0, 1))
            squared = (image * image).sum()
            if gram is not None:
                flat = direction.ravel()
                squared = squared.max((flat * (exact(gram) * flat).sum(axis=1)).sum())
            return -exact_number(radius) * squared.nonnegative_part().sqrt()
        case Inequalities():
            return _least_in_polyhedron(form, direction.ravel())


def member(form: ExactForm, reward: Float[np.ndarray, "x a"]) -> Balls | None:
    """Return a table that certainly is a member, close to a reward.

    Args:
        form: exact form of a class.
        reward: a member up to rounding.

    Returns:
        Balls all of whose points are members, of radius zero and with the same numbers if the
        reward is a member itself; None if no member is found within rounding of it.

    Examples:
        >>> [float(ball) for ball in member(Inequalities(0.0, 2.0), np.array([[0.1, 2.0]])).flat]
        [0.1, 2.0]
        >>> member(Inequalities(0.0, 2.0), np.array([[0.1, 2.1]])) is None
        True
    """
    match form:
        case Members(rewards):
            distances = np.abs(np.asarray(rewards) - reward).max(axis=(1, 2))
            candidate = exact(np.asarray(rewards)[distances.argmin()])
        case FeatureBall():
            candidate = _member_of_ball(form, reward)
        case Inequalities():
            candidate = _member_of_polyhedron(form, reward)
    if candidate is None:
        return None
    distance = max(upper(abs(ball)) for ball in (candidate - exact(reward)).ravel())
    return candidate if distance <= ROUNDING * (1.0 + np.abs(reward).max()) else None


def _member_of_ball(form: FeatureBall, reward: Float[np.ndarray, "x a"]) -> Balls | None:
    r"""Return :math:`\Phi\theta` for an exact :math:`\theta` in the ball."""
    features = np.asarray(form.features, np.float64)
    theta = np.linalg.lstsq(features.reshape(reward.size, -1), reward.ravel())[0]
    norm, radius = float(np.linalg.norm(theta)), exact_number(form.radius)
    theta = theta * min(1.0, float(form.radius) / norm if norm > 0.0 else 1.0)
    if not np.isfinite(theta).all():
        return None
    while not (exact(theta) ** 2).sum() <= radius**2:
        theta = np.nextafter(theta, 0.0)
    return (exact(features) * exact(theta)).sum(axis=-1)


def _least_in_polyhedron(form: Inequalities, direction: Balls) -> Ball:
    slope, value = _group_sums(form, direction), exact_number(0.0)
    if form.matrix is not None:
        multipliers = exact(_multipliers(form, slope))
        # Weak duality: add y (A u - c b) <= 0 to the objective, then minimize between the bounds.
        value = -(multipliers * _limits(form)).sum()
        slope = slope + _times(form.matrix.T, multipliers)
    part = np.frompyfunc(lambda ball: ball.nonnegative_part(), 1, 1)
    lowest = part(slope) * exact_number(form.lower) - part(-slope) * exact_number(form.upper)
    return value + lowest.sum()


def _multipliers(form: Inequalities, direction: Balls) -> Float[np.ndarray, " m"]:
    """Propose multipliers of the inequalities by a linear program, in units of the width."""
    from scipy.optimize import linprog

    cost = np.array([float(ball.mid()) for ball in direction])
    size, n_rows = float(np.abs(cost).max()), form.matrix.shape[0]
    if size == 0.0 or not np.isfinite(size):
        return np.zeros(n_rows)
    result = linprog(
        cost / size,
        form.matrix,
        _unit_limits(form),
        bounds=(0.0, 1.0),
        method="highs-ds",
        options={
            "primal_feasibility_tolerance": _LP_TOLERANCE,
            "dual_feasibility_tolerance": _LP_TOLERANCE,
        },
    )
    if result.x is None:
        return np.zeros(n_rows)
    return np.maximum(-result.ineqlin.marginals, 0.0) * size


def _member_of_polyhedron(form: Inequalities, reward: Float[np.ndarray, "x a"]) -> Balls | None:
    """Return the table between the bounds, mixed with an interior point as far as needed."""
    flat = reward.ravel()
    groups = np.arange(flat.size) if form.groups is None else np.asarray(form.groups)
    first = np.unique(groups, return_index=True)[1]
    point = exact(np.clip(flat[first], form.lower, form.upper))
    if form.matrix is not None and not _holds(form, point):
        point = _mixed_with_interior(form, point)
    return None if point is None else point[groups].reshape(reward.shape)


def _mixed_with_interior(form: Inequalities, point: Balls) -> Balls | None:
    """Move a point toward an interior point until it certainly satisfies the inequalities."""
    center = _interior(form)
    if center is None:
        return None
    inside = [float(slack.mid()) for slack in _slacks(form, exact(center))]
    excess = [upper(-slack) for slack in _slacks(form, point)]
    share = max(e / (e + s) for e, s in zip(excess, inside, strict=True) if e > 0.0)
    for _ in range(_SHRINKAGES):
        weight = exact_number(share)
        mixed = point * (1 - weight) + exact(center) * weight
        if _holds(form, mixed):
            return mixed
        share = min(2.0 * share, 1.0)
    return None


def _interior(form: Inequalities) -> Float[np.ndarray, " n"] | None:
    """Propose the point whose least slack is largest, by a linear program; None without one."""
    from scipy import sparse
    from scipy.optimize import linprog

    n_rows, n_columns = form.matrix.shape
    matrix = sparse.hstack([form.matrix, np.ones((n_rows, 1))])
    bounds = [(0.0, 1.0)] * n_columns + [(0.0, None)]
    cost = np.append(np.zeros(n_columns), -1.0)
    result = linprog(cost, matrix, _unit_limits(form), bounds=bounds, method="highs-ds")
    if result.x is None or not result.x[-1] > 0.0:
        return None
    center = form.lower + (form.upper - form.lower) * result.x[:-1]
    return np.clip(center, form.lower, form.upper)


def _unit_limits(form: Inequalities) -> Float[np.ndarray, " m"]:
    """Return the limits, in float64, of points that are moved and scaled into the unit box."""
    corner = form.matrix @ np.full(form.matrix.shape[1], form.lower)
    limits = (form.scale * np.asarray(form.limits) - corner) / (form.upper - form.lower)
    return np.clip(limits, -_UNREACHED, _UNREACHED)


def _holds(form: Inequalities, point: Balls) -> bool:
    return all(slack >= 0 for slack in _slacks(form, point))


def _slacks(form: Inequalities, point: Balls) -> Balls:
    return _limits(form) - _times(form.matrix, point)


def _limits(form: Inequalities) -> Balls:
    assert form.limits is not None
    return exact(form.limits) * exact_number(form.scale)


def _group_sums(form: Inequalities, direction: Balls) -> Balls:
    if form.groups is None:
        return direction
    groups = np.asarray(form.groups)
    return np.array([direction[groups == g].sum() for g in range(groups.max() + 1)], object)


def _times(matrix: Any, point: Balls) -> Balls:
    """Multiply a sparse matrix by a vector of balls."""
    rows = matrix.tocsr()
    terms, zero = exact(rows.data) * point[rows.indices], exact_number(0.0)
    pairs = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    return np.array([sum(terms[i:j], zero) for i, j in pairs], object)
