"""Every rule of a problem is enforced, with the field and the place in the message."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo_theory.problems import (
    PROBABILITY_TOLERANCE,
    InvalidProblemError,
    normalize,
    validate,
    validate_policy,
    validate_reward,
)
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem

ONE_ULP = 2.3e-16
"""Two roundings of a sum of three probabilities."""


def valid_problem() -> Problem:
    reference = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    wins = np.zeros((2, 3, 3))
    wins[0, 1, 2] = 2.5
    return Problem(
        context_weights=np.array([0.25, 0.75]),
        reference_policy=reference,
        baseline_policy=reference[:, ::-1],
        wins=wins,
        beta=np.array(0.1),
        eta=np.array(0.0),
    )


def changed(array: Any, index: tuple[int, ...], number: float) -> np.ndarray:
    copy = np.array(array, np.float64)
    copy[index] = number
    return copy


CLASSES = [
    TabularBox(np.array(2.0)),
    LinearBall(np.ones((2, 3, 4)), np.array(1.0)),
    FiniteClass(np.zeros((5, 2, 3))),
    Unbounded(),
]


@pytest.mark.parametrize("reward_class", CLASSES, ids=lambda c: type(c).__name__)
def test_property_a_valid_problem_passes_with_every_class(reward_class: RewardClass) -> None:
    validate(valid_problem(), reward_class)


def test_property_jax_arrays_and_float32_are_accepted() -> None:
    arrays = [jnp.asarray(field, jnp.float32) for field in valid_problem()]
    validate(Problem(*arrays), TabularBox(jnp.asarray(1.0, jnp.float32)))


P = valid_problem()
BROKEN_PROBLEMS = [
    ("reference_policy", np.ones(3), "`reference_policy` must have one row"),
    ("reference_policy", np.ones((2, 0)), "`reference_policy` must have one row"),
    ("reference_policy", changed(P.reference_policy, (0, 1), -0.1), "`reference_policy[0][1]`"),
    ("reference_policy", changed(P.reference_policy, (1, 0), 0.9), "`reference_policy[1]` must"),
    ("baseline_policy", np.ones((3, 2)) / 2, "`baseline_policy` must have shape (2, 3), got"),
    ("baseline_policy", changed(P.baseline_policy, (1, 2), np.nan), "`baseline_policy[1][2]`"),
    ("context_weights", np.array([0.5, 0.25, 0.25]), "`context_weights` must have shape (2,)"),
    ("context_weights", np.array([1.5, -0.5]), "`context_weights[1]` must be at least 0, got -0.5"),
    (
        "context_weights",
        np.array([0.5, 0.4]),
        "`context_weights` must sum to one, got",
    ),
    ("wins", np.zeros((2, 3)), "`wins` must have shape (2, 3, 3)"),
    ("wins", changed(P.wins, (1, 2, 0), -1.0), "`wins[1][2][0]` must be at least 0, got -1"),
    ("wins", changed(P.wins, (1, 0, 0), np.inf), "`wins[1][0][0]` must be finite, got inf"),
    ("beta", np.array(0.0), "`beta` must be greater than 0, got 0"),
    ("beta", np.array(np.nan), "`beta` must be finite, got nan"),
    ("beta", np.ones(1), "`beta` must have shape ()"),
    ("eta", np.array(-1e-9), "`eta` must be at least 0, got -1e-09"),
    ("eta", np.array("many"), "`eta` must hold real numbers"),
]


@pytest.mark.parametrize(("field", "value", "message"), BROKEN_PROBLEMS)
def test_raises_names_the_field_the_place_and_the_rule(
    field: str, value: np.ndarray, message: str
) -> None:
    broken = valid_problem()._replace(**{field: value})
    with pytest.raises(InvalidProblemError) as caught:
        validate(broken, Unbounded())
    assert str(caught.value).startswith(message)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


BROKEN_CLASSES = [
    (TabularBox(np.array(0.0)), "`reward_class.maximum` must be greater than 0"),
    (TabularBox(np.array(np.inf)), "`reward_class.maximum` must be finite"),
    (
        LinearBall(np.ones((2, 3)), np.array(1.0)),
        "`reward_class.features` must have",
    ),
    (LinearBall(np.ones((2, 3, 0)), np.array(1.0)), "`reward_class.features` must have shape"),
    (LinearBall(np.ones((3, 2, 4)), np.array(1.0)), "`reward_class.features` must have shape"),
    (LinearBall(np.ones((2, 3, 4)), np.array(-1.0)), "`reward_class.radius` must be greater"),
    (FiniteClass(np.zeros((0, 2, 3))), "`reward_class.rewards` must have shape (k, 2, 3)"),
    (FiniteClass(np.zeros((1, 3, 2))), "`reward_class.rewards` must have shape (1, 2, 3)"),
    (FiniteClass(np.full((1, 2, 3), np.nan)), "`reward_class.rewards[0][0][0]` must be finite"),
]


@pytest.mark.parametrize(("reward_class", "message"), BROKEN_CLASSES)
def test_raises_names_the_field_of_the_reward_class(
    reward_class: RewardClass, message: str
) -> None:
    with pytest.raises(InvalidProblemError) as caught:
        validate(valid_problem(), reward_class)
    assert str(caught.value).startswith(message)


def test_raises_for_a_comparator_or_true_reward_of_another_shape() -> None:
    with pytest.raises(InvalidProblemError, match="`comparator` must have shape"):
        validate_policy("comparator", np.ones((1, 3)) / 3, (2, 3))
    with pytest.raises(InvalidProblemError, match="`true_reward` must have shape"):
        validate_reward("true_reward", np.ones((2, 2)), (2, 3))


@given(st.floats(-2.0, 2.0))
def test_property_laws_may_miss_one_by_the_tolerance_and_no_more(multiple: float) -> None:
    reference = valid_problem().reference_policy * (1.0 + multiple * PROBABILITY_TOLERANCE)
    nearly = valid_problem()._replace(reference_policy=reference)
    missed = np.abs(reference.sum(axis=1) - 1.0).max()
    if missed > PROBABILITY_TOLERANCE:
        with pytest.raises(InvalidProblemError, match="must sum to one"):
            validate(nearly, Unbounded())
    else:
        validate(nearly, Unbounded())
        sums = np.sum(normalize(nearly).reference_policy, axis=1)
        np.testing.assert_allclose(sums, 1.0, rtol=0, atol=ONE_ULP)


def test_property_normalising_keeps_proportions_and_everything_else() -> None:
    problem = valid_problem()
    scaled = problem._replace(context_weights=np.asarray(problem.context_weights) * (1 + 1e-7))
    exact = normalize(scaled)
    np.testing.assert_allclose(exact.context_weights, problem.context_weights, atol=ONE_ULP)
    np.testing.assert_array_equal(exact.wins, problem.wins)
    assert exact.beta == problem.beta
