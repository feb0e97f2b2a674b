"""Claims about infima over all rewards, and about the limit of descent on the likelihood."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rpo_theory.unbounded import component_means


def test_closed_form_means_are_those_of_connected_components() -> None:
    wins = np.zeros((2, 4, 4))
    wins[0, 0, 1] = wins[0, 2, 1] = 1.0  # 0, 1 and 2 are connected, 3 is isolated
    wins[1, 3, 0] = 2.0  # 0 and 3
    reward = jnp.array([[1.0, 2.0, 6.0, 5.0], [1.0, 7.0, 9.0, 3.0]])
    means = component_means(reward, jnp.asarray(wins))
    np.testing.assert_allclose(means, [[3.0, 3.0, 3.0, 5.0], [2.0, 7.0, 9.0, 2.0]])


def test_limit_descent_on_the_likelihood_keeps_the_means_of_components() -> None:
    wins = np.zeros((1, 3, 3))
    wins[0, 0, 1], wins[0, 1, 0] = 3.0, 1.0
    reward = np.zeros((1, 3))
    for _ in range(4000):
        surprise = 1.0 / (1.0 + np.exp(reward[:, :, None] - reward[:, None, :]))
        flow = wins * surprise
        reward = reward + 0.1 * (flow.sum(axis=2) - flow.sum(axis=1))
    means = component_means(jnp.asarray(reward), jnp.asarray(wins))
    np.testing.assert_allclose(means, np.zeros((1, 3)), atol=1e-12)
    assert abs(reward[0, 0] - reward[0, 1] - np.log(3.0)) < 1e-9
