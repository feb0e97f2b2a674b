"""Class of all reward tables."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rpo_theory.types import ArrayLike


class Unbounded(NamedTuple):
    r"""Class of all reward tables, as of the RPO loss of an unconstrained tabular policy.

    It is convex but not compact, so the minimum need not be attained: the reward of a response
    that never wins and that the baseline never picks tends to minus infinity. Linear functions have
    no minimum.
    """

    @property
    def is_compact(self) -> bool:
        """Whether the class is compact: it is not."""
        return False

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the reward itself: every table is a member."""
        return jnp.asarray(reward)

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the limit of minimizers of :math:`\langle v,r\rangle` in growing boxes."""
        direction = jnp.asarray(direction)
        return jnp.where(direction == 0, 0.0, -jnp.inf * jnp.sign(direction))

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the infimum of :math:`\langle v,r\rangle`, 0 or minus infinity."""
        return jnp.where(jnp.any(jnp.asarray(direction) != 0), -jnp.inf, 0.0)

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        """Return the linear gap of a reward: 0 for a direction of zeros, otherwise infinite."""
        return -self.linear_minimum(direction)
