"""Registry of the methods that studies compare, and access to methods of the user's own.

A built-in method is a record in the tuple ``METHODS`` of its module; this dictionary collects them.
A method of the user's own is an object of a module, named ``module:name``: a :class:`Method`, or a
function that returns a policy (:mod:`bandits.methods.user_methods`).
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import Any

from rpo_io.user_modules import is_reference, load_object
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

from . import (
    best_of_n,
    freehand,
    kto,
    nash,
    optimism,
    pessimistic_mle,
    policy_losses,
    reference_free,
    reward_uncertainty,
    saddle_methods,
    spac,
    special_cases,
)
from .base import FitContext, FitResult, Method
from .options import MethodOptions
from .policy_checks import fit_record
from .user_methods import method_from_function

FAMILIES = (
    saddle_methods,
    special_cases,
    pessimistic_mle,
    policy_losses,
    freehand,
    spac,
    optimism,
    reward_uncertainty,
    best_of_n,
    reference_free,
    kto,
    nash,
)
"""Modules with built-in methods."""

METHODS: dict[str, Method] = {
    method.name: method for family in FAMILIES for method in family.METHODS
}
"""Every built-in method by the name that a study gives it."""


def find_method(method: Any) -> Method:
    """Return the record of a method.

    Args:
        method: name of a built-in method, ``module:name``, a record, or a function that returns a
            policy.

    Returns:
        The record.

    Raises:
        ValueError: if there is no such method, its module cannot be imported, or the function has
            parameters that a study does not know.

    Examples:
        >>> find_method("dpo").title
        'DPO'
    """
    if not isinstance(method, str):
        return _record(method)
    if method in METHODS:
        return METHODS[method]
    if not is_reference(method):
        raise ValueError(_unknown(method))
    try:
        found = load_object(method, "method")
    except ValueError as error:
        raise ValueError(f"`method` {method}: {error}") from error
    record = _record(found)
    # The name under which a module has a function, which may be a lambda.
    return record if isinstance(found, Method) else record._replace(name=method.partition(":")[2])


def fit_method(
    method: Method,
    problem: Problem,
    reward_class: RewardClass,
    options: Any,
    context: FitContext,
) -> FitResult:
    """Fit a batch; a fit of the user's own that raises or gives no policy has failed.

    Args:
        method: the record of the method.
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel and seeds.

    Returns:
        The result.

    Raises:
        ValueError: if a built-in method refuses the problems.

    Examples:
        >>> import numpy as np
        >>> from bandits.environments.designs import Design, draw_design
        >>> drawn = draw_design(Design(actions=2), 9, np.arange(1))
        >>> dpo, context = METHODS["dpo"], FitContext()
        >>> given = (drawn.problem, drawn.reward_class, dpo.make_options({}), context)
        >>> fit_method(dpo, *given).policy.shape
        (1, 1, 2)
    """
    fit = method.fit if METHODS.get(method.name) is method else partial(fit_record, method)
    return fit(problem, reward_class, options, context)


def _record(method: Any) -> Method:
    """Return the record that an object of the user's own is or stands for."""
    if not isinstance(method, Method):
        if not callable(method):
            got = type(method).__name__
            raise ValueError(f"`method` must be a name, a record or a function, got {got}")
        return method_from_function(method)
    if not method.name.isidentifier():
        raise ValueError(f"`name` of a method must be an identifier, got {method.name!r}")
    if not (isinstance(method.options, type) and issubclass(method.options, MethodOptions)):
        raise ValueError(f"`options` of {method.name} must be a subclass of MethodOptions")
    return method


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), METHODS, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    names = ", ".join(METHODS)
    return f"`method` must be one of {names}, or module:name, got {name!r}{hint}"
