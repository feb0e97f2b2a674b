r"""Named instances: small problems on which methods for preference data are known to differ.

Each has one prompt, and its data are exact expected counts, so that every number about it is
reproducible without a seed. Unless said otherwise :math:`\beta = \eta = 1/\sqrt n`, the scale of
Theorem 5.3 of `liu:24`. All arrays are NumPy's, in float64.
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

from .random import Baseline, Instance, baseline_policy, best_arm_policy


def four_arms(
    n: int, *, baseline: Baseline = 2, beta: float | None = None, eta: float | None = None
) -> Instance:
    r"""Greedy maximum likelihood fails with good coverage; a baseline on the seen arm repairs it.

    Rewards :math:`\langle\theta,\phi\rangle` with :math:`\|\theta\|\le 2`, :math:`\sum\theta = 0`;
    :math:`r^\star = (-.9, -1, 0, .1)`. All comparisons but one are of arms 0 and 1; the last one
    is won by arm 1 against arm 2, which has probability :math:`\sigma(-1)`.

    Args:
        n: comparisons, at least 2.
        baseline: 2 is the arm next to the best one; with "chosen" the gap stays at one.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance; the ball has dimension two, the free directions of :math:`\theta`.

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
    r"""Type I hacking: one lucky win makes a rarely seen bad arm look best.

    :math:`r^\star = (1, .5, 0)`; all comparisons but one are of arms 0 and 1; in the last one arm
    2 beats arm 0. DPO (``eta=0``) moves to arm 2.

    Args:
        n: comparisons, at least 2.
        baseline: all the named baselines leave a gap, "reference" much the largest.
        reward_max: :math:`R_{max}`; 1 is the smallest box that holds the truth, 2 already acts
            like no bound at all.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance.

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
    r"""Type II hacking: one lucky loss makes a rarely seen best arm look bad.

    :math:`r^\star = (1, .5, 0)` and :math:`\pi_{ref} = (.6, .3, .1)`; all comparisons but one are
    of arms 1 and 2; in the last one arm 1 beats arm 0. DPO (``eta=0``) leaves arm 0.

    Args:
        n: comparisons, at least 2.
        baseline: "chosen" does not help, since arm 0 never wins; "reference" does.
        reward_max: :math:`R_{max}`, at least 1 to hold the truth.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance.

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
    r"""Two rewards, no data: without convexity the two formulations part (A 5.5 is needed).

    :math:`\mathcal R = \{(1, 0, .6), (0, 1, .6)\}`, :math:`\pi_{ref}` uniform, baseline and
    comparator arm 2, so that the coverage coefficient is 0. The minimax policy bets on one of the
    two rewards; Algorithm 1 stays near arm 2. The other reward may be the truth: the first is
    taken here, and by symmetry a gap is the larger one over both.

    Args:
        beta: :math:`\beta`.
        eta: :math:`\eta`; the duality gap is proportional to it.

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
    r"""A KL penalty alone cannot give single-policy coverage: a rare arm, never seen.

    Arms (0, ghost, b) with :math:`r^\star = (1/2, 0, 1/2-g)`,
    :math:`\pi_{ref} = (1/2, 1/2n, 1/2-1/2n)`; arms 0 and b are known exactly, the class lets the
    ghost be worth 0 or 1. Maximum likelihood may take 1 and every :math:`\beta` then costs
    :math:`1/\log n`; the adversary of a baseline off the ghost takes 0.

    Args:
        n: scale of the data, which are not represented: both rewards explain them equally well.
        deficit: :math:`g` in [0, 1/2], how much worse arm b is.
        baseline: an arm other than the ghost.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance; ``reward_class.rewards[0]`` is the reward that maximum likelihood is handed,
        the first of those that explain the data equally well.

    References:
        `huang:24`, on the limits of KL regularisation.

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
    r"""Likelihood displacement: DPO moves all mass from the preferred response to an unseen one.

    A log-linear policy with logits :math:`\log\pi_{ref} + \langle\theta,\phi\rangle`,
    :math:`\phi = (1,1), (1,-1), (0,3)`, and one comparison, which arm 0 wins against arm 1.
    Raising its margin raises the logit of arm 2 three times as fast. The reward class is that of
    the policies' implicit rewards, :math:`r = \langle\theta, \beta\phi\rangle`.

    Args:
        eta: :math:`\eta`; 0 is DPO.
        beta: :math:`\beta`.
        radius: largest :math:`\|\theta\|`; gradient descent stays well inside the default.

    Returns:
        The instance; baseline "chosen", that is arm 0.

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
    r"""Two worlds that the data hardly tell apart: the gap must grow with the coverage :math:`C`.

    One of two arms is better by :math:`\Delta = 1/\sqrt{pn}`; a fraction :math:`p` of the pairs
    compares them, the others compare an arm with itself. Then :math:`C^2 = 1/p` and no algorithm
    has an expected gap below :math:`C/4\sqrt n` in both worlds.

    Args:
        n: comparisons.
        informative: :math:`p` in (0, 1], with :math:`\Delta\le R_{max}`.
        better: which arm is better: the world.
        baseline: the worse arm unless given; with the better arm :math:`C = 0`.
        reward_max: :math:`R_{max}`.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance.

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
    """Label the comparisons in expectation, add the one given ``upset``, and assemble."""
    pairs, upsets = np.zeros((2, 1, reward.size, reward.size))
    for pair, count in comparisons.items():
        pairs[0][pair] = count
    if upset is not None:
        upsets[0][upset] = 1.0
    truth = reward[None]
    with jax.enable_x64(True):
        wins = np.asarray(expected_wins(truth, pairs)) + upsets
    problem = Problem(
        context_weights=np.ones(1),
        reference_policy=reference[None],
        baseline_policy=baseline_policy(baseline, wins=wins, reference=reference[None]),
        wins=wins,
        beta=np.array(n**-0.5 if beta is None else beta),
        eta=np.array(n**-0.5 if eta is None else eta),
    )
    pair_distribution = (pairs + upsets) / max(wins.sum(), 1.0)
    return Instance(problem, reward_class, truth, best_arm_policy(truth), pair_distribution)


def _at_least(name: str, value: float | int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}")
