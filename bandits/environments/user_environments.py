"""Environments of the user's own: functions that return the tables of a bandit.

A function names what it wants to know, out of ``seed`` (a whole number), ``key`` (a random key of
JAX that follows from the seed) and ``comparisons`` (the number of comparisons). It returns the
tables of :mod:`bandits.environments.tables` as a mapping. It is called once for every seed; the
data are drawn from the pairs of its tables, with the seed. Tables that depend neither on the seed
nor on the key are the same bandit with other data for every seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from rpo_io.user_modules import describe_error

from .base import Instance
from .tables import instance_from_tables

PARAMETERS = ("seed", "key", "comparisons")
"""Parameters that a study gives to a function by name."""


def instances_from_function(
    function: Callable[..., Any], n_comparisons: int, seeds: Int[np.ndarray, " B"]
) -> Instance:
    """Return the bandits of a function, one for every seed, without data.

    Args:
        function: function of some of :data:`PARAMETERS` that returns tables by name.
        n_comparisons: number of comparisons.
        seeds: whole numbers, at least 0.

    Returns:
        Instances with a leading batch axis.

    Raises:
        ValueError: if a parameter is unknown, the function raises, or what it returns is no bandit
            or has another shape for another seed.

    Examples:
        >>> def even(seed):
        ...     return {"true_reward": [[0.0, seed]], "behavior_policy": [[0.5, 0.5]]}
        >>> instances_from_function(even, 9, np.arange(1, 3)).true_reward.tolist()
        [[[0.0, 1.0]], [[0.0, 2.0]]]
    """
    name = getattr(function, "__name__", type(function).__name__)
    parameters = list(inspect.signature(function).parameters)
    for parameter in parameters:
        if parameter not in PARAMETERS:
            raise ValueError(
                f"environment {name} has the parameter `{parameter}`: it takes parameters by name, "
                f"out of {', '.join(PARAMETERS)}"
            )
    drawn = []
    for seed in map(int, seeds):
        arguments = _arguments(parameters, seed, n_comparisons)
        drawn.append(_call(function, f"{name} (seed {seed})", arguments))
    structures = {
        (jax.tree.structure(item), tuple(map(np.shape, jax.tree.leaves(item)))) for item in drawn
    }
    if len(structures) > 1:
        raise ValueError(f"environment {name} must return tables of the same shapes for every seed")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *drawn)


def _arguments(parameters: list[str], seed: int, n_comparisons: int) -> dict[str, Any]:
    values = {"seed": seed, "comparisons": n_comparisons}
    return {name: jax.random.key(seed) if name == "key" else values[name] for name in parameters}


def _call(function: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Instance:
    try:
        tables = function(**arguments)
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        raise ValueError(f"environment {name}: {describe_error(error)}") from error
    if not isinstance(tables, Mapping):
        got = type(tables).__name__
        raise ValueError(f"environment {name} must return a mapping of tables, got {got}")
    try:
        return instance_from_tables(tables)
    except ValueError as error:
        raise ValueError(f"environment {name}: {error}") from error
