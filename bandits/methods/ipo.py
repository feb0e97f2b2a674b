r"""IPO on tables, which is a least-squares problem in the log-ratios of policy and reference."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.policies import gibbs_policy
from rpo_theory.rewards import LinearBall, RewardClass
from rpo_theory.types import Problem, Status

from .base import FitContext, FitResult, Method
from .class_search import GROUP, win_shares
from .options import MethodOptions, check_number

RESIDUAL_TOLERANCE = 1e-9  # of the normal equations, relative to their right side


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


@jax.jit
@jax.vmap
def _fit_ipo(
    problem: Problem, tau: Float[Array, ""], features: Float[Array, "x a d"] | None
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Array]:
    share = win_shares(problem)
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


METHODS = (Method("ipo", ipo, "IPO", IpoOptions, uses_eta=False),)
"""Methods of this module."""
