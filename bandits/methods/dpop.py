r"""DPO-positive on tables; its loss is convex in the rewards, with kinks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.policies import gibbs_policy, log_gibbs_policy
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem, Status

from . import path_following
from .base import FitContext, FitResult, Method, require_box_or_ball
from .class_search import fit_by_prompts, from_unit_set, unit_dimension, win_shares
from .options import MethodOptions, check_number

GAP_TOLERANCE = 1e-6  # nats: kinks are resolved to the final temperature


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
    fit = partial(_fit_dpop, np.asarray(options.dpop_penalty, np.float64))
    policy, reward, gap = fit_by_prompts(fit, problem, reward_class)
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def _fit_dpop(
    penalty: Float[Array, ""], problem: Problem, reward_class: TabularBox | LinearBall
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""]]:
    """Return policy, reward and duality gap of DPOP for one problem."""
    share = win_shares(problem)
    shape = share.shape[:2]

    def smoothed(point: Float[Array, " p"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        reward, barrier = from_unit_set(reward_class, point, shape)
        lost = _log_loss_of_chosen(problem, reward)
        # The smoothed kink stands for the relu of the penalty.
        kink = temperature * jax.nn.softplus(lost / temperature)
        margin = reward[:, :, None] - reward[:, None, :]
        worse = problem.beta * penalty * kink[:, :, None]
        return jnp.sum(share * jax.nn.softplus(worse - margin)) + temperature * barrier

    start = jnp.zeros(unit_dimension(reward_class, shape), share.dtype)
    path = path_following.follow_path(smoothed, start)
    reward, _ = from_unit_set(reward_class, path.point, shape)
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
    share = win_shares(problem)
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


METHODS = (Method("dpop", dpop, "DPOP", DpopOptions, uses_eta=False),)
"""Methods of this module."""
