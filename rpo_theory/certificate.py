r"""The certificate: how far *any* policy and reward are from a saddle point.

For any pair, :math:`gap(\pi, r) = \max_{\pi'}\phi(\pi',r) - \min_{r'\in\mathcal R}\phi(\pi,r')` is
at least 0, and 0 exactly at a saddle point. It splits into two parts that are sums of non-negative
terms, so that nothing cancels:

.. math:: gap(\pi, r) = \eta\beta\,E_{d_0} KL(\pi\|\pi_r)
          + \big[\phi(\pi, r) - \min_{r'}\phi(\pi, r')\big],

and by convexity of :math:`L_D` the second is at most the regret of :math:`r` against the linear
function :math:`\nabla_r\phi(\pi, r)`: a bound that needs no solver and is exact at a saddle point.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from . import unbounded
from ._batching import group_size, map_in_groups
from .adversary import adversarial_reward
from .objectives import minimax_objective, saddle_objective
from .policies import gibbs_policy, kl_to_gibbs, total_variation
from .problems import normalize
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike, Problem, Solution, Status

GROUP = 8192  # entries of the win counts that are looked at together
GAP_TOLERANCE = 1e-10
r"""What ``Status.SOLVED`` promises of the duality gap, relative to :math:`\max(1,\eta,|F|)`."""


class Certificate(NamedTuple):
    r"""What is proven about a policy and a reward.

    Attributes:
        value: :math:`F(r)`, nats.
        duality_gap: upper bound on :math:`gap(\pi, r)`, nats, exact up to the accuracy of the
            adversary's answer; infinite for the unbounded class, where the adversary has no
            minimum unless identity S1 holds exactly (see :mod:`rpo_theory.stationarity`).
        kkt_residual: largest violation of the optimality conditions: distance of :math:`r` from
            the projection of a gradient step, and of :math:`\pi` from :math:`\pi_r` in total
            variation; for a finite class, which has no such conditions, the duality gap.
    """

    value: Float[Array, ""]
    duality_gap: Float[Array, ""]
    kkt_residual: Float[Array, ""]


def certify(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Certificate:
    """Certificate of any policy and reward, whoever found them.

    Args:
        problem: the instance.
        reward_class: the adversary's class.
        policy: any policy within the support of the reference.
        reward: any reward of the class.

    Returns:
        The certificate, in float64.

    References:
        `liu:24`, Theorem 5.6 and Lemma B.1.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.zeros((1, 2, 2))
        >>> problem = Problem(jnp.ones(1), even, even, wins, jnp.array(1.0), jnp.array(1.0))
        >>> float(certify(problem, TabularBox(jnp.array(1.0)), even, jnp.zeros((1, 2))).duality_gap)
        0.0
    """
    with jax.enable_x64(True):
        arguments = (normalize(problem), reward_class, policy, reward)
        return _certify(*jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments))


def is_proven(
    problem: Problem, gap: Float[ArrayLike, ""], value: Float[ArrayLike, ""]
) -> Bool[Array, ""]:
    r"""Whether a gap is within what ``Status.SOLVED`` promises; a gap that is NaN never is.

    Args:
        problem: the instance.
        gap: bound on the duality gap, nats.
        value: :math:`F`, nats.

    Returns:
        True or false.
    """
    size = jnp.maximum(jnp.maximum(1.0, problem.eta), jnp.abs(jnp.asarray(value)))
    return jnp.asarray(gap) <= GAP_TOLERANCE * size


def verify_status(problems: Problem, reward_class: RewardClass, solution: Solution) -> Solution:
    """Call no answer solved that its certificate does not prove, whoever found it.

    Args:
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        solution: what a solver returned for them. For a finite class its stats may hold
            ``mixture``, the adversary's weights on the members: the gap is then that of the game in
            which it draws a member, and without it that to the member of least :math:`F`.

    Returns:
        The solution with ``MAX_STEPS`` where the status claimed more than is proven, and
        ``NOT_FINITE`` where a number of the problem itself is not finite.
    """
    answers = (*solution[:3], solution.stats.get("mixture"))
    with np.errstate(invalid="ignore"):
        problems = normalize(problems)
    size = group_size(problems, GROUP)
    proven, finite = map_in_groups(_all_proven, problems, reward_class, answers, size=size)
    status = np.asarray(solution.status)
    claimed = (status == Status.SOLVED.value) | (status == Status.NOT_ATTAINED.value)
    status = np.where(claimed & ~proven, Status.MAX_STEPS.value, status)
    return solution._replace(status=np.where(finite, status, Status.NOT_FINITE.value))


def all_finite(problems: Problem, reward_class: RewardClass) -> Bool[Array, " p"]:
    """Whether every number of a problem and its class is finite.

    Args:
        problems: the instances, with a leading batch axis.
        reward_class: their reward classes, likewise.

    Returns:
        One answer a problem.
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
    """Upper bound on the duality gap in closed form, exact at a saddle point: no solver involved.

    Args:
        problem: the instance.
        reward_class: the adversary's class.
        policy: any policy.
        reward: any reward of the class.

    Returns:
        Nats, at least 0; infinite for the unbounded class.
    """
    reward = jnp.asarray(reward)
    match reward_class:
        case TabularBox() | LinearBall():
            gradient = reward_gradient(problem, policy, reward)
            reward_gap = jnp.maximum(reward_class.linear_gap(gradient, reward), 0.0)
            return policy_gap(problem, policy, reward) + reward_gap
        case FiniteClass():
            worst = adversarial_reward(problem, reward_class, policy)
            return minimax_objective(problem, reward) - saddle_objective(problem, policy, worst)
        case Unbounded():
            return jnp.full_like(reward[0, 0], jnp.inf)


def policy_gap(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""How far a policy is from the best one, :math:`F(r)-\phi(\pi,r)=\eta\beta E\,KL(\pi\|\pi_r)`.

    Args:
        problem: the instance.
        policy: any policy.
        reward: any reward.

    Returns:
        Nats, at least 0, with small relative error.
    """
    divergence = kl_to_gibbs(policy, reward, problem.reference_policy, problem.beta)
    weight = jnp.asarray(problem.eta) * jnp.asarray(problem.beta)
    return weight * (jnp.asarray(problem.context_weights) @ divergence)


def reward_gradient(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, "x a"]:
    r"""Gradient of :math:`\phi(\pi, r)` in the reward; the residual of identity S1.

    .. math:: \eta d_0(x)[\pi(a|x) - \pi_{base}(a|x)]
        - \frac1N\sum_l W_{xal}\sigma(r_l - r_a) + \frac1N\sum_w W_{xwa}\sigma(r_a - r_w)

    Args:
        problem: the instance.
        policy: :math:`\pi(a|x)`.
        reward: :math:`r(x,a)`.

    Returns:
        One number per prompt and response.
    """
    wins, reward = jnp.asarray(problem.wins), jnp.asarray(reward)
    total = wins.sum()
    surprise = jax.nn.sigmoid(reward[:, None, :] - reward[:, :, None])
    flow = wins * surprise / jnp.where(total > 0, total, 1.0)
    weights = jnp.asarray(problem.context_weights)[:, None] * problem.eta
    excess = weights * (jnp.asarray(policy) - jnp.asarray(problem.baseline_policy))
    return excess + flow.sum(axis=1) - flow.sum(axis=2)


def kkt_residual(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    reward: Float[ArrayLike, "x a"],
) -> Float[Array, ""]:
    r"""Largest violation of the optimality conditions of the saddle point.

    Args:
        problem: the instance.
        reward_class: the adversary's class.
        policy: any policy.
        reward: any reward.

    Returns:
        The larger of :math:`\|r - \mathrm{Proj}(r - \nabla_r\phi)\|_\infty` (for the ball of
        parameters) and :math:`\max_x TV(\pi,\pi_r)` over prompts of positive weight.
    """
    weights, reward = jnp.asarray(problem.context_weights), jnp.asarray(reward)
    best = gibbs_policy(reward, problem.reference_policy, problem.beta)
    counts = (weights > 0) & (problem.eta > 0)
    distance = jnp.where(counts, total_variation(policy, best), 0.0).max()
    gradient = reward_gradient(problem, policy, reward)
    match reward_class:
        case TabularBox() | Unbounded():
            move = reward - reward_class.project(reward - gradient)
        case LinearBall(features, radius):
            theta = reward_class.parameter(reward)
            target = theta - jnp.einsum("xad,xa->d", jnp.asarray(features), gradient)
            norm = jnp.linalg.norm(target)
            move = theta - target * jnp.minimum(1.0, radius / jnp.where(norm > 0, norm, 1.0))
        case FiniteClass():
            return duality_gap_bound(problem, reward_class, policy, reward)
    return jnp.maximum(distance, jnp.abs(move).max())


def mixture_gap(
    problem: Problem,
    reward_class: FiniteClass,
    policy: Float[ArrayLike, "x a"],
    mixture: Float[ArrayLike, " k"],
) -> Float[Array, ""]:
    r"""Duality gap where the adversary of a finite class draws a member.

    .. math:: \eta\beta\,E\,KL(\pi\|\pi_{\bar r}) + \sum_k\lambda_k\phi(\pi, r_k)
        - \min_k\phi(\pi, r_k), \qquad \bar r = \sum_k\lambda_k r_k

    Args:
        problem: the instance.
        reward_class: the members.
        policy: any policy.
        mixture: probabilities :math:`\lambda` of the members.

    Returns:
        Nats, at least 0.
    """
    rewards = jnp.asarray(reward_class.rewards)
    payoffs = jax.vmap(lambda reward: saddle_objective(problem, policy, reward))(rewards)
    mean = jnp.einsum("k,kxa->xa", jnp.asarray(mixture), rewards)
    return policy_gap(problem, policy, mean) + jnp.asarray(mixture) @ (payoffs - payoffs.min())


def unbounded_residual(
    problem: Problem, policy: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Float[Array, ""]:
    r"""What stands for the gap over all rewards: identity S1 and the policy's regret, in nats.

    Args:
        problem: the instance.
        policy: any policy.
        reward: any reward, ``-inf`` where the infimum sends it there.

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
    """The same of a problem from which the diverging responses were taken out already."""
    finite = jnp.where(reduced.kept, jnp.asarray(reward), 0.0)
    gradient = reward_gradient(reduced.problem, policy, finite)
    largest = jnp.abs(jnp.where(reduced.kept, gradient, 0.0)).max()
    return reduced.share * jnp.maximum(largest, policy_gap(reduced.problem, policy, finite))


@jax.jit
def _all_proven(
    problems: Problem, reward_class: RewardClass, answers: tuple
) -> tuple[Bool[Array, " p"], Bool[Array, " p"]]:
    def one(problem: Problem, reward_class: RewardClass, answer: tuple) -> Bool[Array, ""]:
        policy, reward, value, mixture = answer
        match reward_class:
            case FiniteClass(rewards) if mixture is None:
                values = jax.vmap(partial(minimax_objective, problem))(jnp.asarray(rewards))
                gap = jnp.maximum(value, minimax_objective(problem, reward)) - values.min()
            case FiniteClass():
                gap = mixture_gap(problem, reward_class, policy, mixture)
            case Unbounded():
                gap = unbounded_residual(problem, policy, reward)
            case _:
                off = jnp.abs(minimax_objective(problem, reward) - value)
                gap = jnp.maximum(duality_gap_bound(problem, reward_class, policy, reward), off)
        return is_proven(problem, gap, value)

    proven = jax.vmap(one)(problems, reward_class, answers)
    return proven, all_finite(problems, reward_class)


@jax.jit
def _certify(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    reward: Float[Array, "x a"],
) -> Certificate:
    gap = duality_gap_bound(problem, reward_class, policy, reward)
    if isinstance(reward_class, TabularBox | LinearBall):
        # Far from a saddle point the bound is loose: ask the adversary, and bound at its answer.
        worst = adversarial_reward(problem, reward_class, policy)
        drop = saddle_objective(problem, policy, reward) - saddle_objective(problem, policy, worst)
        slack = reward_class.linear_gap(reward_gradient(problem, policy, worst), worst)
        exact = policy_gap(problem, policy, reward) + drop + jnp.maximum(slack, 0.0)
        gap = jnp.minimum(gap, jnp.maximum(exact, 0.0))
    return Certificate(
        value=minimax_objective(problem, reward),
        duality_gap=gap,
        kkt_residual=kkt_residual(problem, reward_class, policy, reward),
    )
