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

import contextlib
import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rpo_io.user_modules import describe_error
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

from .base import BoundKind, FitContext, FitResult, Method
from .options import MethodOptions
from .policy_checks import check_policies, failed_where, fault_of_array

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
        ValueError: if it is no function, a parameter is unknown and has no default value, or a
            default value has no plain type.

    Examples:
        >>> def most_wins(wins, *, power=1.0):
        ...     scores = (1.0 + wins.sum(axis=2)) ** power
        ...     return scores / scores.sum(axis=1, keepdims=True)
        >>> method_from_function(most_wins).title
        'most wins'
    """
    if not inspect.isroutine(inspect.unwrap(function)):
        got = "a class" if isinstance(function, type) else f"an object of {type(function).__name__}"
        raise ValueError(f"`method` must be a function, got {got}: define one with def")
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_name or (parameter.name not in PARAMETERS and _is_required(parameter)):
            raise ValueError(
                f"`{name}` has the parameter `{parameter.name}`: a method takes parameters by "
                f"name, out of {', '.join(PARAMETERS)}; others need default values and are options"
            )
        if parameter.name not in PARAMETERS and not _is_plain(parameter.default):
            raise ValueError(
                f"`{name}` has the option `{parameter.name}` with a default value of "
                f"{type(parameter.default).__name__}: options are numbers, text, true or false, "
                "None, lists and mappings"
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
    except Exception:  # annotations for type checkers only, or for people
        hints = {}
    fields = [
        (item.name, _option_type(hints.get(item.name), item.default), item.default)
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


def _option_type(hint: Any, default: Any) -> Any:
    """Return the type of an option from its annotation, or else from its default value."""
    if (typing.get_origin(hint) or hint) is tuple or (hint is None and isinstance(default, tuple)):
        return list  # as YAML has it
    if hint is None:
        return Any if default is None else type(default)
    return hint


def _is_plain(value: Any) -> bool:
    """Return whether a configuration can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options by name; those with equal text are equal."""

    text: str
    values: dict[str, Any] = dataclasses.field(compare=False)


def _options(options: MethodOptions) -> _Options:
    """Return the arguments that the options of a function stand for."""
    values = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        # A tuple is a list in YAML.
        is_tuple = isinstance(item.default_factory(), tuple) and isinstance(value, list)  # type: ignore[misc]
        values[item.name] = tuple(value) if is_tuple else value
    return _Options(repr(values), values)


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
    given = _with_options(function, _options(options))
    try:
        data = _data(names, problem, reward_class, seeds)
    except ValueError as error:
        return failed_where(np.full((n_draws, *shape), np.nan), [str(error)] * n_draws)
    policy, messages = None, [""] * n_draws
    if data and _can_be_traced(given, data, tuple(shape)):
        # Calls of Python inside of a traced function may still raise.
        with contextlib.suppress(Exception):
            policy = map_in_groups(_batched(given), data, size=group_size(problem, GROUP))
    if policy is None:
        policy, messages = _call_for_each(given, data, n_draws, tuple(shape))
    return failed_where(*check_policies(policy, messages))


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
    function: Callable[..., Any], options: _Options
) -> Callable[[dict[str, Any]], Any]:
    """Return the function of one problem's data, with its options; equal arguments, equal result.

    Compiled programs are kept for each function that this returns.
    """

    def policy(data: dict[str, Any]) -> Any:
        if "key" in data:
            data = {**data, "key": jax.random.key(data["key"].astype(np.uint32))}
        return function(**data, **copy.deepcopy(options.values))

    return policy


@lru_cache(maxsize=256)
def _batched(given: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.vmap(given))


def _can_be_traced(given: Callable[..., Any], data: Any, shape: tuple[int, ...]) -> bool:
    """Return whether JAX can trace and batch the function; other faults show when it is called."""
    first = jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[:1]), data)
    with jax.enable_x64(True):
        try:
            result = jax.eval_shape(jax.vmap(given), first)
        except (Exception, SystemExit):  # the user's function may raise anything
            return False
    is_array = isinstance(result, jax.ShapeDtypeStruct) and result.shape == (1, *shape)
    return is_array and not jax.numpy.iscomplexobj(result)


def _call_for_each(
    given: Callable[..., Any], data: Any, n_draws: int, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "b x a"], list[str]]:
    """Return the policy of every draw, and why it has none."""
    policy, messages = np.full((n_draws, *shape), np.nan), []
    for index in range(n_draws):
        # A copy: functions of NumPy may change their arguments in place.
        one = jax.tree.map(lambda leaf, index=index: np.array(np.asarray(leaf)[index]), data)
        try:
            with jax.enable_x64(True):
                result = np.asarray(given(one))
        except (Exception, SystemExit) as error:  # the user's function may raise anything
            messages.append(describe_error(error))
            continue
        messages.append(fault_of_array(result, shape))
        if not messages[-1]:
            policy[index] = result
    return policy, messages
