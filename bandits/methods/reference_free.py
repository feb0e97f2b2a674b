r"""Losses without a reference policy on tables: SimPO and ORPO.

**SimPO** has the implicit reward :math:`r=\beta\log\pi` and asks for a margin :math:`\gamma`:

.. math:: -\log\sigma(r(x,w) - r(x,l) - \gamma).

This is the likelihood of the Rao-Kupper model with threshold :math:`\theta=e^\gamma` of which no
comparison ended in a tie (`rao:67`). So the exact solver of maximum likelihood fits it, with its
duality gap, in every reward class. Division by the length of a response has no effect on tables:
a response is one token.

**ORPO** adds :math:`\lambda` times an odds-ratio loss to the log-loss of the chosen response. For
two responses the odds ratio is :math:`2(\theta_w-\theta_l)` in logits :math:`\theta`, and the loss
is convex. For more responses it is not always convex. Newton's method then starts from the
minimizer at :math:`\lambda=0`, the distribution of the chosen responses, and ends in a stationary
point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from bandits.environments.base import baseline_policy
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.losses import PairLogProbs, orpo
from rpo_theory.preference_data import RaoKupperTies
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem, Status

from . import path_following
from .base import FitContext, FitResult, Method
from .options import MethodOptions, SearchOptions, check_number
from .saddle_methods import search_class, solve_exactly, uniform_reference

GROUP = 1024  # entries of the win counts that are fitted at a time
RESIDUAL_TOLERANCE = 1e-9  # of ORPO's gradient in the logits, nats
NO_THRESHOLD = 1.0 + 2.0**-50  # the smallest Rao-Kupper threshold in use; its margin is 1e-15


@dataclass(frozen=True, kw_only=True)
class SimpoOptions(SearchOptions):
    r"""Options of SimPO; its :math:`\beta` is that of the problem.

    Attributes:
        simpo_gamma_ratio: target of the margin of log-probabilities, :math:`\gamma/\beta\ge0`.

    Raises:
        ValueError: if an option is out of range.
    """

    simpo_gamma_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        SearchOptions.__post_init__(self)
        check_number("simpo_gamma_ratio", self.simpo_gamma_ratio, least=0.0)


@dataclass(frozen=True, kw_only=True)
class OrpoOptions(MethodOptions):
    r"""Options of ORPO.

    Attributes:
        orpo_penalty: weight :math:`\lambda\ge0` of the odds-ratio loss.

    Raises:
        ValueError: if an option is out of range.
    """

    orpo_penalty: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("orpo_penalty", self.orpo_penalty, least=0.0)


def simpo(
    problem: Problem, reward_class: RewardClass, options: SimpoOptions, context: FitContext
) -> FitResult:
    r"""Fit SimPO, maximum likelihood of rewards :math:`\beta\log\pi` with a target margin.

    Args:
        problem: instances, with a leading batch axis; only the support of the reference policy is
            used.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies :math:`\pi\propto e^{r/\beta}` on the support of the reference. The certificate
        is the duality gap of the loss.

    References:
        `meng:24`, eq. 6.
    """
    gamma = options.simpo_gamma_ratio * np.asarray(problem.beta, np.float64)
    wins = np.asarray(problem.wins, np.float64)
    problem = problem._replace(
        reference_policy=uniform_reference(problem),
        eta=np.zeros(len(wins)),
        ties=RaoKupperTies(np.zeros_like(wins), np.maximum(np.exp(gamma), NO_THRESHOLD)),
    )
    return solve_exactly(problem, search_class(reward_class, options), context)


def fit_orpo(
    problem: Problem, reward_class: RewardClass, options: OrpoOptions, context: FitContext
) -> FitResult:
    r"""Fit ORPO over the policies on the responses that were chosen at least once.

    Every other response lowers the likelihood and the odds of the chosen ones, and has probability
    0. A prompt without data has the uniform policy on the support of the reference.

    Args:
        problem: instances, with a leading batch axis; :math:`\beta` and :math:`\eta` are ignored.
        reward_class: ignored, like the context; present for the common signature.
        options: options of the method.
        context: ignored; the method has one kernel.

    Returns:
        The policies. The certificate is the largest derivative of the loss in a logit, nats.

    References:
        `hong:24`, eqs. 6 and 7.
    """
    del reward_class, context
    uniform = uniform_reference(problem)
    start = baseline_policy("chosen", wins=np.asarray(problem.wins, np.float64), reference=uniform)
    fit = partial(_fit_orpo, np.asarray(options.orpo_penalty, np.float64))
    policy, residual = map_in_groups(fit, problem.wins, start, size=group_size(problem, GROUP))
    status = np.where(residual <= RESIDUAL_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    reward = np.full_like(policy, np.nan)
    return FitResult(policy, reward, residual, "stationarity_residual", status)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def _fit_orpo(
    penalty: Float[Array, ""], wins: Float[Array, "x a a"], start: Float[Array, "x a"]
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Return the policy of one problem, and the largest residual of its prompts."""
    counts = wins.sum(axis=(1, 2), keepdims=True)
    shares = wins / jnp.where(counts > 0, counts, 1.0)

    def fit_prompt(
        share: Float[Array, "a a"], start: Float[Array, " a"]
    ) -> tuple[Float[Array, " a"], Float[Array, ""]]:
        possible = start > 0
        objective = partial(_orpo_loss, share, possible, penalty)
        logits = jnp.where(possible, jnp.log(jnp.where(possible, start, 1.0)), 0.0)
        path = path_following.follow_path(lambda point, _: objective(point), logits)
        residual = jnp.abs(jax.grad(objective)(path.point)).max()
        return jnp.exp(_log_policy(path.point, possible)), residual

    policy, residual = jax.vmap(fit_prompt)(shares, start)
    return policy, residual.max()


def _orpo_loss(
    share: Float[Array, "a a"],
    possible: Bool[Array, " a"],
    penalty: Float[Array, ""],
    logits: Float[Array, " a"],
) -> Float[Array, ""]:
    """Return the mean loss of the comparisons of a prompt; impossible losers cost only SFT."""
    log_policy = _log_policy(logits, possible)
    table = jnp.broadcast_to(jnp.where(possible, log_policy, -1.0), share.shape)
    pair, one = PairLogProbs(table.T, table), jnp.ones_like(share)
    compared = (share > 0) & possible[:, None] & possible
    lone_winner = (share > 0) & possible[:, None] & ~possible
    losses = orpo(pair, PairLogProbs(one, one), penalty=penalty, where=compared)
    return jnp.sum(share * (losses - jnp.where(lone_winner, table.T, 0.0)))


def _log_policy(logits: Float[Array, " a"], possible: Bool[Array, " a"]) -> Float[Array, " a"]:
    return jax.nn.log_softmax(jnp.where(possible, logits, -jnp.inf))


METHODS = (
    Method("simpo", simpo, "SimPO", SimpoOptions, uses_eta=False),
    Method("orpo", fit_orpo, "ORPO", OrpoOptions, uses_eta=False, uses_beta=False),
)
"""Methods of this module."""
