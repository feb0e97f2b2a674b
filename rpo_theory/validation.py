"""Validation of problems, reward classes, policies and rewards, one or a batch at a time.

Jitted code validates nothing, because the values of traced arrays are not known. The solvers and
the readers of files call these checks once, in NumPy. An error names the field, the index in it,
the rule and the value, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike, Problem

PROBABILITY_TOLERANCE = 1e-6
"""Largest accepted distance of a sum of probabilities from one: rounding to seven digits."""


class InvalidProblemError(ValueError):
    """Violated rule of a problem.

    Attributes:
        field: name of the field, such as ``"reference_policy"`` or ``"reward_class.radius"``.
        index: index in the field, ``()`` for the field as a whole.
        rule: what must hold, what was got, and what to do.
    """

    field: str
    index: tuple[int, ...]
    rule: str

    def __init__(self, field: str, index: tuple[int, ...], rule: str) -> None:
        """Build the one-line message from the location and the rule."""
        self.field, self.index, self.rule = field, index, rule
        location = field + "".join(f"[{i}]" for i in index)
        super().__init__(f"`{location}` {rule}")


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
        >>> ones = np.ones((1, 1))
        >>> problem = Problem(ones[0], ones, ones, np.zeros((1, 1, 1)), beta=0.0, eta=1.0)
        >>> validate(problem, Unbounded())
        Traceback (most recent call last):
        rpo_theory.validation.InvalidProblemError: `beta` must be greater than 0, got 0
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
        >>> even = np.full((3, 1, 2), 0.5)
        >>> problems = Problem(np.ones((3, 1)), even, even, np.zeros((3, 1, 2, 2)), 1.0, -1.0)
        >>> validate_batch(problems, Unbounded())
        Traceback (most recent call last):
        rpo_theory.validation.InvalidProblemError: `eta` must be at least 0, got -1
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
        >>> problem = Problem([1.0], [[1.0]], [[1.0]], [[[0.0]]], beta=1.0, eta=1.0)
        >>> options = {"tolerance": 1e-9, "max_steps": 10, "throw": True, "batch": False}
        >>> solver_arguments(problem, Unbounded(), **options)[0].reference_policy.shape
        (1, 1)
    """
    if not isinstance(problem, Problem):
        kind = type(problem).__name__
        raise ValueError(f"`problem` must be a Problem, got {kind}: see Problem.from_wins")
    if not isinstance(reward_class, RewardClass):
        kind = type(reward_class).__name__
        names = "TabularBox, LinearBall, FiniteClass or Unbounded"
        raise ValueError(f"`reward_class` must be {names}, got {kind}")
    if not isinstance(tolerance, Real) or not 0.0 < tolerance < np.inf:
        raise ValueError(f"`tolerance` must be a finite number greater than 0, got {tolerance!r}")
    if not isinstance(max_steps, Integral) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"`max_steps` must be a whole number of at least 1, got {max_steps!r}")
    if max_steps >= 2**31:
        raise ValueError(f"`max_steps` must be less than 2^31, got {max_steps!r}")
    problem = Problem(*_arrays("", problem))
    reward_class = type(reward_class)(*_arrays("reward_class.", reward_class))
    if batch:
        validate_batch(problem, reward_class, finite=throw)
    else:
        _validate(problem, reward_class, n_batch=None, finite=throw)
    return problem, reward_class


def validate_policy(
    field: str, policy: ArrayLike, shape: tuple[int, ...], *, finite: bool = True
) -> None:
    """Raise unless an array holds probability distributions along its last axis.

    Args:
        field: name of the array in the error message.
        policy: probabilities.
        shape: required shape.
        finite: whether to refuse numbers that are not finite; without it they are passed over.

    Raises:
        InvalidProblemError: if the shape is wrong, a number is negative, or a sum is not one.

    Examples:
        >>> validate_policy("comparator", np.array([[0.5, 0.4]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.validation.InvalidProblemError: `comparator[0]` must sum to one, got a sum of 0.9
    """
    array = numbers(field, policy, shape, finite=finite)
    at_least_zero(field, array)
    sums = array.sum(axis=-1)
    wrong = (np.abs(sums - 1.0) > PROBABILITY_TOLERANCE) & np.isfinite(sums)
    if wrong.any():
        index = _first(wrong)
        raise InvalidProblemError(field, index, f"must sum to one, got a sum of {sums[index]:.9g}")


def validate_reward(field: str, reward: ArrayLike, shape: tuple[int, ...]) -> None:
    """Raise unless an array is a table of finite rewards.

    Args:
        field: name of the array in the error message.
        reward: rewards.
        shape: required shape.

    Raises:
        InvalidProblemError: if the shape is wrong or a number is not finite.

    Examples:
        >>> validate_reward("true_reward", np.array([[0.0, np.nan]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.validation.InvalidProblemError: `true_reward[0][1]` must be finite, got nan
    """
    numbers(field, reward, shape)


def numbers(
    field: str, value: ArrayLike | float, shape: tuple[int, ...], *, finite: bool = True
) -> np.ndarray:
    """Return a value as a float64 array; raise unless it has the shape and is finite.

    Args:
        field: name of the value in the error message.
        value: numbers.
        shape: required shape.
        finite: whether to refuse numbers that are not finite.

    Returns:
        The array.

    Raises:
        InvalidProblemError: if the shape is wrong or a number is not finite.
    """
    array = plain_array(field, value)
    try:
        if array.dtype.kind in "cSU":
            raise TypeError("got complex numbers" if array.dtype.kind == "c" else "got text")
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidProblemError(field, (), f"must hold real numbers: {error}") from error
    if array.shape != shape:
        raise InvalidProblemError(field, (), f"must have shape {shape}, got shape {array.shape}")
    is_finite = np.isfinite(array)
    if finite and not is_finite.all():
        index = _first(~is_finite)
        raise InvalidProblemError(field, index, f"must be finite, got {array[index]}")
    return array


def plain_array(field: str, value: Any) -> np.ndarray:
    """Return a value as an array.

    Args:
        field: name of the value in the error message.
        value: numbers.

    Raises:
        InvalidProblemError: if rows differ in length or an entry is masked.
    """
    if np.ma.is_masked(value):
        raise InvalidProblemError(field, (), "must not have masked entries: give numbers")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        rule = f"must hold rows of equal lengths: {error}"
        raise InvalidProblemError(field, (), rule) from error


def at_least_zero(field: str, array: np.ndarray) -> None:
    """Raise if a number is negative.

    Args:
        field: name of the numbers in the error message.
        array: numbers.

    Raises:
        InvalidProblemError: if a number is negative.
    """
    negative = array < 0
    if negative.any():
        index = _first(negative)
        raise InvalidProblemError(field, index, f"must be at least 0, got {array[index]:.9g}")


def check_terms(
    *, positive: Mapping[str, Any] | None = None, non_negative: Mapping[str, Any] | None = None
) -> None:
    """Raise if a number in a formula is out of range; values of traced arrays are not checked.

    Args:
        positive: numbers or arrays by name that must be greater than 0.
        non_negative: numbers or arrays by name that must be at least 0; they may be infinite.

    Raises:
        ValueError: if a number is out of range or NaN; the message names it.

    Examples:
        >>> check_terms(positive={"n_pairs": 0})
        Traceback (most recent call last):
        ValueError: `n_pairs` must be greater than 0, got 0
    """
    for terms, rule in ((positive, "greater than 0"), (non_negative, "at least 0")):
        for name, value in (terms or {}).items():
            if is_traced(value):
                continue
            array = np.asarray(value, np.float64)
            holds = array > 0 if terms is positive else array >= 0
            if not np.all(holds):
                got = array[_first(~holds)]
                raise ValueError(f"`{name}` must be {rule}, got {got:.9g}")


def is_traced(*trees: Any) -> bool:
    """Return whether a value is traced by ``jit``, ``vmap`` or ``grad``, so that it is not known.

    Args:
        trees: pytrees of numbers and arrays.

    Examples:
        >>> is_traced(1.0, np.ones(2)), bool(jax.jit(is_traced)(1.0))
        (False, True)
    """
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


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
    _greater_than_zero("beta", problem.beta, lead, finite=finite)
    eta = numbers("eta", problem.eta, _scalar_shape(problem.eta, lead), finite=finite)
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
    match reward_class:
        case TabularBox(maximum):
            _greater_than_zero("reward_class.maximum", maximum, lead, finite=finite)
        case LinearBall(features, radius):
            wanted = (*lead, *shape, "d")
            size = _with_free_axis("reward_class.features", features, wanted)
            numbers("reward_class.features", features, size, finite=finite)
            _greater_than_zero("reward_class.radius", radius, lead, finite=finite)
        case FiniteClass(rewards):
            wanted = (*lead, "k", *shape)
            size = _with_free_axis("reward_class.rewards", rewards, wanted)
            numbers("reward_class.rewards", rewards, size, finite=finite)
        case Unbounded():
            pass


def _scalar_shape(value: ArrayLike | float, lead: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one number per problem; a number may also apply to all problems."""
    return lead if np.ndim(value) else ()


def _greater_than_zero(
    field: str, value: ArrayLike | float, lead: tuple[int, ...], *, finite: bool
) -> None:
    shape = _scalar_shape(value, lead)
    array = numbers(field, value, shape, finite=finite)
    wrong = array < np.finfo(np.float64).tiny  # smaller numbers are flushed to 0
    if wrong.any():
        index, smallest = _first(wrong), ""
        if array[index] > 0:
            smallest = f" and at least {np.finfo(np.float64).tiny:.3g}"
        rule = f"must be greater than 0{smallest}, got {array[index]:.9g}"
        raise InvalidProblemError(field, index, rule)


def _with_free_axis(field: str, value: ArrayLike, wanted: tuple[int | str, ...]) -> tuple[int, ...]:
    """Return the shape of an array whose axis that is a letter may have any size from 1."""
    got = np.shape(value)
    free = next(i for i, size in enumerate(wanted) if isinstance(size, str))
    if len(got) != len(wanted) or got[free] == 0:
        sizes = ", ".join(map(str, wanted))
        rule = f"must have shape ({sizes}) with {wanted[free]} at least 1, got shape {got}"
        raise InvalidProblemError(field, (), rule)
    return tuple(got[free] if isinstance(size, str) else size for size in wanted)


def _arrays(prefix: str, fields: Any) -> list[np.ndarray]:
    """Return the fields of a named tuple as arrays."""
    return [plain_array(prefix + name, getattr(fields, name)) for name in fields._fields]


def _first(wrong: np.ndarray | np.bool_) -> tuple[int, ...]:
    """Return the index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(wrong), np.shape(wrong)))
