r"""What a duality gap says about the policy: its distance from the exact RPO policy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .array_checks import is_traced
from .types import ArrayLike, Problem


class PolicyError(NamedTuple):
    r"""Bounds on the distance of a policy :math:`\pi` from the exact policy :math:`\hat\pi`.

    Attributes:
        kl: bound on :math:`E_{d_0} KL(\pi\|\hat\pi)`, nats.
        total_variation: bound on :math:`E_{d_0} TV(\pi,\hat\pi)`, at most 1.
    """

    kl: Float[ArrayLike, ""]
    total_variation: Float[ArrayLike, ""]


def policy_error(problem: Problem, duality_gap: Float[ArrayLike, ""] | float) -> PolicyError:
    r"""Bound the distance of a certified policy from the exact one.

    For a minimizer :math:`\hat r` of :math:`F` and :math:`\hat\pi=\pi_{\hat r}`, Lemma B.3 and the
    definition of the gap give

    .. math:: \eta\beta\,E_{d_0}KL(\pi\|\hat\pi) = F(\hat r)-\phi(\pi,\hat r)
              \le F(r)-\min_{r'}\phi(\pi,r') = gap(\pi, r).

    The bound on the total variation follows by the inequalities of Pinsker and Jensen. The first
    bound is attained where :math:`\hat r` is also the worst reward for :math:`\pi`.

    Args:
        problem: problem of the certificate; only :math:`\eta` and :math:`\beta` are used.
        duality_gap: bound on the duality gap of :math:`\pi` and any member of the class, nats.

    Returns:
        Bounds; without adversarial term the divergence has none.

    Examples:
        >>> problem = Problem([1.0], [[1.0]], [[1.0]], [[[0.0]]], beta=0.5, eta=0.1)
        >>> kl, total_variation = policy_error(problem, 4e-6)
        >>> round(float(kl), 6), round(float(total_variation), 4)
        (8e-05, 0.0063)
    """
    arguments = (problem.eta, problem.beta, duality_gap)
    if is_traced(arguments):
        return _policy_error(*arguments)
    with jax.enable_x64(True):
        error = _policy_error(*(np.asarray(number, np.float64) for number in arguments))
    return PolicyError(*map(np.asarray, error))


def _policy_error(
    eta: ArrayLike | float, beta: ArrayLike | float, duality_gap: ArrayLike | float
) -> PolicyError:
    weight = jnp.asarray(eta) * jnp.asarray(beta)
    kl = jnp.where(weight > 0, duality_gap / jnp.where(weight > 0, weight, 1.0), jnp.inf)
    return PolicyError(kl, jnp.minimum(1.0, jnp.sqrt(kl / 2.0)))
