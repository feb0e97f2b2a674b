r"""Double oracle: Algorithm 1 for a class that is known only by the adversary's best response.

The members found so far form a finite class, on which :mod:`rpo_theory.maximin` is exact. Each
round asks for the adversary's best response to the policy of that class, and adds it. The class may
be anything for which :math:`\min_r\phi(\pi,r)` can be computed, such as neural networks
(:mod:`rpo_theory.network_rewards`).

With members :math:`r_k`, the adversary's mixture :math:`\lambda`, and the best response :math:`r'`,

.. math:: \phi(\pi,r') \le \max_\pi\min_r\phi(\pi, r) \le \max_\pi\sum_k\lambda_k\phi(\pi,r_k).

The difference of the two ends is the gap at which the method stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from . import maximin
from .certificate import policy_gap
from .objectives import saddle_objective
from .problems import normalize
from .rewards import FiniteClass
from .types import ArrayLike, Problem
from .validation import numbers, validate

TOLERANCE = 1e-8
MAX_ROUNDS = 100
MIN_CAPACITY = 8
"""Members of the smallest class that is compiled; larger ones double it."""

BestResponse = Callable[[Any], ArrayLike]
r"""Function of a policy, shape ``[x a]``, that returns a minimizer of :math:`\phi(\pi, r)`."""


class DoubleOracleSolution(NamedTuple):
    r"""Policy of Algorithm 1 over all rewards that best responses reach.

    Attributes:
        policy: :math:`\hat\pi(a|x)`, shape ``[x a]``.
        reward: mean reward :math:`\bar r` of the adversary's mixture, shape ``[x a]``. Its Gibbs
            policy is :math:`\hat\pi`.
        members: rewards found, shape ``[k x a]``.
        mixture: the adversary's probabilities of the members, shape ``[k]``.
        objective: least :math:`\phi(\hat\pi, r)` of the members and the last response, nats: a
            lower bound on :math:`\max_\pi\min_r\phi` if the response is exact.
        gap: distance from ``objective`` to the maximum over policies against the mixture, which is
            an upper bound on :math:`\max_\pi\min_r\phi`, nats.
        rounds: number of best responses.
        converged: whether the gap met the tolerance.
    """

    policy: Float[np.ndarray, "x a"]
    reward: Float[np.ndarray, "x a"]
    members: Float[np.ndarray, "k x a"]
    mixture: Float[np.ndarray, " k"]
    objective: float
    gap: float
    rounds: int
    converged: bool


def solve(
    problem: Problem,
    best_response: BestResponse,
    *,
    start: Float[ArrayLike, "x a"],
    tolerance: float = TOLERANCE,
    max_rounds: int = MAX_ROUNDS,
) -> DoubleOracleSolution:
    r"""Maximize over policies the objective under the worst reward that best responses find.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        best_response: function from a policy, a float64 NumPy array, to a reward of the class that
            minimizes :math:`\phi(\pi, r)`.
        start: any reward of the class.
        tolerance: gap in nats at which to stop.
        max_rounds: maximum number of best responses.

    Returns:
        The solution, as float64 NumPy arrays. If the rounds end first, or a response is already a
        member, the solution is that for the members found.

    Raises:
        ValueError: if an argument is invalid, or a best response is not a table of finite numbers.

    References:
        `mcmahan:03`; `liu:24`, Algorithm 1.

    Examples:
        >>> base, wins = np.array([[0.0, 0.0, 1.0]]), np.zeros((1, 3, 3))
        >>> problem = Problem(np.ones(1), np.full((1, 3), 1 / 3), base, wins, beta=0.5, eta=1.0)
        >>> lower_one = lambda policy: -np.eye(3)[None, policy[0, :2].argmax()]
        >>> solve(problem, lower_one, start=np.zeros((1, 3))).policy.round(3).tolist()
        [[0.212, 0.212, 0.576]]
    """
    reward = numbers("start", start, np.shape(problem.reference_policy))
    validate(problem, FiniteClass(reward[None]))
    if max_rounds < 1:
        raise ValueError(f"`max_rounds` must be at least 1, got {max_rounds}")
    problem = normalize(problem)
    members = [reward]
    rounds = 1
    while True:
        policy, mixture = _solve_for(problem, members)
        response = numbers("best_response", best_response(policy), reward.shape)
        lower, upper = _ends(problem, members, policy, mixture, response)
        is_known = any(np.array_equal(response, member) for member in members)
        if upper - lower <= tolerance or rounds == max_rounds or is_known:
            break
        members.append(response)
        rounds += 1
    table = np.stack(members)
    return DoubleOracleSolution(
        policy=policy,
        reward=np.einsum("k,kxa->xa", mixture, table),
        members=table,
        mixture=mixture,
        objective=lower,
        gap=upper - lower,
        rounds=rounds,
        converged=upper - lower <= tolerance,
    )


def _solve_for(
    problem: Problem, members: list[np.ndarray]
) -> tuple[Float[np.ndarray, "x a"], Float[np.ndarray, " k"]]:
    """Return the policy and the adversary's mixture on the class of the members found."""
    solution = maximin.solve(problem, FiniteClass(_padded(members)), throw=False)
    mixture = np.array(solution.stats["mixture"], np.float64)
    last = len(members) - 1
    return np.asarray(solution.policy), np.append(mixture[:last], mixture[last:].sum())


def _ends(
    problem: Problem,
    members: list[np.ndarray],
    policy: Float[np.ndarray, "x a"],
    mixture: Float[np.ndarray, " k"],
    response: Float[np.ndarray, "x a"],
) -> tuple[float, float]:
    """Return both ends of the interval of the max-min value; see the module."""
    padded = _padded(members)
    probabilities = np.append(mixture, np.zeros(len(padded) - len(members)))
    with jax.enable_x64(True):
        lower, upper = _compiled_ends(problem, padded, policy, probabilities, response)
    return float(lower), float(upper)


@jax.jit
def _compiled_ends(
    problem: Problem,
    rewards: Float[Array, "k x a"],
    policy: Float[Array, "x a"],
    mixture: Float[Array, " k"],
    response: Float[Array, "x a"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    payoffs = jax.vmap(lambda reward: saddle_objective(problem, policy, reward))(rewards)
    mean = jnp.einsum("k,kxa->xa", mixture, rewards)
    upper = policy_gap(problem, policy, mean) + mixture @ payoffs
    return jnp.minimum(saddle_objective(problem, policy, response), payoffs.min()), upper


def _padded(members: list[np.ndarray]) -> Float[np.ndarray, "k x a"]:
    """Repeat the last member up to a power of two, so that few sizes are compiled."""
    capacity = max(MIN_CAPACITY, 1 << (len(members) - 1).bit_length())
    return np.stack(members + [members[-1]] * (capacity - len(members)))
