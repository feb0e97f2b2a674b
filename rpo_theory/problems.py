"""The rules of a problem, checked where one enters the package.

Nothing inside jitted code is validated; the solvers and the readers of files call
:func:`validate` on what they were given, once, in NumPy. An error names the field, the place in
it, the rule and what was got, in one line.
"""

from __future__ import annotations

import numpy as np

from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike, Problem

PROBABILITY_TOLERANCE = 1e-6
"""How far from one a law may sum: the rounding of seven printed digits, not a wrong law."""


class InvalidProblemError(ValueError):
    """A problem that breaks a rule.

    Attributes:
        field: name of the field, ``"reference_policy"`` or ``"reward_class.radius"``.
        index: place in the field, ``()`` for the field as a whole.
        rule: what must hold, what was got, and what to do.
    """

    def __init__(self, field: str, index: tuple[int, ...], rule: str) -> None:
        """Build the one-line message from the place and the rule."""
        self.field, self.index, self.rule = field, index, rule
        place = field + "".join(f"[{i}]" for i in index)
        super().__init__(f"`{place}` {rule}")


def validate(problem: Problem, reward_class: RewardClass) -> None:
    r"""Refuse a problem that breaks a rule: shapes, finite numbers, laws, :math:`\beta > 0`.

    Laws may miss one by :data:`PROBABILITY_TOLERANCE`; :func:`normalize` makes them exact.

    Args:
        problem: one instance, without a batch axis.
        reward_class: the class that its reward is sought in.

    Raises:
        InvalidProblemError: the first rule broken.

    Examples:
        >>> one = np.ones((1, 1))
        >>> problem = Problem(one[0], one, one, np.zeros((1, 1, 1)), np.array(0.0), np.array(1.0))
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
    """Refuse what is not a law along its last axis.

    Args:
        field: name for the error.
        policy: probabilities.
        shape: the shape that it must have.

    Raises:
        InvalidProblemError: wrong shape, a negative number, or a sum that is not one.

    Examples:
        >>> validate_policy("comparator", np.array([[0.5, 0.4]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.problems.InvalidProblemError: `comparator[0]` must sum to one, got a sum of 0.9
    """
    array = _numbers(field, policy, shape)
    _at_least_zero(field, array)
    total = array.sum(axis=-1)
    wrong = np.abs(total - 1.0) > PROBABILITY_TOLERANCE
    if wrong.any():
        index = _first(wrong)
        raise InvalidProblemError(field, index, f"must sum to one, got a sum of {total[index]:.9g}")


def validate_reward(field: str, reward: ArrayLike, shape: tuple[int, ...]) -> None:
    """Refuse what is not a finite reward table.

    Args:
        field: name for the error.
        reward: rewards.
        shape: the shape that it must have.

    Raises:
        InvalidProblemError: wrong shape, or a number that is not finite.

    Examples:
        >>> validate_reward("true_reward", np.array([[0.0, np.nan]]), (1, 2))
        Traceback (most recent call last):
        rpo_theory.problems.InvalidProblemError: `true_reward[0][1]` must be finite, got nan
    """
    _numbers(field, reward, shape)


def normalize(problem: Problem) -> Problem:
    """The problem in float64 with its laws divided by their sums.

    Args:
        problem: a valid instance.

    Returns:
        The same problem; laws sum to one to the last digit but one.

    Examples:
        >>> law, wins = np.array([[0.4999999, 0.5]]), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), law, law, wins, np.array(1.0), np.array(0.0))
        >>> float(np.sum(normalize(problem).reference_policy))
        1.0
    """
    arrays = Problem(*(np.asarray(field, np.float64) for field in problem))
    return arrays._replace(
        context_weights=_divided_by_sum(arrays.context_weights),
        reference_policy=_divided_by_sum(arrays.reference_policy),
        baseline_policy=_divided_by_sum(arrays.baseline_policy),
    )


def _divided_by_sum(law: ArrayLike) -> np.ndarray:
    law = np.asarray(law)
    total = law.sum(axis=-1, keepdims=True)
    # One already within rounding stays as it is: a second time changes nothing.
    within = np.abs(total - 1.0) <= law.shape[-1] * np.finfo(np.float64).eps
    return law / np.where(within, 1.0, total)


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
    """Size of the axis that a class adds to ``[x a]``; at least one."""
    got = np.shape(value)
    if len(got) != 3 or got[axis] == 0:
        letters = "kxa" if axis == 0 else "xad"
        sizes = dict(zip("xa", shape, strict=True))
        wanted = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        rule = f"must have shape ({wanted}) with {letters[axis]} at least 1, got shape {got}"
        raise InvalidProblemError(field, (), rule)
    return got[axis]


def _numbers(field: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
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


def _greater_than_zero(field: str, value: ArrayLike) -> None:
    number = _numbers(field, value, ())
    if number <= 0:
        raise InvalidProblemError(field, (), f"must be greater than 0, got {number:.9g}")


def _first(wrong: np.ndarray | np.bool_) -> tuple[int, ...]:
    """Index of the first true entry; ``argmax`` builds no list of the others."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(wrong), np.shape(wrong)))
