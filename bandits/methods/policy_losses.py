r"""Methods that minimise another loss of the policy than RPO's: IPO, DPO-positive and chi-PO.

None of them needs descent by trial. IPO is a least-squares problem in the log-ratios. DPOP's loss
is convex in them, with kinks. And chi-PO is maximum likelihood in rewards
:math:`\beta\,u(\pi/\pi_{ref})`, :math:`u(z)=z+\log z`, followed by the inverse of that link.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory import losses, minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.losses import PairLogProbs
from rpo_theory.policies import gibbs_policy, log_gibbs_policy
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem, Status

from . import path_following
from .base import FitResult, MethodOptions, require_compact_class

GROUP = 1024  # entries of the win counts whose policies are sought at a time
RESIDUAL_TOLERANCE = 1e-9  # of IPO's normal equations, relative to their right side
GAP_TOLERANCE = 1e-6  # of DPOP, nats: kinks are resolved to the last temperature
LINK_STEPS = 8  # Newton on a convex function from its good side: quadratic, error 1e-16 at 6
LEVEL_STEPS = 64  # the same, a nat a step at worst


def ipo(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""IPO: squared distance of every margin :math:`h` from :math:`1/2\tau`.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` does not count.
        reward_class: a linear ball means log-linear policies
            :math:`\pi\propto\pi_{ref}e^{\langle\theta,\phi\rangle}` without a bound on
            :math:`\theta`; any other class means tabular policies.
        options: ``ipo_tau`` counts.

    Returns:
        The policies nearest to the reference among the minimisers, and their implicit rewards
        :math:`\tau\log(\pi/\pi_{ref})` up to constants; the certificate is the largest residual of
        the normal equations.

    References:
        `azar:23`, eq. 17.
    """
    tau = problem.beta if options.ipo_tau is None else np.full_like(problem.beta, options.ipo_tau)
    features = reward_class.features if isinstance(reward_class, LinearBall) else None
    size = group_size(problem, GROUP)
    found = map_in_groups(_nearest_margins, problem, tau, features, size=size)
    policy, reward, residual, solved = found
    status = np.where(solved, Status.SOLVED.value, Status.NOT_FINITE.value)
    return FitResult(policy, reward, residual, "stationarity_residual", status)


def dpop(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""DPO-positive over the policies :math:`\pi_r` of a compact class.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` does not count.
        reward_class: tabular boxes or linear balls.
        options: ``dpop_penalty`` counts.

    Returns:
        The policies; the certificate bounds how far their loss is from the least, nats.

    Raises:
        ValueError: another reward class; over all rewards the infimum is not always attained.

    References:
        `pal:24`, eq. 3.
    """
    reward_class = require_compact_class("dpop", reward_class)
    # The loss of tabular policies is that of the prompts, in proportion to their comparisons.
    tabular = isinstance(reward_class, TabularBox)
    parts = _prompts(problem, reward_class) if tabular else (problem, reward_class)
    solve = partial(_positive, np.asarray(options.dpop_penalty, np.float64))
    policy, reward, gap = map_in_groups(solve, *parts, size=group_size(parts[0], GROUP))
    if tabular:
        shape = np.shape(problem.reference_policy)
        policy, reward = policy.reshape(shape), reward.reshape(shape)
        at_prompt = np.asarray(problem.wins).sum(axis=(2, 3))
        total = np.maximum(at_prompt.sum(axis=1), 1e-300)
        gap = (at_prompt * gap.reshape(shape[:2])).sum(axis=1) / total
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


def chi_po(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""chi-PO over the policies whose rewards :math:`\beta u(\pi/\pi_{ref})` are in the class.

    Up to a constant per prompt every reward is one of a policy, so that the least loss is the
    maximum likelihood of the class. In a class on :math:`[0, R]` the clipping of the loss at
    :math:`2R` never binds.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` does not count.
        reward_class: compact classes.
        options: none counts.

    Returns:
        The policies, which maximise :math:`E_\pi\hat r-\beta(\chi^2+KL)(\pi\|\pi_{ref})`; the
        certificate is the duality gap of the likelihood.

    Raises:
        ValueError: all rewards: there the clipped loss is flat and has no single minimiser.

    References:
        `huang:24`, Algorithm 1.
    """
    del options
    reward_class = require_compact_class("chi_po", reward_class)
    without = problem._replace(eta=np.zeros_like(problem.eta))
    solution = minimax.solve_batch(without, reward_class, throw=False)
    arguments = (solution.reward, problem.reference_policy, problem.beta)
    policy = map_in_groups(_linked, *arguments, size=group_size(problem, GROUP))
    return FitResult(
        policy=policy,
        reward=np.asarray(solution.reward),
        certificate=np.asarray(solution.stats["duality_gap"]),
        certificate_kind="duality_gap",
        status=np.asarray(solution.status),
    )


def chi_squared_policy(
    reward: Float[ArrayLike, "x a"],
    reference: Float[ArrayLike, "x a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, "x a"]:
    r"""Policy with :math:`\beta\,u(\pi/\pi_{ref}) = r - \lambda(x)`, :math:`u(z)=z+\log z`.

    Args:
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: :math:`\beta>0`.

    Returns:
        The maximiser of :math:`E_\pi r-\beta(\chi^2+KL)(\pi\|\pi_{ref})` with
        :math:`\chi^2=\frac12E_{ref}(\pi/\pi_{ref}-1)^2`; rows sum to one.

    References:
        `huang:24`, Proposition 4.2.

    Examples:
        >>> even = jnp.full((1, 2), 0.5)
        >>> chi_squared_policy(jnp.array([[3.0, 3.0]]), even, 0.1).tolist()
        [[0.5, 0.5]]
    """
    reward, reference = jnp.asarray(reward), jnp.asarray(reference)
    possible = reference > 0
    lowest = jnp.where(possible, reward, jnp.inf).min(axis=-1, keepdims=True)
    start = lowest - beta  # every ratio is at least one there: too low a level, the good side

    def rise(_: Array, level: Float[Array, "x 1"]) -> Float[Array, "x 1"]:
        ratio = link_inverse((reward - level) / beta)
        excess = jnp.sum(reference * ratio, axis=-1, keepdims=True) - 1.0
        slope = jnp.sum(reference * ratio / (1.0 + ratio), axis=-1, keepdims=True)
        return level + beta * excess / slope

    level = jax.lax.fori_loop(0, LEVEL_STEPS, rise, start)
    policy = reference * link_inverse((reward - level) / beta)
    return policy / policy.sum(axis=-1, keepdims=True)


def link_inverse(value: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    r"""The :math:`z>0` with :math:`z+\log z` equal to the value (Lambert's :math:`W(e^s)`).

    Args:
        value: any number.

    Returns:
        Positive numbers.

    Examples:
        >>> float(link_inverse(jnp.array(1.0)))
        1.0
    """
    value = jnp.asarray(value)
    start = jnp.where(value > 1.0, jnp.log(jnp.maximum(value, 1.0)), value)

    def newton(_: Array, log_z: Float[Array, "*s"]) -> Float[Array, "*s"]:
        z = jnp.exp(log_z)
        return log_z - (z + log_z - value) / (1.0 + z)

    return jnp.exp(jax.lax.fori_loop(0, LINK_STEPS, newton, start))


def _prompts(problem: Problem, reward_class: TabularBox) -> tuple[Problem, TabularBox]:
    """Every prompt of a batch as a problem of its own."""
    n_problems, n_contexts, n_actions = np.shape(problem.reference_policy)
    alone = Problem(
        context_weights=np.ones((n_problems * n_contexts, 1)),
        reference_policy=np.reshape(problem.reference_policy, (-1, 1, n_actions)),
        baseline_policy=np.reshape(problem.baseline_policy, (-1, 1, n_actions)),
        wins=np.reshape(problem.wins, (-1, 1, n_actions, n_actions)),
        beta=np.repeat(problem.beta, n_contexts),
        eta=np.repeat(problem.eta, n_contexts),
    )
    return alone, TabularBox(np.repeat(reward_class.maximum, n_contexts))


_linked = jax.jit(jax.vmap(chi_squared_policy))


@jax.jit
@jax.vmap
def _nearest_margins(
    problem: Problem, tau: Float[Array, ""], features: Float[Array, "x a d"] | None
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Array]:
    wins = jnp.asarray(problem.wins)
    total = wins.sum()
    share = wins / jnp.where(total > 0, total, 1.0)
    pairs = share + share.mT
    laplacian = jax.vmap(jnp.diag)(pairs.sum(axis=2)) - pairs
    pull = (share.sum(axis=2) - share.sum(axis=1)) * (0.5 / tau)
    if features is None:
        log_ratio = jnp.einsum("xab,xb->xa", jnp.linalg.pinv(laplacian, hermitian=True), pull)
        left, right = jnp.einsum("xab,xb->xa", laplacian, log_ratio), pull
    else:
        normal = jnp.einsum("xad,xab,xbe->de", features, laplacian, features)
        right = jnp.einsum("xad,xa->d", features, pull)
        theta = jnp.linalg.pinv(normal, hermitian=True) @ right
        log_ratio, left = features @ theta, normal @ theta
    residual = jnp.abs(left - right).max()
    solved = residual <= RESIDUAL_TOLERANCE * jnp.maximum(1.0, jnp.abs(right).max())
    policy = gibbs_policy(log_ratio, problem.reference_policy, 1.0)
    return policy, tau * log_ratio, residual, solved & jnp.isfinite(policy).all()


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def _positive(
    penalty: Float[Array, ""], problem: Problem, reward_class: TabularBox | LinearBall
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""]]:
    """Policy, reward and proof of DPOP for one problem."""
    wins = jnp.asarray(problem.wins)
    share = wins / jnp.where(wins.sum() > 0, wins.sum(), 1.0)

    def smoothed(point: Float[Array, " p"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        reward, wall = _inside(reward_class, point, wins.shape[:2])
        lost = _log_loss_of_chosen(problem, reward)
        # The penalty is charged on the rounded kink in place of relu.
        kink = temperature * jax.nn.softplus(lost / temperature)
        margin = reward[:, :, None] - reward[:, None, :]
        worse = problem.beta * penalty * kink[:, :, None]
        return jnp.sum(share * jax.nn.softplus(worse - margin)) + temperature * wall

    size = wins.shape[0] * wins.shape[1]
    if isinstance(reward_class, LinearBall):
        size = reward_class.features.shape[-1]
    path = path_following.follow_path(smoothed, jnp.zeros(size, wins.dtype))
    reward, _ = _inside(reward_class, path.point, wins.shape[:2])
    gap = _dpop_gap(problem, reward_class, reward, penalty, path.temperature)
    return gibbs_policy(reward, problem.reference_policy, problem.beta), reward, gap


def _dpop_gap(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    reward: Float[Array, "x a"],
    penalty: Float[Array, ""],
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Bound from a supporting plane: what a class member can gain, and what the kinks hide.

    With :math:`s\in[0,1]`, :math:`s x` is at most :math:`\max(0,x)`: a subgradient of the kink but
    for an error of :math:`\max(0,x)-s x\ge0`.

    Args:
        problem: the instance.
        reward_class: the class that holds the reward.
        reward: any member.
        penalty: :math:`\lambda` of DPOP.
        temperature: scale on which :math:`s` passes from 0 to 1 around a kink.

    Returns:
        Nats, at least the DPOP loss of :math:`\pi_r` less that of any other policy of the class.
    """
    wins = jnp.asarray(problem.wins)
    share = wins / jnp.where(wins.sum() > 0, wins.sum(), 1.0)
    lost = _log_loss_of_chosen(problem, reward)
    slope = jax.nn.sigmoid(lost / temperature)
    surprise = share * _surprise(problem, reward, penalty)

    def support(other: Float[Array, "x a"]) -> Float[Array, ""]:
        margin = other[:, :, None] - other[:, None, :]
        charged = problem.beta * penalty * slope * _log_loss_of_chosen(problem, other)
        return jnp.sum(surprise * (charged[:, :, None] - margin))

    hidden = problem.beta * penalty * (jax.nn.relu(lost) - slope * lost)
    regret = reward_class.linear_gap(jax.grad(support)(reward), reward)
    return jnp.maximum(regret, 0.0) + jnp.sum(surprise * hidden[:, :, None])


def _surprise(
    problem: Problem, reward: Float[Array, "x a"], penalty: Float[Array, ""]
) -> Float[Array, "x a a"]:
    r"""Derivative of each pair's DPOP loss in its penalised margin, :math:`\sigma(-z)`."""
    log_policy = log_gibbs_policy(reward, problem.reference_policy, problem.beta)
    log_reference = jnp.log(jnp.asarray(problem.reference_policy))
    policy, reference = _all_pairs(log_policy), _all_pairs(log_reference)
    compared = jnp.asarray(problem.wins) > 0
    loss = losses.dpop(policy, reference, beta=problem.beta, penalty=penalty, where=compared)
    return jnp.where(compared, -jnp.expm1(-loss), 0.0)


def _all_pairs(log_policy: Float[Array, "x a"]) -> PairLogProbs:
    shape = (*log_policy.shape, log_policy.shape[-1])
    return PairLogProbs(
        jnp.broadcast_to(log_policy[:, :, None], shape),
        jnp.broadcast_to(log_policy[:, None, :], shape),
    )


def _log_loss_of_chosen(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
    r""":math:`\log(\pi_{ref}/\pi_r) = \log Z_r - r/\beta`, convex in the reward."""
    scaled = reward / problem.beta
    log_z = jax.scipy.special.logsumexp(scaled, axis=1, b=jnp.asarray(problem.reference_policy))
    return log_z[:, None] - scaled


def _inside(
    reward_class: TabularBox | LinearBall, point: Float[Array, " p"], shape: tuple[int, ...]
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Reward at a point of the unit cube or ball around zero, and the wall at its boundary."""
    match reward_class:
        case TabularBox(maximum):
            reward = (1.0 + point.reshape(shape)) * (0.5 * maximum)
            return reward, -jnp.log1p(-(point**2)).sum()
        case LinearBall(features, radius):
            return jnp.asarray(features) @ (radius * point), -jnp.log1p(-point @ point)
