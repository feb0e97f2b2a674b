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
``comparisons``, ... preference data, see :mod:`rpo.solving.data_documents`
``beta``, ``eta``    greater than 0; at least 0
``reward_class``     ``{"kind": ...}``, see :mod:`bandits.environments.class_documents`
``true_reward``      optional, ``[x][a]``; need not lie in the class
``comparator``       optional, ``[x][a]``, rows of probabilities; needs ``true_reward``
==================== ==========================================================================

An error message is one line with the file, the line, the field, the rule and the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from bandits.environments.class_documents import (
    class_document,
    class_of_module,
    document_fields,
    read_class,
)
from rpo_io.json_document import DocumentError, Node, load_document
from rpo_theory.problems import (
    InvalidProblemError,
    PreferenceData,
    named_baseline,
    normalize,
    validate,
    validate_policy,
    validate_reward,
)
from rpo_theory.rewards import RewardClass, TabularBox, is_compact, is_convex
from rpo_theory.tie_parameter import fit_tie_parameter
from rpo_theory.types import Problem
from rpo_theory.validation import validate_support

from .data_documents import DATA_KEYS, TIE_KEYS, read_observations

_REQUIRED = (
    "context_weights",
    "reference_policy",
    "baseline_policy",
    "beta",
    "eta",
    "reward_class",
)
_TABLES = ("true_reward", "comparator")


class Overrides(NamedTuple):
    """Values that replace those of a problem file, or stand for missing ones; None keeps them.

    Attributes:
        beta: weight of the KL term.
        eta: weight of the adversarial term.
        reward_max: upper bound of the rewards of a tabular class.
        baseline: baseline policy by name.
        reward_class: class of the user's own, ``module:Class``, whose parameters the file has; or
            an instance, for a file without a reward class.
    """

    beta: float | None = None
    eta: float | None = None
    reward_max: float | None = None
    baseline: Literal["chosen", "reference"] | None = None
    reward_class: str | RewardClass | None = None


class ProblemFile(NamedTuple):
    """Content of a problem file.

    Attributes:
        problem: preference data, policies and weights in float64; distributions sum to one.
        reward_class: the adversary's class.
        true_reward: the true reward, shape ``[x a]``; None if the file has none.
        comparator: the policy to compare with, shape ``[x a]``; None if the file has none.
        fallback_contexts: contexts without data, in which the baseline "chosen" is the reference.
        baseline: name of the baseline policy, "given" if it is a table.
        observations: number of observations of each kind that the file has.
        fitted_ties: whether the tie parameter was estimated.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[np.ndarray, "x a"] | None = None
    comparator: Float[np.ndarray, "x a"] | None = None
    fallback_contexts: tuple[int, ...] = ()
    baseline: str = "given"
    observations: Mapping[str, float] = MappingProxyType({})
    fitted_ties: bool = False


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
    replaced = {
        "beta": overrides.beta,
        "eta": overrides.eta,
        "baseline_policy": overrides.baseline,
        "reward_class": overrides.reward_class,
    }
    required = [key for key in _REQUIRED if replaced.get(key) is None]
    optional = [key for key in _REQUIRED if key not in required]
    keys = root.members(required, [*optional, *DATA_KEYS, *TIE_KEYS, *_TABLES])
    reference = keys["reference_policy"].numbers(2)
    shape = (reference.shape[0], reference.shape[1])
    observations = read_observations(root, keys, shape)
    data = observations.data
    policy = keys.get("baseline_policy")
    baseline = reference if policy is None else _baseline(policy, reference, data)
    problem = Problem(
        context_weights=keys["context_weights"].numbers(1),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=data.wins,
        beta=np.asarray(keys["beta"].number() if "beta" in keys else overrides.beta),
        eta=np.asarray(keys["eta"].number() if "eta" in keys else overrides.eta),
        choices=data.choices,
        ties=data.ties,
    )
    reward_class = _reward_class(keys.get("reward_class"), overrides.reward_class)
    tables = {key: keys[key].numbers(2) for key in _TABLES if key in keys}
    if "comparator" in tables and "true_reward" not in tables:
        keys["comparator"].refuse("needs `true_reward`, under which the policies are compared")
    try:
        validate(problem, reward_class)
        validate_support(problem, reward_class)
        for key, table in tables.items():
            check = validate_policy if key == "comparator" else validate_reward
            check(key, table, shape)
    except InvalidProblemError as error:
        root.refuse(error.rule, *document_fields(error.field), *error.index)
    name = overrides.baseline or (policy.value if policy else "")
    if not isinstance(name, str):
        name = "given"
    if overrides.baseline is not None:
        baseline = named_baseline(overrides.baseline, reference, data)
    problem = problem._replace(
        baseline_policy=baseline,
        beta=problem.beta if overrides.beta is None else np.asarray(overrides.beta),
        eta=problem.eta if overrides.eta is None else np.asarray(overrides.eta),
    )
    reward_class = _with_maximum(reward_class, overrides.reward_max)
    validate(problem, reward_class)  # again, with the values of the options
    if observations.fits_tie_parameter:
        problem = _with_fitted_ties(root, problem, reward_class)
    fallback: tuple[int, ...] = ()
    if name == "chosen":
        fallback = tuple(np.flatnonzero(data.counts_by_context() == 0).tolist())
    return ProblemFile(
        normalize(problem),
        reward_class,
        **tables,
        fallback_contexts=fallback,
        baseline=name,
        observations=observations.numbers,
        fitted_ties=observations.fits_tie_parameter,
    )


def _with_fitted_ties(root: Node, problem: Problem, reward_class: RewardClass) -> Problem:
    """Return the problem with the tie parameter of maximum likelihood over its class."""
    bounded = is_convex(reward_class) and is_compact(reward_class)
    try:
        return fit_tie_parameter(normalize(problem), reward_class if bounded else None)
    except InvalidProblemError as error:
        root.refuse(error.rule, "tie_parameter")


def _reward_class(node: Node | None, named: str | RewardClass | None) -> RewardClass:
    """Return the class of a file, or the user's own with the parameters of the file."""
    if isinstance(named, str):
        return class_of_module(named, node)
    if named is not None and node is not None:
        node.refuse("must be left out: `reward_class` is given in Python")
    return named if named is not None else read_class(cast("Node", node))


def _with_maximum(reward_class: RewardClass, maximum: float | None) -> RewardClass:
    """Return the class with another upper bound of the rewards."""
    if maximum is None:
        return reward_class
    kind = class_document(reward_class)["kind"]
    if kind == "tabular":
        return TabularBox(np.asarray(maximum))
    rule = f"applies to the reward class tabular, and that of the problem is {kind}"
    raise ValueError(f"argument --reward-max: {rule}: change the class in the problem")


def _baseline(
    node: Node, reference: Float[np.ndarray, "x a"], data: PreferenceData
) -> Float[np.ndarray, "x a"]:
    if not isinstance(node.value, str):
        return node.numbers(2)
    option = cast(Literal["chosen", "reference"], node.one_of(("chosen", "reference")))
    return named_baseline(option, reference, data)
