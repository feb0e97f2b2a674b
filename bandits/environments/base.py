"""Bandit instances that environments draw, with their true rewards; baseline policies by name.

All arrays are NumPy arrays in float64.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rpo_theory.policies import chosen_policy, data_marginal_policy
from rpo_theory.rewards import RewardClass
from rpo_theory.types import ArrayLike, Problem

BaselineName = Literal["chosen", "data_marginal", "reference"]
r"""Name of a baseline policy: the distribution of the winners of a prompt, that of both members of
its pairs, or :math:`\pi_{ref}`."""

Baseline = BaselineName | int
"""Baseline policy by name, or the index of the one action that it always takes."""


class Instance(NamedTuple):
    r"""Problem together with the true reward and the pair distribution of its data.

    Attributes:
        problem: data, policies and weights, as a method sees them.
        reward_class: class in which a method searches for the reward.
        true_reward: :math:`r^\star(x,a)`, shape ``[x a]``. It lies in the class unless the
            environment is misspecified.
        comparator: policy :math:`\pi` with which a fitted policy is compared, the best actions
            unless an environment says otherwise, shape ``[x a]``.
        pair_distribution: :math:`\mu_D(x, a^1, a^0)`, the probability that a comparison is of this
            prompt and this ordered pair, before it is labeled, shape ``[x a a]``. It is zero if
            there are no data.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[ArrayLike, "x a"]
    comparator: Float[ArrayLike, "x a"]
    pair_distribution: Float[ArrayLike, "x a a"]


def baseline_policy(
    baseline: Baseline, *, wins: Float[ArrayLike, "*b x a a"], reference: Float[ArrayLike, "*b x a"]
) -> Float[np.ndarray, "*b x a"]:
    """Return the baseline policy that a name or an action index stands for.

    Args:
        baseline: "chosen", "data_marginal", "reference", or the index of an action.
        wins: win counts, optionally with leading batch axes.
        reference: reference policy with the same batch axes. At a prompt without data, "chosen"
            and "data_marginal" fall back to it.

    Returns:
        Probabilities in float64; each row sums to one.

    Raises:
        ValueError: if the name is unknown, or the action does not exist.

    Examples:
        >>> baseline_policy(1, wins=np.zeros((1, 2, 2)), reference=np.full((1, 2), 0.5)).tolist()
        [[0.0, 1.0]]
    """
    wins, reference = np.asarray(wins, np.float64), np.asarray(reference, np.float64)
    n_actions = reference.shape[-1]
    match baseline:
        case "reference":
            return reference
        case "chosen":
            policy_of_prompts = chosen_policy
        case "data_marginal":
            policy_of_prompts = data_marginal_policy
        case int() if 0 <= baseline < n_actions:
            return np.broadcast_to(np.eye(n_actions)[baseline], reference.shape).copy()
        case _:
            raise ValueError(
                f"`baseline` must be 'chosen', 'data_marginal', 'reference' or an action from 0 "
                f"to {n_actions - 1}, got {baseline!r}"
            )
    # Prompts do not interact, so the prompts of a whole batch may be those of one problem.
    with jax.enable_x64(True):
        flat = policy_of_prompts(
            wins.reshape(-1, n_actions, n_actions), reference.reshape(-1, n_actions)
        )
    return np.asarray(flat).reshape(reference.shape)


def best_action_policy(reward: Float[np.ndarray, "x a"]) -> Float[np.ndarray, "x a"]:
    """Return the policy that takes the first action of highest reward at each prompt.

    Args:
        reward: rewards of prompts and actions.

    Returns:
        Probabilities, 0 or 1.

    Examples:
        >>> best_action_policy(np.array([[0.0, 2.0, 1.0]])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    return np.eye(reward.shape[1])[reward.argmax(axis=1)]
