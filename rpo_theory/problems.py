"""Construction of problems from preference data, and their normalization.

The constructors validate what they are given, see :mod:`rpo_theory.validation`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from .counted_choices import fold_pairs
from .data_checks import validate_choices
from .observations import winner_counts
from .policies import counts_to_policy
from .preference_data import TIE_MODELS, Choices, Ties
from .rewards import Unbounded
from .types import ArrayLike, Problem
from .validation import (
    PROBABILITY_TOLERANCE,
    InvalidProblemError,
    at_least_zero,
    numbers,
    plain_array,
    validate,
    validate_policy,
    validate_reward,
)

__all__ = [
    "PROBABILITY_TOLERANCE",
    "InvalidProblemError",
    "normalize",
    "problem_from_wins",
    "validate",
    "validate_policy",
    "validate_reward",
]


class PreferenceData(NamedTuple):
    """Preference data of a problem; see :class:`Problem` for the fields."""

    wins: Float[ArrayLike, "x a a"]
    choices: Choices | None = None
    ties: Ties | None = None

    def counts_by_context(self) -> Float[np.ndarray, " x"]:
        """Return the number of observations in each context.

        Examples:
            >>> PreferenceData(np.array([[[0.0, 3.0], [1.0, 0.0]]])).counts_by_context().tolist()
            [4.0]
        """
        counts = np.asarray(self.wins).sum(axis=(1, 2))
        if self.ties is not None:
            counts = counts + np.asarray(self.ties.counts).sum(axis=(1, 2))
        if self.choices is not None:
            first = np.asarray(self.choices.first, bool)
            counts = np.array(counts)
            contexts = np.asarray(self.choices.contexts)[first].astype(np.int64)
            np.add.at(counts, contexts, np.asarray(self.choices.wins)[first].sum(axis=1))
        return counts


def normalize(problem: Problem) -> Problem:
    """Convert a problem to float64 and divide its distributions by their sums.

    Args:
        problem: a valid problem, possibly with a leading batch axis on every array.

    Returns:
        The same problem as NumPy arrays; distributions sum to one up to the last digit.

    Examples:
        >>> policy, wins = np.array([[0.4999999, 0.5]]), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), policy, policy, wins, beta=1.0, eta=0.0)
        >>> float(np.sum(normalize(problem).reference_policy))
        1.0
    """
    arrays = jax.tree.map(lambda field: np.asarray(field, np.float64), problem)
    return arrays._replace(
        context_weights=_divided_by_sum(arrays.context_weights),
        reference_policy=_divided_by_sum(arrays.reference_policy),
        baseline_policy=_divided_by_sum(arrays.baseline_policy),
    )


def problem_from_wins(
    wins: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"],
    *,
    beta: Float[ArrayLike, ""] | float,
    eta: Float[ArrayLike, ""] | float,
    context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
    reference_policy: Float[ArrayLike, "x a"] | None = None,
    baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
    choices: Choices | None = None,
    ties: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"] | None = None,
    tie_model: Literal["davidson", "rao_kupper"] | None = None,
    tie_parameter: float | None = None,
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_wins`."""
    wins = _pair_counts("wins", plain_array("wins", wins))
    shape = wins.shape[:2]
    tie_counts = None
    if ties is not None:
        tie_counts = _pair_counts("ties", numbers("ties", ties, wins.shape))
    if choices is not None:
        validate_choices(choices, shape)
    tie_data = _ties(tie_counts, wins.shape, tie_model, tie_parameter)
    if choices is not None and tie_data is None:
        # Under a model with ties a comparison of two may also end in a tie, and a choice may not.
        wins, choices = fold_pairs(wins, choices)
    data = PreferenceData(wins, choices, tie_data)
    reference = np.full(shape, 1.0 / shape[1])
    if reference_policy is not None:
        reference = plain_array("reference_policy", reference_policy)
        validate_policy("reference_policy", reference, shape)
    problem = Problem(
        context_weights=_context_weights(context_weights, data),
        reference_policy=reference,
        baseline_policy=named_baseline(baseline_policy, reference, data),
        wins=wins,
        beta=beta,
        eta=eta,
        choices=choices,
        ties=tie_data,
    )
    validate(problem, Unbounded())
    problem = normalize(problem)
    if tie_data is None or tie_parameter is not None:
        return problem
    from .tie_parameter import fit_tie_parameter

    return fit_tie_parameter(problem)


def _context_weights(
    option: Literal["comparisons", "uniform"] | ArrayLike, data: PreferenceData
) -> np.ndarray:
    """Return the prompt distribution that a name or an array stands for."""
    if not isinstance(option, str):
        return numbers("context_weights", option, data.wins.shape[:1])
    n_data = data.counts_by_context()
    match option:
        case "uniform":
            return np.full(len(n_data), 1.0 / len(n_data))
        case "comparisons" if n_data.sum() > 0:
            return n_data / n_data.sum()
        case "comparisons":
            rule = "must be 'uniform' or an array if there are no comparisons"
        case _:
            rule = "must be 'comparisons', 'uniform' or an array"
    raise InvalidProblemError("context_weights", (), f"{rule}, got {option!r}")


def named_baseline(
    option: Literal["chosen", "reference"] | ArrayLike,
    reference: np.ndarray,
    data: PreferenceData,
) -> np.ndarray:
    """Return the baseline policy that a name or an array stands for.

    Args:
        option: ``"chosen"``, ``"reference"`` or a table of probabilities.
        reference: reference policy, also that of contexts without data.
        data: preference data.

    Raises:
        InvalidProblemError: if the name is unknown.

    Examples:
        >>> data = PreferenceData(np.array([[[0.0, 3.0], [1.0, 0.0]]]))
        >>> named_baseline("chosen", np.array([[0.5, 0.5]]), data).tolist()
        [[0.75, 0.25]]
    """
    if not isinstance(option, str):
        return plain_array("baseline_policy", option)
    match option:
        case "reference":
            return reference
        case "chosen":
            with jax.enable_x64(True):
                fallback = np.asarray(reference, np.float64)
                return np.asarray(jax.jit(_winners)(data, fallback))
        case _:
            rule = f"must be 'chosen', 'reference' or an array, got {option!r}"
            raise InvalidProblemError("baseline_policy", (), rule)


def _pair_counts(field: str, counts: np.ndarray) -> Float[np.ndarray, "x a a"]:
    """Return counts of pairs in float64; raise if they are invalid."""
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or 0 in counts.shape:
        rule = "must have shape (contexts, actions, actions), indexed by context, winner and loser"
        raise InvalidProblemError(field, (), f"{rule}, got shape {counts.shape}")
    counts = numbers(field, counts, counts.shape)
    at_least_zero(field, counts)
    context, first, second = np.nonzero(counts)
    if np.any(first == second):
        index = tuple(int(axis[first == second][0]) for axis in (context, first, second))
        rule = f"must be 0, got {counts[index]:.9g}: an action cannot be compared with itself"
        raise InvalidProblemError(field, index, rule)
    return counts


def _ties(
    counts: Float[np.ndarray, "x a a"] | None,
    shape: tuple[int, ...],
    model: Literal["davidson", "rao_kupper"] | None,
    parameter: float | None,
) -> Ties | None:
    """Return the ties under their model; None if there is nothing that the model changes."""
    names = " or ".join(map(repr, TIE_MODELS))
    if model is None:
        if parameter is not None:
            rule = f"needs `tie_model`, {names}, got {parameter!r} without it"
            raise InvalidProblemError("tie_parameter", (), rule)
        if counts is not None and np.any(counts):
            rule = f"must be {names} if there are ties, got none"
            raise InvalidProblemError("tie_model", (), rule)
        return None
    if model not in TIE_MODELS:
        raise InvalidProblemError("tie_model", (), f"must be {names}, got {model!r}")
    if parameter is None and (counts is None or not np.any(counts)):
        return None  # by maximum likelihood ties have probability 0
    ties = TIE_MODELS[model](
        np.zeros(shape) if counts is None else counts,
        numbers("tie_parameter", 2.0 if parameter is None else parameter, ()),
    )
    if ties.parameter <= ties.lower_limit:
        rule = f"must be greater than {ties.lower_limit:g} for {model!r}, got {parameter:.9g}"
        raise InvalidProblemError("tie_parameter", (), rule)
    return ties


def _winners(data: PreferenceData, fallback: Float[Array, "x a"]) -> Float[Array, "x a"]:
    tie_counts = None if data.ties is None else data.ties.counts
    return counts_to_policy(winner_counts(data.wins, data.choices, tie_counts), fallback)


def _divided_by_sum(distribution: ArrayLike) -> np.ndarray:
    distribution = np.asarray(distribution)
    sums = distribution.sum(axis=-1, keepdims=True)
    # A sum within rounding of one is left alone, so that normalizing twice changes nothing.
    within = np.abs(sums - 1.0) <= distribution.shape[-1] * np.finfo(np.float64).eps
    return distribution / np.where(within, 1.0, sums)
