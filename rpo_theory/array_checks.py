"""Checks of arrays that users pass: shapes, finite numbers, signs and sums of probabilities.

An error names the field, the index in it, the rule and the value, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .types import ArrayLike

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
        >>> validate_policy("policy", np.array([[0.5, 0.4]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.array_checks.InvalidProblemError: `policy[0]` must sum to one, got a sum of 0.9
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
        rpo_theory.array_checks.InvalidProblemError: `true_reward[0][1]` must be finite, got nan
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
    # Minimum and maximum are NaN if a number is; they need no array of the same size.
    if finite and array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        index = _first(~np.isfinite(array))
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
    if np.size(array) and not np.min(array) >= 0 and np.any(array < 0):
        index = _first(array < 0)
        raise InvalidProblemError(field, index, f"must be at least 0, got {array[index]:.9g}")


def refuse_where(field: str, array: np.ndarray, wrong: np.ndarray | np.bool_, rule: str) -> None:
    """Raise at the first entry that breaks a rule.

    Args:
        field: name of the numbers in the error message.
        array: numbers.
        wrong: which of them break the rule.
        rule: what must hold.

    Raises:
        InvalidProblemError: if an entry breaks the rule.
    """
    if np.any(wrong):
        index = _first(wrong)
        raise InvalidProblemError(field, index, f"{rule}, got {array[index]:.9g}")


MAY_BE_UNKNOWN = ("reward_max", "log_covering", "complexity", "modulus", "coverage")
"""Numbers that a reward class may lack; what is computed from NaN is NaN."""


def check_terms(
    *, positive: Mapping[str, Any] | None = None, non_negative: Mapping[str, Any] | None = None
) -> None:
    """Raise if a number in a formula is out of range; values of traced arrays are not checked.

    Args:
        positive: numbers or arrays by name that must be greater than 0.
        non_negative: numbers or arrays by name that must be at least 0; they may be infinite.

    Raises:
        ValueError: if a number is out of range, or NaN although every problem has it; the message
            names it.

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
            if name in MAY_BE_UNKNOWN:
                holds |= np.isnan(array)
            if not np.all(holds):
                got = array[_first(~holds)]
                raise ValueError(f"`{name}` must be {rule}, got {got:.9g}")


def as_float(count: Any) -> Any:
    """Convert integers to floats, because counts from 2^31 are too large for integers of JAX.

    Args:
        count: a number, an array or a traced array; traced arrays and floats are returned as such.

    Examples:
        >>> as_float(2**40)
        1099511627776.0
    """
    if is_traced(count) or not np.issubdtype(np.asarray(count).dtype, np.integer):
        return count
    return np.asarray(count, np.float64) if np.ndim(count) else float(count)


def is_traced(*trees: Any) -> bool:
    """Return whether a value is traced by ``jit``, ``vmap`` or ``grad``, so that it is not known.

    Args:
        trees: pytrees of numbers and arrays.

    Examples:
        >>> is_traced(1.0, np.ones(2)), bool(jax.jit(is_traced)(1.0))
        (False, True)
    """
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def scalar_shape(value: ArrayLike | float, lead: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one number per problem; a number may also apply to all problems.

    Args:
        value: numbers.
        lead: batch shape of the problems.
    """
    return lead if np.ndim(value) else ()


def greater_than_zero(
    field: str, value: ArrayLike | float, lead: tuple[int, ...], *, finite: bool
) -> None:
    """Raise unless numbers are greater than 0.

    Args:
        field: name of the numbers in the error message.
        value: one number, or one per problem.
        lead: batch shape of the problems.
        finite: whether to refuse numbers that are not finite.

    Raises:
        InvalidProblemError: if a number is not greater than 0.
    """
    shape = scalar_shape(value, lead)
    array = numbers(field, value, shape, finite=finite)
    wrong = array < np.finfo(np.float64).tiny  # smaller numbers are flushed to 0
    if wrong.any():
        index, smallest = _first(wrong), ""
        if array[index] > 0:
            smallest = f" and at least {np.finfo(np.float64).tiny:.3g}"
        rule = f"must be greater than 0{smallest}, got {array[index]:.9g}"
        raise InvalidProblemError(field, index, rule)


def shape_with_free_axis(
    field: str, value: ArrayLike, wanted: tuple[int | str, ...]
) -> tuple[int, ...]:
    """Return the shape of an array whose axis that is a letter may have any size from 1."""
    got = np.shape(value)
    free = next(i for i, size in enumerate(wanted) if isinstance(size, str))
    if len(got) != len(wanted) or got[free] == 0:
        sizes = ", ".join(map(str, wanted))
        rule = f"must have shape ({sizes}) with {wanted[free]} at least 1, got shape {got}"
        raise InvalidProblemError(field, (), rule)
    return tuple(got[free] if isinstance(size, str) else size for size in wanted)


def _first(wrong: np.ndarray | np.bool_) -> tuple[int, ...]:
    """Return the index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(wrong), np.shape(wrong)))
