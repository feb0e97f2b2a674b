"""The reward class of the user's own that ``rpo verify`` checks the theorem on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bandits.environments.class_documents import class_document
from bandits.theorem_check.class_instances import SMALL_SHAPE
from rpo_theory.rewards import RewardClass, is_compact, is_convex

from .answer import check_provable
from .tasks import task_from_problem


class CheckedClass(NamedTuple):
    """A reward class, its name in the records, and the sizes of its bandits.

    Attributes:
        reward_class: a convex compact class.
        name: ``module:Class``.
        shape: number of contexts and of actions.
    """

    reward_class: RewardClass
    name: str
    shape: tuple[int, int]


def class_to_check(
    reward_class: str | RewardClass | None,
    problem: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    rigorous: bool = False,
) -> CheckedClass | None:
    """Return the class of the user's own after the checks that solvers make of it.

    Args:
        reward_class: ``module:Class``, an instance, or None for none.
        problem: problem with the parameters of the class; None for a class without parameters.
        rigorous: whether the class needs an exact form.

    Returns:
        The class with the sizes of the problem; None without a class.

    Raises:
        ValueError: if the class or the problem is invalid, or the theorem does not apply to it.
        OSError: if the problem cannot be read.

    Examples:
        >>> class_to_check("rpo_theory.rewards:Unbounded")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: argument --reward-class: Unbounded is not compact: the theorem needs a ...class
    """
    if reward_class is None:
        if problem is not None:
            raise ValueError("argument --problem: needs --reward-class, whose parameters it has")
        return None
    if problem is None:
        contexts, actions = SMALL_SHAPE
        wins = np.broadcast_to(1.0 - np.eye(actions), (contexts, actions, actions))
        task = task_from_problem(wins, beta=1.0, eta=1.0, reward_class=reward_class)
    else:
        source = os.fspath(problem) if isinstance(problem, os.PathLike) else problem
        task = task_from_problem(source, reward_class=reward_class)
    found = task.reward_class
    kind = type(found).__name__
    for holds, rule in ((is_compact(found), "compact"), (is_convex(found), "convex")):
        if not holds:
            reason = "the theorem needs a convex and compact class"
            raise ValueError(f"argument --reward-class: {kind} is not {rule}: {reason}")
    if rigorous:
        check_provable(task)
    contexts, actions = np.shape(task.problem.reference_policy)
    return CheckedClass(found, class_document(found)["kind"], (contexts, actions))
