"""Validation names the field and the index of a mistake; constructors count and normalize."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo_theory.labeled_problems import (
    problem_from_choices,
    problem_from_rankings,
    problem_from_votes,
    wins_from_votes,
)
from rpo_theory.problems import (
    PROBABILITY_TOLERANCE,
    InvalidProblemError,
    normalize,
    problem_from_wins,
    validate,
    validate_policy,
    validate_reward,
)
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem

ONE_ULP = 2.3e-16
"""Rounding error of a sum of three probabilities: two roundings."""


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
    arrays: list[Any] = [jnp.asarray(field, jnp.float32) for field in valid_problem()[:6]]
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
def test_raises_names_the_field_the_index_and_the_rule(
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
def test_property_probabilities_may_miss_one_by_the_tolerance_and_no_more(multiple: float) -> None:
    reference = valid_problem().reference_policy * (1.0 + multiple * PROBABILITY_TOLERANCE)
    nearly = valid_problem()._replace(reference_policy=reference)
    missed = np.abs(reference.sum(axis=1) - 1.0).max()
    if missed > PROBABILITY_TOLERANCE:
        with pytest.raises(InvalidProblemError, match="must sum to one"):
            validate(nearly, Unbounded())
    else:
        validate(nearly, Unbounded())
        # Exact sums: np.sum would add a rounding error of its own. Sums within the rounding of
        # three additions are left alone.
        sums = [math.fsum(row) for row in normalize(nearly).reference_policy]
        np.testing.assert_allclose(sums, 1.0, rtol=0, atol=3 * np.finfo(float).eps)


def test_property_normalizing_keeps_proportions_and_everything_else() -> None:
    problem = valid_problem()
    scaled = problem._replace(context_weights=np.asarray(problem.context_weights) * (1 + 1e-7))
    exact = normalize(scaled)
    np.testing.assert_allclose(exact.context_weights, problem.context_weights, atol=ONE_ULP)
    np.testing.assert_array_equal(exact.wins, problem.wins)
    assert exact.beta == problem.beta


WINS = np.array([[[0, 3, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]])
"""Four comparisons in the first of two contexts, none in the second."""


def test_closed_form_from_wins_takes_uniform_reference_and_chosen_baseline() -> None:
    problem = Problem.from_wins(WINS, beta=0.5, eta=0.25)
    np.testing.assert_array_equal(problem.reference_policy, np.full((2, 3), 1 / 3))
    np.testing.assert_array_equal(problem.baseline_policy, [[0.75, 0.25, 0.0], [1 / 3] * 3])
    np.testing.assert_array_equal(problem.context_weights, [1.0, 0.0])
    np.testing.assert_array_equal(problem.wins, WINS)
    assert (problem.beta, problem.eta) == (0.5, 0.25)
    assert all(np.asarray(field).dtype == np.float64 for field in problem[:6])


def test_closed_form_from_wins_takes_what_is_given() -> None:
    reference = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    weights = np.array([0.25, 0.75])
    problem = Problem.from_wins(
        jnp.asarray(WINS, jnp.float32),
        beta=jnp.asarray(0.5),
        eta=np.array(0.0),
        context_weights=weights,
        reference_policy=reference,
        baseline_policy="reference",
    )
    np.testing.assert_array_equal(problem.baseline_policy, reference)
    np.testing.assert_array_equal(problem.context_weights, weights)
    fallback = Problem.from_wins(WINS, beta=0.5, eta=0.0, reference_policy=reference)
    np.testing.assert_array_equal(fallback.baseline_policy[1], reference[1])
    uniform = Problem.from_wins(
        WINS, beta=0.5, eta=0.0, context_weights="uniform", baseline_policy=reference
    )
    np.testing.assert_array_equal(uniform.context_weights, [0.5, 0.5])
    np.testing.assert_array_equal(uniform.baseline_policy, reference)


BAD_WINS: list[tuple[dict[str, Any], str]] = [
    ({"wins": np.zeros((2, 3))}, "`wins` must have shape (contexts, actions, actions)"),
    ({"wins": np.zeros((1, 2, 3))}, "`wins` must have shape (contexts, actions, actions)"),
    ({"wins": changed(WINS, (0, 1, 2), -1.0)}, "`wins[0][1][2]` must be at least 0"),
    ({"wins": changed(WINS, (1, 2, 2), 4.0)}, "`wins[1][2][2]` must be 0, got 4: an action cannot"),
    ({"wins": np.eye(2)[None]}, "`wins[0][0][0]` must be 0, got 1: an action cannot be compared"),
    ({"wins": np.zeros((1, 2, 2))}, "`context_weights` must be 'uniform' or an array if there"),
    ({"context_weights": np.ones(2)}, "`context_weights` must sum to one, got a sum of 2"),
    ({"reference_policy": np.ones((2, 3))}, "`reference_policy[0]` must sum to one"),
    ({"reference_policy": np.ones((1, 3)) / 3}, "`reference_policy` must have shape (2, 3)"),
    ({"baseline_policy": np.ones((2, 3))}, "`baseline_policy[0]` must sum to one"),
    ({"beta": 0.0}, "`beta` must be greater than 0, got 0"),
    ({"eta": -1.0}, "`eta` must be at least 0, got -1"),
    ({"wins": [[[0, 1], [1]]]}, "`wins` must hold rows of equal lengths"),
    ({"wins": WINS.astype(str)}, "`wins` must hold real numbers: got text"),
    ({"wins": np.ma.array(WINS, mask=WINS > 0)}, "`wins` must not have masked entries"),
    ({"reference_policy": [[1], [1, 2]]}, "`reference_policy` must hold rows of equal lengths"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_WINS)
def test_raises_what_from_wins_refuses(arguments: dict[str, Any], message: str) -> None:
    # Without the type checks of the test run, which refuse wrong shapes first.
    from_wins = inspect.unwrap(problem_from_wins)
    with pytest.raises(InvalidProblemError) as caught:
        from_wins(**({"wins": WINS, "beta": 0.1, "eta": 0.1} | arguments))
    assert str(caught.value).startswith(message)


VOTES = (["q", "q", "p", "q"], ["ada", "ada", "eve", "bob"], ["bob", "bob", "ada", "ada"])


def test_closed_form_from_votes_counts_votes_in_the_order_of_the_sorted_labels() -> None:
    problem = Problem.from_votes(*VOTES, beta=0.5, eta=0.1)
    wins = np.zeros((2, 3, 3))
    wins[0, 2, 0] = 1  # p: eve beats ada
    wins[1, 0, 1], wins[1, 1, 0] = 2, 1  # q: ada beats bob twice and loses once
    np.testing.assert_array_equal(problem.wins, wins)
    np.testing.assert_array_equal(problem.context_weights, [0.25, 0.75])


def test_closed_form_from_votes_gives_no_mass_to_the_actions_of_other_contexts() -> None:
    problem = Problem.from_votes(*VOTES, beta=0.5, eta=0.1)
    expected = [[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]  # p: ada and eve; q: ada and bob
    np.testing.assert_array_equal(problem.reference_policy, expected)
    more = Problem.from_votes(*VOTES, beta=0.5, eta=0.1, context_labels=["q", "p", "empty"])
    np.testing.assert_allclose(more.reference_policy, [*expected[::-1], [1 / 3] * 3], rtol=1e-15)
    third = np.full((2, 3), 1 / 3)
    labels: dict[str, Any] = {"context_labels": None, "action_labels": None}
    given = problem_from_votes(*VOTES, None, beta=0.5, eta=0.1, reference_policy=third, **labels)
    np.testing.assert_allclose(given.reference_policy, 1 / 3, rtol=1e-15)


def test_property_counts_stand_for_repeated_votes_and_labels_set_the_order() -> None:
    contexts, winners, losers = ([column[i] for i in (0, 2, 3)] for column in VOTES)
    short = Problem.from_votes(contexts, winners, losers, [2, 1, 1], beta=0.5, eta=0.1)
    np.testing.assert_array_equal(short.wins, Problem.from_votes(*VOTES, beta=0.5, eta=0.1).wins)
    order = [2, 1, 0, 3]
    reordered = Problem.from_votes(
        *VOTES, beta=0.5, eta=0.1, action_labels=["eve", "bob", "ada", "dan"]
    )
    padded = np.pad(np.asarray(short.wins), ((0, 0), (0, 1), (0, 1)))
    np.testing.assert_array_equal(reordered.wins, padded[:, order][:, :, order])


def test_property_from_votes_takes_indices_in_numpy_arrays() -> None:
    columns = [np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([0, 0, 1])]
    problem = Problem.from_votes(*columns, beta=0.5, eta=0.1)
    np.testing.assert_array_equal(problem.wins, [[[0, 0], [2, 0]], [[0, 1], [0, 0]]])


BAD_VOTES: list[tuple[dict[str, Any], str]] = [
    ({"losers": ["bob"]}, "`contexts`, `winners` and `losers` must have one entry per vote, got 4"),
    ({"counts": [1, 1, 1]}, "`counts` must have shape (4,), got shape (3,)"),
    ({"counts": [1, 1, -1, 1]}, "`counts[2]` must be at least 0, got -1"),
    ({"winners": ["ada", 1, 2, 3]}, "`action_labels` must be given if the labels have no order"),
    ({"action_labels": ["ada", "bob"]}, "`winners[2]` must be one of the given labels, got 'eve'"),
    ({"context_labels": ["q", "q", "p"]}, "`context_labels` must not repeat a label, got 3"),
    ({"contexts": [], "winners": [], "losers": []}, "`contexts` must have at least one vote"),
    ({"winners": ["ada", "ada ", "eve", "bob"]}, "`winners[1]` 'ada ' differs from 'ada' (vote 0)"),
    ({"losers": ["bob", "bob", "ada", "Ada"]}, "`losers[3]` 'Ada' differs from 'ada' (vote 0)"),
    ({"contexts": ["q", "q", "p", "\uff51"]}, "`contexts[3]` '\\uff51' differs from 'q' (vote 0)"),
    ({"losers": ["bob", "ada", "ada", "ada"]}, "`losers[1]` must differ from the winner"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_VOTES)
def test_raises_what_from_votes_refuses(arguments: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = dict(zip(("contexts", "winners", "losers"), VOTES, strict=True))
    votes: dict[str, Any] = columns | {"beta": 0.5, "eta": 0.1} | arguments
    with pytest.raises(ValueError, match=r"^`") as caught:
        Problem.from_votes(**votes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_closed_form_wins_from_votes_adds_up_equal_votes() -> None:
    wins = wins_from_votes(
        ["q", "q", "q"],
        ["b", "b", "a"],
        ["a", "a", "b"],
        [3, 1, 2],
        context_labels=["p", "q"],
        action_labels=["a", "b"],
    )
    np.testing.assert_array_equal(wins, [[[0, 0], [0, 0]], [[0, 2], [4, 0]]])


def test_raises_a_vote_of_an_action_against_itself() -> None:
    with pytest.raises(ValueError, match=r"`losers\[1\]` must differ from the winner .* got 'x'"):
        Problem.from_votes(["a", "a"], ["x", "x"], ["y", "x"], beta=0.5, eta=0.1)


def test_raises_names_a_column_of_votes_that_is_no_column() -> None:
    columns: dict[str, Any] = {"contexts": ["q"], "winners": ["a"], "losers": ["b"], "counts": [1]}
    for name in columns:
        changed: dict[str, Any] = columns | {name: 2}
        with pytest.raises((ValueError, TypeError), match=name):
            wins_from_votes(**changed)


def test_closed_form_rankings_and_choices_of_two_are_wins() -> None:
    options: dict[str, Any] = {"beta": 1.0, "eta": 1.0, "reference_policy": None}
    options |= {"context_labels": None, "action_labels": None}
    ranked = problem_from_rankings(["q"], [["ada", "bob"]], [3], **options)
    chosen = problem_from_choices(["q"], [["bob", "ada"]], ["ada"], [3], **options)
    for problem in (ranked, chosen):
        assert np.asarray(problem.wins).tolist() == [[[0.0, 3.0], [0.0, 0.0]]]
        assert problem.choices is None
