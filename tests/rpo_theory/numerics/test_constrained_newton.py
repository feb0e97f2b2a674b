"""Claims about the interior point for smooth constraints, on sets whose minimizers are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rpo_theory.numerics.constrained_newton import (
    ConstrainedMinimum,
    ConstrainedProblem,
    half_widths,
    solve,
)

TOLERANCE = 1e-9


@partial(jax.jit, static_argnames=("slack",))
def nearest(center: jax.Array, *, slack: Callable[[jax.Array], jax.Array]) -> ConstrainedMinimum:
    """Return the point of a set around the origin that is nearest to a center."""
    problem = ConstrainedProblem(
        objective=lambda point, temperature: 0.5 * jnp.square(point - center).sum(),
        slack=slack,
        distance=lambda move, temperature: jnp.zeros_like(temperature),
        hottest=jnp.ones(()),
        sharp=jnp.ones(()),
    )
    return solve(problem, jnp.zeros_like(center), tolerance=1e-10, max_steps=60)


def cube(point: jax.Array) -> jax.Array:
    return 1.0 - jnp.concatenate([point, -point])


def ball(point: jax.Array) -> jax.Array:
    return 1.0 - jnp.square(point).sum(keepdims=True)


def test_closed_form_nearest_point_of_a_cube_and_its_multipliers() -> None:
    center = jnp.array([3.0, -1.5, 0.25])
    found = nearest(center, slack=cube)
    np.testing.assert_allclose(found.point, jnp.clip(center, -1.0, 1.0), atol=TOLERANCE)
    np.testing.assert_allclose(found.multipliers, [2.0, 0, 0, 0, 0.5, 0], atol=TOLERANCE)
    assert float(found.residual) <= TOLERANCE


def test_closed_form_nearest_point_of_a_ball() -> None:
    center = jnp.array([3.0, 4.0])
    found = nearest(center, slack=ball)
    np.testing.assert_allclose(found.point, center / 5.0, atol=TOLERANCE)
    # Stationarity: u - center = -2 lambda u, with |u| = 1.
    np.testing.assert_allclose(found.multipliers, [2.0], atol=TOLERANCE)


def test_limit_a_point_inside_is_its_nearest_point() -> None:
    center = jnp.array([0.3, -0.4])
    found = nearest(center, slack=ball)
    np.testing.assert_allclose(found.point, center, atol=TOLERANCE)
    np.testing.assert_allclose(found.multipliers, [0.0], atol=TOLERANCE)


def test_closed_form_half_widths_of_a_ball() -> None:
    # Curvature of -log(1 - |u|^2) at the origin is 2 along every axis.
    np.testing.assert_allclose(half_widths(ball, jnp.zeros(3)), 2.0**-0.5)


@jax.jit
@jax.vmap
def sharpened(slopes: jax.Array, target: jax.Array) -> ConstrainedMinimum:
    """Minimize a log-partition minus a linear function over the ball, smoothed at the start."""
    problem = ConstrainedProblem(
        objective=lambda point, heat: (
            heat * jax.nn.logsumexp(slopes @ point / heat) - target @ (slopes @ point)
        ),
        slack=ball,
        distance=lambda move, heat: jnp.ptp(slopes @ move) / heat,
        hottest=jnp.abs(slopes).max(),
        sharp=jnp.full((), 0.1),
    )
    return solve(problem, jnp.zeros(2), tolerance=1e-10, max_steps=100)


def test_property_slacks_follow_a_curved_boundary_while_the_objective_sharpens() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(200, 3, 2)) * 10.0 ** rng.uniform(-0.5, 1.5, (200, 1, 1))
    found = sharpened(slopes, rng.dirichlet(np.ones(3), 200))
    assert np.asarray(found.residual).max() <= 1e-9
    assert np.linalg.norm(found.point, axis=1).max() <= 1.0 + 1e-9
