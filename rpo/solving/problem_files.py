"""Problem files: JSON documents that describe a problem of ``rpo_theory``.

.. code-block:: json

   {"context_weights": [1], "reference_policy": [[0.5, 0.5]], "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 3], [0, 1, 0, 1]], "beta": 0.5, "eta": 0.5,
    "reward_class": {"kind": "tabular", "max": 2}}

==================== ==========================================================================
key                  value; letters of shapes as in ``rpo_theory.types``
==================== ==========================================================================
``context_weights``  ``[x]``, probabilities
``reference_policy`` ``[x][a]``, rows of probabilities
``baseline_policy``  ``[x][a]``, or ``"chosen"`` (the distribution of the winners in each
                     context; the reference in a context without data), or ``"reference"``
``comparisons``      rows ``[context, winner, loser, count]``; indices from 0; rows add up, and
                     counts may be fractions (expected counts)
``wins``             ``[x][winner][loser]``, a table of the same counts, instead of
                     ``comparisons``
``beta``, ``eta``    greater than 0; at least 0
``reward_class``     ``{"kind": "tabular", "max"}``, ``{"kind": "linear", "features", "radius"}``,
                     ``{"kind": "finite", "rewards"}`` or ``{"kind": "unbounded"}``
``true_reward``      optional, ``[x][a]``; need not lie in the class
``comparator``       optional, ``[x][a]``, rows of probabilities; needs ``true_reward``
==================== ==========================================================================

An error message is one line with the file, the line, the field, the rule and the value.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rpo_io.json_document import DocumentError, Node, describe, is_number, load_document
from rpo_theory.policies import chosen_policy
from rpo_theory.preference import win_counts
from rpo_theory.problems import (
    InvalidProblemError,
    normalize,
    validate,
    validate_policy,
    validate_reward,
)
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem

MAX_CELLS = 5 * 10**7
"""Largest table of win counts, contexts x actions x actions: 400 MB."""
MAX_COUNT = 1e15
"""Largest count; sums of a few counts up to here are exact in float64."""

_REQUIRED = (
    "context_weights",
    "reference_policy",
    "baseline_policy",
    "beta",
    "eta",
    "reward_class",
)
_DATA = ("comparisons", "wins")
_TABLES = ("true_reward", "comparator")
_CLASS_KEYS = {
    "tabular": ("max",),
    "linear": ("features", "radius"),
    "finite": ("rewards",),
    "unbounded": (),
}
_ROW = ("context", "winner", "loser", "count")


class Overrides(NamedTuple):
    """Values that replace those of a problem file, or stand for missing ones; None keeps them.

    Attributes:
        beta: weight of the KL term.
        eta: weight of the adversarial term.
        reward_max: upper bound of the rewards of a tabular class.
        baseline: baseline policy by name.
    """

    beta: float | None = None
    eta: float | None = None
    reward_max: float | None = None
    baseline: Literal["chosen", "reference"] | None = None


class ProblemFile(NamedTuple):
    """Content of a problem file.

    Attributes:
        problem: preference data, policies and weights in float64; distributions sum to one.
        reward_class: the adversary's class.
        true_reward: the true reward, shape ``[x a]``; None if the file has none.
        comparator: the policy to compare with, shape ``[x a]``; None if the file has none.
        fallback_contexts: contexts without data, in which the baseline "chosen" is the reference.
        baseline: name of the baseline policy, "given" if it is a table.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[np.ndarray, "x a"] | None = None
    comparator: Float[np.ndarray, "x a"] | None = None
    fallback_contexts: tuple[int, ...] = ()
    baseline: str = "given"


_NO_OVERRIDES = Overrides()


def read_problem(path: str, overrides: Overrides = _NO_OVERRIDES) -> ProblemFile:
    """Read and validate a problem file, or standard input for ``-``.

    Args:
        path: path of a JSON file, or ``-``.
        overrides: values that replace those of the file.

    Returns:
        The validated content.

    Raises:
        DocumentError: if the file is invalid; the message names line and field.
        OSError: if the file cannot be read.
    """
    if path.lower().endswith((".csv", ".tsv")):
        with open(path, "rb"):  # a missing file is reported as such
            raise DocumentError(f"{path}: must be JSON; give a file of votes with --votes {path}")
    return from_document(load_document(path), overrides)


def from_document(root: Node, overrides: Overrides = _NO_OVERRIDES) -> ProblemFile:
    """Build and validate the problem that a JSON document describes.

    Args:
        root: root of the document.
        overrides: values that replace those of the document.

    Returns:
        The validated content.

    Raises:
        DocumentError: if the document is invalid; the message names line and field.
        ValueError: if an override does not apply to the reward class.
    """
    replaced = {"beta": overrides.beta, "eta": overrides.eta, "baseline_policy": overrides.baseline}
    required = [key for key in _REQUIRED if replaced.get(key) is None]
    optional = [key for key in _REQUIRED if key not in required]
    keys = root.members(required, [*optional, *_DATA, *_TABLES])
    reference = keys["reference_policy"].numbers(2)
    shape = (reference.shape[0], reference.shape[1])
    wins = _wins(_data(root, keys), shape)
    policy = keys.get("baseline_policy")
    baseline = reference if policy is None else _baseline(policy, reference, wins)
    problem = Problem(
        context_weights=keys["context_weights"].numbers(1),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=wins,
        beta=np.asarray(keys["beta"].number() if "beta" in keys else overrides.beta),
        eta=np.asarray(keys["eta"].number() if "eta" in keys else overrides.eta),
    )
    reward_class = _reward_class(keys["reward_class"])
    tables = {key: keys[key].numbers(2) for key in _TABLES if key in keys}
    if "comparator" in tables and "true_reward" not in tables:
        keys["comparator"].refuse("needs `true_reward`, under which the policies are compared")
    try:
        validate(problem, reward_class)
        for key, table in tables.items():
            check = validate_policy if key == "comparator" else validate_reward
            check(key, table, shape)
    except InvalidProblemError as error:
        field = error.field.replace("reward_class.maximum", "reward_class.max")
        root.refuse(error.rule, *field.split("."), *error.index)
    name = overrides.baseline or (policy.value if policy else "")
    if not isinstance(name, str):
        name = "given"
    if overrides.baseline is not None:
        baseline = _named_baseline(overrides.baseline, reference, wins)
    problem = problem._replace(
        baseline_policy=baseline,
        beta=problem.beta if overrides.beta is None else np.asarray(overrides.beta),
        eta=problem.eta if overrides.eta is None else np.asarray(overrides.eta),
    )
    reward_class = _with_maximum(reward_class, overrides.reward_max)
    validate(problem, reward_class)  # again, with the values of the options
    fallback: tuple[int, ...] = ()
    if name == "chosen":
        fallback = tuple(np.flatnonzero(wins.sum(axis=(1, 2)) == 0).tolist())
    return ProblemFile(
        normalize(problem),
        reward_class,
        **tables,
        fallback_contexts=fallback,
        baseline=name,
    )


def _data(root: Node, keys: dict[str, Node]) -> Node:
    """Return the node of the comparisons, under the one key of two that holds them."""
    if all(key in keys for key in _DATA):
        keys["wins"].refuse("must not stand beside `comparisons`: give one of them")
    if not any(key in keys for key in _DATA):
        root.refuse("is missing", "comparisons")
    return keys["comparisons" if "comparisons" in keys else "wins"]


def _with_maximum(reward_class: RewardClass, maximum: float | None) -> RewardClass:
    """Return the class with another upper bound of the rewards."""
    if maximum is None:
        return reward_class
    if isinstance(reward_class, TabularBox):
        return TabularBox(np.asarray(maximum))
    kind = class_document(reward_class)["kind"]
    rule = f"applies to the reward class tabular, and that of the problem is {kind}"
    raise ValueError(f"argument --reward-max: {rule}: change the class in the problem")


def class_document(reward_class: RewardClass) -> dict[str, Any]:
    """Return kind and bound of a reward class, as in a problem file but without its tables.

    Args:
        reward_class: a reward class.

    Returns:
        Plain values.

    Examples:
        >>> class_document(TabularBox(2.0))
        {'kind': 'tabular', 'max': 2.0}
    """
    match reward_class:
        case TabularBox(maximum):
            return {"kind": "tabular", "max": float(maximum)}
        case LinearBall(_, radius):
            return {"kind": "linear", "radius": float(radius)}
        case FiniteClass():
            return {"kind": "finite"}
        case Unbounded():
            return {"kind": "unbounded"}


def _wins(node: Node, shape: tuple[int, int]) -> Float[np.ndarray, "x a a"]:
    n_contexts, n_actions = shape
    if n_contexts * n_actions**2 > MAX_CELLS:
        size = f"{n_contexts} contexts x {n_actions} actions x {n_actions} actions"
        node.refuse(f"count {size}, more than {MAX_CELLS:.0e} cells: split the problem by context")
    if node.path[-1] == "wins":
        wins = node.numbers(3)
        if wins.max() > MAX_COUNT:
            node.refuse(f"must hold counts of at most {MAX_COUNT:.0e}, got {wins.max():.3g}")
        return wins
    rows = node.items()
    for i, row in enumerate(rows):
        _check_row(node, i, row, (n_contexts, n_actions, n_actions))
    if not rows:
        return np.zeros((n_contexts, n_actions, n_actions))
    contexts, winners, losers = np.array([row[:3] for row in rows], np.int64).T
    counts = np.array([row[3] for row in rows], np.float64)
    with jax.enable_x64(True):
        return np.asarray(win_counts(contexts, winners, losers, counts, shape=shape))


def _check_row(node: Node, i: int, row: Any, bounds: tuple[int, int, int]) -> None:
    if not isinstance(row, list) or len(row) != len(_ROW):
        node.refuse(f"must be [{', '.join(_ROW)}], got {describe(row)}", i)
    for j, bound in enumerate(bounds):
        if type(row[j]) is not int or not 0 <= row[j] < bound:
            rule = f"must be the index of a {_ROW[j]}, a whole number from 0 to {bound - 1}"
            node.refuse(f"{rule}, got {describe(row[j])}", i, j)
    if not is_number(row[3]) or not 0 <= row[3] <= MAX_COUNT:
        rule = f"must be a count, a number from 0 to {MAX_COUNT:.0e}"
        node.refuse(f"{rule}, got {describe(row[3])}", i, 3)


def _baseline(
    node: Node, reference: Float[np.ndarray, "x a"], wins: Float[np.ndarray, "x a a"]
) -> Float[np.ndarray, "x a"]:
    if not isinstance(node.value, str):
        return node.numbers(2)
    return _named_baseline(node.one_of(("chosen", "reference")), reference, wins)


def _named_baseline(
    name: str, reference: Float[np.ndarray, "x a"], wins: Float[np.ndarray, "x a a"]
) -> Float[np.ndarray, "x a"]:
    if name == "reference":
        return reference
    with jax.enable_x64(True):
        return np.asarray(jax.jit(chosen_policy)(wins, reference))


def _reward_class(node: Node) -> RewardClass:
    all_keys = {key for keys in _CLASS_KEYS.values() for key in keys}
    kind = node.members(["kind"], sorted(all_keys))["kind"].one_of(tuple(_CLASS_KEYS))
    keys = node.members(["kind", *_CLASS_KEYS[kind]])
    match kind:
        case "tabular":
            return TabularBox(np.asarray(keys["max"].number()))
        case "linear":
            radius = np.asarray(keys["radius"].number())
            return LinearBall(keys["features"].numbers(3), radius)
        case "finite":
            return FiniteClass(keys["rewards"].numbers(3))
        case _:
            return Unbounded()
