"""Checks of what methods of the user's own return, and fits that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rpo_io.user_modules import describe_error
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem, Status

from .base import FAILED, FitContext, FitResult, Method

SUM_TOLERANCE = 1e-6
"""Accepted distance of the sum of a policy from one; policies are then normalized."""


def fit_record(
    method: Method,
    problem: Problem,
    reward_class: RewardClass,
    options: Any,
    context: FitContext,
) -> FitResult:
    """Fit a batch by a record of the user's own, and check what it returns.

    Args:
        method: the record.
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel and seeds.

    Returns:
        The result of the fit. Problems without a policy have the status :data:`FAILED`, all of them
        if the fit raises or returns something else.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> half, box = np.full((2, 1, 2), 0.5), TabularBox(np.ones(2))
        >>> problem = Problem(np.ones((2, 1)), half, half, np.zeros((2, 1, 2, 2)), *np.ones((2, 2)))
        >>> method = Method(name="broken", fit=lambda *given: None, title="broken")
        >>> fit_record(method, problem, box, None, FitContext()).messages[0]
        'returned NoneType, a fit returns a FitResult'
    """
    n_draws, *shape = np.shape(problem.reference_policy)
    try:
        result = method.fit(problem, reward_class, options, context)
        fault = _fault_of_result(result, n_draws, tuple(shape))
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        fault, result = describe_error(error), None
    if fault or result is None:
        policy, messages = np.full((n_draws, *shape), np.nan), [fault] * n_draws
        return failed_where(policy, messages)
    had_policy = np.asarray(result.status) != FAILED
    messages = [
        text or ("" if good else "gave no policy")
        for text, good in zip(result.messages or [""] * n_draws, had_policy, strict=True)
    ]
    checked, messages = check_policies(np.asarray(result.policy), messages)
    failed = np.array([bool(message) for message in messages])
    if not failed.any():
        return result
    return result._replace(
        policy=np.where(np.isnan(checked), np.nan, result.policy),
        status=np.where(failed, FAILED, result.status).astype(np.int32),
        messages=messages,
    )


def require_policies(result: FitResult, label: str) -> FitResult:
    """Return the result of a fit, or refuse one in which a problem has no policy.

    Args:
        result: the result.
        label: label of the method, for the message.

    Raises:
        ValueError: if a fit failed; the message has the reason of the first one.

    Examples:
        >>> require_policies(failed_where(np.full((1, 1, 2), 0.5), [""]), "mine").status.tolist()
        [0]
    """
    failed = np.asarray(result.status) == FAILED
    if failed.any():
        reason = (result.messages or [""] * len(failed))[int(failed.argmax())]
        count = f"{failed.sum():,} of {failed.size:,} fits"
        raise ValueError(f"the method {label} gave no policy in {count}: {reason}")
    return result


def failed_where(policy: Float[np.ndarray, "b x a"], messages: Sequence[str]) -> FitResult:
    """Return the result of a method that gives policies and nothing else.

    Args:
        policy: policies; NaN for problems without one.
        messages: why fits failed, "" for those that did not.

    Examples:
        >>> failed_where(np.full((2, 1, 2), 0.5), ["", "raised"]).status.tolist()
        [0, -1]
    """
    failed = np.array([bool(message) for message in messages])
    return FitResult(
        policy=policy,
        reward=np.full(policy.shape, np.nan),
        certificate=np.full(len(policy), np.nan),
        certificate_kind="none",
        status=np.where(failed, FAILED, Status.SOLVED.value).astype(np.int32),
        messages=messages if failed.any() else None,
    )


def check_policies(
    policy: Float[np.ndarray, "b x a"], messages: Sequence[str]
) -> tuple[Float[np.ndarray, "b x a"], list[str]]:
    """Return policies whose rows sum to one; NaN and the reason where they are none.

    Args:
        policy: arrays that should be policies.
        messages: why fits failed already, "" for those that did not.

    Examples:
        >>> check_policies(np.array([[[0.5, 0.5]], [[0.5, 0.6]]]), ["", ""])[1]
        ['', 'returned probabilities that sum to 1.1']
    """
    policy = np.asarray(policy, np.float64)
    sums = policy.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        is_valid = (policy >= 0).all(axis=(1, 2)) & (np.abs(sums - 1) <= SUM_TOLERANCE).all((1, 2))
    messages = list(messages)
    for index in np.flatnonzero(~is_valid):
        messages[index] = messages[index] or _fault(policy[index])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_valid[:, None, None], policy / sums, np.nan), messages


def fault_of_array(array: np.ndarray, shape: tuple[int, ...]) -> str:
    """Return why an array cannot hold a policy; empty if it can.

    Args:
        array: what a function returned.
        shape: shape of a policy.

    Examples:
        >>> fault_of_array(np.array([1j]), (1,))
        'returned an array of type complex128, a policy has real numbers'
    """
    if array.dtype == object and array.shape == ():
        return f"returned {'None' if array.item() is None else type(array.item()).__name__}"
    if array.dtype.kind not in "buif":
        return f"returned an array of type {array.dtype}, a policy has real numbers"
    if array.shape != shape:
        return f"returned an array of shape {array.shape}, a policy has {shape}"
    return ""


def _fault_of_result(result: Any, n_draws: int, shape: tuple[int, ...]) -> str:
    """Return why an object is not the result of a fit; empty if it is one."""
    if not isinstance(result, FitResult):
        return f"returned {type(result).__name__}, a fit returns a FitResult"
    fault = fault_of_array(np.asarray(result.policy), (n_draws, *shape))
    if fault:
        return f"`policy`: {fault}"
    sizes = {"reward": (n_draws, *shape), "certificate": (n_draws,), "status": (n_draws,)}
    for name, wanted in sizes.items():
        if np.shape(getattr(result, name)) != wanted:
            return f"`{name}` has the shape {np.shape(getattr(result, name))}, not {wanted}"
    if result.messages is not None and len(result.messages) != n_draws:
        return f"`messages` has {len(result.messages)} items, not {n_draws}"
    return ""


def _fault(policy: Float[np.ndarray, "x a"]) -> str:
    """Return what is wrong with an array that is no policy."""
    if not np.isfinite(policy).all():
        return "returned entries that are not finite"
    if (policy < 0).any():
        return f"returned the probability {policy.min():.3g}"
    sums = policy.sum(axis=-1)
    return f"returned probabilities that sum to {sums[np.abs(sums - 1.0).argmax()]:.6g}"
