r"""Bandits that are given as tables: rewards, policies, prompts and the pairs that are compared.

======================== =============== ========================================================
name                     shape           meaning; the default of an optional table
======================== =============== ========================================================
``true_reward``          ``[x a]``       :math:`r^\star`
``pair_distribution``    ``[x a a]``     :math:`\mu_D`, in any scale; or ``behavior_policy``
``behavior_policy``      ``[x a]``       distribution of either member of a pair, independently
``context_weights``      ``[x]``         :math:`d_0`; uniform
``data_contexts``        ``[x]``         prompts of the data, for ``behavior_policy``;
                                         :math:`d_0`
``reference_policy``     ``[x a]``       :math:`\pi_{ref}`; uniform
``baseline_policy``      ``[x a]``       :math:`\pi_{base}`; both members of the pairs
``comparator``           ``[x a]``       policy to compare with; the best response
``reward_max``           number          range of the tabular class; that of the true rewards
``features``             ``[x a d]``     features of a linear class; none, for a tabular one
``radius``               number          radius of the linear class; the norm of the parameter
                                         that fits the true rewards
======================== =============== ========================================================

For the tabular class true rewards are shifted at each prompt so that the smallest is 0, which
changes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from rpo_theory.policies import data_marginal_policy
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

from .base import Instance, best_action_policy
from .sampling import check_draw, draw_win_counts

SUM_TOLERANCE = 1e-6
"""Accepted distance of the sum of a distribution from one; distributions are then normalized."""
SHAPES = {
    "true_reward": "xa",
    "pair_distribution": "xaa",
    "behavior_policy": "xa",
    "context_weights": "x",
    "data_contexts": "x",
    "reference_policy": "xa",
    "baseline_policy": "xa",
    "comparator": "xa",
    "features": "xad",
    "reward_max": "",
    "radius": "",
}
"""Names of the tables, and their axes."""
DISTRIBUTIONS = (
    "context_weights",
    "data_contexts",
    "behavior_policy",
    "reference_policy",
    "baseline_policy",
    "comparator",
)
"""Tables whose last axis is a distribution."""


def instance_from_tables(tables: Mapping[str, Any]) -> Instance:
    r"""Return the bandit of some tables, without data.

    Args:
        tables: arrays by name, see :mod:`bandits.environments.tables`.

    Returns:
        The instance; its problem has no comparisons, and :math:`\beta = \eta = 1`.

    Raises:
        ValueError: if a table is missing, unknown, or not what its name says; the message names it.

    Examples:
        >>> tables = {"true_reward": [[0.0, 1.0]], "behavior_policy": [[0.5, 0.5]]}
        >>> instance_from_tables(tables).pair_distribution.tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    arrays = _checked_arrays(tables)
    reward = arrays["true_reward"]
    contexts, actions = reward.shape
    weights = arrays.get("context_weights", np.full(contexts, 1.0 / contexts))
    uniform = np.full(reward.shape, 1.0 / actions)
    pairs = _pair_distribution(arrays, weights)
    reference = arrays.get("reference_policy", uniform)
    if "baseline_policy" in arrays:
        baseline = arrays["baseline_policy"]
    else:
        with jax.enable_x64(True):
            baseline = np.asarray(data_marginal_policy(pairs, reference))
    reward, reward_class = _reward_class(arrays, reward)
    possible = np.where(reference > 0, reward, -np.inf)
    comparator = arrays.get("comparator", best_action_policy(possible))
    problem = Problem(
        context_weights=weights,
        reference_policy=reference,
        baseline_policy=baseline,
        wins=np.zeros((contexts, actions, actions)),
        beta=np.array(1.0),
        eta=np.array(1.0),
    )
    return Instance(problem, reward_class, reward, comparator, pairs)


def draw_from_instances(
    instances: Instance,
    n_comparisons: int,
    seeds: Int[np.ndarray, " B"],
    *,
    label_noise: float = 0.0,
) -> Instance:
    r"""Draw data of the pairs of instances, labeled by their true rewards.

    Args:
        instances: instances with a leading batch axis, one for each seed.
        n_comparisons: number of comparisons :math:`N`, at least 1.
        seeds: whole numbers, at least 0; each draw depends on its seed and instance alone.
        label_noise: probability that a label is flipped.

    Returns:
        The instances with their win counts and :math:`\beta = \eta = 1/\sqrt N`.

    Raises:
        ValueError: if a number is out of range.

    Examples:
        >>> tables = {"true_reward": [[0.0, 1.0]], "behavior_policy": [[0.5, 0.5]]}
        >>> batch = jax.tree.map(lambda leaf: leaf[None], instance_from_tables(tables))
        >>> float(draw_from_instances(batch, 9, np.arange(1)).problem.wins.sum())
        9.0
    """
    seeds = check_draw(n_comparisons, seeds)
    wins = draw_win_counts(
        np.asarray(instances.true_reward),
        np.asarray(instances.pair_distribution),
        comparisons=n_comparisons,
        seeds=seeds,
        label_noise=label_noise,
    )
    scale = np.full(len(seeds), n_comparisons**-0.5)
    return instances._replace(problem=instances.problem._replace(wins=wins, beta=scale, eta=scale))


def _checked_arrays(tables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tables in float64; refuse unknown names, other shapes and invalid numbers."""
    unknown = [name for name in tables if name not in SHAPES]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is unknown: the tables are {', '.join(SHAPES)}")
    if "true_reward" not in tables:
        raise ValueError("`true_reward` is missing")
    if ("pair_distribution" in tables) == ("behavior_policy" in tables):
        raise ValueError("`pair_distribution` or `behavior_policy` is needed, one of the two")
    if "data_contexts" in tables and "pair_distribution" in tables:
        raise ValueError("`data_contexts` goes with `behavior_policy`: `pair_distribution` has it")
    sizes: dict[str, int] = {}
    arrays = {}
    for name in sorted(tables, key=lambda name: name != "true_reward"):
        try:
            array = np.asarray(tables[name], np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` must be an array of numbers") from error
        axes = SHAPES[name]
        if array.ndim == len(axes):
            for axis, size in zip(axes, array.shape, strict=True):
                sizes.setdefault(axis, size)
        wanted = tuple(sizes.get(axis, axis) for axis in axes)
        if array.shape != wanted:
            shown = f"({', '.join(map(str, wanted))})"
            raise ValueError(f"`{name}` must have shape {shown}, got {array.shape}")
        if not np.isfinite(array).all() or not array.size:
            raise ValueError(f"`{name}` must hold finite numbers")
        arrays[name] = _normalized(name, array) if name in DISTRIBUTIONS else array
    with np.errstate(over="ignore"):
        if not np.isfinite(np.ptp(arrays["true_reward"])):
            raise ValueError("`true_reward` must have differences below 1e308")
    for name in ("reward_max", "radius"):
        if name in arrays and not arrays[name] > 0:
            raise ValueError(f"`{name}` must be greater than 0, got {arrays[name]:g}")
    return arrays


def _normalized(name: str, array: np.ndarray) -> np.ndarray:
    sums = array.sum(axis=-1, keepdims=True)
    if (array < 0).any() or (np.abs(sums - 1.0) > SUM_TOLERANCE).any():
        furthest = float(sums.flat[np.abs(sums - 1.0).argmax()])
        got = f"the entry {array.min():g}" if (array < 0).any() else f"the sum {furthest:.9g}"
        raise ValueError(f"`{name}` must have rows that are distributions, got {got}")
    return array / sums


def _pair_distribution(
    arrays: Mapping[str, np.ndarray], weights: Float[np.ndarray, " x"]
) -> Float[np.ndarray, "x a a"]:
    if "behavior_policy" in arrays:
        behavior, contexts = arrays["behavior_policy"], arrays.get("data_contexts", weights)
        return contexts[:, None, None] * behavior[:, :, None] * behavior[:, None, :]
    pairs = arrays["pair_distribution"]
    if (pairs < 0).any() or not pairs.sum() > 0:
        rule = "must have entries of at least 0 with a positive sum"
        raise ValueError(f"`pair_distribution` {rule}, got the entry {pairs.min():g}")
    return pairs / pairs.sum()


def _reward_class(
    arrays: Mapping[str, np.ndarray], reward: Float[np.ndarray, "x a"]
) -> tuple[Float[np.ndarray, "x a"], RewardClass]:
    """Return the true rewards and the class in which to search for them."""
    if "features" in arrays:
        if "reward_max" in arrays:
            raise ValueError("`reward_max` is for the tabular class: give `radius` with `features`")
        features = arrays["features"]
        flat = features.reshape(reward.size, -1)
        parameter = np.linalg.lstsq(flat, reward.reshape(-1), rcond=None)[0]
        norm = max(float(np.linalg.norm(parameter)), np.finfo(np.float64).tiny)
        return reward, LinearBall(features, np.asarray(arrays.get("radius", norm)))
    if "radius" in arrays:
        raise ValueError("`radius` is for a linear class, which needs `features`")
    shifted = reward - reward.min(axis=1, keepdims=True)
    largest = max(float(shifted.max()), np.finfo(np.float64).tiny)
    return shifted, TabularBox(np.asarray(arrays.get("reward_max", largest)))
