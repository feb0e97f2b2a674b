"""Claims about the dual ascent, on a problem whose conditions of optimality are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rpo_theory.numerics.dual_ascent import log_mean_exp, maximize_dual

CENTERS = np.array([0.0, 1.0, 1.5])


def distances(position: jax.Array) -> jax.Array:
    return 2.0 * (position - CENTERS) ** 2 - 1.0


def respond(dual: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Minimize r plus the weighted squared distances over the line."""
    position = (dual @ CENTERS - 0.25) / dual.sum()
    return jnp.full((1, 1), position), position, distances(position)


def test_closed_form_the_maximum_meets_the_conditions_of_optimality() -> None:
    level = jnp.array(3.0)
    ascent = maximize_dual(
        respond,
        jnp.zeros(3),
        level=level,
        highest=jnp.array(10.0),
        extent=jnp.array(20.0),
        max_steps=200,
    )
    point = ascent.point
    assert bool(ascent.done)
    np.testing.assert_allclose(log_mean_exp(point.log_ratios), level, atol=1e-6)
    np.testing.assert_allclose(point.log_weights, jax.nn.log_softmax(point.log_ratios), atol=1e-5)
    slope = point.multiplier * jax.grad(lambda r: log_mean_exp(distances(r)))(point.objective)
    np.testing.assert_allclose(slope, -1.0, atol=1e-5)


def test_limit_an_infeasible_level_is_proven_by_the_dual_function() -> None:
    def out_of_reach(dual: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward, objective, ratios = respond(dual)
        return reward, objective, ratios + 6.0

    ascent = maximize_dual(
        out_of_reach,
        jnp.zeros(3),
        level=jnp.array(3.0),
        highest=jnp.array(10.0),
        extent=jnp.array(20.0),
        max_steps=200,
    )
    assert float(ascent.value) > 10.0
