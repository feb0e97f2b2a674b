"""Models of ties: probabilities, convexity, limits, and the distance that coverage measures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.preference import data_loss, evidence, hellinger_curvature
from rpo_theory.preference_data import TIE_MODELS
from rpo_theory.types import Problem

from .test_observations import CHOICES, EVEN, TIES, WINS

EXACT = 1e-14
MARGINS = np.linspace(-9.0, 9.0, 37)
PARAMETERS = {"davidson": 0.7, "rao_kupper": 1.7}
models = pytest.mark.parametrize("name", TIE_MODELS)


@models
def test_closed_form_the_three_outcomes_have_the_stated_probabilities(name: str) -> None:
    parameter, rise = PARAMETERS[name], np.exp(np.asarray(MARGINS))
    ties = TIE_MODELS[name](TIES, parameter)
    win, loss = np.exp(-ties.win_loss(MARGINS)), np.exp(-ties.win_loss(-MARGINS))
    tie = np.exp(-ties.tie_loss(MARGINS))
    np.testing.assert_allclose(win + loss + tie, 1.0, rtol=4 * EXACT)
    if name == "davidson":
        np.testing.assert_allclose(win, rise / (rise + 1 + parameter * np.sqrt(rise)), rtol=EXACT)
    else:
        np.testing.assert_allclose(win, rise / (rise + parameter), rtol=EXACT)


@models
def test_property_the_loss_is_convex_in_reward_and_log_parameter(name: str) -> None:
    def loss(point: jax.Array) -> jax.Array:
        ties = TIE_MODELS[name](TIES, jnp.exp(point[3]))
        problem = Problem(np.ones(1), EVEN, EVEN, WINS, 1.0, 1.0, CHOICES, ties)
        return data_loss(problem, point[None, :3])

    points = jax.random.normal(jax.random.key(0), (50, 4)) * 2.0
    points = points.at[:, 3].set(jnp.abs(points[:, 3]) + 0.05)
    hessians = jax.jit(jax.vmap(jax.hessian(loss)))(points)
    assert np.linalg.eigvalsh(hessians)[:, 0].min() > -EXACT
    # A constant added to the rewards changes nothing.
    shift = jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(hessians @ shift, 0.0, atol=10 * EXACT)


@models
def test_gradient_of_the_data_loss_is_the_evidence(name: str) -> None:
    ties = TIE_MODELS[name](TIES, PARAMETERS[name])
    problem = Problem(np.ones(1), EVEN, EVEN, WINS, 1.0, 1.0, CHOICES, ties)
    reward = jnp.array([[0.4, -1.3, 2.0]])
    gradient = jax.jit(jax.grad(lambda reward: data_loss(problem, reward)))(reward)
    np.testing.assert_allclose(-13.0 * gradient, evidence(problem, reward), atol=20 * EXACT)


@models
def test_limit_without_ties_the_model_is_that_of_bradley_and_terry(name: str) -> None:
    model = TIE_MODELS[name]
    ties = model(TIES, model.lower_limit + 1e-13)
    np.testing.assert_allclose(ties.win_loss(MARGINS), jax.nn.softplus(-MARGINS), atol=1e-11)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_theorem_pairs_of_a_set_bound_the_hellinger_distance_of_choices(size: int) -> None:
    rng, reward_max = np.random.default_rng(size), 2.0
    rewards = rng.uniform(0.0, reward_max, (2, 2000, size))
    rewards[:, :500] = reward_max * rng.integers(0, 2, (2, 500, size))
    p, q = (np.exp(r) / np.exp(r).sum(axis=1, keepdims=True) for r in rewards)
    squared_distance = 1.0 - np.sqrt(p * q).sum(axis=1)
    change = rewards[0] - rewards[1]
    first, second = np.triu_indices(size, 1)
    mean = np.square(change[:, first] - change[:, second]).mean(axis=1)
    share = 2.0 / (2.0 + (size - 2) * np.exp(reward_max))
    bound = float(hellinger_curvature(reward_max)) * share * mean
    rounding = 1e-14  # of one minus a sum that is about one
    assert np.all(squared_distance >= bound - rounding)
