"""Class of all reward tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from rpo_theory.numerics import box_slots
from rpo_theory.types import ArrayLike, Problem, Solution

from .box import TabularBox
from .protocol import Minimum

Found = TypeVar("Found", Minimum, Solution)
WIDTH = 64.0
"""Width in nats of the first box that stands in for all tables."""
WIDENINGS = 5
"""Number of times that this box may be widened."""


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

    def entry_bounds(self) -> tuple[float, float]:
        """Return the lower and the upper bound of every entry, both infinite."""
        return -np.inf, np.inf

    def bounded(self, width: Float[ArrayLike, ""] | float) -> TabularBox:
        """Return a compact part of the class: the tables between 0 and a width."""
        return TabularBox(width)

    def minimize_batch(self, problems: Problem, *, tolerance: float, max_steps: int) -> Minimum:
        """Minimize F for every problem of a batch that attains its minimum."""

        def solver(width: Float[Array, " p"]) -> Minimum:
            result = box_slots.solve_in_slots(
                problems, width, tolerance=tolerance, max_steps=max_steps
            )
            return Minimum(*result)

        return in_wide_box(solver, jnp.asarray(problems.beta))

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


def in_wide_box(solver: Callable[[Float[Array, "*p"]], Found], beta: Float[Array, "*p"]) -> Found:
    """Minimize in a box that is wide enough for its bounds to be inactive.

    Args:
        solver: solver for a width; its rewards are measured from the center of the box.
        beta: weight of the KL term, which sets the scale of the rewards.

    Returns:
        The minimum in the last box.
    """

    def too_narrow(width: Float[Array, "*p"], minimum: Found) -> Bool[Array, "*p"]:
        return jnp.abs(minimum.reward).max(axis=(-2, -1)) > 0.4 * width

    def widen(carry: tuple) -> tuple:
        width, minimum, tries = carry
        width = jnp.where(too_narrow(width, minimum), 8.0 * width, width)
        return width, solver(width), tries + 1

    width = WIDTH * jnp.maximum(1.0, beta)
    return jax.lax.while_loop(
        lambda carry: jnp.any(too_narrow(*carry[:2])) & (carry[2] < WIDENINGS),
        widen,
        (width, solver(width), 0),
    )[1]
