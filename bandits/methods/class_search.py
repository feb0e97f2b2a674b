r"""Smooth search in tabular boxes and linear balls, which path following maps to a unit set."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import LinearBall, TabularBox
from rpo_theory.types import Problem

GROUP = 1024  # entries of the win counts that are fitted at a time

BatchFit = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Policies, rewards and gaps of a batch of problems and their classes."""


def fit_by_prompts(
    fit: BatchFit, problem: Problem, reward_class: TabularBox | LinearBall
) -> tuple[Float[np.ndarray, "b x a"], Float[np.ndarray, "b x a"], Float[np.ndarray, " b"]]:
    """Fit a batch of problems; in a box every prompt is a problem of its own.

    The loss is a mean over comparisons. So the loss of a tabular problem is the mean of the losses
    of its prompts, weighted by their comparisons.

    Args:
        fit: compiled fit of a batch.
        problem: instances, with a leading batch axis.
        reward_class: boxes or balls, with the same leading axis.

    Returns:
        Policies, rewards, and gaps of the mean loss.

    Examples:
        >>> even, wins = np.full((1, 3, 2), 0.5), np.zeros((1, 3, 2, 2))
        >>> problem = Problem(np.ones((1, 3)), even, even, wins, np.ones(1), np.ones(1))
        >>> def uniform(problem, box):
        ...     return problem.reference_policy, problem.reference_policy, box.maximum
        >>> fit_by_prompts(uniform, problem, TabularBox(np.ones(1)))[0].shape
        (1, 3, 2)
    """
    is_tabular = isinstance(reward_class, TabularBox)
    parts = split_prompts(problem, reward_class) if is_tabular else (problem, reward_class)
    policy, reward, gap = map_in_groups(fit, *parts, size=group_size(parts[0], GROUP))
    if not is_tabular:
        return policy, reward, gap
    shape = np.shape(problem.reference_policy)
    prompt_counts = np.asarray(problem.wins).sum(axis=(2, 3))
    n_comparisons = np.maximum(prompt_counts.sum(axis=1), 1e-300)
    gap = (prompt_counts * gap.reshape(shape[:2])).sum(axis=1) / n_comparisons
    return policy.reshape(shape), reward.reshape(shape), gap


def split_prompts(problem: Problem, reward_class: TabularBox) -> tuple[Problem, TabularBox]:
    """Return every prompt of a batch as a problem with one prompt.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: boxes with the same leading axis.

    Examples:
        >>> even, wins = np.full((1, 3, 2), 0.5), np.zeros((1, 3, 2, 2))
        >>> problem = Problem(np.ones((1, 3)), even, even, wins, np.ones(1), np.ones(1))
        >>> split_prompts(problem, TabularBox(np.ones(1)))[0].wins.shape
        (3, 1, 2, 2)
    """
    n_problems, n_contexts, n_actions = np.shape(problem.reference_policy)
    single_prompts = Problem(
        context_weights=np.ones((n_problems * n_contexts, 1)),
        reference_policy=np.reshape(problem.reference_policy, (-1, 1, n_actions)),
        baseline_policy=np.reshape(problem.baseline_policy, (-1, 1, n_actions)),
        wins=np.reshape(problem.wins, (-1, 1, n_actions, n_actions)),
        beta=np.repeat(problem.beta, n_contexts),
        eta=np.repeat(problem.eta, n_contexts),
    )
    return single_prompts, TabularBox(np.repeat(reward_class.maximum, n_contexts))


def win_shares(problem: Problem) -> Float[Array, "x a a"]:
    """Return the win counts divided by their sum, or zeros if there are no data.

    Args:
        problem: one instance.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> win_shares(Problem(np.ones(1), even, even, wins, 1.0, 1.0)).tolist()
        [[[0.0, 0.75], [0.25, 0.0]]]
    """
    wins = jnp.asarray(problem.wins)
    return wins / jnp.where(wins.sum() > 0, wins.sum(), 1.0)


def unit_dimension(reward_class: TabularBox | LinearBall, shape: tuple[int, ...]) -> int:
    """Return the number of free variables of a class.

    Args:
        reward_class: class of one problem.
        shape: number of contexts and of actions.

    Examples:
        >>> unit_dimension(TabularBox(np.array(1.0)), (2, 3))
        6
    """
    if isinstance(reward_class, LinearBall):
        return reward_class.features.shape[-1]
    return shape[0] * shape[1]


def unit_direction(
    reward_class: TabularBox | LinearBall, reward: Float[Array, "x a"]
) -> Float[Array, " p"]:
    """Return the direction of a reward in the unit cube or ball, with norm at most 1.

    Args:
        reward_class: class of one problem.
        reward: any table.

    Examples:
        >>> unit_direction(TabularBox(np.array(2.0)), jnp.array([[3.0, -6.0]])).tolist()
        [0.5, -1.0]
    """
    if isinstance(reward_class, LinearBall):
        direction = jnp.einsum("xad,xa->d", jnp.asarray(reward_class.features), reward)
        size = jnp.linalg.norm(direction)
    else:
        direction = reward.reshape(-1)
        size = jnp.abs(direction).max()
    return direction / jnp.where(size > 0, size, 1.0)


def from_unit_set(
    reward_class: TabularBox | LinearBall, point: Float[Array, " p"], shape: tuple[int, ...]
) -> tuple[Float[Array, "x a"], Float[Array, ""]]:
    """Map a point of the unit cube or ball around 0 to a reward, and return its barrier.

    Args:
        reward_class: class of one problem.
        point: a point inside of the set.
        shape: number of contexts and of actions.

    Examples:
        >>> reward, barrier = from_unit_set(TabularBox(np.array(2.0)), jnp.zeros(2), (1, 2))
        >>> reward.tolist(), float(barrier)
        ([[1.0, 1.0]], -0.0)
    """
    match reward_class:
        case TabularBox(maximum):
            reward = (1.0 + point.reshape(shape)) * (0.5 * maximum)
            return reward, -jnp.log1p(-(point**2)).sum()
        case LinearBall(features, radius):
            return jnp.asarray(features) @ (radius * point), -jnp.log1p(-point @ point)
