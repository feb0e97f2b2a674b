r"""KTO on tables: single responses, each desirable or undesirable, instead of pairs.

Every comparison gives one desirable response, its winner, and one undesirable response, its loser.
With the log-ratio :math:`\rho=\log(\pi/\pi_{ref})` and the reference point :math:`z` the loss of a
prompt is, up to a constant,

.. math:: -\sum_a c_a\,\sigma(\beta[\rho_a - z]), \qquad
          c_a = \lambda_D\,wins(a) - \lambda_U\,losses(a),

because :math:`\sigma(-x)=1-\sigma(x)`. Responses with :math:`c_a\le0` get probability 0 as soon as
one has :math:`c_a>0`. For :math:`\beta\le1` the value is concave in the probabilities, so that the
optimality conditions decide: with :math:`u=\rho-z`,

.. math:: \log\frac{c_a\beta}{\pi_{ref}(a)} + \log\sigma(\beta u_a) + \log\sigma(-\beta u_a) - u_a
          = \nu

has a single solution :math:`u_a(\nu)` for each response, and one equation in :math:`\nu` remains.

The reference point of the paper is :math:`z=KL(\pi\|\pi_{ref})` of the current policy, through
which no gradient flows. Training stops at a *fixed point*: a policy that minimizes the loss with
its own divergence as :math:`z`. Here the divergence is exact and that of the same prompt, where
training estimates it from a batch. In terms of :math:`\nu` it is the solution of
:math:`\sum_a\pi_a u_a=0`. With :math:`z=0`, as in training without the estimate, it is that of
:math:`\sum_a\pi_{ref}(a)e^{u_a}=1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid
from jaxtyping import Bool, Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem, Status

from .base import FitContext, FitResult, Method
from .options import MethodOptions, check_number, check_option

GROUP = 1024  # entries of the win counts that are fitted at a time
GAP_TOLERANCE = 1e-9  # of the mean loss of a comparison
BISECTIONS = 60  # of the interval of nu, which leaves a relative width of 1e-18
NEWTON_STEPS = 30  # for each response; convergence is monotone, and quadratic within 10 steps
FLATTEST = 1e-6  # smallest slope of Newton's method, for beta of 1 and above

ReferencePoint = Literal["kl", "zero"]
"""Reference point of KTO: the divergence of the policy from the reference, or 0."""


@dataclass(frozen=True, kw_only=True)
class KtoOptions(MethodOptions):
    r"""Options of KTO; its :math:`\beta` is that of the problem.

    Attributes:
        kto_reference_point: :math:`z`: "kl" for the divergence of the policy from the reference at
            the same prompt, "zero" for 0.
        kto_desirable_weight: :math:`\lambda_D`, in units of :math:`\lambda_U=1`, at least 1.

    Raises:
        ValueError: if an option is out of range.
    """

    kto_reference_point: ReferencePoint = "kl"
    kto_desirable_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_option("kto_reference_point", self.kto_reference_point, get_args(ReferencePoint))
        check_number("kto_desirable_weight", self.kto_desirable_weight, least=1.0)


def fit_kto(
    problem: Problem, reward_class: RewardClass, options: KtoOptions, context: FitContext
) -> FitResult:
    r"""Fit KTO over all policies.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: ignored, like the context; present for the common signature.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies; the reference where every response wins as often as it loses. The certificate
        bounds the distance of the mean loss of a comparison from its minimum at the policy's own
        reference point. It is infinite for :math:`\beta>1`, where the loss is not convex.

    References:
        `ethayarajh:24`, eq. 8.
    """
    del reward_class, context
    at_zero = np.asarray(options.kto_reference_point == "zero", np.float64)
    weight = np.asarray(options.kto_desirable_weight, np.float64)
    fit = partial(_fit, at_zero, weight)
    policy, gap = map_in_groups(fit, problem, size=group_size(problem, GROUP))
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, np.full_like(policy, np.nan), gap, "duality_gap", status)


@jax.jit
@partial(jax.vmap, in_axes=(None, None, 0))
def _fit(
    at_zero: Float[Array, ""], desirable_weight: Float[Array, ""], problem: Problem
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Return the policy of one problem and the gap of its mean loss."""
    wins = jnp.asarray(problem.wins)
    net = desirable_weight * wins.sum(axis=2) - wins.sum(axis=1)
    fit = jax.vmap(partial(_fit_prompt, at_zero, beta=jnp.asarray(problem.beta)))
    policy, gap = fit(net, jnp.asarray(problem.reference_policy))
    gap = gap.sum() / jnp.maximum(wins.sum(), jnp.finfo(wins.dtype).tiny)
    return policy, jnp.where(jnp.asarray(problem.beta) <= 1.0, gap, jnp.inf)


def _fit_prompt(
    at_zero: Float[Array, ""],
    net: Float[Array, " a"],
    reference: Float[Array, " a"],
    beta: Float[Array, ""],
) -> tuple[Float[Array, " a"], Float[Array, ""]]:
    """Return the policy of one prompt and the gap of the sum of its losses."""
    kept = (net > 0) & (reference > 0)
    log_reference = jnp.log(jnp.where(kept, reference, 1.0))
    level = jnp.log(jnp.where(kept, net, 1.0) * beta) - log_reference

    def log_ratios(nu: Float[Array, ""]) -> Float[Array, " a"]:
        return _solve_response(nu - level, beta)

    def log_mass(values: Float[Array, " a"]) -> Float[Array, ""]:
        return jax.scipy.special.logsumexp(jnp.where(kept, log_reference + values, -jnp.inf))

    def excess(nu: Float[Array, ""]) -> Float[Array, ""]:
        """Return a number that is positive below the solution and negative above it."""
        u = log_ratios(nu)
        mass = log_mass(u)
        policy = jnp.where(kept, jnp.exp(log_reference + u - mass), 0.0)
        return jnp.where(at_zero > 0, mass, policy @ u)

    # At the ends, every u is on the same side of the value that solves the equation if all agree.
    even = jnp.where(at_zero > 0, -log_mass(jnp.zeros_like(level)), 0.0)
    ends = level + log_sigmoid(beta * even) + log_sigmoid(-beta * even) - even
    low = jnp.where(kept, ends, jnp.inf).min()
    high = jnp.where(kept, ends, -jnp.inf).max()

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    is_flat = ~kept.any()
    bracket = (jnp.where(is_flat, 0.0, low), jnp.where(is_flat, 0.0, high))
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, bracket)
    u = log_ratios(0.5 * (low + high))
    log_ratio = u - jnp.where(is_flat, 0.0, log_mass(u))
    policy = jnp.where(is_flat, reference, jnp.where(kept, jnp.exp(log_reference + log_ratio), 0.0))
    divergence = jnp.where(kept, policy * log_ratio, 0.0).sum()
    point = jnp.where(at_zero > 0, 0.0, divergence)
    gap = _linear_gap(kept, level, log_ratio, policy, point, beta)
    return policy, jnp.where(is_flat, 0.0, gap)


def _solve_response(k: Float[Array, " a"], beta: Float[Array, ""]) -> Float[Array, " a"]:
    r"""Solve :math:`\log\sigma(\beta u)+\log\sigma(-\beta u)-u=k`, concave and decreasing in u.

    The left side is at most :math:`-\beta|u|-u`. Where that equals k, Newton's method starts above
    the solution, and by concavity its steps fall monotonically to it.
    """
    slope = jnp.where(k < 0, 1.0 + beta, jnp.maximum(1.0 - beta, FLATTEST))

    def newton(_: Array, u: Float[Array, " a"]) -> Float[Array, " a"]:
        value = log_sigmoid(beta * u) + log_sigmoid(-beta * u) - u
        derivative = -beta * jnp.tanh(0.5 * beta * u) - 1.0
        return u - (value - k) / jnp.minimum(derivative, -FLATTEST)

    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, -k / slope)


def _linear_gap(
    kept: Bool[Array, " a"],
    level: Float[Array, " a"],
    log_ratio: Float[Array, " a"],
    policy: Float[Array, " a"],
    point: Float[Array, ""],
    beta: Float[Array, ""],
) -> Float[Array, ""]:
    """Return the Frank-Wolfe gap: for a concave value, at least its distance from the maximum."""
    u = log_ratio - point
    log_gradient = level + log_sigmoid(beta * u) + log_sigmoid(-beta * u) - log_ratio
    gradient = jnp.where(kept, jnp.exp(log_gradient), 0.0)
    return jnp.maximum(gradient.max() - policy @ gradient, 0.0)


METHODS = (Method("kto", fit_kto, "KTO", KtoOptions, uses_eta=False),)
"""Methods of this module."""
