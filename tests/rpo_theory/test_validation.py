"""Solvers, bounds and coverage refuse invalid arguments by name, before they compute anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import bounds, direct, maximin, minimax
from rpo_theory.adversary import adversarial_reward
from rpo_theory.array_checks import MAY_BE_UNKNOWN
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.density_ratio import density_ratio_bound
from rpo_theory.labels import LabelSpellings
from rpo_theory.preference_data import DavidsonTies
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem
from rpo_theory.validation import (
    InvalidProblemError,
    at_least_zero,
    is_traced,
    numbers,
    plain_array,
    solver_arguments,
    validate_batch,
    validate_reward_class,
    validate_support,
)

SOLVERS = [minimax, maximin, direct]
THIRDS = np.full((1, 3), 1 / 3)
WINS = np.array([[[0.0, 3.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]])
GOOD = Problem(np.ones(1), THIRDS, THIRDS, WINS, beta=0.5, eta=0.3)

BAD: list[tuple[dict[str, Any], str]] = [
    ({"baseline_policy": np.array([[-0.5, 1.0, 0.5]])}, "`baseline_policy[0][0]` must be at least"),
    ({"baseline_policy": np.array([[0.5, 0.5]])}, "`baseline_policy` must have shape (1, 3), got"),
    ({"reference_policy": np.array([[0.9, 0.2, 0.1]])}, "`reference_policy[0]` must sum to one"),
    ({"reference_policy": np.ones(3) / 3}, "`reference_policy` must have one row per context"),
    ({"context_weights": np.array([0.7])}, "`context_weights` must sum to one, got a sum of 0.7"),
    ({"context_weights": np.array([0.5, 0.5])}, "`context_weights` must have shape (1,), got"),
    ({"wins": -WINS}, "`wins[0][0][1]` must be at least 0, got -3"),
    ({"wins": WINS[0]}, "`wins` must have shape (1, 3, 3), got shape (3, 3)"),
    ({"beta": -1.0}, "`beta` must be greater than 0, got -1"),
    ({"beta": 0}, "`beta` must be greater than 0, got 0"),
    ({"beta": np.nan}, "`beta` must be finite, got nan"),
    ({"beta": 10**400}, "`beta` must hold real numbers"),
    ({"beta": np.ones(1)}, "`beta` must have shape (), got shape (1,)"),
    ({"eta": -0.1}, "`eta` must be at least 0, got -0.1"),
    ({"eta": np.inf}, "`eta` must be finite, got inf"),
    ({"eta": "many"}, "`eta` must hold real numbers"),
    ({"eta": 1j}, "`eta` must hold real numbers"),
    ({"wins": [[[0, 1], [1]]]}, "`wins` must hold rows of equal lengths"),
    ({"reward_class": TabularBox(-1.0)}, "`reward_class.maximum` must be greater than 0, got -1"),
    ({"reward_class": TabularBox(np.ones(2))}, "`reward_class.maximum` must have shape ()"),
    ({"reward_class": LinearBall(np.ones((1, 3)), 1.0)}, "`reward_class.features` must have shape"),
    ({"reward_class": LinearBall(np.ones((1, 3, 2)), -2.0)}, "`reward_class.radius` must be great"),
    ({"reward_class": LinearBall(np.ones((1, 2, 2)), 2.0)}, "`reward_class.features` must have sh"),
    ({"reward_class": FiniteClass(np.ones((2, 3)))}, "`reward_class.rewards` must have shape (k,"),
    ({"reward_class": FiniteClass(np.full((1, 1, 3), np.nan))}, "`reward_class.rewards[0][0][0]`"),
    ({"tolerance": 0.0}, "`tolerance` must be a finite number greater than 0, got 0.0"),
    ({"tolerance": np.nan}, "`tolerance` must be a finite number greater than 0, got nan"),
    ({"max_steps": 0}, "`max_steps` must be a whole number of at least 1, got 0"),
    ({"max_steps": True}, "`max_steps` must be a whole number of at least 1, got True"),
    ({"max_steps": 2**40}, "`max_steps` must be less than 2^31, got 1099511627776"),
    ({"wins": np.ma.array(WINS, mask=WINS > 2)}, "`wins` must not have masked entries"),
    ({"wins": WINS.astype(str)}, "`wins` must hold real numbers: got text"),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_raises_every_solver_names_the_argument(
    solver: Any, changes: dict[str, Any], message: str
) -> None:
    options = {key: value for key, value in changes.items() if key not in Problem._fields}
    problem = GOOD._replace(**{key: changes[key] for key in changes if key in Problem._fields})
    arguments = {"problem": problem, "reward_class": TabularBox(2.0), **options}
    with pytest.raises(ValueError) as raised:
        inspect.unwrap(solver.solve)(**arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_class": "box"}, "`reward_class` must have a method `project`, got str"),
        ({"problem": (1, 2)}, "`problem` must be a Problem, got tuple"),
        ({"max_steps": 2.5}, "`max_steps` must be a whole number of at least 1, got 2.5"),
        ({"max_steps": np.inf}, "`max_steps` must be a whole number of at least 1, got inf"),
        ({"max_steps": None}, "`max_steps` must be a whole number of at least 1, got None"),
        ({"tolerance": "1e-9"}, "`tolerance` must be a finite number greater than 0, got '1e-9'"),
        ({"tolerance": np.ones(2)}, "`tolerance` must be a finite number greater than 0, got arr"),
    ],
)
def test_raises_for_arguments_of_another_type(changes: dict[str, Any], message: str) -> None:
    # The solvers' own type checks, which only the test run has, would refuse them first.
    arguments = {"problem": GOOD, "reward_class": TabularBox(2.0), "tolerance": 1e-9}
    arguments |= {"max_steps": 9, "throw": True, "batch": False}
    with pytest.raises(ValueError) as raised:
        inspect.unwrap(solver_arguments)(**(arguments | changes))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
def test_raises_a_batch_names_the_problem_in_its_index(solver: Any) -> None:
    solve_batch = inspect.unwrap(solver.solve_batch)
    batch = jax.tree.map(lambda field: np.stack([np.asarray(field)] * 3), GOOD)
    weights = np.array([0.5, 0.5, -1.0])
    with pytest.raises(InvalidProblemError, match=r"`beta\[2\]` must be greater than 0, got -1"):
        solve_batch(batch._replace(beta=weights), TabularBox(2.0))
    boxes = TabularBox(np.array([1.0, 0.0, 1.0]))
    with pytest.raises(InvalidProblemError, match=r"`reward_class.maximum\[1\]` must be greater"):
        solve_batch(batch, boxes, throw=False)
    with pytest.raises(InvalidProblemError, match=r"`reward_class.maximum` must have shape \(3,\)"):
        solve_batch(batch, TabularBox(np.ones(2)))
    with pytest.raises(InvalidProblemError, match=r"must have shape \(problems, contexts, actions"):
        solve_batch(GOOD, TabularBox(2.0))
    with pytest.raises(InvalidProblemError, match="must have one row per context"):
        inspect.unwrap(solver.solve)(batch, TabularBox(2.0))


def test_property_numbers_that_are_not_finite_may_be_left_to_the_status() -> None:
    batch = jax.tree.map(lambda field: np.stack([np.asarray(field)] * 2), GOOD)
    for field in range(6):
        arrays: list[Any] = [np.array(array) for array in batch[:6]]
        arrays[field].reshape(-1)[-1] = np.inf
        validate_batch(Problem(*arrays), Unbounded(), finite=False)
        with pytest.raises(InvalidProblemError, match="must be finite"):
            validate_batch(Problem(*arrays), Unbounded())


def test_roundtrip_solvers_take_lists_and_integers() -> None:
    lists = Problem([1], THIRDS.tolist(), THIRDS.tolist(), WINS.tolist(), beta=1, eta=1)  # pyright: ignore[reportArgumentType]
    options = {"tolerance": 1e-9, "max_steps": 9, "throw": True, "batch": False}
    problem, box = inspect.unwrap(solver_arguments)(lists, TabularBox(2), **options)
    np.testing.assert_array_equal(problem.wins, WINS)
    assert box.maximum.shape == ()


TERMS: dict[str, Any] = {"n_pairs": 100, "complexity": 2.0, "coverage": 1.0}
WEIGHTED = TERMS | {"modulus": 0.1, "eta": 0.2}


@pytest.mark.parametrize(
    ("function", "terms", "name"),
    [
        (bounds.suboptimality_bound, WEIGHTED | {"beta": 0.1, "kl": 0.2}, "beta"),
        (bounds.suboptimality_bound, WEIGHTED | {"beta": 0.1, "kl": 0.2}, "eta"),
        (bounds.regularized_gap_bound, WEIGHTED, "modulus"),
        (bounds.theorem_bound_printed, TERMS | {"reward_max": 1.0, "kl": 0.1}, "kl"),
        (bounds.theorem_bound_corrected, TERMS | {"reward_max": 1.0, "kl": 0.1}, "n_pairs"),
        (bounds.theorem_bound_tight, TERMS | {"reward_max": 1.0, "kl": 0.1}, "reward_max"),
        (bounds.tuned_eta, {**TERMS, "modulus": 0.1}, "coverage"),
        (bounds.theorem_beta, {"n_pairs": 4}, "n_pairs"),
        (bounds.covering_scale, {"n_pairs": 4, "reward_max": 1.0}, "n_pairs"),
        (bounds.printed_modulus, {"reward_max": 1.0}, "reward_max"),
        (bounds.tight_modulus, {"reward_max": 1.0}, "reward_max"),
    ],
)
def test_raises_every_bound_names_the_term(
    function: Callable[..., Any], terms: dict[str, Any], name: str
) -> None:
    function(**terms)
    if name in MAY_BE_UNKNOWN:
        assert np.isnan(function(**(terms | {name: np.nan})))
    for bad in (-1.0, -1.0 if name in MAY_BE_UNKNOWN else np.nan, np.array([1.0, -2.0])):
        with pytest.raises(ValueError, match=rf"`{name}` must be (greater than|at least) 0, got"):
            function(**(terms | {name: bad}))
    jax.jit(lambda value: function(**(terms | {name: value})))(-1.0)  # traced: not checked


def test_raises_coverage_and_the_adversary_name_the_argument() -> None:
    halves, pairs = np.array([[0.5, 0.5]]), np.ones((1, 2, 2))
    arguments: dict[str, Any] = {
        "true_reward": np.zeros((1, 2)),
        "comparator": halves,
        "baseline": halves,
        "context_weights": np.ones(1),
        "pair_distribution": pairs,
    }
    unchecked = inspect.unwrap(coverage_coefficient)
    with pytest.raises(ValueError, match=r"`reward_class.maximum\[0\]` must be greater than 0"):
        unchecked(TabularBox(-1.0), **arguments)
    with pytest.raises(ValueError, match=r"`reward_class.radius\[0\]` must be greater than 0"):
        unchecked(LinearBall(np.ones((1, 2, 1)), -1.0), **arguments)
    with pytest.raises(ValueError, match=r"`comparator\[0\]` must sum to one"):
        density_ratio_bound(halves * 2, halves, np.ones(1), pairs)
    with pytest.raises(ValueError, match=r"`pair_distribution\[0\]\[0\]\[0\]` must be at least 0"):
        density_ratio_bound(halves, halves, np.ones(1), -pairs)
    with pytest.raises(ValueError, match=r"`context_weights` must sum to one"):
        bounds.prompt_shift_factor(np.ones(1), np.array([0.5]))
    adversary = inspect.unwrap(adversarial_reward)
    with pytest.raises(ValueError, match=r"`reward_class` must be compact, got Unbounded"):
        adversary(GOOD, Unbounded(), THIRDS)
    with pytest.raises(ValueError, match=r"`policy\[0\]` must sum to one"):
        adversary(GOOD, TabularBox(2.0), 2 * THIRDS)
    with pytest.raises(ValueError, match=r"`beta` must be greater than 0"):
        adversary(GOOD._replace(beta=-1.0), TabularBox(2.0), THIRDS)


def test_closed_form_the_parts_of_the_checks() -> None:
    assert numbers("a", jnp.ones(2), (2,)).dtype == np.float64
    with pytest.raises(InvalidProblemError, match=r"`a\[1\]` must be at least 0, got -2"):
        at_least_zero("a", np.array([0.0, -2.0]))
    with pytest.raises(
        InvalidProblemError, match=r"must have shape \(5, k, 1, 2\) with k at least"
    ):
        validate_reward_class(FiniteClass(np.ones((5, 0, 1, 2))), (1, 2), (5,))
    assert not is_traced({"a": np.ones(2), "b": 1.0})
    assert bool(jax.jit(is_traced)(np.ones(2)))
    names = LabelSpellings(fold_case=False)
    names.check("winner", "GPT", "line 2")
    names.check("winner", "gpt", "line 3")  # case matters here
    with pytest.raises(ValueError, match=r"`winner` 'g\\u200bpt' differs from 'gpt' \(line 3\)"):
        names.check("winner", "g\u200bpt", "line 4")


def test_raises_for_ragged_rows_and_masked_entries() -> None:
    assert plain_array("wins", [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InvalidProblemError, match="`wins` must hold rows of equal lengths"):
        plain_array("wins", [[1, 2], [3]])
    with pytest.raises(InvalidProblemError, match="`wins` must not have masked entries"):
        plain_array("wins", np.ma.masked_equal([1, 2], 2))


def test_raises_a_baseline_outside_of_the_support_with_ties_and_unbounded_rewards() -> None:
    half = np.array([[0.5, 0.5, 0.0]])
    problem = GOOD._replace(reference_policy=half, ties=DavidsonTies(np.zeros((1, 3, 3)), 1.0))
    with pytest.raises(InvalidProblemError, match=r"`baseline_policy\[0\]\[2\]` must be 0 where"):
        validate_support(problem, Unbounded())
    validate_support(problem, TabularBox(1.0))
    validate_support(problem._replace(ties=None), Unbounded())
    validate_support(problem._replace(baseline_policy=half), Unbounded())
