r"""Methods that minimize a policy loss other than RPO's: IPO, DPO-positive and chi-PO.

All of them are solved without gradient descent. IPO is a least-squares problem in the log-ratios of
policy and reference. The loss of DPOP is convex in them, with kinks. chi-PO is maximum likelihood
in the rewards :math:`\beta\,u(\pi/\pi_{ref})`, :math:`u(z)=z+\log z`, followed by the inverse of
that link function.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from .base import FitContext, FitResult, Method, require_box_or_ball, require_compact_class
from .options import MethodOptions, check_number

GROUP = 1024  # entries of the win counts that are fitted at a time
RESIDUAL_TOLERANCE = 1e-9  # of IPO's normal equations, relative to their right side
GAP_TOLERANCE = 1e-6  # of DPOP, nats: kinks are resolved to the final temperature
LINK_STEPS = 8  # Newton steps for the link; convergence is quadratic, with error 1e-16 after 6
LEVEL_STEPS = 64  # Newton steps for the level; each gains at least a nat until it is quadratic


@dataclass(frozen=True, kw_only=True)
class IpoOptions(MethodOptions):
    r"""Options of IPO.

    Attributes:
        ipo_tau: :math:`\tau`; None for the :math:`\beta` of the problem.

    Raises:
        ValueError: if an option is out of range.
    """

    ipo_tau: float | None = None

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("ipo_tau", self.ipo_tau, above=0.0)


@dataclass(frozen=True, kw_only=True)
class DpopOptions(MethodOptions):
    r"""Options of DPO-positive.

    Attributes:
        dpop_penalty: weight :math:`\lambda` of the penalty, at least 0.

    Raises:
        ValueError: if an option is out of range.
    """

    dpop_penalty: float = 5.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("dpop_penalty", self.dpop_penalty, least=0.0)


def ipo(
    problem: Problem, reward_class: RewardClass, options: IpoOptions, context: FitContext
) -> FitResult:
    r"""Fit IPO, which minimizes the squared distance of every margin from :math:`1/2\tau`.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: a linear ball means log-linear policies
            :math:`\pi\propto\pi_{ref}e^{\langle\theta,\phi\rangle}` without a bound on
            :math:`\theta`; any other class means tabular policies.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies closest to the reference among the minimizers, and their implicit rewards
        :math:`\tau\log(\pi/\pi_{ref})` up to constants. The certificate is the largest residual of
        the normal equations.

    References:
        `azar:23`, eq. 17.
    """
    tau = problem.beta if options.ipo_tau is None else np.full_like(problem.beta, options.ipo_tau)
    features = reward_class.features if isinstance(reward_class, LinearBall) else None
    size = group_size(problem, GROUP)
    fit = map_in_groups(_fit_ipo, problem, tau, features, size=size)
    policy, reward, residual, solved = fit
    status = np.where(solved, Status.SOLVED.value, Status.NOT_FINITE.value)
    return FitResult(policy, reward, residual, "stationarity_residual", status)


def dpop(
    problem: Problem, reward_class: RewardClass, options: DpopOptions, context: FitContext
) -> FitResult:
    r"""Fit DPO-positive over the policies :math:`\pi_r` of a compact class.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: tabular boxes or linear balls, with the same leading axis.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies. The certificate bounds the distance of their loss from the minimum, nats.

    Raises:
        ValueError: if the reward class is neither a tabular box nor a linear ball. Over all
            rewards the infimum is not always attained.

    References:
        `pal:24`, eq. 3.
    """
    del context
    reward_class = require_box_or_ball("dpop", reward_class)
    # A tabular loss is the mean of the losses of the prompts, weighted by their comparisons.
    is_tabular = isinstance(reward_class, TabularBox)
    parts = _split_prompts(problem, reward_class) if is_tabular else (problem, reward_class)
    fit = partial(_fit_dpop, np.asarray(options.dpop_penalty, np.float64))
    policy, reward, gap = map_in_groups(fit, *parts, size=group_size(parts[0], GROUP))
    if is_tabular:
        shape = np.shape(problem.reference_policy)
        policy, reward = policy.reshape(shape), reward.reshape(shape)
        prompt_counts = np.asarray(problem.wins).sum(axis=(2, 3))
        n_comparisons = np.maximum(prompt_counts.sum(axis=1), 1e-300)
        gap = (prompt_counts * gap.reshape(shape[:2])).sum(axis=1) / n_comparisons
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


def chi_po(
    problem: Problem, reward_class: RewardClass, options: MethodOptions, context: FitContext
) -> FitResult:
    r"""Fit chi-PO over the policies whose rewards :math:`\beta u(\pi/\pi_{ref})` are in the class.

    Up to a constant per prompt every reward belongs to a policy, so the minimal loss is the maximum
    likelihood of the class. Where rewards of a prompt differ by at most :math:`R`, the clipping of
    the loss at :math:`2R` never binds.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: compact and convex classes with the same leading axis.
        options: none.
        context: kernel of the study.

    Returns:
        The policies, which maximize :math:`E_\pi\hat r-\beta(\chi^2+KL)(\pi\|\pi_{ref})`. The
        certificate is the duality gap of the likelihood.

    Raises:
        ValueError: if the reward class is not compact, not convex or has no ``reward_max``. Over
            all rewards the clipped loss is flat and has no unique minimizer.

    References:
        `huang:24`, Algorithm 1.
    """
    reward_class = require_compact_class("chi_po", reward_class)
    likelihood_only = problem._replace(eta=np.zeros_like(problem.eta))
    kernel = context.kernel
    solution = minimax.solve_batch(likelihood_only, reward_class, throw=False, kernel=kernel)
    arguments = (solution.reward, problem.reference_policy, problem.beta)
    policy = map_in_groups(_chi_squared_policies, *arguments, size=group_size(problem, GROUP))
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
    r"""Return the policy with :math:`\beta u(\pi/\pi_{ref}) = r-\lambda(x)`, :math:`u(z)=z+\log z`.

    Args:
        reward: :math:`r(x,a)`.
        reference: :math:`\pi_{ref}(a|x)`.
        beta: weight :math:`\beta>0` of the divergences.

    Returns:
        The maximizer of :math:`E_\pi r-\beta(\chi^2+KL)(\pi\|\pi_{ref})` with
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
    start = lowest - beta  # too low: every ratio is at least 1, so Newton's steps are monotone

    def rise(_: Array, level: Float[Array, "x 1"]) -> Float[Array, "x 1"]:
        ratio = link_inverse((reward - level) / beta)
        excess = jnp.sum(reference * ratio, axis=-1, keepdims=True) - 1.0
        slope = jnp.sum(reference * ratio / (1.0 + ratio), axis=-1, keepdims=True)
        return level + beta * excess / slope

    level = jax.lax.fori_loop(0, LEVEL_STEPS, rise, start)
    policy = reference * link_inverse((reward - level) / beta)
    return policy / policy.sum(axis=-1, keepdims=True)


def link_inverse(value: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    r"""Solve :math:`z+\log z = s` for :math:`z>0`; the solution is Lambert's :math:`W(e^s)`.

    Args:
        value: real numbers :math:`s`.

    Returns:
        Positive numbers :math:`z`.

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


def _split_prompts(problem: Problem, reward_class: TabularBox) -> tuple[Problem, TabularBox]:
    """Return every prompt of a batch as a problem with one prompt."""
    n_problems, n_contexts, n_actions = np.shape(problem.reference_policy)
    single_prompts = Problem(
        context_weights=np.ones((n_problems * n_contexts, 1)),
        reference_policy=np.reshape(problem.reference_policy, (-1, 1, n_actions)),
        baseline_policy=np.reshape(problem.baseline_policy, (-1, 1, n_actions)),
        wins=np.reshape(problem.wins, (-1, 1, n_actions, n_actions)),
        beta=np.repeat(problem.beta, n_contexts),
        eta=np.repeat(problem.eta, n_contexts),
    )
    return single_prompts, TabularBox(np.repeat(reward_class.maximum, n_contexts))


_chi_squared_policies = jax.jit(jax.vmap(chi_squared_policy))


@jax.jit
@jax.vmap
def _fit_ipo(
    problem: Problem, tau: Float[Array, ""], features: Float[Array, "x a d"] | None
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Array]:
    share = _win_shares(problem)
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
def _fit_dpop(
    penalty: Float[Array, ""], problem: Problem, reward_class: TabularBox | LinearBall
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""]]:
    """Return policy, reward and duality gap of DPOP for one problem."""
    share = _win_shares(problem)
    shape = share.shape[:2]

    def smoothed(point: Float[Array, " p"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        reward, barrier = _from_unit_set(reward_class, point, shape)
        lost = _log_loss_of_chosen(problem, reward)
        # The smoothed kink stands for the relu of the penalty.
        kink = temperature * jax.nn.softplus(lost / temperature)
        margin = reward[:, :, None] - reward[:, None, :]
        worse = problem.beta * penalty * kink[:, :, None]
        return jnp.sum(share * jax.nn.softplus(worse - margin)) + temperature * barrier

    size = shape[0] * shape[1]
    if isinstance(reward_class, LinearBall):
        size = reward_class.features.shape[-1]
    path = path_following.follow_path(smoothed, jnp.zeros(size, share.dtype))
    reward, _ = _from_unit_set(reward_class, path.point, shape)
    gap = _dpop_gap(problem, reward_class, reward, penalty, path.temperature)
    return gibbs_policy(reward, problem.reference_policy, problem.beta), reward, gap


def _dpop_gap(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    reward: Float[Array, "x a"],
    penalty: Float[Array, ""],
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Bound the suboptimality of a reward under the DPOP loss by a supporting plane.

    The kink :math:`\max(0,x)` is at least :math:`s x` for every :math:`s\in[0,1]`. So :math:`s` is
    a subgradient at :math:`x` up to an error :math:`\max(0,x)-s x\ge0`, which the bound includes.

    Args:
        problem: one instance.
        reward_class: class that holds the reward.
        reward: any member of the class.
        penalty: :math:`\lambda` of DPOP.
        temperature: scale on which :math:`s` rises from 0 to 1 around a kink.

    Returns:
        Nats, at least the DPOP loss of :math:`\pi_r` minus that of any policy of the class.
    """
    share = _win_shares(problem)
    lost = _log_loss_of_chosen(problem, reward)
    subgradient = jax.nn.sigmoid(lost / temperature)
    surprise = share * _surprise(problem, reward, penalty)

    def support(member: Float[Array, "x a"]) -> Float[Array, ""]:
        margin = member[:, :, None] - member[:, None, :]
        charged = problem.beta * penalty * subgradient * _log_loss_of_chosen(problem, member)
        return jnp.sum(surprise * (charged[:, :, None] - margin))

    kink_error = problem.beta * penalty * (jax.nn.relu(lost) - subgradient * lost)
    linear_gap = reward_class.linear_gap(jax.grad(support)(reward), reward)
    return jnp.maximum(linear_gap, 0.0) + jnp.sum(surprise * kink_error[:, :, None])


def _win_shares(problem: Problem) -> Float[Array, "x a a"]:
    """Return the win counts divided by their sum, or zeros if there are no data."""
    wins = jnp.asarray(problem.wins)
    return wins / jnp.where(wins.sum() > 0, wins.sum(), 1.0)


def _surprise(
    problem: Problem, reward: Float[Array, "x a"], penalty: Float[Array, ""]
) -> Float[Array, "x a a"]:
    r"""Return :math:`\sigma(-z)`, minus the derivative of each pair's loss in its margin."""
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
    r"""Return :math:`\log(\pi_{ref}/\pi_r) = \log Z_r - r/\beta`, convex in the reward."""
    scaled = reward / problem.beta
    log_z = jax.scipy.special.logsumexp(scaled, axis=1, b=jnp.asarray(problem.reference_policy))
    return log_z[:, None] - scaled


def _from_unit_set(
    reward_class: TabularBox | LinearBall, point: Float[Array, " p"], shape: tuple[int, ...]
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Map a point of the unit cube or ball around 0 to a reward, and return its barrier."""
    match reward_class:
        case TabularBox(maximum):
            reward = (1.0 + point.reshape(shape)) * (0.5 * maximum)
            return reward, -jnp.log1p(-(point**2)).sum()
        case LinearBall(features, radius):
            return jnp.asarray(features) @ (radius * point), -jnp.log1p(-point @ point)


METHODS = (
    Method("ipo", ipo, "IPO", IpoOptions, uses_eta=False),
    Method("dpop", dpop, "DPOP", DpopOptions, uses_eta=False),
    Method("chi_po", chi_po, "χPO", uses_eta=False),
)
"""Methods of this module."""
