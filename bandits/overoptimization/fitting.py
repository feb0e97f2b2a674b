r"""Methods whose curves the study of overoptimization measures, and the call that fits them.

A curve needs policies that approach the reference as :math:`\beta\to\infty`, so methods without
:math:`\beta` are not among them.
"""

from __future__ import annotations

from typing import Any

from bandits.methods.base import FitResult
from bandits.methods.options import BaselineOption
from bandits.methods.registry import find_method
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

BEST_OF_N = "best_of_n"
"""Name of best-of-n under the reward of :data:`PROXY_METHOD`."""

PROXY_METHOD = "two_stage"
"""Method whose reward best-of-n ranks responses by: maximum likelihood in the class."""

WITHOUT_THE_REFERENCE = ("power", "spac", "simpo", "kto")
r"""Methods whose policies do not approach the reference as :math:`\beta` grows."""


def has_curve(method: str) -> bool:
    r"""Return whether the study can draw the curve of a method along :math:`\beta`.

    Args:
        method: name of a built-in method, or ``module:name``.

    Raises:
        ValueError: if there is no such method.

    Examples:
        >>> has_curve("rpo"), has_curve("greedy_mle")
        (True, False)
    """
    record = find_method(method)
    return record.uses_beta and record.name not in WITHOUT_THE_REFERENCE


def fit_policies(
    method: str, problem: Problem, reward_class: RewardClass, baseline: BaselineOption
) -> FitResult:
    r"""Fit a method to a batch of problems.

    Args:
        method: a method of which :func:`has_curve` is true.
        problem: instances with their weights, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        baseline: baseline policy of a method that has one.

    Returns:
        Policies and rewards.

    Examples:
        >>> import numpy as np
        >>> from bandits.environments import Design, draw_design
        >>> batch = draw_design(Design(actions=3), 50, np.arange(2))
        >>> fit_policies("dpo", batch.problem, batch.reward_class, "given").policy.shape
        (2, 1, 3)
    """
    record = find_method(method)
    options: dict[str, Any] = (
        {"baseline": baseline} if hasattr(record.options(), "baseline") else {}
    )
    return record(problem, reward_class, **options)
