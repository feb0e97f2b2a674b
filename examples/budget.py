"""A reward class of your own: rewards of at least 0 whose sum is at most a budget."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Budget(NamedTuple):
    """Tables with r >= 0 and a sum of at most `budget`."""

    budget: Any

    def project(self, reward):
        """Return the nearest member in Euclidean distance: shift down, cut at 0."""
        ranked = jnp.sort(reward.reshape(-1))[::-1]
        levels = (jnp.cumsum(ranked) - self.budget) / jnp.arange(1, ranked.size + 1)
        level = levels[jnp.sum(ranked > levels) - 1]
        return jnp.maximum(reward - jnp.maximum(level, 0.0), 0.0)

    def linear_minimizer(self, direction):
        """Return a member that minimizes the sum of direction * reward."""
        lowest = jnp.argmin(direction)
        corner = jnp.zeros_like(direction).reshape(-1).at[lowest].set(self.budget)
        return jnp.where(direction.min() < 0.0, corner.reshape(direction.shape), 0.0)

    @property
    def reward_max(self):
        """Largest difference between two rewards of one context."""
        return self.budget
