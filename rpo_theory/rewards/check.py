"""Check of a user's reward class: a handful of tables must agree with what its methods claim."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from rpo_theory.array_checks import InvalidProblemError
from rpo_theory.types import ArrayLike

from .dtypes import to_float64
from .protocol import SMOOTH_FORM, RewardClass, is_compact, is_convex, is_smooth, linear_minimum

N_TABLES = 6
"""Number of random tables, and of random directions."""
TOLERANCE = 1e-6
"""Largest violation that counts as rounding, relative to the size of the rewards."""
LONGEST = 12
"""Largest number of entries of a table in a message."""
PAIRS = np.array(list(combinations(range(2 * N_TABLES), 2)))
"""Pairs of members whose midpoints are tried."""


class _Evidence(NamedTuple):
    """What the methods of a class return, for ``t`` tables and directions and ``p`` pairs."""

    tables: Float[Array, "t x a"]
    projections: Float[Array, "t x a"]
    projected_twice: Float[Array, "t x a"]
    minimizers: Float[Array, "t x a"]
    nearest_to_minimizers: Float[Array, "t x a"]
    minima: Float[Array, " t"]
    midpoints: Float[Array, "p x a"]
    nearest_to_midpoints: Float[Array, "p x a"]


HostEvidence: TypeAlias = Any
"""Evidence as NumPy arrays."""


def require_protocol(reward_class: Any) -> None:
    """Raise unless an object is a reward class: a pytree with the two required methods.

    Args:
        reward_class: any object.

    Raises:
        InvalidProblemError: if a method is missing or JAX does not know the object as a pytree.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> require_protocol(TabularBox(2.0))
    """
    if isinstance(reward_class, type):
        kind = reward_class.__name__
        rule = f"must be an instance, got the class {kind}: call it with its parameters"
        raise InvalidProblemError("reward_class", (), rule)
    kind = type(reward_class).__name__
    for method in ("project", "linear_minimizer"):
        if not callable(getattr(reward_class, method, None)):
            rule = f"must have a method `{method}`, got {kind} without it: see `rt.RewardClass`"
            raise InvalidProblemError("reward_class", (), rule)
    if jax.tree_util.all_leaves([reward_class]):
        rule = (
            f"must be a JAX pytree, got {kind}: make it a NamedTuple, or a dataclass with "
            "`jax.tree_util.register_dataclass`"
        )
        raise InvalidProblemError("reward_class", (), rule)


def check_reward_class(reward_class: Any, shape: tuple[int, int], *, seed: int = 0) -> None:
    r"""Raise unless a class of your own keeps its promises on a handful of random tables.

    The checks are: ``project`` returns members, the nearest ones, and leaves members as they are;
    ``linear_minimizer`` returns a member that no other known member beats; midpoints of members are
    members unless ``is_convex`` is false; the optional methods agree with the two. Solvers and
    certificates make the same checks of every class that is not built in. The check proves
    nothing: a violation that no table shows stays unnoticed.

    Args:
        reward_class: an instance of the class.
        shape: number of contexts and of actions of the tables.
        seed: seed of the random tables.

    Raises:
        InvalidProblemError: if a promise is broken; the message names the method and a witness.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> check_reward_class(TabularBox(2.0), (1, 3))
    """
    require_protocol(reward_class)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        reward_class = to_float64(reward_class)
        _check_numbers(reward_class)
        normal = np.random.default_rng(seed).normal(size=(2, N_TABLES, *shape))
        for method in ("project", "linear_minimizer"):
            _check_signature(reward_class, method, normal[0, 0])
        evidence = jax.device_get(_evidence(reward_class, *normal))
        _check_projections(evidence, convex=is_convex(reward_class))
        if is_compact(reward_class):
            _check_minimizers(normal[1], evidence)
        if is_smooth(reward_class):
            _check_smooth_form(reward_class, shape, evidence.projections)


@jax.jit
def _evidence(
    reward_class: RewardClass,
    normal: Float[Array, "t x a"],
    directions: Float[Array, "t x a"],
) -> _Evidence:
    """Apply all methods to tables of the size of the class."""
    minimizers = jax.vmap(reward_class.linear_minimizer)(directions)
    size = jnp.abs(minimizers).max()
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, 1.0)
    project = jax.vmap(reward_class.project)
    tables = 1.5 * size * normal
    projections = project(tables)
    members = jnp.concatenate([projections, minimizers])
    midpoints = 0.5 * (members[PAIRS[:, 0]] + members[PAIRS[:, 1]])
    return _Evidence(
        tables=tables,
        projections=projections,
        projected_twice=project(projections),
        minimizers=minimizers,
        nearest_to_minimizers=project(minimizers),
        minima=jax.vmap(lambda direction: linear_minimum(reward_class, direction))(directions),
        midpoints=midpoints,
        nearest_to_midpoints=project(midpoints),
    )


def _check_numbers(reward_class: Any) -> None:
    """Raise if a number of the class is NaN."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(reward_class):
        array = np.asarray(leaf)
        if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
            field = "reward_class." + jax.tree_util.keystr(path, simple=True, separator=".")
            index = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
            raise InvalidProblemError(field, index, "must be a number, got nan")


def _check_signature(reward_class: Any, method: str, table: Float[np.ndarray, "x a"]) -> None:
    """Raise if a method fails under a trace or changes the shape of a table."""
    field = f"reward_class.{method}"
    try:
        result = jax.eval_shape(
            lambda reward_class, table: getattr(reward_class, method)(table), reward_class, table
        )
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        rule = f"must take a table of shape {table.shape} in JAX functions alone, got {cause}"
        raise InvalidProblemError(field, (), rule) from error
    got = getattr(result, "shape", None)
    if got != table.shape:
        rule = f"must return a table of shape {table.shape}, got {got or type(result).__name__}"
        raise InvalidProblemError(field, (), rule)


def _check_projections(evidence: HostEvidence, *, convex: bool) -> None:
    """Raise unless projections are nearest members, and midpoints of members are members."""
    field = "reward_class.project"
    _check_finite(field, evidence.tables, evidence.projections)
    moved = _distance(evidence.projections, evidence.projected_twice)
    worst = int(np.argmax(moved))
    if moved[worst] > TOLERANCE * _size(evidence.projections[worst]):
        member = _show(evidence.projections[worst])
        rule = f"must leave a member as it is, but moves its result {member} by {moved[worst]:.3g}"
        raise InvalidProblemError(field, (), rule)
    members = _members(evidence)
    for table, nearest in zip(evidence.tables, evidence.projections, strict=True):
        distances = _distance(members, table)
        closest, got = int(np.argmin(distances)), float(_distance(nearest[None], table)[0])
        if distances[closest] < got - TOLERANCE * _size(table):
            rule = (
                f"must return the nearest member, but {_show(table)} is {got:.6g} from the result "
                f"and {distances[closest]:.6g} from the member {_show(members[closest])}"
            )
            raise InvalidProblemError(field, (), rule)
    if not convex:
        return
    between = np.append(np.ones(len(evidence.projections), bool), _are_members(evidence))[PAIRS]
    distances = _distance(evidence.midpoints, evidence.nearest_to_midpoints)
    apart = np.where(between.all(axis=1), distances, 0.0)
    worst = int(np.argmax(apart))
    if apart[worst] > TOLERANCE * _size(evidence.midpoints[worst]):
        rule = (
            f"must hold for a convex class, but the midpoint {_show(evidence.midpoints[worst])} of "
            f"two members is {apart[worst]:.3g} from the class: define `is_convex = False`"
        )
        raise InvalidProblemError("reward_class.is_convex", (), rule)
    for table, nearest in zip(evidence.tables, evidence.projections, strict=True):
        angles = np.einsum("xa,kxa->k", table - nearest, members - nearest)
        worst = int(np.argmax(angles))
        if angles[worst] > TOLERANCE * _size(table) ** 2:
            rule = (
                f"must return the nearest member, but from the result for {_show(table)} the "
                f"distance falls toward the member {_show(members[worst])}: <r - Pr, m - Pr> = "
                f"{angles[worst]:.3g}"
            )
            raise InvalidProblemError(field, (), rule)


def _check_minimizers(directions: Float[np.ndarray, "t x a"], evidence: HostEvidence) -> None:
    """Raise unless minimizers of linear functions are members that no member beats."""
    field = "reward_class.linear_minimizer"
    _check_finite(field, directions, evidence.minimizers)
    apart = _distance(evidence.minimizers, evidence.nearest_to_minimizers)
    worst = int(np.argmax(apart))
    if apart[worst] > TOLERANCE * _size(evidence.minimizers[worst]):
        result = _show(evidence.minimizers[worst])
        rule = f"must return a member, got {result}, {apart[worst]:.3g} from its projection"
        raise InvalidProblemError(field, (), rule)
    members = _members(evidence)
    values = np.einsum("kxa,txa->tk", members, directions)
    got = np.einsum("txa,txa->t", evidence.minimizers, directions)
    for i, direction in enumerate(directions):
        allowed = TOLERANCE * _size(members) * np.abs(direction).sum()
        lowest = int(np.argmin(values[i]))
        if values[i, lowest] < got[i] - allowed:
            rule = (
                f"must minimize <v, r>, but for v = {_show(direction)} its value is {got[i]:.6g} "
                f"and that of the member {_show(members[lowest])} is {values[i, lowest]:.6g}"
            )
            raise InvalidProblemError(field, (), rule)
        if not abs(evidence.minima[i] - got[i]) <= allowed:
            rule = (
                f"must be the value of the linear minimizer, but for v = {_show(direction)} it is "
                f"{evidence.minima[i]:.6g} and the value is {got[i]:.6g}"
            )
            raise InvalidProblemError("reward_class.linear_minimum", (), rule)


def _check_smooth_form(
    reward_class: Any, shape: tuple[int, int], members: Float[np.ndarray, "t x a"]
) -> None:
    """Raise unless members have parameters with slacks of at least 0."""

    def values(reward_class: Any, member: ArrayLike) -> tuple[Array, Array, Array]:
        parameter = reward_class.to_parameter(member)
        inside = reward_class.slack(reward_class.interior(shape))
        table = reward_class.to_reward(parameter, shape)
        return table, reward_class.slack(parameter), inside

    try:
        tables, slacks, inside = jax.device_get(
            jax.jit(jax.vmap(values, (None, 0)))(reward_class, members)
        )
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        rule = f"must have {', '.join(SMOOTH_FORM)} in JAX functions alone, got {cause}"
        raise InvalidProblemError("reward_class", (), rule) from error
    if not np.all(inside > 0):
        rule = f"must be strictly inside the class, got a slack of {inside.min():.6g}"
        raise InvalidProblemError("reward_class.interior", (), rule)
    apart = _distance(tables, members)
    if not np.all(apart <= TOLERANCE * _size(members)):
        worst = int(np.argmax(apart))
        rule = (
            f"must undo `to_parameter` on members, but moves {_show(members[worst])} by "
            f"{apart[worst]:.3g}"
        )
        raise InvalidProblemError("reward_class.to_reward", (), rule)
    if not np.all(slacks >= -TOLERANCE * (1.0 + np.abs(inside).max())):
        worst = int(np.argmin(slacks.min(axis=1)))
        rule = (
            f"must be at least 0 on the class, but is {slacks.min():.3g} for the member "
            f"{_show(members[worst])}"
        )
        raise InvalidProblemError("reward_class.slack", (), rule)


def _check_finite(
    field: str, arguments: Float[np.ndarray, "t x a"], results: Float[np.ndarray, "t x a"]
) -> None:
    wrong = ~np.isfinite(results).all(axis=(1, 2))
    if wrong.any():
        i = int(np.argmax(wrong))
        rule = f"must return finite rewards, got {_show(results[i])} for {_show(arguments[i])}"
        raise InvalidProblemError(field, (), rule)


def _members(evidence: HostEvidence) -> Float[np.ndarray, "k x a"]:
    """Return the known members: the results of both methods that the projection leaves."""
    return np.concatenate([evidence.projections, evidence.minimizers[_are_members(evidence)]])


def _are_members(evidence: HostEvidence) -> Bool[np.ndarray, " t"]:
    """Return which minimizers the projection leaves as they are."""
    apart = _distance(evidence.minimizers, evidence.nearest_to_minimizers)
    return apart <= TOLERANCE * _size(evidence.projections)


def _distance(
    tables: Float[np.ndarray, "t x a"], others: Float[np.ndarray, "..."]
) -> Float[np.ndarray, " t"]:
    return np.linalg.norm(tables - others, axis=(1, 2))


def _size(tables: Float[np.ndarray, "..."]) -> float:
    """Return 1 plus the Euclidean norm of the largest table."""
    return 1.0 + float(np.sqrt(np.square(tables).sum(axis=(-2, -1)).max()))


def _show(table: Float[np.ndarray, "x a"]) -> str:
    """Return a table in one line; a large one by its first entries."""
    if table.size <= LONGEST:
        return str(np.round(table, 4).tolist())
    return str(np.round(table.reshape(-1)[:LONGEST], 4).tolist())[:-1] + ", ...]"
