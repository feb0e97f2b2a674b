r"""Nash learning from human feedback: general preferences without a reward.

The data estimate the matrix :math:`P(a\succ b|x)`, which need not come from any reward. Two players
choose a policy each, and each pays for its distance from the reference:

.. math:: \max_\pi\min_{\pi'}\; E_{\pi,\pi'}P(a\succ b|x)
          - \beta KL(\pi\|\pi_{ref}) + \beta KL(\pi'\|\pi_{ref}).

The game is symmetric and strongly concave-convex, so it has a single equilibrium
:math:`\pi=\pi'`, the solution of

.. math:: u = \frac1\beta A\,\pi_u, \qquad \pi_u\propto\pi_{ref}e^u, \qquad
          A(a,b) = P(a\succ b|x)-\frac12 .

Newton's method solves it. The Jacobian is :math:`I-AD/\beta` with the covariance matrix
:math:`D=diag(\pi_u)-\pi_u\pi_u^T`. As :math:`A` is antisymmetric, the eigenvalues of :math:`AD` are
imaginary, and the Jacobian is never singular. So Newton's direction always lowers the residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.policies import gibbs_policy, kl_divergence
from rpo_theory.rewards import RewardClass
from rpo_theory.types import ArrayLike, Problem, Status

from .base import FitContext, FitResult, Method
from .options import MethodOptions, check_number

GROUP = 1024  # entries of the win counts that are fitted at a time
GAP_TOLERANCE = 1e-9  # of the game, in probabilities of winning
MAX_STEPS = 200  # of Newton's method; the typical number is 5
STEP_LENGTHS = 0.5 ** np.arange(30)
ROUNDING = 1e-15  # residual, relative to the largest logit, below which Newton's method stops


@dataclass(frozen=True, kw_only=True)
class NashOptions(MethodOptions):
    """Options of the Nash equilibrium.

    Attributes:
        nash_smoothing: wins that each of both responses of a pair gets in addition to the data, at
            least 0; at 0 a pair without comparisons is even.

    Raises:
        ValueError: if an option is out of range.
    """

    nash_smoothing: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("nash_smoothing", self.nash_smoothing, least=0.0)


class Equilibrium(NamedTuple):
    r"""Symmetric equilibrium of the regularized game of one prompt.

    Attributes:
        policy: :math:`\pi(a)`, the same for both players.
        gap: duality gap, see :func:`exploitability`.
        steps: number of Newton steps.
    """

    policy: Float[ArrayLike, " a"]
    gap: Float[ArrayLike, ""]
    steps: Int[ArrayLike, ""]


def nash(
    problem: Problem, reward_class: RewardClass, options: NashOptions, context: FitContext
) -> FitResult:
    r"""Fit the equilibrium of the regularized game of each prompt.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: ignored; the method has no reward.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies. The certificate is the duality gap of the game under the prompt distribution:
        both players together gain at most this by deviating.

    References:
        `munos:23`, eq. 4; `ye:24`.
    """
    del reward_class, context
    smoothing = np.asarray(options.nash_smoothing, np.float64)
    fit = partial(_fit, smoothing)
    policy, gap = map_in_groups(fit, problem, size=group_size(problem, GROUP))
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, np.full_like(policy, np.nan), gap, "duality_gap", status)


def preference_matrix(
    wins: Float[ArrayLike, "*x a a"], smoothing: Float[ArrayLike, ""] | float = 0.0
) -> Float[Array, "*x a a"]:
    r"""Return the estimated probability that one response is preferred to another.

    .. math:: P(a\succ b) = \frac{n_{ab}+s}{n_{ab}+n_{ba}+2s}

    Args:
        wins: win counts :math:`n_{ab}`.
        smoothing: :math:`s\ge0`.

    Returns:
        Probabilities with :math:`P(a\succ b)+P(b\succ a)=1`; 1/2 without data.

    Examples:
        >>> preference_matrix(jnp.array([[0.0, 2.0], [1.0, 0.0]]), 0.5).tolist()
        [[0.5, 0.625], [0.375, 0.5]]
    """
    wins = jnp.asarray(wins)
    counts = wins + wins.mT + 2.0 * smoothing
    difference = (wins - wins.mT) / jnp.where(counts > 0, counts, 1.0)
    return 0.5 + 0.5 * difference


def exploitability(
    preferences: Float[ArrayLike, "a a"],
    reference: Float[ArrayLike, " a"],
    policy: Float[ArrayLike, " a"],
    beta: Float[ArrayLike, ""] | float,
) -> Float[Array, ""]:
    r"""Return the duality gap of a policy that both players use in the regularized game.

    The best response is :math:`b\propto\pi_{ref}e^{A\pi/\beta}`. As :math:`\pi^TA\pi=0`, each
    player gains :math:`\beta\log Z+\beta KL(\pi\|\pi_{ref})=\beta KL(\pi\|b)` by it.

    Args:
        preferences: :math:`P(a\succ b)`.
        reference: :math:`\pi_{ref}(a)`.
        policy: :math:`\pi(a)`, in the support of the reference.
        beta: weight of the divergences.

    Returns:
        :math:`2\beta KL(\pi\|b)\ge0`, in probabilities of winning; 0 at the equilibrium alone.

    References:
        `munos:23`.

    Examples:
        >>> even = jnp.full(2, 0.5)
        >>> float(exploitability(jnp.full((2, 2), 0.5), even, even, 0.1))
        0.0
    """
    advantage = jnp.asarray(preferences) - 0.5
    best = gibbs_policy(advantage @ jnp.asarray(policy), reference, beta)
    return jnp.asarray(2.0 * beta) * kl_divergence(policy, best)


def solve_game(
    preferences: Float[ArrayLike, "a a"],
    reference: Float[ArrayLike, " a"],
    beta: Float[ArrayLike, ""] | float,
) -> Equilibrium:
    r"""Solve the regularized game of one prompt by Newton's method.

    Args:
        preferences: :math:`P(a\succ b)`, with :math:`P(a\succ b)+P(b\succ a)=1`.
        reference: :math:`\pi_{ref}(a)`.
        beta: weight :math:`\beta>0` of the divergences.

    Returns:
        The equilibrium.

    References:
        `munos:23`, Proposition 1, for its existence and uniqueness.

    Examples:
        >>> certain = jnp.array([[0.5, 1.0], [0.0, 0.5]])
        >>> round(float(solve_game(certain, jnp.full(2, 0.5), 1.0).policy[0]), 3)
        0.622
    """
    preferences, reference = jnp.asarray(preferences), jnp.asarray(reference)
    scaled = (preferences - 0.5) / beta
    identity = jnp.eye(len(reference), dtype=reference.dtype)
    possible = reference > 0
    log_reference = jnp.where(possible, jnp.log(jnp.where(possible, reference, 1.0)), -jnp.inf)

    def policy_at(logits: Float[Array, " a"]) -> Float[Array, " a"]:
        return jax.nn.softmax(log_reference + logits)

    def residual(logits: Float[Array, " a"]) -> Float[Array, " a"]:
        return logits - scaled @ policy_at(logits)

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        logits, improved, steps = state
        size = jnp.abs(residual(logits)).max()
        resolved = ROUNDING * jnp.maximum(1.0, jnp.abs(logits).max())
        return improved & (size > resolved) & (steps < MAX_STEPS)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        logits, _, steps = state
        policy, error = policy_at(logits), residual(logits)
        covariance = jnp.diag(policy) - jnp.outer(policy, policy)
        direction = -jnp.linalg.solve(identity - scaled @ covariance, error)
        lengths = jnp.asarray(STEP_LENGTHS, logits.dtype)[:, None]
        candidates = logits + lengths * direction
        sizes = jnp.sum(jax.vmap(residual)(candidates) ** 2, axis=1)
        best = jnp.argmin(sizes)
        improved = sizes[best] < jnp.sum(error**2)
        return jnp.where(improved, candidates[best], logits), improved, steps + 1

    start = (jnp.zeros_like(reference), jnp.array(True), jnp.zeros((), jnp.int32))
    logits, _, steps = jax.lax.while_loop(goes_on, step, start)
    policy = policy_at(logits)
    gap = exploitability(preferences, reference, policy, beta)
    return Equilibrium(policy, gap, steps)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def _fit(
    smoothing: Float[Array, ""], problem: Problem
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Return the policies of the prompts of one problem, and its duality gap."""
    preferences = preference_matrix(problem.wins, smoothing)
    solve = jax.vmap(partial(solve_game, beta=problem.beta))
    equilibrium = solve(preferences, jnp.asarray(problem.reference_policy))
    gap = jnp.asarray(problem.context_weights) @ jnp.asarray(equilibrium.gap)
    return jnp.asarray(equilibrium.policy), gap


METHODS = (Method("nash", nash, "Nash, KL", NashOptions, uses_eta=False),)
"""Methods of this module."""
