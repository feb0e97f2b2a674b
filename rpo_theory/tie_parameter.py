r"""Maximum likelihood of the parameter of ties.

With :math:`s=\log\nu` (Davidson) or :math:`s=\log\theta` (Rao and Kupper) the likelihood loss
:math:`L_D(r; s)` is convex in the rewards and :math:`s` together. Its minimum over the rewards of a
convex class, :math:`V(s)`, is therefore convex, with derivative :math:`\partial_s L_D` at the
minimizer. The estimate is the root of this derivative.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .array_checks import InvalidProblemError
from .preference import data_loss
from .rewards import RewardClass, TabularBox
from .types import Problem

WIDE = 64.0
"""Nats; width of the box that stands in for all tables."""
LARGEST = 30.0
"""Largest log of the parameter: above it nearly every comparison would be a tie."""
SMALLEST = 1e-9
"""Smallest log of the parameter above its lower limit, or smallest parameter if the limit is 0."""


def fit_tie_parameter(problem: Problem, reward_class: RewardClass | None = None) -> Problem:
    r"""Return a problem with the tie parameter of maximum likelihood.

    Rewards and parameter maximize the likelihood of all data of the problem together, without the
    adversarial term. The solvers then keep the parameter fixed.

    Args:
        problem: problem with ties; its present parameter does not matter.
        reward_class: rewards that the likelihood is maximized over, a convex class; all tables with
            rewards from 0 to 64 nats if None.

    Returns:
        The problem with the new parameter in ``ties``.

    Raises:
        ValueError: if the problem has no ties, or the data do not determine the parameter: if the
            likelihood grows as ties become ever more probable.

    References:
        `davidson:70`, `rao:67`.

    Examples:
        >>> from rpo_theory.preference_data import DavidsonTies
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [3.0, 0.0]]])
        >>> ties = DavidsonTies(np.array([[[0.0, 3.0], [0.0, 0.0]]]), 1.0)
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0, ties=ties)
        >>> round(float(fit_tie_parameter(problem).ties.parameter), 6)
        1.0
    """
    if problem.ties is None or not np.any(problem.ties.counts):
        raise InvalidProblemError("ties", (), "must have counts greater than 0 for an estimate")
    reward_class = TabularBox(WIDE) if reward_class is None else reward_class
    low = np.log(SMALLEST) if problem.ties.lower_limit == 0.0 else SMALLEST

    def slope(log_parameter: float) -> float:
        return _slope(problem, reward_class, log_parameter)

    high = low + 1.0
    while slope(high) < 0.0:
        low, high = high, high + 2.0
        if high > LARGEST:
            rule = "must be given: the data do not determine it, ties may be ever more probable"
            raise InvalidProblemError("tie_parameter", (), rule)
    root: Any = low
    if slope(low) < 0.0:
        from scipy.optimize import brentq  # slow to import

        root = brentq(slope, low, high, xtol=1e-13, rtol=np.float64(1e-14))
    return _with_parameter(problem, float(np.exp(cast(float, root))))


def _slope(problem: Problem, reward_class: RewardClass, log_parameter: float) -> float:
    """Return the derivative of the smallest loss in the log of the parameter."""
    from . import minimax

    fitted = _with_parameter(problem, float(np.exp(log_parameter)))
    likelihood_only = fitted._replace(eta=np.zeros(()))
    reward = minimax.solve(likelihood_only, reward_class, throw=False).reward
    with jax.enable_x64(True):
        return float(_loss_slope(likelihood_only, jnp.asarray(reward), jnp.asarray(log_parameter)))


@jax.jit
def _loss_slope(problem: Problem, reward: Any, log_parameter: Any) -> Any:
    def loss(log_parameter: Any) -> Any:
        return data_loss(_with_parameter(problem, jnp.exp(log_parameter)), reward)

    return jax.grad(loss)(log_parameter)


def _with_parameter(problem: Problem, parameter: Any) -> Problem:
    assert problem.ties is not None
    return problem._replace(ties=problem.ties._replace(parameter=parameter))
