"""Reward classes: minima, regrets and projections against brute force; covering numbers."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded, log_covering_number

EXACT = 1e-12  # float64 after a handful of operations
SOLVE = 1e-9  # least squares on random features

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["box", "ball", "finite"])


def random_class(kind: str, rng: np.random.Generator) -> TabularBox | LinearBall | FiniteClass:
    if kind == "box":
        return TabularBox(np.array(rng.uniform(0.5, 4)))
    if kind == "ball":
        return LinearBall(rng.normal(size=(2, 3, 2)), np.array(rng.uniform(0.5, 3)))
    return FiniteClass(rng.uniform(0, 2, (4, 2, 3)))


def members(reward_class: Any, rng: np.random.Generator, n: int = 50) -> np.ndarray:
    """Draw random members, some of them on the boundary."""
    match reward_class:
        case TabularBox(maximum):
            inner = rng.uniform(0, maximum, (n, 2, 3))
            return np.concatenate([inner, maximum * rng.integers(0, 2, (n, 2, 3))])
        case LinearBall(features, radius):
            theta = rng.normal(size=(n, 2))
            length = rng.random(n) ** rng.integers(0, 2, n)  # half of them on the sphere
            theta *= (radius * length / np.linalg.norm(theta, axis=1))[:, None]
            return np.einsum("xad,nd->nxa", features, theta)
        case _:
            return np.asarray(reward_class.rewards)


@settings(max_examples=60, deadline=None)
@given(seeds, kinds)
def test_property_no_member_is_below_the_minimum(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    reward_class, direction = random_class(kind, rng), rng.normal(size=(2, 3))
    minimum = float(reward_class.linear_minimum(direction))
    values = np.einsum("nxa,xa->n", members(reward_class, rng), direction)
    assert values.min() >= minimum - EXACT


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_closed_form_the_minimum_is_attained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(2, 3))
    box, ball = random_class("box", rng), random_class("ball", rng)
    assert isinstance(box, TabularBox)
    assert isinstance(ball, LinearBall)
    corner = np.where(direction < 0, box.maximum, 0.0)
    assert float(box.linear_minimum(direction)) == pytest.approx(
        np.sum(corner * direction), rel=EXACT
    )
    image = np.einsum("xad,xa->d", ball.features, direction)
    lowest = np.asarray(ball.reward(-ball.radius * image / np.linalg.norm(image)))
    assert float(ball.linear_minimum(direction)) == pytest.approx(
        np.sum(lowest * direction), rel=EXACT
    )
    finite = random_class("finite", rng)
    assert isinstance(finite, FiniteClass)
    values = [np.sum(reward * direction) for reward in finite.rewards]
    assert float(finite.linear_minimum(direction)) == pytest.approx(min(values), rel=EXACT)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["box", "ball"]))
def test_property_linear_gap_is_the_distance_from_the_minimum_and_at_least_zero(
    seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    reward_class, direction = random_class(kind, rng), rng.normal(size=(2, 3))
    assert isinstance(reward_class, TabularBox | LinearBall)
    for member in members(reward_class, rng, 5):
        linear_gap = float(reward_class.linear_gap(direction, member))
        expected = np.sum(direction * member) - float(reward_class.linear_minimum(direction))
        assert linear_gap >= -EXACT
        assert linear_gap == pytest.approx(expected, rel=EXACT, abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_property_projection_is_the_nearest_member(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward = rng.normal(1.0, 2.0, (2, 3))
    box, finite = random_class("box", rng), random_class("finite", rng)
    assert isinstance(box, TabularBox)
    assert isinstance(finite, FiniteClass)
    inside, listed = np.asarray(box.project(reward)), np.asarray(finite.project(reward))
    assert inside.min() >= 0.0
    assert inside.max() <= box.maximum
    assert any(np.array_equal(listed, member) for member in np.asarray(finite.rewards))
    for reward_class, nearest in ((box, inside), (finite, listed)):
        apart = np.linalg.norm(members(reward_class, rng) - reward, axis=(1, 2))
        assert np.linalg.norm(nearest - reward) <= apart.min() + EXACT
        np.testing.assert_array_equal(reward_class.project(nearest), nearest)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_roundtrip_the_balls_parameter_and_its_projection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ball = random_class("ball", rng)
    assert isinstance(ball, LinearBall)
    theta = rng.normal(size=2)
    np.testing.assert_allclose(ball.parameter(ball.reward(theta)), theta, atol=SOLVE)
    table = rng.normal(1.0, 2.0, (2, 3))
    nearest = np.asarray(ball.project(table))
    assert np.linalg.norm(ball.parameter(nearest)) <= ball.radius * (1.0 + SOLVE)
    apart = np.linalg.norm(members(ball, rng) - table, axis=(1, 2))
    assert np.linalg.norm(nearest - table) <= apart.min() + EXACT
    np.testing.assert_allclose(ball.project(nearest), nearest, atol=SOLVE)
    # No member is farther in the direction from the projection to the table.
    assert float(ball.linear_gap(nearest - table, nearest)) <= SOLVE
    np.testing.assert_array_equal(ball.project(np.zeros((2, 3))), np.zeros((2, 3)))


def test_closed_form_every_table_is_a_member_of_the_unbounded_class() -> None:
    table = np.array([[1e9, -1e9, 0.0]])
    np.testing.assert_array_equal(Unbounded().project(table), table)


@pytest.mark.parametrize("epsilon", [0.5, 0.26, 0.1])
def test_closed_form_covering_number_of_the_box_counts_a_grid_that_covers(epsilon: float) -> None:
    maximum = 2.0
    count = np.exp(log_covering_number(TabularBox(np.array(maximum)), epsilon, 1))
    centers = (np.arange(round(count)) + 0.5) * maximum / round(count)
    points = np.linspace(0, maximum, 1001)
    assert np.abs(points[:, None] - centers).min(axis=1).max() <= epsilon + EXACT
    # One interval fewer could not cover: each covers at most 2 epsilon.
    assert (round(count) - 1) * 2 * epsilon < maximum
    three = log_covering_number(TabularBox(np.array(maximum)), epsilon, 3)
    assert three == pytest.approx(3 * np.log(count), rel=EXACT)


def test_property_covering_number_of_the_ball_exceeds_a_packing_of_it() -> None:
    """Points pairwise more than 2 epsilon apart in the sup norm need a ball each."""
    rng = np.random.default_rng(0)
    ball = LinearBall(rng.normal(size=(2, 3, 2)), np.array(1.0))
    for epsilon in (0.3, 0.1, 0.03):
        packing: list[np.ndarray] = []
        for member in members(ball, rng, 2000):
            if all(np.abs(member - alternative).max() > 2 * epsilon for alternative in packing):
                packing.append(member)
        assert log_covering_number(ball, epsilon, 2) >= np.log(len(packing))


def test_closed_form_covering_numbers() -> None:
    features = np.zeros((1, 2, 3))
    features[0, 1] = [0.0, 3.0, 4.0]
    ball = LinearBall(features, np.array(2.0))
    assert log_covering_number(ball, 0.1, 3) == pytest.approx(3 * np.log(201.0), rel=EXACT)
    finite = FiniteClass(np.zeros((7, 2, 3)))
    assert log_covering_number(finite, 0.1, 99) == pytest.approx(np.log(7.0), rel=EXACT)
    assert log_covering_number(TabularBox(np.array(1.0)), 10.0, 5) == 0.0


def test_raises_for_a_covering_number_that_does_not_exist() -> None:
    bad: list[tuple[Any, float, int, str]] = [
        (TabularBox(1.0), 0.0, 3, "`epsilon` must be greater than 0, got 0.0"),
        (TabularBox(1.0), np.nan, 3, "`epsilon` must be greater than 0, got nan"),
        (TabularBox(1.0), 0.1, -3, "`n_parameters` must be greater than 0, got -3"),
        (Unbounded(), 0.1, 3, "`reward_class` must be compact, got Unbounded"),
    ]
    for reward_class, epsilon, n_parameters, message in bad:
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(log_covering_number)(reward_class, epsilon, n_parameters)
