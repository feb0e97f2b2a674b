r"""Methods that know a reward only up to its uncertainty: a pessimistic ensemble, and Thompson.

A **reward ensemble** fits the maximum likelihood reward of the class to bootstrap samples of the
comparisons (`efron:79`). Data say nothing about a constant that is added to the rewards of a
prompt, so each member is shifted to mean 0 under the reference policy. The members are combined
into a pessimistic reward, and the policy is its Gibbs policy (`coste:24`).

**Thompson sampling** draws one reward from its posterior and plays the Gibbs policy of it.
Laplace's approximation replaces the posterior by a normal distribution around its mode, whose
precision is the Hessian of the negative log-posterior (`chapelle:11`). The prior is normal, with
the mean and the covariance of the uniform distribution on the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.policies import gibbs_policy
from rpo_theory.preference import negative_log_likelihood
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem, Status

from . import path_following
from .base import FitContext, FitResult, Method, require_box_or_ball, require_compact_class
from .options import MethodOptions, check_number, check_option
from .saddle_methods import two_stage

GROUP = 1024  # entries of the win counts that are fitted at a time
GAP_TOLERANCE = 1e-6  # of the log-posterior, nats

EnsembleRule = Literal["min", "std", "variance", "mean"]
"""How the members of an ensemble are combined into one reward."""


@dataclass(frozen=True, kw_only=True)
class RewardEnsembleOptions(MethodOptions):
    r"""Options of the reward ensemble.

    Attributes:
        ensemble_members: number of members, at least 1.
        ensemble_rule: "min" for the smallest reward of any member (WCO), "variance" for the mean
            minus the coefficient times the variance (UWO), "std" for the mean minus the coefficient
            times the standard deviation, or "mean".
        ensemble_coefficient: weight of the deviation or variance, at least 0.
        ensemble_bootstrap: whether members see bootstrap samples; if false, all see the data.

    Raises:
        ValueError: if an option is out of range.

    References:
        `coste:24`, sec. 4.
    """

    ensemble_members: int = 5
    ensemble_rule: EnsembleRule = "std"
    ensemble_coefficient: float = 1.0
    ensemble_bootstrap: bool = True

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        if self.ensemble_members < 1:
            raise ValueError(f"`ensemble_members` must be at least 1, got {self.ensemble_members}")
        check_option("ensemble_rule", self.ensemble_rule, get_args(EnsembleRule))
        check_number("ensemble_coefficient", self.ensemble_coefficient, least=0.0)


@dataclass(frozen=True, kw_only=True)
class ThompsonOptions(MethodOptions):
    """Options of Thompson sampling.

    Attributes:
        thompson_scale: factor of the standard deviations of the posterior, at least 0; at 0 the
            reward is the mode.
        thompson_prior_scale: factor of the standard deviations of the prior, above 0.

    Raises:
        ValueError: if an option is out of range.
    """

    thompson_scale: float = 1.0
    thompson_prior_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("thompson_scale", self.thompson_scale, least=0.0)
        check_number("thompson_prior_scale", self.thompson_prior_scale, above=0.0)


def reward_ensemble(
    problem: Problem, reward_class: RewardClass, options: RewardEnsembleOptions, context: FitContext
) -> FitResult:
    r"""Fit the Gibbs policy of the pessimistic reward of an ensemble.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: compact and convex classes with the same leading axis.
        options: options of the method.
        context: kernel of the study, and the seeds of the bootstrap samples.

    Returns:
        The policies. The certificate is the largest duality gap of a member's likelihood.

    Raises:
        ValueError: if the reward class is not compact and convex: the likelihood of a bootstrap
            sample often has no maximum over all rewards.

    References:
        `coste:24`; `efron:79` for the bootstrap.
    """
    reward_class = require_compact_class("reward_ensemble", reward_class)
    reference = np.asarray(problem.reference_policy, np.float64)
    fits = []
    for member in range(options.ensemble_members):
        wins = np.asarray(problem.wins, np.float64)
        if options.ensemble_bootstrap:
            wins = bootstrap_wins(wins, _seeds(context, len(wins)), member)
        fits.append(two_stage(problem._replace(wins=wins), reward_class, options, context))
    rewards = np.stack([fit.reward for fit in fits])
    rewards = rewards - (reference * rewards).sum(axis=-1, keepdims=True)
    reward = combine_rewards(rewards, options.ensemble_rule, options.ensemble_coefficient)
    policy = map_in_groups(
        _gibbs_policies, reward, reference, problem.beta, size=group_size(problem, GROUP)
    )
    statuses = np.stack([fit.status for fit in fits])
    worst = (statuses != Status.SOLVED).argmax(axis=0)
    return FitResult(
        policy=policy,
        reward=reward,
        certificate=np.max([fit.certificate for fit in fits], axis=0),
        certificate_kind=fits[0].certificate_kind,
        status=np.take_along_axis(statuses, worst[None], axis=0)[0],
    )


def bootstrap_wins(
    wins: Float[ArrayLike, "b x a a"], seeds: ArrayLike, member: int
) -> Float[np.ndarray, "b x a a"]:
    """Draw a bootstrap sample of the comparisons of each problem.

    Args:
        wins: win counts. Their sum is rounded to the number of comparisons that are drawn, which
            are then scaled to the same sum.
        seeds: seed of each problem, shape ``[b]``.
        member: number of the sample; samples of different numbers are independent.

    Returns:
        Win counts with the same sums over each problem.

    References:
        `efron:79`.

    Examples:
        >>> wins = np.array([[[[0.0, 3.0], [1.0, 0.0]]]])
        >>> bootstrap_wins(wins, np.array([5]), 0).sum()
        np.float64(4.0)
    """
    wins = np.asarray(wins, np.float64)
    samples = np.zeros_like(wins)
    for index, (counts, seed) in enumerate(zip(wins, np.asarray(seeds), strict=True)):
        n_counted = counts.sum()
        n_drawn = round(n_counted) or int(n_counted > 0)
        if n_drawn:
            rng = np.random.default_rng([int(seed), member])
            drawn = rng.multinomial(n_drawn, (counts / n_counted).ravel())
            samples[index] = drawn.reshape(counts.shape) * (n_counted / n_drawn)
    return samples


def combine_rewards(
    rewards: Float[ArrayLike, "k *s"], rule: EnsembleRule, coefficient: float
) -> Float[np.ndarray, "*s"]:
    """Return the reward that an ensemble uses.

    Args:
        rewards: rewards of the members.
        rule: how they are combined, see :class:`RewardEnsembleOptions`.
        coefficient: weight of the standard deviation or variance.

    Returns:
        Rewards; at most the mean of the members.

    References:
        `coste:24`, eqs. 3 and 4.

    Examples:
        >>> rewards = np.array([[0.0, 1.0], [2.0, 1.0]])
        >>> combine_rewards(rewards, "min", 1.0).tolist()
        [0.0, 1.0]
        >>> combine_rewards(rewards, "std", 2.0).tolist()
        [-1.0, 1.0]
    """
    rewards = np.asarray(rewards)
    mean = rewards.mean(axis=0)
    match rule:
        case "min":
            return rewards.min(axis=0)
        case "std":
            return mean - coefficient * rewards.std(axis=0)
        case "variance":
            return mean - coefficient * rewards.var(axis=0)
        case "mean":
            return mean


def thompson(
    problem: Problem, reward_class: RewardClass, options: ThompsonOptions, context: FitContext
) -> FitResult:
    r"""Draw a reward from Laplace's approximation to the posterior, and return its Gibbs policy.

    Args:
        problem: instances, with a leading batch axis; :math:`\eta` is ignored.
        reward_class: tabular boxes or linear balls, with the same leading axis. A draw outside of
            the class is moved to the nearest reward of a box, or parameter of a ball.
        options: options of the method.
        context: seeds of the draws.

    Returns:
        The policies, with the drawn rewards. The certificate bounds the distance of the mode's
        log-posterior from the maximum, nats.

    Raises:
        ValueError: if the reward class is neither a tabular box nor a linear ball.

    References:
        `chapelle:11`, Algorithm 3.
    """
    reward_class = require_box_or_ball("thompson", reward_class)
    reference = np.asarray(problem.reference_policy)
    is_ball = isinstance(reward_class, LinearBall)
    size = reward_class.features.shape[-1] if is_ball else np.prod(reference.shape[1:])
    seeds = _seeds(context, len(reference))
    counts = np.asarray(problem.wins).sum(axis=(1, 2, 3))
    # In rounds, the number of comparisons makes the draws of all rounds different.
    streams = [
        np.random.default_rng([seed, round(n)]) for seed, n in zip(seeds, counts, strict=True)
    ]
    noise = np.stack([rng.normal(size=size) for rng in streams])
    scales = (options.thompson_scale, options.thompson_prior_scale)
    fit = partial(_draw, *(np.asarray(scale, np.float64) for scale in scales))
    arguments = (problem, reward_class, noise)
    policy, reward, gap = map_in_groups(fit, *arguments, size=group_size(problem, GROUP))
    status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


@jax.jit
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
def _draw(
    scale: Float[Array, ""],
    prior_scale: Float[Array, ""],
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    noise: Float[Array, " p"],
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""]]:
    """Return policy and reward of one draw, and the bound on the gap of the mode."""
    wins, shape = jnp.asarray(problem.wins), jnp.shape(problem.reference_policy)
    n_comparisons = wins.sum()

    def reward_at(point: Float[Array, " p"]) -> Float[Array, "x a"]:
        return _reward_at(reward_class, prior_scale * point, shape)

    def objective(point: Float[Array, " p"]) -> Float[Array, ""]:
        log_loss = n_comparisons * negative_log_likelihood(reward_at(point), wins)
        return log_loss + 0.5 * point @ point

    # Terms of order one, as the path needs them.
    size = jnp.maximum(n_comparisons, 1.0)
    path = path_following.follow_path(lambda point, _: objective(point) / size, 0.0 * noise)
    gradient, hessian = jax.grad(objective)(path.point), jax.hessian(objective)(path.point)
    lower = jnp.linalg.cholesky(hessian)
    step = jax.scipy.linalg.solve_triangular(lower.mT, noise, lower=False)
    reward = _nearest(reward_class, prior_scale, path.point + scale * step, shape)
    # The prior makes the objective 1-strongly convex in these coordinates.
    gap = 0.5 * gradient @ gradient
    return gibbs_policy(reward, problem.reference_policy, problem.beta), reward, gap


def _reward_at(
    reward_class: TabularBox | LinearBall, point: Float[Array, " p"], shape: tuple[int, ...]
) -> Float[Array, "x a"]:
    """Return the reward of a point that the uniform distribution on the class standardizes."""
    match reward_class:
        case TabularBox(maximum):
            return jnp.asarray(maximum) * (0.5 + point.reshape(shape) / jnp.sqrt(12.0))
        case LinearBall(features, radius):
            n_features = jnp.shape(features)[-1]
            return jnp.asarray(features) @ (radius * point / jnp.sqrt(n_features + 2.0))


def _nearest(
    reward_class: TabularBox | LinearBall,
    prior_scale: Float[Array, ""],
    point: Float[Array, " p"],
    shape: tuple[int, ...],
) -> Float[Array, "x a"]:
    """Return the reward of the nearest point of the class."""
    if isinstance(reward_class, TabularBox):
        reward = _reward_at(reward_class, prior_scale * point, shape)
        return jnp.clip(reward, 0.0, reward_class.maximum)
    edge = jnp.sqrt(len(point) + 2.0)
    length = jnp.sqrt(point @ point) * prior_scale
    return _reward_at(reward_class, prior_scale * point * edge / jnp.maximum(length, edge), shape)


def _seeds(context: FitContext, n_problems: int) -> np.ndarray:
    return np.zeros(n_problems, int) if context.seeds is None else np.asarray(context.seeds, int)


_gibbs_policies = jax.jit(jax.vmap(gibbs_policy))


METHODS = (
    Method(
        "reward_ensemble",
        reward_ensemble,
        "reward ensemble",
        RewardEnsembleOptions,
        uses_eta=False,
    ),
    Method("thompson", thompson, "Thompson, Laplace", ThompsonOptions, uses_eta=False),
)
"""Methods of this module."""
