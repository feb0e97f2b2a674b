r"""Methods whose curves the study of overoptimization measures, and the call that fits them.

A curve needs policies that approach the reference as :math:`\beta\to\infty`, so methods without
:math:`\beta` are not among them.
"""

from __future__ import annotations

from bandits.methods.base import BaselineOption, FitResult, MethodOptions
from bandits.methods.registry import METHODS
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

BEST_OF_N = "best_of_n"
"""Name of best-of-n under the reward of :data:`PROXY_METHOD`."""

PROXY_METHOD = "two_stage"
"""Method whose reward best-of-n ranks responses by: maximum likelihood in the class."""

METHODS_WITH_ETA = ("rpo", "rpo_maximin", "rpo_policy", "vpo")
r"""Methods that use :math:`\eta`; each of its values gives a curve."""

METHODS_ALONG_BETA = (*METHODS_WITH_ETA, "dpo", "two_stage", "ipo", "dpop", "chi_po")
r"""Methods whose policies approach the reference as :math:`\beta` grows."""


def fit_policies(
    method: str, problem: Problem, reward_class: RewardClass, baseline: BaselineOption
) -> FitResult:
    r"""Fit a method to a batch of problems.

    Args:
        method: one of :data:`METHODS_ALONG_BETA`.
        problem: instances with their weights, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        baseline: baseline policy of RPO, see :class:`bandits.methods.MethodOptions`.

    Returns:
        Policies and rewards.

    Examples:
        >>> import numpy as np
        >>> from bandits.environments import Design, draw_design
        >>> batch = draw_design(Design(actions=3), 50, np.arange(2))
        >>> fit_policies("dpo", batch.problem, batch.reward_class, "given").policy.shape
        (2, 1, 3)
    """
    return METHODS[method](problem, reward_class, MethodOptions(baseline=baseline))
