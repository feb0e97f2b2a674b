r"""Certificates: proven bounds on how far a policy and a reward are from a saddle point.

The duality gap of a policy :math:`\pi` and a reward :math:`r` is
:math:`\max_{\pi'}\phi(\pi',r) - \min_{r'\in\mathcal R}\phi(\pi,r')`.
It is at least 0, and 0 exactly at a saddle point. It is the sum of two non-negative parts, each a
sum of non-negative terms, so no cancellation occurs:

.. math:: gap(\pi, r) = \eta\beta\,E_{d_0} KL(\pi\|\pi_r)
          + \big[\phi(\pi, r) - \min_{r'}\phi(\pi, r')\big].

By convexity of :math:`L_D` the second part is at most the linear (Frank-Wolfe) gap of :math:`r` in
the direction :math:`\nabla_r\phi(\pi, r)`. It needs no solver and is exact at a saddle point.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from . import rewards, routes, unbounded
from ._batching import group_size, map_in_groups
from ._tracing import in_trace, traced_arguments
from .adversary import worst_reward
from .objectives import minimax_objective, saddle_objective
from .observations import n_observations
from .policies import gibbs_policy, kl_to_gibbs, total_variation
from .preference import evidence
from .problems import normalize
from .rewards import ROUNDING, AnyRewardClass, FiniteClass, RewardClass, class_residual
from .types import ArrayLike, Problem, Solution, Status
from .validation import InvalidProblemError, numbers, validate, validate_policy

GROUP = 8192  # number of win counts that are verified together
GAP_TOLERANCE = 1e-10
r"""Bound on the duality gap of status ``SOLVED``, relative to :math:`\max(1,\eta,|F|)`."""


class Certificate(NamedTuple):
    r"""Proven statements about a policy and a reward.

    Attributes:
        value: minimax objective :math:`F(r)`, nats.
        duality_gap: upper bound on :math:`gap(\pi, r)`, nats, exact up to the accuracy of the
            adversarial reward. It is infinite if nothing is proven: for a reward that is not in the
            class, and for the unbounded class, where the adversary's problem has no minimum unless
            identity S1 holds exactly (see :mod:`rpo_theory.stationarity`).
        kkt_residual: largest violation of the optimality conditions: the distance of :math:`r`
            from the projection of a gradient step, or of :math:`\pi` from :math:`\pi_r` in total
            variation. For a finite class, which has no such conditions, the duality gap.
        class_residual: distance of the reward from the class, largest entry relative to
            :math:`1+\max|r|`. Above :data:`rpo_theory.rewards.ROUNDING` the reward is not a member,
            its value may lie below the optimum, and the duality gap is infinite.
    """

    value: Float[ArrayLike, ""]
    duality_gap: Float[ArrayLike, ""]
    kkt_residual: Float[ArrayLike, ""]
    class_residual: Float[ArrayLike, ""]

    @property
    def is_member(self) -> bool:
        """Whether the reward is in the class, up to rounding."""
        return bool(self.class_residual <= ROUNDING)


def certify(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Certificate:
    """Certify any pair of a policy and a reward, whichever solver found it.

    Args:
        problem: preference data, policies and weights; see :meth:`Problem.from_wins`.
        reward_class: rewards that the adversary may choose from.
        policy: any policy; outside the support of the reference policy the gap is infinite.
        reward: a reward; for the unbounded class entries may be ``-inf`` and, outside of the
            support of the reference policy, ``inf``. Whether it is a member of the class is part
            of the certificate.

    Returns:
        The certificate as float64 NumPy numbers; inside a trace, as traced numbers.

    Raises:
        ValueError: if an argument is invalid, such as a reward that is NaN; the message names it.

    References:
        `liu:24`, Theorem 5.6 and Lemma B.1.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> float(certify(problem, TabularBox(1.0), even, jnp.zeros((1, 2))).duality_gap)
        0.0
    """
    if in_trace(problem, reward_class, policy, reward):
        return _certify(*traced_arguments(problem, reward_class, policy, reward))
    validate(problem, reward_class)
    shape = np.shape(problem.reference_policy)
    validate_policy("policy", policy, shape)
    table = numbers("reward", reward, shape, finite=rewards.is_compact(reward_class))
    wrong = np.isnan(table) | (np.isposinf(table) & (np.asarray(problem.reference_policy) > 0))
    if wrong.any():
        index = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        rule = "must be less than inf in the support of the reference policy"
        raise InvalidProblemError("reward", index, f"{rule}, got {table[index]}")
    with jax.enable_x64(True):
        tables = (jnp.asarray(table, jnp.float64) for table in (policy, reward))
        certificate = _certify(normalize(problem), rewards.to_float64(reward_class), *tables)
    # A JAX array in float64 would warn at its first use if the caller has not enabled float64.
    return Certificate(*map(np.asarray, certificate))


def is_proven(
    problem: Problem, gap: Float[ArrayLike, "*p"], value: Float[ArrayLike, "*p"]
) -> Bool[Array, "*p"]:
    r"""Return whether a duality gap is within the bound of status ``SOLVED``.

    Args:
        problem: problem that sets the scale of the bound.
        gap: bound on the duality gap, nats.
        value: :math:`F`, nats.

    Returns:
        False also for a gap that is NaN.
    """
    size = jnp.maximum(jnp.maximum(1.0, problem.eta), jnp.abs(jnp.asarray(value)))
    return jnp.asarray(gap) <= GAP_TOLERANCE * size


def verify_status(problems: Problem, reward_class: RewardClass, solution: Solution) -> Solution:
    """Replace the status of every solution that its certificate does not prove.

    Args:
        problems: problems with a leading batch axis; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        solution: their solutions by some solver. For a finite class its stats may hold
            ``mixture``, the adversary's probabilities of the members: the gap is then that of the
            game in which the adversary draws a member. Without it the gap is the difference to the
            member with the smallest :math:`F`.

    Returns:
        The solution, with status ``MAX_STEPS`` where it claimed more than is proven, and
        ``NOT_FINITE`` where the problem itself has a number that is not finite.
    """
    pairs = (*solution[:3], solution.stats.get("mixture"))
    with np.errstate(invalid="ignore"):
        problems = normalize(problems)
    size = group_size(problems, GROUP)
    proven, finite = map_in_groups(all_proven, problems, reward_class, pairs, size=size)
    status = np.asarray(solution.status)
    claimed = (status == Status.SOLVED.value) | (status == Status.NOT_ATTAINED.value)
    status = np.where(claimed & ~proven, Status.MAX_STEPS.value, status)
    return solution._replace(status=np.where(finite, status, Status.NOT_FINITE.value))


def all_finite(problems: Problem, reward_class: RewardClass) -> Bool[Array, " p"]:
    """Return whether every number of a problem and its reward class is finite.

    Args:
        problems: problems with a leading batch axis on every array.
        reward_class: reward class of each problem, with the same leading axis.

    Returns:
        One boolean per problem.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves((problems, reward_class))]
    each = [jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
    return jnp.stack(each).all(axis=0)


def duality_gap_bound(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, ""]:
    """Bound the duality gap from above in closed form; the bound is exact at a saddle point.

    Args:
        problem: preference data, policies and weights, as arrays.
        reward_class: rewards that the adversary may choose from.
        policy: any table of probabilities of actions.
        reward: any member of the reward class.

    Returns:
        Nats, at least 0; infinite for the unbounded class.
    """
    reward = jnp.asarray(reward)
    if not rewards.is_compact(reward_class):
        return jnp.full_like(reward[0, 0], jnp.inf)
    if not rewards.is_convex(reward_class):
        worst = worst_reward(problem, reward_class, policy)
        return minimax_objective(problem, reward) - saddle_objective(problem, policy, worst)
    gradient = reward_gradient(problem, policy, reward)
    reward_gap = jnp.maximum(rewards.linear_gap(reward_class, gradient, reward), 0.0)
    return policy_gap(problem, policy, reward) + reward_gap


def policy_gap(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""Return the gap of a policy to the best response, :math:`F(r)-\phi(\pi,r)`.

    .. math:: F(r)-\phi(\pi,r)=\eta\beta\,E_{d_0} KL(\pi\|\pi_r)

    Args:
        problem: preference data, policies and weights.
        policy: any :math:`\pi(a|x)`.
        reward: any :math:`r(x,a)`.

    Returns:
        Nats, at least 0, with small relative error.
    """
    divergence = kl_to_gibbs(policy, reward, problem.reference_policy, problem.beta)
    weight = jnp.asarray(problem.eta) * jnp.asarray(problem.beta)
    return weight * (jnp.asarray(problem.context_weights) @ divergence)


def reward_gradient(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Return the gradient of :math:`\phi(\pi, r)` in the reward, the residual of identity S1.

    .. math:: \eta d_0(x)[\pi(a|x) - \pi_{base}(a|x)]
        - \frac1N\sum_l W_{xal}\sigma(r_l - r_a) + \frac1N\sum_w W_{xwa}\sigma(r_a - r_w)

    Choices and ties add their own evidence, see :func:`rpo_theory.preference.evidence`.

    Args:
        problem: preference data, policies and weights.
        policy: :math:`\pi(a|x)`.
        reward: :math:`r(x,a)`.

    Returns:
        Derivative by the reward of each context and action, shape ``[x a]``.
    """
    reward = jnp.asarray(reward)
    weights = jnp.asarray(problem.context_weights)[:, None] * problem.eta
    excess = weights * (jnp.asarray(policy) - jnp.asarray(problem.baseline_policy))
    if problem.choices is not None or problem.ties is not None:
        n_data = n_observations(problem)
        return excess - evidence(problem, reward) / jnp.where(n_data > 0, n_data, 1.0)
    wins = jnp.asarray(problem.wins)
    n_comparisons = wins.sum()
    surprise = jax.nn.sigmoid(reward[:, None, :] - reward[:, :, None])
    flow = wins * surprise / jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    return excess + flow.sum(axis=1) - flow.sum(axis=2)


def kkt_residual(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, ""]:
    r"""Return the largest violation of the optimality conditions of the saddle point.

    Args:
        problem: preference data, policies and weights.
        reward_class: rewards that the adversary may choose from.
        policy: any :math:`\pi(a|x)`.
        reward: any :math:`r(x,a)`.

    Returns:
        The larger of :math:`\|r - \mathrm{Proj}(r - \nabla_r\phi)\|_\infty` (for a ball, of its
        parameters) and :math:`\max_x TV(\pi,\pi_r)` over the contexts with positive weight. For a
        class that is not convex, the duality gap.
    """
    weights, reward = jnp.asarray(problem.context_weights), jnp.asarray(reward)
    best = gibbs_policy(reward, problem.reference_policy, problem.beta)
    counts = (weights > 0) & (problem.eta > 0)
    distance = jnp.where(counts, total_variation(policy, best), 0.0).max()
    gradient = reward_gradient(problem, policy, reward)
    if not rewards.is_convex(reward_class):
        return duality_gap_bound(problem, reward_class, policy, reward)
    move = rewards.gradient_move(reward_class, reward, gradient)
    return jnp.maximum(distance, jnp.abs(move).max())


def mixture_gap(
    problem: Problem,
    reward_class: FiniteClass,
    policy: Float[ArrayLike, "x a"],
    mixture: Float[ArrayLike, " k"],
) -> Float[Array, ""]:
    r"""Return the duality gap of the game in which the adversary draws a member of a finite class.

    .. math:: \eta\beta\,E\,KL(\pi\|\pi_{\bar r}) + \sum_k\lambda_k\phi(\pi, r_k)
        - \min_k\phi(\pi, r_k), \qquad \bar r = \sum_k\lambda_k r_k

    Args:
        problem: preference data, policies and weights.
        reward_class: the members.
        policy: any :math:`\pi(a|x)`.
        mixture: probabilities :math:`\lambda` of the members.

    Returns:
        Nats, at least 0.
    """
    payoffs = reward_class.objectives(problem, policy)
    mean = jnp.einsum("k,kxa->xa", jnp.asarray(mixture), jnp.asarray(reward_class.rewards))
    return policy_gap(problem, policy, mean) + jnp.asarray(mixture) @ (payoffs - payoffs.min())


def unbounded_residual(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""Return the optimality residual that replaces the duality gap for the unbounded class.

    Args:
        problem: preference data, policies and weights.
        policy: any :math:`\pi(a|x)`.
        reward: any reward, infinite where the infimum is not attained.

    Returns:
        The larger of :math:`\|\nabla_r\phi\|_\infty` over the rewards that stay finite and
        :math:`F(r)-\phi(\pi,r)`; zero exactly at a saddle point.
    """
    return reduced_residual(unbounded.reduce(problem), policy, reward)


def reduced_residual(
    reduced: unbounded.ReducedProblem,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, ""]:
    """Return :func:`unbounded_residual` of a problem that is already reduced."""
    is_finite = jnp.isfinite(jnp.asarray(reward))
    finite = jnp.where(is_finite, jnp.asarray(reward), 0.0)
    gradient = reward_gradient(reduced.problem, policy, finite)
    largest = jnp.abs(jnp.where(is_finite, gradient, 0.0)).max()
    return reduced.share * jnp.maximum(largest, policy_gap(reduced.problem, policy, finite))


@jax.jit
def all_proven(
    problems: Problem, reward_class: RewardClass, pairs: tuple
) -> tuple[Bool[Array, " p"], Bool[Array, " p"]]:
    """Return which pairs of a batch are proven, and which problems have finite fields."""

    def is_one_proven(problem: Problem, reward_class: AnyRewardClass, pair: tuple) -> Array:
        policy, reward, value, mixture = pair
        if not rewards.is_compact(reward_class):
            gap = unbounded_residual(problem, policy, reward)
        elif mixture is not None:
            gap = mixture_gap(problem, reward_class, policy, mixture)
        else:
            gap = _value_gap(problem, reward_class, policy, reward, value)
        return is_proven(problem, gap, value)

    proven = jax.vmap(is_one_proven)(problems, reward_class, pairs)
    return proven, all_finite(problems, reward_class)


def _value_gap(
    problem: Problem, reward_class: RewardClass, policy: Array, reward: Array, value: Array
) -> Float[Array, ""]:
    """Return the duality gap of a pair, or the error of its value if that is larger."""
    actual = minimax_objective(problem, reward)
    if rewards.is_convex(reward_class):
        gap = duality_gap_bound(problem, reward_class, policy, reward)
        return jnp.maximum(gap, jnp.abs(actual - value))
    best = routes.minimizer(problem, reward_class, tolerance=GAP_TOLERANCE, max_steps=1).reward
    return jnp.maximum(value, actual) - minimax_objective(problem, best)


@jax.jit
def _certify(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
) -> Certificate:
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    is_compact = rewards.is_compact(reward_class)
    if is_compact and rewards.is_convex(reward_class):
        # Far from a saddle point the bound is loose: take it at the adversarial reward instead.
        worst = worst_reward(problem, reward_class, policy)
        drop = saddle_objective(problem, policy, reward) - saddle_objective(problem, policy, worst)
        gradient = reward_gradient(problem, policy, worst)
        slack = rewards.linear_gap(reward_class, gradient, worst)
        exact = policy_gap(problem, policy, reward) + drop + jnp.maximum(slack, 0.0)
        gap = jnp.minimum(gap, jnp.maximum(exact, 0.0))
    gap = jnp.where(jnp.isnan(gap), jnp.inf, gap)  # inf - inf, outside of the support
    residual = class_residual(reward_class, reward)
    objective = minimax_objective if is_compact else unbounded.limit_objective
    return Certificate(
        value=objective(problem, reward),
        duality_gap=jnp.where(residual <= ROUNDING, gap, jnp.inf),
        kkt_residual=kkt_residual(problem, reward_class, policy, reward),
        class_residual=residual,
    )
