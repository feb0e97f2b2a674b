"""Validation of problems, and their construction from preference data.

Jitted code validates nothing. :func:`validate` checks a problem once, in NumPy, where it enters;
the readers of files and the constructors of :class:`Problem` call it. An error names the field,
the index in it, the rule and the value, in one line.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from .policies import chosen_policy
from .preference import win_counts
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike, Problem

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


def validate(problem: Problem, reward_class: RewardClass) -> None:
    r"""Raise if a problem or its reward class is invalid.

    The checks are shapes, finite numbers, probabilities, :math:`\beta > 0` and :math:`\eta \ge 0`.
    Sums of probabilities may differ from one by :data:`PROBABILITY_TOLERANCE`; :func:`normalize`
    removes the difference.

    Args:
        problem: one problem, without a batch axis.
        reward_class: reward class of the problem, without a batch axis.

    Raises:
        InvalidProblemError: if a check fails; the message describes the first violation.

    Examples:
        >>> ones = np.ones((1, 1))
        >>> problem = Problem(ones[0], ones, ones, np.zeros((1, 1, 1)), beta=0.0, eta=1.0)
        >>> validate(problem, Unbounded())
        Traceback (most recent call last):
        rpo_theory.problems.InvalidProblemError: `beta` must be greater than 0, got 0
    """
    shape = np.shape(problem.reference_policy)
    if len(shape) != 2 or 0 in shape:
        rule = f"must have one row per context and one column per action, got shape {shape}"
        raise InvalidProblemError("reference_policy", (), rule)
    n_contexts, n_actions = shape
    validate_policy("reference_policy", problem.reference_policy, shape)
    validate_policy("context_weights", problem.context_weights, (n_contexts,))
    validate_policy("baseline_policy", problem.baseline_policy, shape)
    _at_least_zero("wins", _numbers("wins", problem.wins, (n_contexts, n_actions, n_actions)))
    _greater_than_zero("beta", problem.beta)
    _at_least_zero("eta", _numbers("eta", problem.eta, ()))
    _validate_reward_class(reward_class, shape)


def validate_policy(field: str, policy: ArrayLike, shape: tuple[int, ...]) -> None:
    """Raise unless an array holds probability distributions along its last axis.

    Args:
        field: name of the array in the error message.
        policy: probabilities.
        shape: required shape.

    Raises:
        InvalidProblemError: if the shape is wrong, a number is negative, or a sum is not one.

    Examples:
        >>> validate_policy("comparator", np.array([[0.5, 0.4]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.problems.InvalidProblemError: `comparator[0]` must sum to one, got a sum of 0.9
    """
    array = _numbers(field, policy, shape)
    _at_least_zero(field, array)
    sums = array.sum(axis=-1)
    wrong = np.abs(sums - 1.0) > PROBABILITY_TOLERANCE
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
        rpo_theory.problems.InvalidProblemError: `true_reward[0][1]` must be finite, got nan
    """
    _numbers(field, reward, shape)


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
    arrays = Problem(*(np.asarray(field, np.float64) for field in problem))
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
) -> Problem:
    """Build and validate a problem; documented as :meth:`Problem.from_wins`."""
    wins = np.asarray(wins)
    if wins.ndim != 3 or wins.shape[1] != wins.shape[2] or 0 in wins.shape:
        rule = "must have shape (contexts, actions, actions), indexed by context, winner and loser"
        raise InvalidProblemError("wins", (), f"{rule}, got shape {wins.shape}")
    wins = _numbers("wins", wins, wins.shape)
    _at_least_zero("wins", wins)
    shape = wins.shape[:2]
    reference = np.full(shape, 1.0 / shape[1])
    if reference_policy is not None:
        reference = np.asarray(reference_policy)
        validate_policy("reference_policy", reference, shape)
    problem = Problem(
        context_weights=_context_weights(context_weights, wins),
        reference_policy=reference,
        baseline_policy=_baseline_policy(baseline_policy, reference, wins),
        wins=wins,
        beta=beta,
        eta=eta,
    )
    validate(problem, Unbounded())
    return normalize(problem)


def wins_from_votes(
    contexts: Iterable[Hashable],
    winners: Iterable[Hashable],
    losers: Iterable[Hashable],
    counts: Iterable[int | float] | None = None,
    *,
    context_labels: Sequence[Hashable] | None = None,
    action_labels: Sequence[Hashable] | None = None,
) -> Float[np.ndarray, "x a a"]:
    """Count the wins of a table of votes; see :meth:`Problem.from_votes` for the arguments.

    Returns:
        ``wins[x, w, l]``, the number of votes in context ``x`` for ``w`` against ``l``.

    Raises:
        ValueError: if the columns differ in length, a label is unknown, a count is negative, or an
            action is compared with itself.
    """
    columns = [list(column) for column in (contexts, winners, losers)]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        listed = ", ".join(map(str, lengths))
        raise ValueError(
            "`contexts`, `winners` and `losers` must have one entry per vote, "
            f"got {listed} entries: check the columns"
        )
    if not lengths[0] and (context_labels is None or action_labels is None):
        raise ValueError(
            "`contexts` must have at least one vote, got none: give `context_labels` and "
            "`action_labels` for a problem without data"
        )
    repeats = np.ones(lengths[0]) if counts is None else list(counts)
    repeats = _numbers("counts", np.asarray(repeats), (lengths[0],))
    _at_least_zero("counts", repeats)
    context_index = _index_of_labels("context_labels", context_labels, columns[0])
    action_index = _index_of_labels("action_labels", action_labels, columns[1] + columns[2])
    rows = [
        _indices(name, column, index)
        for name, column, index in zip(
            ("contexts", "winners", "losers"),
            columns,
            (context_index, action_index, action_index),
            strict=True,
        )
    ]
    same = np.flatnonzero(np.asarray(rows[1]) == np.asarray(rows[2]))
    if same.size:
        label = columns[2][same[0]]
        raise ValueError(
            f"`losers[{same[0]}]` must differ from the winner of the vote, got {label!r}"
        )
    shape = (len(context_index), len(action_index))
    with jax.enable_x64(True):
        return np.asarray(win_counts(rows[0], rows[1], rows[2], repeats, shape=shape))


def _context_weights(
    option: Literal["comparisons", "uniform"] | ArrayLike, wins: Float[np.ndarray, "x a a"]
) -> np.ndarray:
    """Return the prompt distribution that a name or an array stands for."""
    if not isinstance(option, str):
        return np.asarray(option)
    comparisons = wins.sum(axis=(1, 2))
    match option:
        case "uniform":
            return np.full(len(wins), 1.0 / len(wins))
        case "comparisons" if comparisons.sum() > 0:
            return comparisons / comparisons.sum()
        case "comparisons":
            rule = "must be 'uniform' or an array if there are no comparisons"
        case _:
            rule = "must be 'comparisons', 'uniform' or an array"
    raise InvalidProblemError("context_weights", (), f"{rule}, got {option!r}")


def _baseline_policy(
    option: Literal["chosen", "reference"] | ArrayLike,
    reference: np.ndarray,
    wins: Float[np.ndarray, "x a a"],
) -> np.ndarray:
    """Return the baseline policy that a name or an array stands for."""
    if not isinstance(option, str):
        return np.asarray(option)
    match option:
        case "reference":
            return reference
        case "chosen":
            with jax.enable_x64(True):
                return np.asarray(jax.jit(chosen_policy)(wins, np.asarray(reference, np.float64)))
        case _:
            rule = f"must be 'chosen', 'reference' or an array, got {option!r}"
            raise InvalidProblemError("baseline_policy", (), rule)


def _index_of_labels(
    name: str, labels: Sequence[Hashable] | None, column: list[Hashable]
) -> dict[Hashable, int]:
    """Return the index of each label, in the given order or sorted."""
    if labels is None:
        try:
            labels = sorted(set(column))  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise ValueError(
                f"`{name}` must be given if the labels have no order: {error}"
            ) from error
    index = {label: i for i, label in enumerate(labels)}
    if len(index) != len(labels):
        raise ValueError(
            f"`{name}` must not repeat a label, got {len(labels)} labels of which "
            f"{len(index)} differ: keep one of each"
        )
    return index


def _indices(
    name: str, column: list[Hashable], index: dict[Hashable, int]
) -> Int[np.ndarray, " n"]:
    for row, label in enumerate(column):
        if label not in index:
            raise ValueError(f"`{name}[{row}]` must be one of the given labels, got {label!r}")
    return np.array([index[label] for label in column], np.int64)


def _divided_by_sum(distribution: ArrayLike) -> np.ndarray:
    distribution = np.asarray(distribution)
    sums = distribution.sum(axis=-1, keepdims=True)
    # A sum within rounding of one is left alone, so that normalizing twice changes nothing.
    within = np.abs(sums - 1.0) <= distribution.shape[-1] * np.finfo(np.float64).eps
    return distribution / np.where(within, 1.0, sums)


def _validate_reward_class(reward_class: RewardClass, shape: tuple[int, int]) -> None:
    match reward_class:
        case TabularBox(maximum):
            _greater_than_zero("reward_class.maximum", maximum)
        case LinearBall(features, radius):
            d = _inner_size("reward_class.features", features, shape, axis=2)
            _numbers("reward_class.features", features, (*shape, d))
            _greater_than_zero("reward_class.radius", radius)
        case FiniteClass(rewards):
            k = _inner_size("reward_class.rewards", rewards, shape, axis=0)
            _numbers("reward_class.rewards", rewards, (k, *shape))
        case Unbounded():
            pass


def _inner_size(field: str, value: ArrayLike, shape: tuple[int, int], *, axis: int) -> int:
    """Return the size, at least one, of the axis that a class adds to ``[x a]``."""
    got = np.shape(value)
    if len(got) != 3 or got[axis] == 0:
        letters = "kxa" if axis == 0 else "xad"
        sizes = dict(zip("xa", shape, strict=True))
        wanted = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        rule = f"must have shape ({wanted}) with {letters[axis]} at least 1, got shape {got}"
        raise InvalidProblemError(field, (), rule)
    return got[axis]


def _numbers(field: str, value: ArrayLike | float, shape: tuple[int, ...]) -> np.ndarray:
    """Return a value as a float64 array; raise unless it has the shape and is finite."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidProblemError(field, (), f"must hold real numbers: {error}") from error
    if array.shape != shape:
        raise InvalidProblemError(field, (), f"must have shape {shape}, got shape {array.shape}")
    finite = np.isfinite(array)
    if not finite.all():
        index = _first(~finite)
        raise InvalidProblemError(field, index, f"must be finite, got {array[index]}")
    return array


def _at_least_zero(field: str, array: np.ndarray) -> None:
    negative = array < 0
    if negative.any():
        index = _first(negative)
        raise InvalidProblemError(field, index, f"must be at least 0, got {array[index]:.9g}")


def _greater_than_zero(field: str, value: ArrayLike | float) -> None:
    number = _numbers(field, value, ())
    if number <= 0:
        raise InvalidProblemError(field, (), f"must be greater than 0, got {number:.9g}")


def _first(wrong: np.ndarray | np.bool_) -> tuple[int, ...]:
    """Return the index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(wrong), np.shape(wrong)))
