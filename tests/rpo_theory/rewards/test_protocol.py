"""Optional attributes of the built-in classes, which the solvers and the checks use."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.array_checks import InvalidProblemError
from rpo_theory.numerics import box_slots
from rpo_theory.rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Minimum,
    Polytope,
    TabularBox,
    Unbounded,
)
from rpo_theory.rewards.unbounded import in_wide_box
from rpo_theory.types import Problem

SHAPE = (1, 2)
GRAM = np.array([[2.0, 1.0], [1.0, 3.0]])
FEATURES = np.array([[[1.0, 0.0], [1.0, 2.0]]])


@pytest.mark.parametrize(
    ("reward_class", "field"),
    [
        (TabularBox(0.0), "maximum"),
        (LinearBall(FEATURES[:, :1], 1.0), "features"),
        (FiniteClass(np.zeros((3, 2, 2))), "rewards"),
        (KernelBall(-GRAM, 1.0), "gram"),
        (Lipschitz(-1.0, np.zeros((2, 2)), 1.0), "constant"),
        (Polytope(np.zeros((1, 1, 3)), np.ones(1), 1.0), "matrix"),
    ],
)
def test_raises_for_the_field_that_is_wrong(reward_class: Any, field: str) -> None:
    with pytest.raises(InvalidProblemError, match=rf"`reward_class\.{field}"):
        reward_class.check_fields(SHAPE)


def test_closed_form_bounds_and_kinds_of_classes() -> None:
    assert TabularBox(2.0).entry_bounds() == (0.0, 2.0)
    assert TabularBox(2.0).kernel_width() == 2.0
    assert Unbounded().entry_bounds() == (-np.inf, np.inf)
    assert not Unbounded().is_compact
    assert not FiniteClass(np.zeros((1, *SHAPE))).is_convex


def test_property_padding_adds_zeros_and_keeps_the_rest() -> None:
    def to_four(size: int) -> int:
        return 4 * -(-size // 4)

    assert TabularBox(2.0).padded(1, 2, to_four) == TabularBox(2.0)
    members = np.asarray(FiniteClass(np.ones((3, *SHAPE))).padded(1, 2, to_four).rewards)
    assert members.shape == (3, 2, 4)
    assert members.sum() == 6.0
    features = np.asarray(LinearBall(FEATURES, 1.0).padded(1, 2, to_four).features)
    assert features.shape == (2, 4, 4)
    np.testing.assert_array_equal(features[:1, :2, :2], FEATURES)
    assert features.sum() == FEATURES.sum()


def test_closed_form_features_of_a_kernel_ball_have_its_gram_matrix() -> None:
    features, radius = KernelBall(GRAM, 0.5).linear_form(SHAPE)
    flat = np.asarray(features).reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, GRAM, atol=1e-14)
    assert radius == 0.5
    assert LinearBall(FEATURES, 0.5).linear_form(SHAPE) == (FEATURES, 0.5)


def test_closed_form_the_move_of_a_ball_is_zero_at_a_minimizer() -> None:
    ball, direction = LinearBall(FEATURES, 0.5), jnp.array([[1.0, -2.0]])
    lowest = ball.linear_minimizer(direction)
    np.testing.assert_allclose(ball.gradient_move(lowest, direction), 0.0, atol=1e-14)
    assert np.linalg.norm(ball.gradient_move(-lowest, direction)) > 0.5


def test_limit_a_wide_box_grows_until_its_bounds_are_inactive() -> None:
    def solver(width: Any) -> Minimum:
        reward = jnp.minimum(1e4, 0.5 * width) * jnp.array([[1.0, -1.0]])
        return Minimum(reward, jnp.zeros(()), jnp.zeros((), jnp.int32))

    np.testing.assert_array_equal(in_wide_box(solver, jnp.array(1.0)).reward, [[1e4, -1e4]])


def test_closed_form_a_batch_of_boxes_with_one_comparison() -> None:
    """Minimize eta (log mean exp r - r(1)) + log(1 + exp(r(1) - r(0))) over the difference."""
    even, wins = np.full((2, 1, 2), 0.5), np.array([[[[0.0, 1.0], [0.0, 0.0]]]] * 2)
    eta = np.array([4.0, 0.5])
    problems = Problem(np.ones((2, 1)), even, even, wins, beta=np.ones(2), eta=eta)
    leaves: list[Any] = [jnp.asarray(leaf) for leaf in problems[:6]]
    problems = Problem(*leaves)
    box = TabularBox(jnp.array([9.0, 9.0]))
    solved = box_slots.solve_in_slots(
        problems, jnp.asarray(box.maximum), tolerance=1e-13, max_steps=100
    )
    difference = np.asarray(solved.reward[:, 0, 0] - solved.reward[:, 0, 1])
    reward = solved.reward + 4.5
    # The policy moves by the surprise over eta: s = eta (policy - 1/2), with s = 1 - sigma(d).
    policy, value, gap = box.conclude_batch(problems, reward)
    surprise = 1.0 / (1.0 + np.exp(difference))
    np.testing.assert_allclose(eta * (np.asarray(policy)[:, 0, 0] - 0.5), surprise, atol=1e-12)
    loss = np.log1p(np.exp(-difference))
    center = np.log(0.5 * (np.exp(difference) + 1.0)) - 0.5 * difference
    np.testing.assert_allclose(value, eta * center + loss, atol=1e-12)
    np.testing.assert_allclose(gap, 0.0, atol=1e-10)
    again = box_slots.conclude(problems, jnp.asarray(box.maximum), reward)
    np.testing.assert_array_equal(again[1], value)


def test_closed_form_slots_fill_the_cache_or_hold_all_blocks() -> None:
    assert box_slots.n_slots(4, 10**6) == 1024
    assert box_slots.n_slots(4, 10) == 10
    assert box_slots.n_slots(60, 10**6) == 1
