r"""Named instances: small problems on which methods for preference data are known to differ.

Each instance has one prompt. Its data are exact expected counts, so every number about it is
reproducible without a seed. The default weights are :math:`\beta = \eta = 1/\sqrt n`, the scale of
Theorem 5.3 of `liu:24`. All arrays are NumPy arrays in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from rpo_theory.preference import expected_wins
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

from .base import Baseline, Instance, baseline_policy, best_action_policy


def four_arms(
    n: int, *, baseline: Baseline = 2, beta: float | None = None, eta: float | None = None
) -> Instance:
    r"""Build four arms on which greedy maximum likelihood fails despite good coverage.

    Rewards are :math:`\langle\theta,\phi\rangle` with :math:`\|\theta\|\le 2` and
    :math:`\sum\theta = 0`; the truth is :math:`r^\star = (-.9, -1, 0, .1)`. All comparisons but one
    are of arms 0 and 1. In the last one arm 1 wins against arm 2, an event of probability
    :math:`\sigma(-1)`. RPO with a baseline on arm 2 has a small gap.

    Args:
        n: number of comparisons, at least 2.
        baseline: :math:`\pi_{base}`. Arm 2 is second best; with "chosen" the gap stays near one.
        beta: weight :math:`\beta` of the KL term; None for :math:`1/\sqrt n`.
        eta: weight :math:`\eta` of the adversarial term; None for :math:`1/\sqrt n`.

    Returns:
        The instance. Its ball has dimension two, for the free directions of :math:`\theta`.

    Raises:
        ValueError: if ``n`` or the baseline is out of range.

    References:
        `zhu:23`, Theorem 3.9.

    Examples:
        >>> four_arms(20).true_reward.round(2).tolist()
        [[-0.9, -1.0, 0.0, 0.1]]
    """
    _at_least("n", n, 2)
    features = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    sum_zero = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])
    return _one_prompt(
        reward=features @ np.array([-1.0, 0.1, 0.9]),
        reward_class=LinearBall((features @ sum_zero.T)[None], np.array(2.0)),
        reference=np.full(4, 0.25),
        comparisons={(0, 1): n - 1.0},
        upset=(1, 2),
        baseline=baseline,
        n=n,
        beta=beta,
        eta=eta,
    )


def type_i_hacking(
    n: int,
    *,
    baseline: Baseline = "chosen",
    reward_max: float = 2.0,
    beta: float | None = None,
    eta: float | None = None,
) -> Instance:
    r"""Build the type I hacking instance: a lucky win makes a rarely compared bad arm look best.

    The truth is :math:`r^\star = (1, .5, 0)`. All comparisons but one are of arms 0 and 1; in the
    last one arm 2 beats arm 0. DPO (``eta=0``) moves to arm 2.

    Args:
        n: number of comparisons, at least 2.
        baseline: :math:`\pi_{base}`. Every named baseline leaves a gap, "reference" by far the
            largest.
        reward_max: :math:`R_{max}`. The smallest box that holds the truth has 1; 2 already acts
            like no bound at all.
        beta: weight :math:`\beta` of the KL term; None for :math:`1/\sqrt n`.
        eta: weight :math:`\eta` of the adversarial term; None for :math:`1/\sqrt n`.

    Returns:
        The instance.

    Raises:
        ValueError: if ``n``, ``reward_max`` or the baseline is out of range.

    References:
        `rashidinejad:24`, on type I reward hacking.

    Examples:
        >>> type_i_hacking(100).problem.wins[0, 2].tolist()
        [1.0, 0.0, 0.0]
    """
    _at_least("n", n, 2)
    _at_least("reward_max", reward_max, 1)
    return _one_prompt(
        reward=np.array([1.0, 0.5, 0.0]),
        reward_class=TabularBox(np.array(reward_max)),
        reference=np.full(3, 1.0 / 3.0),
        comparisons={(0, 1): n - 1.0},
        upset=(2, 0),
        baseline=baseline,
        n=n,
        beta=beta,
        eta=eta,
    )


def type_ii_hacking(
    n: int,
    *,
    baseline: Baseline = "reference",
    reward_max: float = 2.0,
    beta: float | None = None,
    eta: float | None = None,
) -> Instance:
    r"""Build the type II hacking instance: a loss makes a rarely compared best arm look bad.

    The truth is :math:`r^\star = (1, .5, 0)` and :math:`\pi_{ref} = (.6, .3, .1)`. All comparisons
    but one are of arms 1 and 2; in the last one arm 1 beats arm 0. DPO (``eta=0``) leaves arm 0.

    Args:
        n: number of comparisons, at least 2.
        baseline: :math:`\pi_{base}`. The gap shrinks with "reference", but not with "chosen",
            because arm 0 never wins.
        reward_max: :math:`R_{max}`, at least 1 to hold the truth.
        beta: weight :math:`\beta` of the KL term; None for :math:`1/\sqrt n`.
        eta: weight :math:`\eta` of the adversarial term; None for :math:`1/\sqrt n`.

    Returns:
        The instance.

    Raises:
        ValueError: if ``n``, ``reward_max`` or the baseline is out of range.

    References:
        `rashidinejad:24`, on type II reward hacking.

    Examples:
        >>> type_ii_hacking(100).problem.wins[0, 0].tolist()
        [0.0, 0.0, 0.0]
    """
    _at_least("n", n, 2)
    _at_least("reward_max", reward_max, 1)
    return _one_prompt(
        reward=np.array([1.0, 0.5, 0.0]),
        reward_class=TabularBox(np.array(reward_max)),
        reference=np.array([0.6, 0.3, 0.1]),
        comparisons={(1, 2): n - 1.0},
        upset=(1, 0),
        baseline=baseline,
        n=n,
        beta=beta,
        eta=eta,
    )


def non_convex_class(beta: float, *, eta: float = 1.0) -> Instance:
    r"""Build a class of two rewards, not convex, on which min-max and max-min differ.

    It shows that A 5.5 is needed. :math:`\mathcal R = \{(1, 0, .6), (0, 1, .6)\}`,
    :math:`\pi_{ref}` is uniform, and there are no data. Baseline and comparator are arm 2, so the
    coverage coefficient is 0. The min-max policy bets on one of the two rewards, while Algorithm 1
    stays near arm 2. The truth is the second reward; the instance is symmetric, so the worst gap is
    the larger one over both.

    Args:
        beta: weight :math:`\beta` of the KL term.
        eta: weight :math:`\eta` of the adversarial term; the duality gap is proportional to it.

    Returns:
        The instance.

    References:
        `liu:24`, A 5.5 and Theorem 5.6.

    Examples:
        >>> non_convex_class(0.1).reward_class.rewards[:, 0].tolist()
        [[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]]
    """
    rewards = np.array([[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]])
    return _one_prompt(
        reward=rewards[1, 0],
        reward_class=FiniteClass(rewards),
        reference=np.full(3, 1.0 / 3.0),
        comparisons={},
        baseline=2,
        n=1,
        beta=beta,
        eta=eta,
    )._replace(comparator=np.eye(3)[2:])


def ghost_arm(
    n: int,
    *,
    deficit: float,
    baseline: Baseline = 0,
    beta: float | None = None,
    eta: float | None = None,
) -> Instance:
    r"""Build a rare arm without data, on which a KL penalty alone does not suffice.

    The arms are 0, the ghost and b, with :math:`r^\star = (1/2, 0, 1/2-g)` and
    :math:`\pi_{ref} = (1/2, 1/2n, 1/2-1/2n)`. Arms 0 and b are known exactly; in the class the
    ghost is worth 0 or 1. If maximum likelihood takes 1, the gap is of order :math:`1/\log n` for
    every :math:`\beta`. The adversary takes 0 if the baseline avoids the ghost.

    Args:
        n: number of comparisons, at least 2. It sets the scale only; the data are left out, because
            both rewards explain them equally well.
        deficit: :math:`g` in [0, 1/2], by which arm b is worse than arm 0.
        baseline: :math:`\pi_{base}`, an arm other than the ghost.
        beta: weight :math:`\beta` of the KL term; None for :math:`1/\sqrt n`.
        eta: weight :math:`\eta` of the adversarial term; None for :math:`1/\sqrt n`.

    Returns:
        The instance. ``reward_class.rewards[0]`` is the reward that maximum likelihood takes, the
        first of those that explain the data equally well.

    Raises:
        ValueError: if ``n``, ``deficit`` or the baseline is out of range.

    References:
        `huang:24`, on the limits of KL regularization.

    Examples:
        >>> ghost_arm(100, deficit=0.25).reward_class.rewards[:, 0].tolist()
        [[0.5, 1.0, 0.25], [0.5, 0.0, 0.25]]
    """
    _at_least("n", n, 2)
    if not 0 <= deficit <= 0.5:
        raise ValueError(f"`deficit` must be in [0, 0.5], got {deficit}")
    rewards = np.array([[[0.5, 1.0, 0.5 - deficit]], [[0.5, 0.0, 0.5 - deficit]]])
    return _one_prompt(
        reward=rewards[1, 0],
        reward_class=FiniteClass(rewards),
        reference=np.array([0.5, 0.5 / n, 0.5 - 0.5 / n]),
        comparisons={},
        baseline=baseline,
        n=n,
        beta=beta,
        eta=eta,
    )


def likelihood_displacement(eta: float, *, beta: float = 0.1, radius: float = 100.0) -> Instance:
    r"""Build a likelihood displacement instance: DPO moves all mass to a response without data.

    The policies are log-linear, with logits :math:`\log\pi_{ref} + \langle\theta,\phi\rangle` and
    :math:`\phi = (1,1), (1,-1), (0,3)`. In the one comparison arm 0 wins against arm 1. Raising its
    margin raises the logit of arm 2 three times as fast. The reward class holds the implicit
    rewards of the policies, :math:`r = \langle\theta, \beta\phi\rangle`.

    Args:
        eta: weight :math:`\eta` of the adversarial term; 0 is DPO.
        beta: weight :math:`\beta` of the KL term.
        radius: largest :math:`\|\theta\|`; gradient descent stays well inside the default.

    Returns:
        The instance. Its baseline is "chosen", which is arm 0.

    References:
        `razin:24`, on unintentional unalignment.

    Examples:
        >>> likelihood_displacement(0.0).reward_class.features[0].round(1).tolist()
        [[0.1, 0.1], [0.1, -0.1], [0.0, 0.3]]
    """
    features = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 3.0]])
    return _one_prompt(
        reward=features @ np.array([0.5, 0.1]),
        reward_class=LinearBall(beta * features[None], np.array(radius)),
        reference=np.array([0.49, 0.49, 0.02]),
        comparisons={},
        upset=(0, 1),
        baseline="chosen",
        n=1,
        beta=beta,
        eta=eta,
    )


def coverage_is_necessary(
    n: int,
    informative: float,
    *,
    better: Literal[0, 1] = 1,
    baseline: Baseline | None = None,
    reward_max: float = 1.0,
    beta: float | None = None,
    eta: float | None = None,
) -> Instance:
    r"""Build two worlds that data hardly distinguish: the gap must grow with :math:`C`.

    One of two arms is better by :math:`\Delta = 1/\sqrt{pn}`. A fraction :math:`p` of the
    comparisons is between them; the others compare an arm with itself. Then :math:`C^2 = 1/p`, and
    no algorithm has an expected gap below :math:`C/4\sqrt n` in both worlds.

    Args:
        n: number of comparisons, at least 1.
        informative: :math:`p` in (0, 1], large enough that :math:`\Delta\le R_{max}`.
        better: index of the better arm, which selects the world.
        baseline: :math:`\pi_{base}`; None for the worse arm. With the better arm, :math:`C = 0`.
        reward_max: :math:`R_{max}`.
        beta: weight :math:`\beta` of the KL term; None for :math:`1/\sqrt n`.
        eta: weight :math:`\eta` of the adversarial term; None for :math:`1/\sqrt n`.

    Returns:
        The instance.

    Raises:
        ValueError: if ``n``, ``informative`` or the baseline is out of range.

    References:
        `liu:24`, A 5.2; the two-point argument is Le Cam's.

    Examples:
        >>> coverage_is_necessary(100, 0.25).true_reward.tolist()
        [[0.0, 0.2]]
    """
    _at_least("n", n, 1)
    if not (0 < informative <= 1 and informative * n * reward_max**2 >= 1):
        raise ValueError(
            f"`informative` must be in (0, 1] and at least 1 / (n reward_max^2), "
            f"got {informative} with n = {n}, reward_max = {reward_max}"
        )
    return _one_prompt(
        reward=np.eye(2)[better] / math.sqrt(informative * n),
        reward_class=TabularBox(np.array(reward_max)),
        reference=np.full(2, 0.5),
        comparisons={(0, 1): informative * n, (0, 0): (1.0 - informative) * n},
        baseline=1 - better if baseline is None else baseline,
        n=n,
        beta=beta,
        eta=eta,
    )


def _one_prompt(
    *,
    reward: Float[np.ndarray, " a"],
    reward_class: RewardClass,
    reference: Float[np.ndarray, " a"],
    comparisons: dict[tuple[int, int], float],
    upset: tuple[int, int] | None = None,
    baseline: Baseline,
    n: int,
    beta: float | None,
    eta: float | None,
) -> Instance:
    """Return a one-prompt instance: expected wins, plus one win ``upset = (winner, loser)``."""
    pairs, upset_wins = np.zeros((2, 1, reward.size, reward.size))
    for pair, count in comparisons.items():
        pairs[0][pair] = count
    if upset is not None:
        upset_wins[0][upset] = 1.0
    truth = reward[None]
    with jax.enable_x64(True):
        wins = np.asarray(expected_wins(truth, pairs)) + upset_wins
    problem = Problem(
        context_weights=np.ones(1),
        reference_policy=reference[None],
        baseline_policy=baseline_policy(baseline, wins=wins, reference=reference[None]),
        wins=wins,
        beta=np.array(n**-0.5 if beta is None else beta),
        eta=np.array(n**-0.5 if eta is None else eta),
    )
    pair_distribution = (pairs + upset_wins) / max(wins.sum(), 1.0)
    return Instance(problem, reward_class, truth, best_action_policy(truth), pair_distribution)


def _at_least(name: str, value: float | int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}")
