r"""Random contextual bandits with partially covering preference data, tabular and linear.

An instance is a function of its key and its options alone. The structure is drawn in NumPy, whose
generator is seeded from the key, because every instance has shapes of its own; all arrays are
NumPy's, in float64.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from rpo_theory.policies import chosen_policy, data_marginal_policy
from rpo_theory.preference import preference_probability
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem

Baseline = Literal["chosen", "data_marginal", "reference"] | int
"""A baseline policy by name, or the index of the one arm that it always picks."""

CONTEXTS_WITH_DATA = 0.8
"""Probability that a context has data at all."""


class Instance(NamedTuple):
    r"""A problem together with the truth that its data came from.

    Attributes:
        problem: the problem to be solved.
        reward_class: the class in which the reward is sought.
        true_reward: :math:`r^\star(x,a)`, a member of the class, shape ``[x a]``.
        comparator: the policy that an answer is compared with, the best arms, shape ``[x a]``.
        pair_distribution: :math:`\mu_D(x, a^1, a^0)`, the law of the compared pairs before labelling, zero
            without data, shape ``[x a a]``.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[ArrayLike, "x a"]
    comparator: Float[ArrayLike, "x a"]
    pair_distribution: Float[ArrayLike, "x a a"]


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
    r"""Random tabular bandit: :math:`r^\star` anywhere in the box, some entries on its bounds.

    Prompts, reference policy and the law of the pairs are drawn from flat Dirichlet laws. A fifth
    of the contexts have no data, and in the others only a random subset of the pairs is ever
    compared.

    Args:
        key: a ``jax.random.key``.
        contexts: number of prompts.
        actions: number of actions, at least 2.
        comparisons: number of labelled pairs :math:`N`; 0 for no data.
        pair_probability: probability that an ordered pair is among those compared; at least one is.
        reward_max: :math:`R_{max}`.
        baseline: :math:`\pi_{base}`, or "dirichlet" for a random policy.
        beta: :math:`\beta`.
        eta: :math:`\eta`.
        shape: contexts and actions to pad to. Padded prompts have weight 0 and two equal policies
            on action 0, padded actions have probability 0; neither is ever compared.

    Returns:
        The instance, labelled by the Bradley-Terry model.

    Raises:
        ValueError: an option out of range.

    Examples:
        >>> bandit = random_tabular(jax.random.key(0), contexts=2, actions=3, comparisons=50)
        >>> float(bandit.problem.wins.sum())
        50.0
    """
    rng = numpy_generator(key)
    spread = rng.uniform(-0.125, 1.125, (contexts, actions))
    return _random_instance(
        rng,
        reward=reward_max * np.clip(spread, 0.0, 1.0),
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
    r"""Random linear bandit: features uniform on the sphere, :math:`\theta^\star` in the ball.

    One in five parameters lies on the surface of the ball. The rest is as in
    :func:`random_tabular`.

    Args:
        key: a ``jax.random.key``.
        contexts: number of prompts.
        actions: number of actions, at least 2.
        features: dimension of the features :math:`d`, of norm 1.
        comparisons: number of labelled pairs :math:`N`; 0 for no data.
        pair_probability: probability that an ordered pair is among those compared; at least one is.
        radius: :math:`B`; rewards lie in :math:`[-B, B]`.
        baseline: :math:`\pi_{base}`, or "dirichlet" for a random policy.
        beta: :math:`\beta`.
        eta: :math:`\eta`.
        shape: contexts and actions to pad to; padded features are 0.

    Returns:
        The instance, labelled by the Bradley-Terry model.

    Raises:
        ValueError: an option out of range.

    Examples:
        >>> sizes = {"contexts": 2, "actions": 3, "features": 4, "comparisons": 50}
        >>> random_linear(jax.random.key(0), **sizes).reward_class.features.shape
        (2, 3, 4)
    """
    rng = numpy_generator(key)
    table = _unit(rng.standard_normal((contexts, actions, features)))
    theta = _unit(rng.standard_normal(features)) * radius * min(rng.uniform(0.0, 1.25), 1.0)
    shape = shape or (contexts, actions)
    return _random_instance(
        rng,
        reward=table @ theta,
        reward_class=LinearBall(_padded(table, (*shape, features)), np.array(radius)),
        comparisons=comparisons,
        pair_probability=pair_probability,
        baseline=baseline,
        beta=beta,
        eta=eta,
        shape=shape,
    )


def baseline_policy(
    baseline: Baseline, *, wins: Float[ArrayLike, "x a a"], reference: Float[ArrayLike, "x a"]
) -> Float[np.ndarray, "x a"]:
    """Table of a baseline policy that was given by name or by arm.

    Args:
        baseline: "chosen", "data_marginal", "reference", or the index of an arm.
        wins: win counts.
        reference: reference policy; contexts without data fall back to it.

    Returns:
        Probabilities in float64, rows sum to one.

    Raises:
        ValueError: an unknown name, or an arm that does not exist.

    Examples:
        >>> baseline_policy(1, wins=np.zeros((1, 2, 2)), reference=np.full((1, 2), 0.5)).tolist()
        [[0.0, 1.0]]
    """
    wins, reference = np.asarray(wins, np.float64), np.asarray(reference, np.float64)
    n_contexts, n_actions = reference.shape
    with jax.enable_x64(True):
        match baseline:
            case "reference":
                return reference
            case "chosen":
                return np.asarray(chosen_policy(wins, reference))
            case "data_marginal":
                return np.asarray(data_marginal_policy(wins, reference))
            case int() if 0 <= baseline < n_actions:
                return np.tile(np.eye(n_actions)[baseline], (n_contexts, 1))
    raise ValueError(
        f"`baseline` must be 'chosen', 'data_marginal', 'reference' or an arm from 0 to "
        f"{n_actions - 1}, got {baseline!r}"
    )


def best_arm_policy(true_reward: Float[np.ndarray, "x a"]) -> Float[np.ndarray, "x a"]:
    """Policy that picks an arm of the highest reward in each context."""
    return np.eye(true_reward.shape[1])[true_reward.argmax(axis=1)]


def numpy_generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy generator seeded from a JAX key.

    Args:
        key: the key.

    Returns:
        A generator whose draws are a function of the key.

    Examples:
        >>> numpy_generator(jax.random.key(7)).integers(100, size=4).tolist()
        [79, 3, 22, 77]
    """
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


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
    """Draw prompts, policies and data for a given truth, then pad everything to ``shape``."""
    contexts, actions = reward.shape
    _check(contexts, actions, comparisons, pair_probability)
    context_weights = rng.dirichlet(np.ones(contexts))
    policies = rng.dirichlet(np.ones(actions), (2, contexts))
    counts, pair_distribution = _compared_pairs(rng, reward.shape, comparisons, pair_probability)

    outside = np.zeros(shape)
    outside[contexts:, 0] = 1.0  # a padded prompt needs a law too
    reference, dirichlet = (outside + _padded(policy, shape) for policy in policies)
    reward, comparator = _padded(reward, shape), outside + _padded(best_arm_policy(reward), shape)
    wins = _labels(rng, reward, _padded(counts, (*shape, shape[1])))
    if baseline != "dirichlet":
        table = baseline_policy(baseline, wins=wins, reference=reference)
        dirichlet = np.concatenate([table[:contexts], outside[contexts:]])
    problem = Problem(
        context_weights=_padded(context_weights, shape[:1]),
        reference_policy=reference,
        baseline_policy=dirichlet,
        wins=wins,
        beta=np.array(beta),
        eta=np.array(eta),
    )
    pair_distribution = _padded(pair_distribution, (*shape, shape[1]))
    return Instance(problem, reward_class, reward, comparator, pair_distribution)


def _check(contexts: int, actions: int, comparisons: int, pair_probability: float) -> None:
    for name, value, least in (
        ("contexts", contexts, 1),
        ("actions", actions, 2),
        ("comparisons", comparisons, 0),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")
    if not 0 <= pair_probability <= 1:
        raise ValueError(
            f"`pair_probability` must be a probability, in [0, 1], got {pair_probability}"
        )


def _compared_pairs(
    rng: np.random.Generator, shape: tuple[int, int], comparisons: int, pair_probability: float
) -> tuple[Float[np.ndarray, "x a a"], Float[np.ndarray, "x a a"]]:
    """How often each ordered pair is compared, and the law :math:`\\mu_D` that this came from."""
    contexts, actions = shape
    seen = rng.random((contexts, actions, actions)) < pair_probability
    seen &= (rng.random(contexts) < CONTEXTS_WITH_DATA)[:, None, None]
    seen &= ~np.eye(actions, dtype=bool)
    seen[rng.integers(contexts), *rng.choice(actions, 2, replace=False)] = True
    counts, law = np.zeros((2, contexts, actions, actions))
    if comparisons > 0:
        law[seen] = rng.dirichlet(np.ones(seen.sum()))
        counts[seen] = rng.multinomial(comparisons, law[seen])
    return counts, law


def _labels(
    rng: np.random.Generator,
    reward: Float[np.ndarray, "x a"],
    comparisons: Float[np.ndarray, "x a a"],
) -> Float[np.ndarray, "x a a"]:
    with jax.enable_x64(True):
        win_rate = preference_probability(reward[:, :, None], reward[:, None, :])
    first_wins = rng.binomial(comparisons.astype(np.int64), np.asarray(win_rate))
    return first_wins + (comparisons - first_wins).swapaxes(1, 2)


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Array with zeros appended along every axis up to ``shape``."""
    missing = [(0, size - had) for size, had in zip(shape, array.shape, strict=True)]
    if min(missing) < (0, 0):
        raise ValueError(f"`shape` must hold {array.shape}, got {shape}")
    return np.pad(array, missing)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
