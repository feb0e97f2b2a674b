r"""Confidence intervals for the difference of two policies' values, by universal inference.

The data are split into two halves: :math:`D_1`, with a ten-thousandth of a vote added for each
action of every pair, fits the maximum likelihood reward :math:`\hat r_1\in\mathcal R`, and
:math:`D_0` with :math:`N_0` observations evaluates it. For any true reward
:math:`r^\star\in\mathcal R`, the set

.. math:: \mathcal C = \Big\{r\in\mathcal R :
    N_0\big[L_{D_0}(r) - L_{D_0}(\hat r_1)\big] \le \log\frac1\delta\Big\}

contains :math:`r^\star` with probability at least :math:`1-\delta`, for every class and every
:math:`N`: the likelihood ratio of :math:`\hat r_1` and :math:`r^\star` on :math:`D_0` has mean 1.
With :math:`K` splits the mean of the :math:`K` ratios has mean 1 as well, so

.. math:: \mathcal C = \{r\in\mathcal R : g(r) \le \log\tfrac1\delta\}, \qquad
    g(r) = \log\frac1K\sum_k e^{G_k(r)},\quad
    G_k(r) = N_{0k}\big[L_{D_{0k}}(r) - L_{D_{0k}}(\hat r_{1k})\big].

An interval for :math:`J(\pi)-J(\pi') = \langle v,r^\star\rangle` reaches from the minimum to the
maximum of :math:`\langle v,r\rangle` over :math:`\mathcal C`, two convex programs. Its ends are
proven by weak duality: for every multiplier :math:`s\ge 0`, weights :math:`w` of the splits and
member :math:`r`,

.. math:: \min_{r'\in\mathcal C}\langle v,r'\rangle \ge \langle v,r\rangle
    + s\Big[\sum_k w_kG_k(r) - KL(w\,\|\,\tfrac1K) - \log\tfrac1\delta\Big]
    - \mathrm{gap}\Big(v + s\sum_k w_k\nabla G_k(r),\ r\Big),

where the last term is the linear gap of :math:`r` in the class. With one split this is
:math:`\frac1\eta[\min_r\{\eta\langle v,r\rangle + L_{D_0}(r)\} - L_{D_0}(\hat r_1) -
\frac1{N_0}\log\frac1\delta]` at :math:`\eta = 1/(sN_0)`, the adversary's problem of `liu:24`,
eq. 3.3. A printed interval is therefore valid whatever the solver did; the solver decides only how
tight it is.

One set :math:`\mathcal C` serves both ends and all policies: with probability :math:`1-\delta` the
intervals of all pairs of policies hold at the same time, also those of policies that were fitted to
the same data. The probability is over the outcomes of the comparisons and the splits, for
comparisons that were chosen without regard to outcomes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ._tracing import in_trace, traced_arguments
from .adversary import worst_reward
from .array_checks import InvalidProblemError, validate_policy
from .data_splits import N_SPLITS, Counts, DataSplits, split_data
from .numerics.dual_ascent import Ascent, DualPoint, log_mean_exp, maximize_dual
from .observations import n_observations
from .preference import data_loss, evidence
from .problems import validate
from .rewards import RewardClass, is_compact, linear_gap, linear_minimum
from .types import ArrayLike, Problem

CONFIDENCE = 0.95
"""Default confidence level."""
ROUNDING = 8.0 * 2.0**-52
"""Relative rounding error of a sum of losses that an interval allows for."""
PSEUDO_VOTES = 1e-4
"""Votes for each action of every pair that make the likeliest reward unique."""
MAX_STEPS = 150
"""Maximum number of minimizations for one end."""


class EndProof(NamedTuple):
    r"""What proves one end of an interval.

    Attributes:
        reward: member of the confidence set at which the difference is the end up to ``gap``: the
            worst reward for the policy that the data allow, or the best. Shape ``[x a]``.
        multiplier: Lagrange multiplier :math:`s` of the likelihood constraint, in reward per nat;
            :math:`\eta = 1/(sN_0)`. It is nearly 0 if the class alone determines the end, and NaN
            for a finite class, whose members are enumerated.
        gap: distance of the end from the difference under ``reward``; the exact end of the
            confidence set lies between the two. Infinite if no member of the set was found.
    """

    reward: Float[ArrayLike, "x a"]
    multiplier: Float[ArrayLike, ""]
    gap: Float[ArrayLike, ""]


class Interval(NamedTuple):
    r"""Confidence interval for :math:`J(\pi)-J(\pi')`.

    Attributes:
        lower: proven lower end, in units of reward.
        upper: proven upper end.
        lower_proof: reward and multiplier of the lower end.
        upper_proof: reward and multiplier of the upper end.
    """

    lower: Float[ArrayLike, ""]
    upper: Float[ArrayLike, ""]
    lower_proof: EndProof
    upper_proof: EndProof


class _ConfidenceSet(NamedTuple):
    """Rewards with a mean likelihood ratio up to a level.

    Attributes:
        problem: the problem, whose model the counts belong to.
        evaluation: counts of the halves that evaluate, with a leading axis of splits.
        fitted_loss: loss of the fitted reward of each split, summed over its half.
        level: logarithm of the largest mean likelihood ratio, nats.
    """

    problem: Problem
    evaluation: Counts
    fitted_loss: Float[Array, " k"]
    level: Float[Array, ""]

    def log_ratios(self, reward: Float[Array, "x a"]) -> Float[Array, " k"]:
        """Return the log-likelihood ratio of each split's fitted reward and a reward."""
        losses = jax.vmap(lambda counts: _summed_loss(counts.replace_in(self.problem), reward))
        return losses(self.evaluation) - self.fitted_loss

    def weighted(self, weights: Float[Array, " k"]) -> Problem:
        """Return the problem with the weighted mean of the counts of all splits."""
        mean = jax.tree.map(partial(jnp.tensordot, weights, axes=1), self.evaluation)
        return mean.replace_in(self.problem)


def confidence_interval(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[ArrayLike, "x a"],
    comparator: Float[ArrayLike, "x a"] | None = None,
    *,
    confidence: float = CONFIDENCE,
    splits: DataSplits | int = N_SPLITS,
    seed: int = 0,
) -> Interval:
    r"""Return a confidence interval for the value of a policy minus that of another.

    If the true reward is in the class, the interval contains :math:`J(\pi)-J(\pi')` with
    probability at least the confidence level, for every number of comparisons. This holds for all
    pairs of policies at the same time, also for policies that were fitted to the same data.

    Args:
        problem: preference data with whole counts, and policies; ``beta``, ``eta`` and the
            reference policy have no effect.
        reward_class: a compact class that contains the true reward.
        policy: :math:`\pi(a|x)`.
        comparator: :math:`\pi'(a|x)`; the baseline policy if None.
        confidence: level :math:`1-\delta`, between 0 and 1.
        splits: splits of the data, or their number; inside ``jit`` and ``vmap`` the splits.
        seed: seed of the splits, at least 0; without effect if they are given.

    Returns:
        The interval, float64, in units of reward. It never exceeds the range of the class.

    Raises:
        ValueError: if an argument is invalid, the class is not compact, or the counts cannot be
            split; the message names it. The values of traced arrays are not checked.

    References:
        `wasserman:20`, Theorem 3 and Section 4.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> problem = Problem.from_wins(np.array([[[0, 90], [10, 0]]]), beta=1.0, eta=1.0)
        >>> first = np.array([[1.0, 0.0]])
        >>> bool(confidence_interval(problem, TabularBox(2.0), first, 1.0 - first).lower > 0)
        True
    """
    if not is_compact(reward_class):
        kind = type(reward_class).__name__
        rule = f"must be compact for a confidence interval, got {kind}: its differences are not"
        raise InvalidProblemError("reward_class", (), f"{rule} bounded")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence:g}")
    comparator = problem.baseline_policy if comparator is None else comparator
    level = np.asarray(-np.log1p(-np.float64(confidence)))
    if in_trace(problem, reward_class, policy, comparator, splits):
        if not isinstance(splits, DataSplits):
            raise TypeError("`splits` must be a DataSplits inside `jit` and `vmap`: see split_data")
        traced = traced_arguments(problem, reward_class, policy, comparator)
        return _interval(traced[0], traced[1], traced[2], traced[3], splits, level)
    validate(problem, reward_class)
    shape = np.shape(problem.reference_policy)
    validate_policy("policy", policy, shape)
    validate_policy("comparator", comparator, shape)
    if not isinstance(splits, DataSplits):
        splits = split_data(problem, splits, seed=seed)
    with jax.enable_x64(True):
        arguments = traced_arguments(problem, reward_class, policy, comparator)
        interval = _compiled_interval(*arguments, splits, level)
    return jax.tree.map(np.asarray, interval)


def _interval(
    problem: Problem,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    comparator: Float[Array, "x a"],
    splits: DataSplits,
    level: Float[ArrayLike, ""],
) -> Interval:
    # Only the data and the context weights matter: any reference policy and beta would do.
    n_actions = policy.shape[-1]
    uniform = jnp.full_like(policy, 1.0 / n_actions)
    problem = problem._replace(reference_policy=uniform, beta=jnp.ones_like(uniform[0, 0]))
    pseudo = PSEUDO_VOTES * (1.0 - jnp.eye(n_actions, dtype=uniform.dtype))

    def loss_of_fit(fitting: Counts, evaluation: Counts) -> Float[Array, ""]:
        likelihood = fitting.replace_in(problem)
        # The level holds for every estimate; without votes for a pair rounding would choose it.
        likelihood = likelihood._replace(
            wins=likelihood.wins + pseudo,
            baseline_policy=uniform,
            eta=jnp.zeros_like(uniform[0, 0]),
        )
        fitted = worst_reward(likelihood, reward_class, uniform)
        return _summed_loss(evaluation.replace_in(problem), fitted)

    splits = jax.tree.map(jnp.asarray, splits)
    fitted_loss = jax.vmap(loss_of_fit)(splits.fitting, splits.evaluation)
    # Sums of losses are rounded; the level allows for that.
    level = jnp.asarray(level) + ROUNDING * jnp.abs(fitted_loss).max()
    confidence_set = _ConfidenceSet(problem, splits.evaluation, fitted_loss, level)
    policies = jnp.stack([policy, comparator])
    ends = jax.vmap(partial(_lower_end, confidence_set, reward_class))(policies, policies[::-1])
    (lower, negative_upper), proofs = ends
    lower_proof, upper_proof = (jax.tree.map(lambda leaf, i=i: leaf[i], proofs) for i in (0, 1))
    return Interval(lower, -negative_upper, lower_proof, upper_proof)


_compiled_interval = jax.jit(_interval)


def _lower_end(
    confidence_set: _ConfidenceSet,
    reward_class: RewardClass,
    policy: Float[Array, "x a"],
    comparator: Float[Array, "x a"],
) -> tuple[Float[Array, ""], EndProof]:
    r"""Return a proven lower bound on :math:`J(\pi)-J(\pi')` over a confidence set."""
    weights = jnp.asarray(confidence_set.problem.context_weights)
    direction = weights[:, None] * (policy - comparator)
    lowest = linear_minimum(reward_class, direction)
    extent = -linear_minimum(reward_class, -direction) - lowest

    def respond(
        dual: Float[Array, " k"],
    ) -> tuple[Float[Array, "x a"], Float[Array, ""], Float[Array, " k"]]:
        weighted = confidence_set.weighted(dual / dual.sum())
        eta = 1.0 / (dual.sum() * n_observations(weighted))
        adversary = weighted._replace(baseline_policy=comparator, eta=eta)
        reward = worst_reward(adversary, reward_class, policy)
        return reward, jnp.vdot(direction, reward), confidence_set.log_ratios(reward)

    level = confidence_set.level
    if hasattr(reward_class, "level_minimizer"):
        return _enumerated_end(confidence_set, reward_class, direction)
    extent = jnp.where(extent > 0, extent, 1.0)
    start = jnp.full_like(confidence_set.fitted_loss, 1.0 / len(confidence_set.fitted_loss))
    ascent = maximize_dual(
        respond,
        jnp.log(start * extent / level),
        level=level,
        highest=lowest + extent,
        extent=extent,
        max_steps=MAX_STEPS,
    )
    bound = _dual_bound(confidence_set, reward_class, direction, ascent.point)
    is_empty = log_mean_exp(ascent.inner.log_ratios) > level
    lower = jnp.maximum(jnp.where(is_empty | jnp.isnan(bound), -jnp.inf, bound), lowest)
    reward = _feasible(ascent, level)
    gap = jnp.where(is_empty, jnp.inf, jnp.vdot(direction, reward) - lower)
    return lower, EndProof(reward, ascent.point.multiplier, gap)


def _enumerated_end(
    confidence_set: _ConfidenceSet, reward_class: Any, direction: Float[Array, "x a"]
) -> tuple[Float[Array, ""], EndProof]:
    """Return the exact end over the members of a finite class."""

    def mean_ratio(reward: Float[Array, "x a"]) -> Float[Array, ""]:
        return log_mean_exp(confidence_set.log_ratios(reward))

    reward = reward_class.level_minimizer(direction, mean_ratio, confidence_set.level)
    is_empty = mean_ratio(reward) > confidence_set.level
    exact = jnp.vdot(direction, reward)
    lower = jnp.where(is_empty, linear_minimum(reward_class, direction), exact)
    gap = jnp.where(is_empty, jnp.inf, 0.0)
    return lower, EndProof(reward, jnp.full_like(gap, jnp.nan), gap)


def _feasible(ascent: Ascent, level: Float[Array, ""]) -> Float[Array, "x a"]:
    """Mix the last reward with the one deepest inside the set, so that the mean ratio is small."""
    outer = log_mean_exp(ascent.point.log_ratios)
    inner = log_mean_exp(ascent.inner.log_ratios)
    outside = jnp.maximum(outer - level, 0.0)
    # The logarithm of the mean ratio is convex, so the chord lies above it.
    share = jnp.where(outside > 0, outside / (outer - inner), 0.0)
    return ascent.point.reward + share * (ascent.inner.reward - ascent.point.reward)


def _dual_bound(
    confidence_set: _ConfidenceSet,
    reward_class: RewardClass,
    direction: Float[Array, "x a"],
    point: DualPoint,
) -> Float[Array, ""]:
    r"""Bound :math:`\langle v,r\rangle` over the confidence set from below, by weak duality."""
    multiplier, reward, log_weights = point.multiplier, point.reward, point.log_weights
    weights = jnp.exp(log_weights)
    divergence = weights @ log_weights + jnp.log(float(len(weights)))
    excess = weights @ point.log_ratios - divergence - confidence_set.level
    gradient = direction - multiplier * evidence(confidence_set.weighted(weights), reward)
    penalty = multiplier * excess - linear_gap(reward_class, gradient, reward)
    return point.objective + penalty


def _summed_loss(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, ""]:
    return n_observations(problem) * data_loss(problem, reward)
