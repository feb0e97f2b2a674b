"""The check of a user's reward class: classes that keep their promises pass, others are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import rpo_theory as rt
from rpo_theory.validation import validate, validate_reward_class

SHAPE = (1, 3)


class Ball(NamedTuple):
    """Euclidean ball of tables around 0; the other classes of this module break its methods."""

    radius: Any = 1.5

    def project(self, reward: Array) -> Array:
        norm = jnp.linalg.norm(reward)
        return reward * jnp.minimum(1.0, self.radius / jnp.where(norm > 0, norm, 1.0))

    def linear_minimizer(self, direction: Array) -> Array:
        return -self.radius * direction / jnp.linalg.norm(direction)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Registered:
    """The same ball as a registered dataclass that counts its members in whole numbers."""

    radius: int

    def project(self, reward: Array) -> Array:
        return Ball(self.radius).project(reward)

    def linear_minimizer(self, direction: Array) -> Array:
        return Ball(self.radius).linear_minimizer(direction)


class Plain:
    """No pytree."""

    project = Ball.project
    linear_minimizer = Ball.linear_minimizer


class Shrunk(Ball):
    def project(self, reward: Array) -> Array:
        return 0.5 * Ball.project(self, reward)


class Clipped(Ball):
    """Each result is a member, but not the nearest one."""

    def project(self, reward: Array) -> Array:
        norm = jnp.linalg.norm(reward)
        swapped = jnp.where(norm > 1.01 * self.radius, jnp.roll(reward, 1), reward)
        return Ball.project(self, swapped)


class Slanted(Ball):
    """The nearest member in another norm."""

    def project(self, reward: Array) -> Array:
        # Scales the first reward alone, as far as the ball allows.
        rest = reward.at[0, 0].set(0.0)
        inside = Ball.project(self, rest)
        room = jnp.sqrt(jnp.maximum(self.radius**2 - jnp.square(inside).sum(), 0.0))
        return inside.at[0, 0].set(jnp.clip(reward[0, 0], -room, room))


class Outside(Ball):
    def linear_minimizer(self, direction: Array) -> Array:
        return 2.0 * Ball.linear_minimizer(self, direction)


class Center(Ball):
    def linear_minimizer(self, direction: Array) -> Array:
        return jnp.zeros_like(direction)


class Broken(Ball):
    def linear_minimizer(self, direction: Array) -> Array:
        return jnp.sqrt(-1.0 - jnp.square(direction))


class Flat(Ball):
    def project(self, reward: Array) -> Array:
        return Ball.project(self, reward).reshape(-1)


class Untraceable(Ball):
    def project(self, reward: Array) -> Array:
        return jnp.asarray(np.clip(np.asarray(reward), 0.0, 1.0))


class Sphere(Ball):
    def project(self, reward: Array) -> Array:
        return self.radius * reward / jnp.linalg.norm(reward)


class HonestSphere(Sphere):
    is_convex = False


class WrongMinimum(Ball):
    def linear_minimum(self, direction: Array) -> Array:
        return -2.0 * self.radius * jnp.linalg.norm(direction)


class NoMinimizer(NamedTuple):
    radius: float = 1.0

    def project(self, reward: Array) -> Array:
        return reward


@pytest.mark.parametrize("good", [Ball(), Registered(2), HonestSphere(), rt.Unbounded()])
def test_property_classes_that_keep_their_promises_pass(good: Any) -> None:
    rt.check_reward_class(good, SHAPE)
    validate_reward_class(good, SHAPE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Ball, "`reward_class` must be an instance, got the class Ball: call it"),
        (NoMinimizer(), "`reward_class` must have a method `linear_minimizer`, got NoMinimizer"),
        (Plain(), "`reward_class` must be a JAX pytree, got Plain: make it a NamedTuple, or a"),
        (Ball(np.nan), "`reward_class.radius` must be a number, got nan"),
        (Shrunk(), "`reward_class.project` must leave a member as it is, but moves its result [["),
        (Clipped(), "`reward_class.project` must return the nearest member, but [["),
        (Slanted(), "`reward_class.project` must return the nearest member, but"),
        (Outside(), "`reward_class.linear_minimizer` must return a member, got [["),
        (Center(), "`reward_class.linear_minimizer` must minimize <v, r>, but for v = [["),
        (Broken(), "`reward_class.linear_minimizer` must return finite rewards, got [[nan"),
        (Flat(), "`reward_class.project` must return a table of shape (1, 3), got (3,)"),
        (Untraceable(), "`reward_class.project` must take a table of shape (1, 3) in JAX func"),
        (Sphere(), "`reward_class.is_convex` must hold for a convex class, but the midpoint [["),
        (WrongMinimum(), "`reward_class.linear_minimum` must be the value of the linear minim"),
    ],
)
def test_raises_with_the_method_and_a_witness(bad: Any, message: str) -> None:
    # Annotations would refuse an object without the methods first.
    check: Callable[..., None] = getattr(
        rt.check_reward_class, "__wrapped__", rt.check_reward_class
    )
    with pytest.raises(rt.InvalidProblemError) as raised:
        check(bad, SHAPE)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_raises_where_a_problem_is_validated() -> None:
    even = np.full(SHAPE, 1 / 3)
    problem = rt.Problem(np.ones(1), even, even, np.zeros((1, 3, 3)), beta=1.0, eta=1.0)
    validate(problem, cast(Any, Ball()))
    with pytest.raises(rt.InvalidProblemError, match="must leave a member as it is"):
        validate(problem, cast(Any, Shrunk()))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            rt.Polytope(np.ones((1, 1, 3)), np.array([-1.0]), 1.0),
            "`reward_class.limits` must leave room for rewards: the polytope is empty; raise a l",
        ),
        (
            rt.Polytope(np.ones((1, 1, 3)), np.array([0.0]), 1.0),
            "`reward_class.limits` must leave room for rewards: the polytope has no interior",
        ),
        (
            rt.Polytope(np.ones((1, 3)), np.array([1.0]), 1.0),
            "`reward_class.matrix` must have shape (m, 1, 3) with m at least 1, got shape (1, 3)",
        ),
        (
            rt.Polytope(np.ones((2, 1, 3)), np.array([1.0]), 1.0),
            "`reward_class.limits` must have shape (2,), got shape (1,)",
        ),
        (
            rt.Lipschitz(-1.0, np.zeros((3, 3)), 1.0),
            "`reward_class.constant` must be at least 0, got -1",
        ),
        (
            rt.Lipschitz(1.0, np.triu(np.ones((3, 3)), 1), 1.0),
            "`reward_class.distance[0][1]` must be symmetric, got 1 and 0 in the mirrored entry",
        ),
        (
            rt.Lipschitz(1.0, -np.ones((3, 3)), 1.0),
            "`reward_class.distance[0][0]` must be at least 0, got -1",
        ),
        (
            rt.Lipschitz(1.0, np.ones((3, 3)), 1.0),
            "`reward_class.distance[0][0]` must be 0 on the diagonal, got 1",
        ),
        (
            rt.Lipschitz(1.0, np.full((3, 3), np.nan), 1.0),
            "`reward_class.distance[0][0]` must be finite, got nan",
        ),
        (
            rt.Lipschitz(1.0, np.zeros((2, 2)), 1.0),
            "`reward_class.distance` must have shape (3, 3), got shape (2, 2)",
        ),
        (
            rt.KernelBall(np.diag([1.0, 1.0, -1.0]), 1.0),
            "`reward_class.gram` must be positive semi-definite, got an eigenvalue of -1",
        ),
        (
            rt.KernelBall(np.triu(np.ones((3, 3))), 1.0),
            "`reward_class.gram[0][1]` must be symmetric, got 1 and",
        ),
        (rt.KernelBall(np.eye(3), 0.0), "`reward_class.radius` must be greater than 0, got 0"),
    ],
)
def test_raises_for_invalid_fields_of_the_built_in_classes(bad: Any, message: str) -> None:
    check = getattr(validate_reward_class, "__wrapped__", validate_reward_class)
    with pytest.raises(rt.InvalidProblemError) as raised:
        check(bad, SHAPE)
    assert str(raised.value).startswith(message)
