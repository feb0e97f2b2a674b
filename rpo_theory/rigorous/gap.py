r"""Proof of an upper bound on the duality gap, in ball arithmetic.

.. math:: gap(\pi, r) = \max_{\pi'}\phi(\pi',r) - \min_{r'\in\mathcal R}\phi(\pi,r')
          \le \eta\beta\,E_{d_0}KL(\pi\|\pi_r)
          + \langle v,r\rangle - \min_{r'\in\mathcal R}\langle v,r'\rangle,
          \qquad v=\nabla_r\phi(\pi,r).

**What is exact.** Every float64 number of the problem, the class, the policy and the reward is
taken as an exact number. Distributions are divided by their exact sums. Every number that is
computed from these is a ball, a midpoint with a radius that covers all rounding errors. Solvers in
float64 only propose (the multipliers of a linear program, the parameter of a reward). Balls check
what they propose, so a wrong proposal loosens the bound and never invalidates it.

**Which classes.** A class states its exact set by a method ``exact_form(shape)``, see
:mod:`rpo_theory.rewards.exact_forms`. The minimum over a polyhedron is bounded by weak duality of
linear programming, over a ball by its norm, over a finite class by enumeration.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from rpo_theory.rewards import RewardClass
from rpo_theory.rewards.exact_forms import ExactForm, Members
from rpo_theory.types import ArrayLike, Problem
from rpo_theory.validation import InvalidProblemError, numbers, validate, validate_policy

from .balls import Ball, Balls, exact, exact_number, normalized, upper, working_precision
from .losses import loss_and_gradient
from .sets import least, member

PRECISION = 128
"""Bits of the midpoints of balls, by default."""
MIN_PRECISION = 53


def duality_gap_bound(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
    *,
    precision: int = PRECISION,
) -> float:
    r"""Prove an upper bound on the duality gap of a policy and a reward.

    A reward that rounding has moved out of the class stands for a member nearby: the parameter of a
    ball is scaled into it, and a table that violates an inequality is mixed with an interior point.
    The bound then holds for both rewards. In any case :math:`\min_{r'}\phi(\pi,r')` is within the
    bound of its maximum over policies.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: a compact class with a method ``exact_form``.
        policy: any :math:`\pi(a|x)`; rows are divided by their exact sums.
        reward: a member of the class, up to rounding.
        precision: bits of the midpoints of balls, at least 53. The bound holds at any precision;
            more bits make it tighter where numbers of very different size cancel.

    Returns:
        Nats, rounded up; infinite if nothing is proven: for a policy outside the support of the
        reference policy, and for a reward that is not a member up to rounding.

    Raises:
        ValueError: if an argument is invalid, or the class has no exact form.
        ImportError: if python-flint is not installed.

    References:
        `johansson:17` for ball arithmetic.

    Examples:
        >>> from rpo_theory import Problem, TabularBox
        >>> even, wins = np.full((1, 2), 0.5), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> duality_gap_bound(problem, TabularBox(1.0), even, np.zeros((1, 2))) < 1e-30
        True
    """
    form = exact_form(reward_class, np.shape(problem.reference_policy))
    validate(problem, reward_class)
    shape = np.shape(problem.reference_policy)
    validate_policy("policy", policy, shape)
    table = numbers("reward", reward, shape)
    if precision < MIN_PRECISION:
        raise ValueError(f"`precision` must be at least {MIN_PRECISION} bits, got {precision}")
    with working_precision(precision):
        balls = _in_balls(problem)
        given, certain = exact(table), member(form, table)
        if certain is None:
            return math.inf
        pairs = zip(certain.flat, given.flat, strict=True)
        is_member = all(ball.is_exact() and ball == number for ball, number in pairs)
        rewards = [given] if is_member else [given, certain]
        return max(_gap_bound(balls, form, normalized(policy), each) for each in rewards)


def exact_form(reward_class: RewardClass, shape: tuple[int, ...]) -> ExactForm:
    """Return the exact form of a class, or raise and say what cannot be proven.

    Args:
        reward_class: any reward class.
        shape: numbers of contexts and of actions.

    Returns:
        What the method ``exact_form`` of the class returns.

    Raises:
        InvalidProblemError: if the class has no such method.

    Examples:
        >>> from rpo_theory import TabularBox
        >>> exact_form(TabularBox(2.0), (1, 3)).upper
        2.0
    """
    method = getattr(reward_class, "exact_form", None)
    if method is None:
        rule = (
            "must have a method `exact_form` for a proof in ball arithmetic (minima that are "
            f"computed in float64 prove nothing), got {type(reward_class).__name__}"
        )
        raise InvalidProblemError("reward_class", (), rule)
    return method(shape)


class _BallProblem(NamedTuple):
    r"""Problem with normalized distributions in balls; the context weights are :math:`\eta d_0`."""

    weights: Balls
    reference: Balls
    baseline: Balls
    beta: Ball
    data: Problem


def _in_balls(problem: Problem) -> _BallProblem:
    return _BallProblem(
        weights=normalized(problem.context_weights) * exact_number(problem.eta),
        reference=normalized(problem.reference_policy),
        baseline=normalized(problem.baseline_policy),
        beta=exact_number(problem.beta),
        data=problem,
    )


def _gap_bound(problem: _BallProblem, form: ExactForm, policy: Balls, reward: Balls) -> float:
    """Return a float that is at least the gap of the policy and any table in the balls."""
    policy_gap = _policy_gap(problem, policy, reward)
    if policy_gap is None:
        return math.inf
    loss, gradient = loss_and_gradient(problem.data, reward)
    excess = problem.weights[:, None] * (policy - problem.baseline)
    if isinstance(form, Members):
        bounds = []
        for other in map(exact, np.asarray(form.rewards)):
            other_loss, _ = loss_and_gradient(problem.data, other)
            reward_gap = (excess * (reward - other)).sum() + loss - other_loss
            bounds.append(upper(policy_gap + reward_gap))
        return max(bounds)
    direction = excess + gradient
    return upper(policy_gap + (direction * reward).sum() - least(form, direction))


def _policy_gap(problem: _BallProblem, policy: Balls, reward: Balls) -> Ball | None:
    r"""Return :math:`\eta\beta\,E\,KL(\pi\|\pi_r)`; None if it is infinite."""
    divergence = exact_number(0.0)
    for weight, probabilities, reference, rewards in zip(
        problem.weights, policy, problem.reference, reward, strict=True
    ):
        if weight == 0:
            continue
        support = [a for a, share in enumerate(reference) if share != 0]
        top = max(support, key=lambda a: float(rewards[a].mid()))
        scaled = {a: (rewards[a] - rewards[top]) / problem.beta for a in support}
        terms = [reference[a] * scaled[a].exp() for a in support]
        log_z = cast(Any, sum(terms)).log()
        for a, share in enumerate(probabilities):
            if share == 0:
                continue
            if a not in scaled:
                return None
            log_gibbs = reference[a].log() + scaled[a] - log_z
            divergence += weight * share * (share.log() - log_gibbs)
    return divergence * problem.beta
