r"""Saddle problems of a reward class, for the method that solves them on the policy itself.

The method knows five kinds of sets (:mod:`rpo_theory.numerics.feasible_sets`): boxes and all
tables, whose contexts are independent; balls of linear rewards; mixtures of finitely many members,
for a class that is not convex; and the smooth form of any other class. The likelihood of win counts
enters through label probabilities. That of mixtures and of other data is a loss of the adversary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from . import rewards, routes, unbounded
from .numerics import constrained_newton
from .numerics.feasible_sets import Ball, Box, FeasibleSet, Free, Simplex, Smooth
from .numerics.saddle_interior_point import SaddleProblem, SaddleState
from .observations import n_observations
from .preference import data_loss
from .rewards import AnyRewardClass, RewardClass
from .types import Problem


class ScaledLoss(NamedTuple):
    """Data loss of a reward table in the units of a saddle problem.

    Attributes:
        problem: preference data.
        width: unit of reward.
        scale: sum of the weights of the problem.
    """

    problem: Problem
    width: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, table: Float[Array, "x a"]) -> Float[Array, ""]:
        """Return the loss of a table."""
        return data_loss(self.problem, self.width * table) / (self.scale * self.width)


def _separates(problem: Problem, reward_class: RewardClass) -> bool:
    """Return whether the contexts are independent: tables between bounds, and win counts.

    Args:
        problem: one problem, or a batch.
        reward_class: any reward class.
    """
    return hasattr(reward_class, "entry_bounds") and routes.uses_only_wins(problem)


def uses_label_probs(problem: Problem, reward_class: RewardClass) -> bool:
    """Return whether the likelihood enters through label probabilities.

    Args:
        problem: one problem, or a batch.
        reward_class: any reward class.

    Examples:
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=1.0)
        >>> box, pair = rewards.TabularBox(2.0), rewards.FiniteClass(np.zeros((2, 1, 2)))
        >>> uses_label_probs(problem, box), uses_label_probs(problem, pair)
        (True, False)
    """
    linear = hasattr(reward_class, "linear_form") and routes.uses_only_wins(problem)
    return linear or _separates(problem, reward_class)


def has_saddle_form(problem: Problem, reward_class: RewardClass) -> bool:
    """Return whether there is a saddle problem for a class: all but those with a projection only.

    Args:
        problem: one problem, or a batch.
        reward_class: any reward class.

    Examples:
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=1.0)
        >>> has_saddle_form(problem, rewards.FiniteClass(np.zeros((2, 1, 2))))
        True
    """
    known = uses_label_probs(problem, reward_class) or not rewards.is_convex(reward_class)
    return known or rewards.is_smooth(reward_class)


def saddle_problems(problem: Problem, reward_class: AnyRewardClass) -> SaddleProblem:
    r"""Cut a problem into independent saddle problems, stacked on the first axis of the arrays.

    With tabular rewards the contexts are independent. Each becomes a saddle problem in units of
    its weight, so that none has a tiny weight or a large :math:`\eta`.

    Args:
        problem: one problem with arrays in float64.
        reward_class: a class with a saddle form.

    Returns:
        The saddle problems.
    """
    share = jnp.asarray(problem.wins)
    share = share / _or_one(share.sum())
    if _separates(problem, reward_class):
        problem = problem._replace(wins=share)
        lower, upper = map(jnp.asarray, reward_class.entry_bounds())
        if rewards.is_compact(reward_class):
            return _prompt_problems(problem, Box(), upper - lower)
        return _prompt_problems(problem, Free(), jnp.ones_like(share[0, 0, 0]))
    if not rewards.is_convex(reward_class):
        saddle = mixture_problem(problem, jnp.asarray(reward_class.rewards))
    elif uses_label_probs(problem, reward_class):
        features, radius = reward_class.linear_form(jnp.shape(problem.reference_policy))
        features = jnp.asarray(features)
        longest = _or_one(jnp.linalg.norm(features, axis=-1).max())
        saddle = _saddle_problem(
            problem._replace(wins=share), Ball(features / longest), jnp.asarray(radius) * longest
        )
    else:
        saddle = _smooth_problem(problem, reward_class)
    return jax.tree.map(lambda leaf: leaf[None], saddle)


def mixture_problem(problem: Problem, members: Float[Array, "k x a"]) -> SaddleProblem:
    """Return the saddle problem in which the adversary draws one of some rewards.

    Args:
        problem: one problem with arrays in float64.
        members: the rewards.

    Returns:
        The saddle problem.

    Examples:
        >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=1.0)
        >>> members = jnp.array([[[0.0, 0.0]], [[0.0, 4.0]]])
        >>> game = mixture_problem(problem, members)  # in units of the largest reward
        >>> float(game.beta), float(game.temperature)
        (0.25, 0.25)
    """
    width = _or_one(jnp.abs(members).max())
    losses = jax.vmap(lambda reward: data_loss(problem, reward))(members)
    scale = _or_one(_weight(problem))
    mixture = Simplex(jnp.moveaxis(members, 0, -1) / width, losses / (scale * width))
    # The data enter through the losses of the members alone.
    return _saddle_problem(_without_data(problem), mixture, width, scale)


def adversary_reward(
    problem: Problem, reward_class: AnyRewardClass, state: SaddleState
) -> Float[Array, "x a"]:
    """Return the reward of the adversary at the last iterates of the saddle problems.

    Args:
        problem: the problem.
        reward_class: its class.
        state: iterates, stacked on the first axis.

    Returns:
        Reward table.
    """
    if _separates(problem, reward_class):
        if not rewards.is_compact(reward_class):
            return state.adversary - state.level
        lower, upper = reward_class.entry_bounds()
        return reward_class.project(lower + (upper - lower) * state.adversary)
    point = state.adversary[0]
    if not rewards.is_convex(reward_class):
        return jnp.asarray(reward_class.rewards)[jnp.argmax(point)]
    shape = jnp.shape(problem.reference_policy)
    if uses_label_probs(problem, reward_class):
        features, radius = reward_class.linear_form(shape)
        parameter = point / jnp.maximum(1.0, jnp.linalg.norm(point))
        return jnp.asarray(features) @ (radius * parameter)
    interior = reward_class.interior(shape)
    widths = constrained_newton.half_widths(reward_class.slack, interior)
    return reward_class.to_reward(interior + widths * point, shape)


def _smooth_problem(problem: Problem, reward_class: AnyRewardClass) -> SaddleProblem:
    """Return the saddle problem on the smooth form of a class."""
    shape = jnp.shape(problem.reference_policy)
    interior = reward_class.interior(shape)
    widths = constrained_newton.half_widths(reward_class.slack, interior)

    def table(point: Float[Array, " m"]) -> Float[Array, "x a"]:
        return reward_class.to_reward(interior + widths * point, shape)

    slopes = jax.jacfwd(table)(jnp.zeros_like(interior))
    width = _or_one(jnp.linalg.norm(slopes, axis=-1).max())
    origin = table(jnp.zeros_like(interior))
    smooth = Smooth(slopes / width, origin / width, interior, widths, reward_class)
    if routes.uses_only_wins(problem):
        wins = jnp.asarray(problem.wins)
        return _saddle_problem(problem._replace(wins=wins / _or_one(wins.sum())), smooth, width)
    scale = routes.objective_scale(problem)
    smooth = smooth._replace(loss=ScaledLoss(problem, width, scale))
    return _saddle_problem(_without_data(problem), smooth, width, scale)


def _without_data(problem: Problem) -> Problem:
    wins = jnp.zeros_like(jnp.asarray(problem.wins))
    return problem._replace(wins=wins, choices=None, ties=None)


def _weight(problem: Problem) -> Float[Array, ""]:
    """Return the weight of the adversarial term, plus 1 if there are data."""
    adversarial = jnp.sum(problem.eta * jnp.asarray(problem.context_weights))
    return adversarial + jnp.where(n_observations(problem) > 0, 1.0, 0.0)


def _prompt_problems(
    problem: Problem, rewards: Box | Free, width: Float[Array, ""]
) -> SaddleProblem:
    def saddle(*prompt: Float[Array, "..."]) -> SaddleProblem:
        weight, reference, baseline, wins = (leaf[None] for leaf in prompt)
        prompt_problem = Problem(weight, reference, baseline, wins, problem.beta, problem.eta)
        return _saddle_problem(prompt_problem, rewards, width)

    return jax.vmap(saddle)(*map(jnp.asarray, problem[:4]))


def _saddle_problem(
    problem: Problem,
    rewards: FeasibleSet,
    width: Float[Array, ""],
    scale: Float[Array, ""] | None = None,
) -> SaddleProblem:
    """Return the saddle problem of some contexts in units of their weight and of the reward range.

    The wins of ``problem`` are shares of all comparisons.
    """
    weights = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)
    wins = jnp.asarray(problem.wins)
    scale = _or_one(weights.sum() + wins.sum() if scale is None else scale)

    def component_means(unit: Float[Array, " a"]) -> Float[Array, "x a"]:
        return unbounded.component_means(jnp.broadcast_to(unit, wins.shape[:2]), wins)

    return SaddleProblem(
        weights=weights / scale,
        reference=jnp.asarray(problem.reference_policy),
        baseline=jnp.asarray(problem.baseline_policy),
        losses=wins.sum(axis=1) / scale,
        comparisons=(wins + wins.mT) / scale,
        connected=jax.vmap(component_means, out_axes=2)(jnp.eye(wins.shape[1])),
        beta=jnp.asarray(problem.beta) / width,
        temperature=1.0 / width,
        rewards=rewards,
    )


def _or_one(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by one, for use as denominators."""
    return jnp.where(values > 0, values, 1.0)
