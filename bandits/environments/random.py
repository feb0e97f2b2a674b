r"""Random contextual bandits with partially covering preference data, tabular and linear.

They have random policies, weights of prompts and sets of compared pairs, and serve to check
theorems over many situations. For bandits with a chosen coverage coefficient see
:mod:`bandits.environments.designs`.

An instance is a function of its key and its options. Its structure is drawn with a NumPy generator
that is seeded from the key, because instances differ in shape.
"""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

from .base import Baseline, Instance, baseline_policy, best_action_policy
from .sampling import draw_win_counts

DATA_PROMPT_PROBABILITY = 0.8
"""Probability that a prompt has any data."""


def random_tabular(
    key: Key[Array, ""],
    *,
    contexts: int,
    actions: int,
    comparisons: int,
    pair_probability: float = 0.3,
    reward_max: float = 2.0,
    baseline: Baseline | Literal["dirichlet"] = "chosen",
    beta: float = 0.1,
    eta: float = 0.1,
    shape: tuple[int, int] | None = None,
) -> Instance:
    r"""Draw a tabular bandit, with some rewards on the bounds of the box.

    The weights of the prompts, the reference policy and the pair distribution come from flat
    Dirichlet distributions. On average a fifth of the prompts have no data; at the others only a
    random subset of the pairs is ever compared.

    Args:
        key: a ``jax.random.key``.
        contexts: number of prompts.
        actions: number of actions, at least 2.
        comparisons: number of labeled pairs :math:`N`; 0 for no data.
        pair_probability: probability that an ordered pair belongs to the compared pairs. One pair
            of the instance always does.
        reward_max: :math:`R_{max}`; rewards lie in :math:`[0, R_{max}]`.
        baseline: :math:`\pi_{base}`, by name or action index, or "dirichlet" for a random policy.
        beta: weight :math:`\beta` of the KL term.
        eta: weight :math:`\eta` of the adversarial term.
        shape: numbers of prompts and actions to pad to; None for no padding. A padded prompt has
            weight 0 and policies that take action 0, a padded action has probability 0. Neither is
            ever compared.

    Returns:
        The instance, labeled by the Bradley-Terry model.

    Raises:
        ValueError: if an option is out of range.

    Examples:
        >>> bandit = random_tabular(jax.random.key(0), contexts=2, actions=3, comparisons=50)
        >>> float(bandit.problem.wins.sum())
        50.0
    """
    rng = numpy_generator(key)
    # A tenth of the rewards is cut off at either bound.
    share_of_range = np.clip(rng.uniform(-0.125, 1.125, (contexts, actions)), 0.0, 1.0)
    return _random_instance(
        rng,
        reward=reward_max * share_of_range,
        reward_class=TabularBox(np.array(reward_max)),
        comparisons=comparisons,
        pair_probability=pair_probability,
        baseline=baseline,
        beta=beta,
        eta=eta,
        shape=shape or (contexts, actions),
    )


def random_linear(
    key: Key[Array, ""],
    *,
    contexts: int,
    actions: int,
    features: int,
    comparisons: int,
    pair_probability: float = 0.3,
    radius: float = 2.0,
    baseline: Baseline | Literal["dirichlet"] = "chosen",
    beta: float = 0.1,
    eta: float = 0.1,
    shape: tuple[int, int] | None = None,
) -> Instance:
    r"""Draw a linear bandit: features uniform on the sphere, :math:`\theta^\star` in a ball.

    One parameter in five lies on the surface of the ball. Everything else is as in
    :func:`random_tabular`.

    Args:
        key: a ``jax.random.key``.
        contexts: number of prompts.
        actions: number of actions, at least 2.
        features: dimension :math:`d` of the features, which have norm 1.
        comparisons: number of labeled pairs :math:`N`; 0 for no data.
        pair_probability: probability that an ordered pair belongs to the compared pairs. One pair
            of the instance always does.
        radius: radius :math:`B` of the ball; rewards lie in :math:`[-B, B]`.
        baseline: :math:`\pi_{base}`, by name or action index, or "dirichlet" for a random policy.
        beta: weight :math:`\beta` of the KL term.
        eta: weight :math:`\eta` of the adversarial term.
        shape: numbers of prompts and actions to pad to, with features of 0; None for no padding.

    Returns:
        The instance, labeled by the Bradley-Terry model.

    Raises:
        ValueError: if an option is out of range.

    Examples:
        >>> sizes = {"contexts": 2, "actions": 3, "features": 4, "comparisons": 50}
        >>> random_linear(jax.random.key(0), **sizes).reward_class.features.shape
        (2, 3, 4)
    """
    rng = numpy_generator(key)
    table = unit_vectors(rng.standard_normal((contexts, actions, features)))
    theta = unit_vectors(rng.standard_normal(features)) * radius * min(rng.uniform(0.0, 1.25), 1.0)
    shape = shape or (contexts, actions)
    return _random_instance(
        rng,
        reward=table @ theta,
        reward_class=LinearBall(_pad(table, (*shape, features)), np.array(radius)),
        comparisons=comparisons,
        pair_probability=pair_probability,
        baseline=baseline,
        beta=beta,
        eta=eta,
        shape=shape,
    )


def numpy_generator(key: Key[Array, ""]) -> np.random.Generator:
    """Return a NumPy generator that is seeded from a JAX key.

    Args:
        key: a ``jax.random.key``.

    Returns:
        A generator whose draws are a function of the key.

    Examples:
        >>> numpy_generator(jax.random.key(7)).integers(100, size=4).tolist()
        [79, 3, 22, 77]
    """
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def unit_vectors(vectors: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b d"]:
    """Return vectors divided by their Euclidean norms.

    Args:
        vectors: vectors other than zero, along the last axis.

    Returns:
        Vectors of norm 1.

    Examples:
        >>> unit_vectors(np.array([[3.0, 4.0]])).tolist()
        [[0.6, 0.8]]
    """
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _random_instance(
    rng: np.random.Generator,
    *,
    reward: Float[np.ndarray, "x a"],
    reward_class: RewardClass,
    comparisons: int,
    pair_probability: float,
    baseline: Baseline | Literal["dirichlet"],
    beta: float,
    eta: float,
    shape: tuple[int, int],
) -> Instance:
    """Draw weights of prompts, policies and data for a true reward, and pad them to ``shape``."""
    contexts, actions = reward.shape
    _check(contexts, actions, comparisons, pair_probability)
    context_weights = rng.dirichlet(np.ones(contexts))
    policies = rng.dirichlet(np.ones(actions), (2, contexts))
    pair_distribution = _random_pair_distribution(rng, reward.shape, pair_probability)

    padding = np.zeros(shape)
    padding[contexts:, 0] = 1.0  # padded prompts need a distribution too
    reference, random_policy = (padding + _pad(policy, shape) for policy in policies)
    comparator = padding + _pad(best_action_policy(reward), shape)
    reward = _pad(reward, shape)
    pair_distribution = _pad(pair_distribution * (comparisons > 0), (*shape, shape[1]))
    wins = np.zeros_like(pair_distribution)
    if comparisons > 0:
        wins = draw_win_counts(
            reward[None],
            pair_distribution[None],
            comparisons=comparisons,
            seeds=rng.integers(2**63, size=1),
        )[0]
    if baseline == "dirichlet":
        baseline_table = random_policy
    else:
        baseline_table = baseline_policy(baseline, wins=wins, reference=reference)
        baseline_table = np.concatenate([baseline_table[:contexts], padding[contexts:]])
    problem = Problem(
        context_weights=_pad(context_weights, shape[:1]),
        reference_policy=reference,
        baseline_policy=baseline_table,
        wins=wins,
        beta=np.array(beta),
        eta=np.array(eta),
    )
    return Instance(problem, reward_class, reward, comparator, pair_distribution)


def _check(contexts: int, actions: int, comparisons: int, pair_probability: float) -> None:
    for name, value, minimum in (
        ("contexts", contexts, 1),
        ("actions", actions, 2),
        ("comparisons", comparisons, 0),
    ):
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}")
    if not 0 <= pair_probability <= 1:
        raise ValueError(
            f"`pair_probability` must be a probability, in [0, 1], got {pair_probability}"
        )


def _random_pair_distribution(
    rng: np.random.Generator, shape: tuple[int, int], pair_probability: float
) -> Float[np.ndarray, "x a a"]:
    r"""Draw :math:`\mu_D` over a random set of ordered pairs of different actions."""
    contexts, actions = shape
    compared = rng.random((contexts, actions, actions)) < pair_probability
    compared &= (rng.random(contexts) < DATA_PROMPT_PROBABILITY)[:, None, None]
    compared &= ~np.eye(actions, dtype=bool)
    compared[rng.integers(contexts), *rng.choice(actions, 2, replace=False)] = True
    pair_distribution = np.zeros((contexts, actions, actions))
    pair_distribution[compared] = rng.dirichlet(np.ones(compared.sum()))
    return pair_distribution


def _pad(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Append zeros along every axis, up to ``shape``."""
    missing = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
    if min(missing) < (0, 0):
        raise ValueError(f"`shape` must be at least {array.shape} along every axis, got {shape}")
    return np.pad(array, missing)
