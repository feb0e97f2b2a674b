"""Validation of problems, reward classes, policies and rewards, one or a batch at a time.

Jitted code validates nothing, because the values of traced arrays are not known. The solvers and
the readers of files call these checks once, in NumPy. An error names the field, the index in it,
the rule and the value, in one line.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import jax
import numpy as np

from .array_checks import (
    PROBABILITY_TOLERANCE,
    InvalidProblemError,
    at_least_zero,
    check_terms,
    greater_than_zero,
    is_traced,
    numbers,
    plain_array,
    refuse_where,
    scalar_shape,
    validate_policy,
    validate_reward,
)
from .data_checks import validate_choices, validate_ties
from .rewards import RewardClass, is_compact
from .rewards.check import check_reward_class, require_protocol
from .types import Problem

__all__ = [
    "PROBABILITY_TOLERANCE",
    "InvalidProblemError",
    "at_least_zero",
    "check_terms",
    "is_traced",
    "numbers",
    "plain_array",
    "require_protocol",
    "solver_arguments",
    "validate",
    "validate_batch",
    "validate_policy",
    "validate_reward",
    "validate_reward_class",
    "validate_support",
]


def validate(problem: Problem, reward_class: RewardClass) -> None:
    r"""Raise if a problem or its reward class is invalid.

    The checks are shapes, finite numbers, probabilities, :math:`\beta > 0` and :math:`\eta \ge 0`.
    Sums of probabilities may differ from one by :data:`PROBABILITY_TOLERANCE`;
    :func:`rpo_theory.problems.normalize` removes the difference. Comparisons of an action with
    itself are valid and say nothing about rewards.

    Args:
        problem: one problem, without a batch axis.
        reward_class: reward class of the problem, without a batch axis.

    Raises:
        InvalidProblemError: if a check fails; the message describes the first violation.

    Examples:
        >>> from rpo_theory.rewards import Unbounded
        >>> ones = np.ones((1, 1))
        >>> problem = Problem(ones[0], ones, ones, np.zeros((1, 1, 1)), beta=0.0, eta=1.0)
        >>> validate(problem, Unbounded())
        Traceback (most recent call last):
        rpo_theory.array_checks.InvalidProblemError: `beta` must be greater than 0, got 0
    """
    _validate(problem, reward_class, n_batch=None, finite=True)


def validate_batch(problems: Problem, reward_class: RewardClass, *, finite: bool = True) -> None:
    """Raise if a problem of a batch, or its reward class, is invalid; see :func:`validate`.

    Args:
        problems: problems with a leading batch axis on every array; scalars apply to all.
        reward_class: reward class of each problem, with the same leading axis.
        finite: whether to refuse numbers that are not finite. Solvers that report a status
            instead leave them to the status.

    Raises:
        InvalidProblemError: if a check fails; an index begins with that of the problem.

    Examples:
        >>> from rpo_theory.rewards import Unbounded
        >>> even = np.full((3, 1, 2), 0.5)
        >>> problems = Problem(np.ones((3, 1)), even, even, np.zeros((3, 1, 2, 2)), 1.0, -1.0)
        >>> validate_batch(problems, Unbounded())
        Traceback (most recent call last):
        rpo_theory.array_checks.InvalidProblemError: `eta` must be at least 0, got -1
    """
    shape = np.shape(problems.reference_policy)
    if len(shape) != 3:
        rule = "must have shape (problems, contexts, actions)"
        raise InvalidProblemError("reference_policy", (), f"{rule}, got shape {shape}")
    _validate(problems, reward_class, n_batch=shape[0], finite=finite)


def solver_arguments(
    problem: Problem,
    reward_class: RewardClass,
    *,
    tolerance: float,
    max_steps: int,
    throw: bool,
    batch: bool,
) -> tuple[Problem, RewardClass]:
    """Return the arguments of a solver as NumPy arrays; raise if one is invalid.

    Args:
        problem: one problem, or a batch.
        reward_class: its reward class, or one per problem.
        tolerance: where the iteration stops, greater than 0.
        max_steps: maximum number of steps, at least 1.
        throw: whether numbers that are not finite are refused, not left to the status.
        batch: whether arrays have a leading batch axis.

    Returns:
        Problem and reward class with NumPy arrays in every field.

    Raises:
        ValueError: if an argument is invalid; the message names it.

    Examples:
        >>> from rpo_theory.rewards import Unbounded
        >>> problem = Problem([1.0], [[1.0]], [[1.0]], [[[0.0]]], beta=1.0, eta=1.0)
        >>> options = {"tolerance": 1e-9, "max_steps": 10, "throw": True, "batch": False}
        >>> solver_arguments(problem, Unbounded(), **options)[0].reference_policy.shape
        (1, 1)
    """
    if not isinstance(problem, Problem):
        kind = type(problem).__name__
        raise ValueError(f"`problem` must be a Problem, got {kind}: see Problem.from_wins")
    require_protocol(reward_class)
    if not isinstance(tolerance, Real) or not 0.0 < tolerance < np.inf:
        raise ValueError(f"`tolerance` must be a finite number greater than 0, got {tolerance!r}")
    if not isinstance(max_steps, Integral) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"`max_steps` must be a whole number of at least 1, got {max_steps!r}")
    if max_steps >= 2**31:
        raise ValueError(f"`max_steps` must be less than 2^31, got {max_steps!r}")
    problem = _as_arrays("", problem)
    reward_class = _as_arrays("reward_class.", reward_class)
    if batch:
        validate_batch(problem, reward_class, finite=throw)
    else:
        _validate(problem, reward_class, n_batch=None, finite=throw)
    validate_support(problem, reward_class)
    return problem, reward_class


def validate_support(problem: Problem, reward_class: RewardClass) -> None:
    """Raise if the infimum over an unbounded class is not known for a problem.

    With choices or ties, :mod:`rpo_theory.unbounded` decides whether the infimum is finite only if
    the baseline policy stays within the support of the reference policy.

    Args:
        problem: one valid problem, or a batch.
        reward_class: its reward class.

    Raises:
        InvalidProblemError: if the baseline policy leaves the support.
    """
    if is_compact(reward_class) or (problem.choices is None and problem.ties is None):
        return
    baseline = np.asarray(problem.baseline_policy)
    outside = (baseline > 0) & (np.asarray(problem.reference_policy) == 0)
    rule = "must be 0 where the reference policy is 0, for choices or ties over an unbounded class"
    refuse_where("baseline_policy", baseline, outside, rule)


def _validate(
    problem: Problem, reward_class: RewardClass, *, n_batch: int | None, finite: bool
) -> None:
    """Check every field; with ``n_batch`` arrays have a leading axis, which scalars may lack."""
    shape = np.shape(problem.reference_policy)
    lead = () if n_batch is None else (n_batch,)
    if len(shape) != len(lead) + 2 or 0 in shape:
        rule = f"must have one row per context and one column per action, got shape {shape}"
        raise InvalidProblemError("reference_policy", (), rule)
    n_contexts, n_actions = shape[-2:]
    for field, size in (
        ("reference_policy", shape),
        ("context_weights", (*lead, n_contexts)),
        ("baseline_policy", shape),
    ):
        validate_policy(field, getattr(problem, field), size, finite=finite)
    wins_shape = (*lead, n_contexts, n_actions, n_actions)
    at_least_zero("wins", numbers("wins", problem.wins, wins_shape, finite=finite))
    if problem.choices is not None:
        validate_choices(problem.choices, (n_contexts, n_actions), lead, finite=finite)
    if problem.ties is not None:
        validate_ties(problem.ties, (n_contexts, n_actions), lead, finite=finite)
    greater_than_zero("beta", problem.beta, lead, finite=finite)
    eta = numbers("eta", problem.eta, scalar_shape(problem.eta, lead), finite=finite)
    at_least_zero("eta", eta)
    validate_reward_class(reward_class, (n_contexts, n_actions), lead, finite=finite)


def validate_reward_class(
    reward_class: RewardClass,
    shape: tuple[int, int],
    lead: tuple[int, ...] = (),
    *,
    finite: bool = True,
) -> None:
    """Raise if a reward class is invalid.

    Args:
        reward_class: the class.
        shape: number of contexts and of actions.
        lead: batch shape of its arrays; a bound that is one number applies to the whole batch.
        finite: whether to refuse numbers that are not finite.

    Raises:
        InvalidProblemError: if a bound is not greater than 0, or a shape is wrong.
    """
    require_protocol(reward_class)
    method = getattr(reward_class, "check_fields", None)
    if method is not None:
        method(shape, lead, finite=finite)
    if not type(reward_class).__module__.startswith("rpo_theory."):
        _check_user_class(reward_class, shape, lead, finite=finite)


def _check_user_class(
    reward_class: RewardClass, shape: tuple[int, int], lead: tuple[int, ...], *, finite: bool
) -> None:
    """Check a user's class; of a batch the first and the last."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(reward_class)]
    if not finite and not all(np.isfinite(leaf).all() for leaf in leaves):
        return
    for index in sorted({0, lead[0] - 1}) if lead else [()]:
        check_reward_class(
            jax.tree.map(
                lambda leaf, index=index: np.asarray(leaf)[index] if np.ndim(leaf) else leaf,
                reward_class,
            ),
            shape,
        )


def _as_arrays(prefix: str, tree: Any) -> Any:
    """Return a pytree with an array for every leaf; lists of numbers are leaves."""

    def as_array(path: Any, leaf: Any) -> np.ndarray:
        field = jax.tree_util.keystr(path, simple=True, separator=".")
        # A Python integer is a number, not an index; a huge one is refused with its field.
        is_number = type(leaf) is int and leaf.bit_length() < 1024
        return plain_array(prefix + field, float(leaf) if is_number else leaf)

    return jax.tree_util.tree_map_with_path(
        as_array, tree, is_leaf=lambda node: type(node) in (list, tuple)
    )
