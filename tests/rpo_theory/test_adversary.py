"""Claims about the adversarial reward of a policy, against calculations by hand."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from rpo_theory.adversary import adversarial_reward
from rpo_theory.numerics.box_interior_point import prompt_blocks
from rpo_theory.objectives import saddle_objective
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem

BESIDE = 1e-9  # the solvers stop at 1e-13 of a scaled objective


def problem(wins: np.ndarray, *, eta: float = 0.5) -> Problem:
    """Return one context with uniform reference and the last response as baseline."""
    n = wins.shape[-1]
    even, last = np.full((1, n), 1.0 / n), np.eye(n)[-1:]
    return Problem(np.ones(1), even, last, wins[None], np.array(1.0), np.array(eta))


def test_closed_form_without_data_the_adversary_goes_to_the_corner_of_the_box() -> None:
    policy = np.array([[0.7, 0.2, 0.1]])
    one = problem(np.zeros((3, 3)))
    worst = adversarial_reward(one, TabularBox(jnp.array(2.0)), policy)
    # phi is linear with gradient eta (policy - baseline), positive for two responses only.
    np.testing.assert_allclose(worst, [[0.0, 0.0, 2.0]], atol=BESIDE)


def test_closed_form_without_data_the_adversary_goes_to_the_boundary_of_the_ball() -> None:
    policy = np.array([[0.7, 0.3]])
    features = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    worst = adversarial_reward(
        problem(np.zeros((2, 2))), LinearBall(features, np.array(1.5)), policy
    )
    # The gradient is eta (0.7, -0.7): the parameter has the opposite direction and norm 1.5.
    np.testing.assert_allclose(worst, [[-1.5 / np.sqrt(2), 1.5 / np.sqrt(2)]], atol=BESIDE)


def test_closed_form_of_a_finite_class_the_smallest_objective_is_chosen() -> None:
    policy, wins = np.array([[0.5, 0.5]]), np.array([[0.0, 3.0], [1.0, 0.0]])
    members = jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    one = problem(wins)
    values = [float(saddle_objective(one, policy, member)) for member in members]
    worst = adversarial_reward(one, FiniteClass(members), policy)
    np.testing.assert_array_equal(worst, members[int(np.argmin(values))])


def test_closed_form_data_balance_the_adversary_inside_the_box() -> None:
    policy, wins = np.array([[0.6, 0.4]]), np.array([[0.0, 3.0], [1.0, 0.0]])
    one = problem(wins, eta=0.1)
    worst = np.asarray(adversarial_reward(one, TabularBox(jnp.array(10.0)), policy))[0]
    # eta (0.6 - 0) = 3/4 sigmoid(-d) - 1/4 sigmoid(d), that is sigmoid(d) = 3/4 - 0.06.
    share = 0.75 - 0.06
    assert worst[0] - worst[1] == pytest.approx(np.log(share / (1 - share)), abs=1e-7)


def test_closed_form_blocks_hold_one_context_divided_by_its_weight() -> None:
    wins = np.zeros((2, 2, 2))
    wins[0, 0, 1], wins[1, 1, 0] = 3.0, 1.0
    even = np.full((2, 2), 0.5)
    two = Problem(np.array([0.25, 0.75]), even, even, wins, np.array(2.0), np.array(0.4))
    blocks = prompt_blocks(two, jnp.array(5.0))
    scale = 0.4 * np.array([0.25, 0.75]) + np.array([3.0, 1.0]) / 4.0
    np.testing.assert_allclose(blocks.adversary_weight, 0.4 * np.array([0.25, 0.75]) / scale)
    np.testing.assert_allclose(blocks.data_weight, 1.0 / (4.0 * scale))
    np.testing.assert_array_equal(blocks.wins, np.moveaxis(wins, 0, -1))
    np.testing.assert_array_equal(blocks.beta, [2.0, 2.0])
    np.testing.assert_array_equal(blocks.width, [5.0, 5.0])


def test_raises_for_a_class_without_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    one, policy = problem(np.zeros((2, 2))), np.full((1, 2), 0.5)
    cases: list[tuple[Any, str]] = [
        (None, "must have a method `project`"),
        (Unbounded(), "must be compact"),
        (TabularBox, "must be an instance"),
    ]
    for reward_class, rule in cases:
        with pytest.raises(ValueError, match=f"`reward_class` {rule}"):
            adversarial_reward(one, reward_class, policy)
