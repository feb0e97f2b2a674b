r"""Methods of the user's own: functions of one problem's data that return a policy.

A function names what it wants to know, each as a parameter:

=================== ==============================================================================
parameter           value for one problem
=================== ==============================================================================
``wins``            win counts :math:`W(x, w, l)`, ``[x a a]``
``reference``       :math:`\pi_{ref}(a|x)`, ``[x a]``
``baseline``        :math:`\pi_{base}(a|x)` of the environment, ``[x a]``
``beta``, ``eta``   weights, numbers
``context_weights`` :math:`d_0(x)`, ``[x]``
``features``        features of a linear class, ``[x a d]``
``reward_class``    reward class of the environment or of the study
``key``             random key of the draw, see ``jax.random``
=================== ==============================================================================

Parameters with a default value are the options of the method. The function returns the policy as
an array ``[x a]``. If JAX can trace it, it runs under ``vmap`` on groups of one fixed size, so that
the policy of a draw has the same bits in any part of a study. Otherwise it is called once for each
draw with NumPy arrays. Either way it computes in float64.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem, Status

from .base import FAILED, BoundKind, FitContext, FitResult, Method
from .options import MethodOptions

PARAMETERS = (
    "wins",
    "reference",
    "baseline",
    "beta",
    "eta",
    "context_weights",
    "features",
    "reward_class",
    "key",
)
"""Parameters that a study gives to a function by name."""
GROUP = 65_536
"""Number of win counts that a traced function gets at a time."""
SUM_TOLERANCE = 1e-6
"""Accepted distance of the sum of a policy from one; policies are then normalized."""


def method_from_function(
    function: Callable[..., Any],
    *,
    title: str | None = None,
    bound: BoundKind | None = None,
) -> Method:
    r"""Make a method of a function that returns a policy.

    Args:
        function: function of some of :data:`PARAMETERS`; its further parameters have default
            values and are the options of the method.
        title: name in figures; the name of the function with spaces if None.
        bound: bound on the gap that applies to the method; None without one.

    Returns:
        The method. It uses :math:`\eta` or :math:`\beta` if the function names it.

    Raises:
        ValueError: if a parameter is unknown and has no default value.

    Examples:
        >>> def most_wins(wins, *, power=1.0):
        ...     scores = (1.0 + wins.sum(axis=2)) ** power
        ...     return scores / scores.sum(axis=1, keepdims=True)
        >>> method_from_function(most_wins).title
        'most wins'
    """
    name = getattr(function, "__name__", type(function).__name__)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_name or (parameter.name not in PARAMETERS and _is_required(parameter)):
            raise ValueError(
                f"`{name}` has the parameter `{parameter.name}`: a method takes parameters by "
                f"name, out of {', '.join(PARAMETERS)}; others need default values and are options"
            )
    names = tuple(item.name for item in parameters if item.name in PARAMETERS)
    return Method(
        name=name,
        fit=partial(_fit, function, names),
        title=title or name.replace("_", " "),
        options=_options_of(function),
        uses_eta="eta" in names,
        uses_beta="beta" in names,
        bound=bound,
        source=function,
    )


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


@lru_cache(maxsize=256)
def _options_of(function: Callable[..., Any]) -> type:
    """Return a dataclass of the parameters with default values that are no data."""
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # an annotation that exists for type checkers only
        hints = {}
    fields = [
        (item.name, hints.get(item.name, type(item.default)), item.default)
        for item in inspect.signature(function).parameters.values()
        if item.name not in PARAMETERS and not _is_required(item)
    ]
    return dataclasses.make_dataclass(
        "OptionsOfFunction",
        [
            (name, hint, dataclasses.field(default_factory=partial(_same, default)))
            for name, hint, default in fields
        ],
        bases=(MethodOptions,),
        frozen=True,
        kw_only=True,
    )


def _same(value: Any) -> Any:
    return value


def _fit(
    function: Callable[..., Any],
    names: tuple[str, ...],
    problem: Problem,
    reward_class: RewardClass,
    options: MethodOptions,
    context: FitContext,
) -> FitResult:
    """Fit a batch: under ``vmap`` if the function can be traced, else one draw after the other."""
    n_draws, *shape = np.shape(problem.reference_policy)
    seeds = np.zeros(n_draws) if context.seeds is None else np.asarray(context.seeds, np.float64)
    values = tuple((name, _frozen(value)) for name, value in vars(options).items())
    given = _with_options(function, values)
    try:
        data = _data(names, problem, reward_class, seeds)
    except ValueError as error:
        policy, messages = np.full((n_draws, *shape), np.nan), [str(error)] * n_draws
    else:
        first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], data)
        if data and _can_be_traced(given, first, tuple(shape)):
            policy = map_in_groups(_batched(given), data, size=group_size(problem, GROUP))
            messages = [""] * n_draws
        else:
            policy, messages = _call_for_each(given, data, n_draws, tuple(shape))
    policy, messages = _checked(policy, messages)
    failed = np.array([bool(message) for message in messages])
    return FitResult(
        policy=policy,
        reward=np.full(policy.shape, np.nan),
        certificate=np.full(n_draws, np.nan),
        certificate_kind="none",
        status=np.where(failed, FAILED, Status.SOLVED.value).astype(np.int32),
        messages=messages if failed.any() else None,
    )


def _data(
    names: tuple[str, ...], problem: Problem, reward_class: RewardClass, seeds: np.ndarray
) -> dict[str, Any]:
    """Return what the function names, with a leading batch axis; a seed stands for a key."""
    if "features" in names and not hasattr(reward_class, "features"):
        kind = type(reward_class).__name__
        raise ValueError(f"names `features`, which the reward class {kind} does not have")
    fields = {
        "reference": problem.reference_policy,
        "baseline": problem.baseline_policy,
        "reward_class": reward_class,
        "features": getattr(reward_class, "features", None),
        "key": seeds,
    }
    return {name: fields[name] if name in fields else getattr(problem, name) for name in names}


@lru_cache(maxsize=256)
def _with_options(
    function: Callable[..., Any], options: tuple[tuple[str, Any], ...]
) -> Callable[[dict[str, Any]], Any]:
    """Return the function of one problem's data, with its options; equal arguments, equal result.

    Compiled programs are kept for each function that this returns.
    """

    def policy(data: dict[str, Any]) -> Any:
        if "key" in data:
            data = {**data, "key": jax.random.key(data["key"].astype(np.uint32))}
        return function(**data, **dict(options))

    return policy


@lru_cache(maxsize=256)
def _batched(given: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.vmap(given))


def _frozen(value: Any) -> Any:
    """Return a value that can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _can_be_traced(given: Callable[..., Any], data: Any, shape: tuple[int, ...]) -> bool:
    """Return whether JAX can trace the function; what else is wrong shows when it is called."""
    with jax.enable_x64(True):
        try:
            result = jax.eval_shape(given, data)
        except Exception:  # the user's function may raise anything
            return False
    return isinstance(result, jax.ShapeDtypeStruct) and result.shape == shape


def _call_for_each(
    given: Callable[..., Any], data: Any, n_draws: int, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "b x a"], list[str]]:
    """Return the policy of every draw, and why it has none."""
    policy, messages = np.full((n_draws, *shape), np.nan), []
    for index in range(n_draws):
        one = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], data)
        message = ""
        try:
            with jax.enable_x64(True):
                result = np.asarray(given(one), np.float64)
        except Exception as error:  # the user's function may raise anything
            message = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if result.shape == shape:
                policy[index] = result
            else:
                message = f"returned an array of shape {result.shape}, a policy has {shape}"
        messages.append(message)
    return policy, messages


def _checked(
    policy: Float[np.ndarray, "b x a"], messages: list[str]
) -> tuple[Float[np.ndarray, "b x a"], list[str]]:
    """Return policies whose rows sum to one; NaN and the reason where they are none."""
    policy = np.asarray(policy, np.float64)
    sums = policy.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        is_valid = (policy >= 0).all(axis=(1, 2)) & (np.abs(sums - 1) <= SUM_TOLERANCE).all((1, 2))
    messages = list(messages)
    for index in np.flatnonzero(~is_valid):
        messages[index] = messages[index] or _fault(policy[index])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_valid[:, None, None], policy / sums, np.nan), messages


def _fault(policy: Float[np.ndarray, "x a"]) -> str:
    """Return what is wrong with an array that is no policy."""
    if not np.isfinite(policy).all():
        return "returned entries that are not finite"
    if (policy < 0).any():
        return f"returned the probability {policy.min():.3g}"
    sums = policy.sum(axis=-1)
    return f"returned probabilities that sum to {sums[np.abs(sums - 1.0).argmax()]:.6g}"
