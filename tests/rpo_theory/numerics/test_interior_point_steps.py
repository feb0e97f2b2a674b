"""Claims about the Newton methods themselves: where they start, step and end, by problems in hand.

Two responses, one compared with the other four times, and an adversary of no weight: the reward is
the one of maximum likelihood, which is the logarithm of the odds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.numerics import (
    ball_interior_point,
    box_interior_point,
    projected_newton,
    saddle_interior_point,
)
from rpo_theory.numerics.feasible_sets import Free
from rpo_theory.numerics.projected_newton import Descent, NewtonProblem
from rpo_theory.types import Problem

TOLERANCE = 1e-12
CLOSE = 1e-8
LOG_ODDS = np.log(3.0)
WINS = np.array([[0.0, 3.0], [1.0, 0.0]])
EVEN = np.full(2, 0.5)


def blocks(width: float) -> box_interior_point.Blocks:
    one = np.ones(1)
    even = EVEN[:, None]
    return box_interior_point.Blocks(
        *map(jnp.asarray, (even, even, WINS[..., None], 0 * one, 0.25 * one, one, width * one))
    )


@pytest.mark.parametrize(("width", "expected"), [(4.0, LOG_ODDS), (1.0, 1.0)])
def test_closed_form_the_box_method_ends_at_the_log_odds_or_at_the_bounds(
    width: float, expected: float
) -> None:
    actual = box_interior_point.solve(blocks(width), tolerance=TOLERANCE, max_steps=60)
    assert actual.done.tolist() == [True]
    high, low = np.asarray(actual.reward)[:, 0]
    assert high - low == pytest.approx(expected, abs=CLOSE)
    assert np.asarray(actual.slack_low)[:, 0] == pytest.approx(
        [high, low] + EVEN * width, abs=CLOSE
    )


def test_closed_form_the_ball_method_ends_at_the_log_odds_or_on_the_sphere() -> None:
    even, one = jnp.asarray(EVEN[None]), jnp.ones(1)
    problem = Problem(one, even, even, jnp.asarray(WINS[None]), jnp.array(1.0), jnp.array(1e-14))
    problem = problem._replace(wins=jnp.asarray(WINS[None]) / 4.0)
    for radius, expected in ((4.0, LOG_ODDS / 4.0), (1.0, 1.0)):
        features = radius * jnp.array([[[1.0], [0.0]]])
        actual = ball_interior_point.solve(problem, features, tolerance=TOLERANCE, max_steps=80)
        assert bool(actual.done)
        assert float(actual.parameter[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["box", "ball"])
def test_property_solving_is_stepping_from_the_start_until_it_is_done(method: str) -> None:
    if method == "box":
        given = blocks(4.0)
        state, step = box_interior_point.init(given), box_interior_point.step
        assert np.asarray(state.reward).tolist() == [[0.0], [0.0]]
        solved = box_interior_point.solve(given, tolerance=TOLERANCE, max_steps=60)
        advance = jax.jit(lambda state: step(given, None, state, TOLERANCE))
    else:
        even = jnp.asarray(EVEN[None])
        wins, one = jnp.asarray(WINS[None]), jnp.array(1.0)
        problem, features = (
            Problem(jnp.ones(1), even, even, wins, one, one),
            jnp.array([[[4.0], [0.0]]]),
        )
        state = ball_interior_point.init(problem, features)
        assert state.parameter.tolist() == [0.0]
        solved = ball_interior_point.solve(problem, features, tolerance=TOLERANCE, max_steps=60)
        advance = jax.jit(
            lambda state: ball_interior_point.step(problem, features, None, state, TOLERANCE)
        )
    while not np.all(state.done):
        state = advance(state)
    for ours, external in zip(jax.tree.leaves(state), jax.tree.leaves(solved), strict=True):
        np.testing.assert_allclose(ours, external, rtol=1e-9, atol=1e-12)


def test_closed_form_a_projected_step_is_the_newton_step_clipped_at_the_bounds() -> None:
    target = jnp.array([0.5, -2.0])
    task = NewtonProblem(
        objective=lambda point: jnp.sum((point - target) ** 2),
        direction=lambda _, gradient: -gradient / 2.0,
        project=lambda point: jnp.clip(point, 0.0, 1.0),
        movement=lambda new, old: jnp.abs(new - old).max(),
    )
    start = Descent(jnp.array([1.0, 1.0]), jnp.array(jnp.inf), jnp.array(jnp.inf), jnp.array(3))
    actual = projected_newton.step(task, start)
    assert actual.point.tolist() == [0.5, 0.0]
    assert float(actual.movement) == 1.0
    assert float(actual.gradient_norm) == 1.0  # of the projected gradient, where it started
    assert int(actual.steps) == 4


def saddle_problem() -> saddle_interior_point.SaddleProblem:
    """Without data and over all rewards, the maximin policy is the baseline."""
    even, none = jnp.asarray(EVEN[None]), jnp.zeros((1, 2, 2))
    one = jnp.array(1.0)
    return saddle_interior_point.SaddleProblem(
        jnp.ones(1), even, even, jnp.zeros((1, 2)), none, none, 0.5 * one, one, Free()
    )


def test_closed_form_the_residual_of_a_saddle_point_is_zero_and_counts_nats_of_the_policy() -> None:
    start = saddle_interior_point.init(saddle_problem())
    saddle = start._replace(policy=jnp.asarray(EVEN[None]), policy_slack=jnp.zeros((1, 2)))
    assert float(saddle_interior_point.residual(saddle_problem(), saddle)) == 0.0
    # Half the policy has an error of 0.1, or 0.2 nats at beta 1/2, weighted by cubic growth.
    raised = saddle._replace(adversary=jnp.array([0.1, 0.0]))
    off = float(saddle_interior_point.residual(saddle_problem(), raised))
    assert off == pytest.approx(0.5 * 0.2 * 1.2**3, rel=1e-12)
    lost = saddle._replace(policy=jnp.array([[0.5, 0.4]]))
    assert float(saddle_interior_point.residual(saddle_problem(), lost)) >= 0.1 - 1e-12


def test_closed_form_the_saddle_method_ends_at_the_baseline() -> None:
    baseline = jnp.array([[0.8, 0.2]])
    actual = saddle_interior_point.solve(
        saddle_problem()._replace(baseline=baseline), tolerance=jnp.array(1e-10), max_steps=60
    )
    assert not bool(actual.broken)
    assert float(actual.residual) <= 1e-10
    np.testing.assert_allclose(actual.state.policy, baseline, atol=1e-9)
    # The reward that makes it the Gibbs policy, up to a constant.
    high, low = np.asarray(actual.state.adversary)
    assert high - low == pytest.approx(0.5 * np.log(4.0), abs=1e-8)
