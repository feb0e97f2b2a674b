r"""chi-PO on tables: maximum likelihood in the rewards :math:`\beta\,u(\pi/\pi_{ref})`.

The link function is :math:`u(z)=z+\log z`. The policy is the inverse of the link at the rewards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory import minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import RewardClass
from rpo_theory.types import ArrayLike, Problem

from .base import FitContext, FitResult, Method, require_compact_class
from .class_search import GROUP
from .options import MethodOptions

LINK_STEPS = 8  # Newton steps for the link; convergence is quadratic, with error 1e-16 after 6
LEVEL_STEPS = 64  # Newton steps for the level; each gains at least a nat until it is quadratic


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


_chi_squared_policies = jax.jit(jax.vmap(chi_squared_policy))

METHODS = (Method("chi_po", chi_po, "χPO", uses_eta=False),)
"""Methods of this module."""
