"""Finite list of reward tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import numbers, shape_with_free_axis
from rpo_theory.objectives import minimax_objective, saddle_objective
from rpo_theory.types import ArrayLike, Problem

from .exact_forms import Members
from .protocol import Minimum


class FiniteClass(NamedTuple):
    """Finite list of rewards; it is not convex, so maximin and minimax can differ.

    Attributes:
        rewards: the members, shape ``[k x a]``.
    """

    rewards: Float[ArrayLike, "k x a"]

    @property
    def is_convex(self) -> bool:
        """Whether the class is convex: it is not."""
        return False

    @property
    def members(self) -> Float[ArrayLike, "k x a"]:
        """All members."""
        return self.rewards

    @property
    def reward_max(self) -> Float[Array, "*B"]:
        """Largest difference between two rewards of one context of one member."""
        rewards = jnp.asarray(self.rewards)
        return (rewards.max(axis=-1) - rewards.min(axis=-1)).max(axis=(-2, -1))

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance."""
        rewards = jnp.asarray(self.rewards)
        distance = jnp.square(rewards - jnp.asarray(reward)).sum(axis=(1, 2))
        return rewards[jnp.argmin(distance)]

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the member with the smallest :math:`\langle v, r_k\rangle`."""
        rewards = jnp.asarray(self.rewards)
        return rewards[jnp.argmin(jnp.einsum("kxa,xa->k", rewards, jnp.asarray(direction)))]

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the minimum of :math:`\langle v, r_k\rangle` over the members."""
        return jnp.einsum("kxa,xa->k", jnp.asarray(self.rewards), jnp.asarray(direction)).min()

    def level_minimizer(
        self,
        direction: Float[ArrayLike, "x a"],
        function: Callable[[Array], Array],
        level: Float[ArrayLike, ""],
    ) -> Float[Array, "x a"]:
        r"""Return the member with the smallest :math:`\langle v, r_k\rangle` within a level.

        Args:
            direction: :math:`v(x,a)`.
            function: function of one reward.
            level: largest value of the function at the member.

        Returns:
            The member; the one with the smallest value if all are above the level.
        """
        rewards = jnp.asarray(self.rewards)
        values = jax.vmap(function)(rewards)
        inside = values <= jnp.asarray(level)
        objectives = jnp.einsum("kxa,xa->k", rewards, jnp.asarray(direction))
        objectives = jnp.where(inside, objectives, jnp.inf)
        return rewards[jnp.where(inside.any(), jnp.argmin(objectives), jnp.argmin(values))]

    def padded(self, contexts: int, actions: int, round_up: Callable[[int], int]) -> FiniteClass:
        """Return the class with more contexts and actions, whose rewards are zeros."""
        return FiniteClass(np.pad(self.rewards, ((0, 0), (0, contexts), (0, actions))))

    def objectives(
        self, problem: Problem, policy: Float[ArrayLike, "x a"] | None = None
    ) -> Float[Array, " k"]:
        r"""Return :math:`F(r_k)` of every member, or :math:`\phi(\pi, r_k)` for a policy."""

        def objective(reward: Float[Array, "x a"]) -> Float[Array, ""]:
            if policy is None:
                return minimax_objective(problem, reward)
            return saddle_objective(problem, policy, reward)

        return jax.vmap(objective)(jnp.asarray(self.rewards))

    def minimize(
        self,
        problem: Problem,
        policy: Float[ArrayLike, "x a"] | None = None,
        *,
        tolerance: float,
        max_steps: int,
    ) -> Minimum:
        """Return the best member, by enumeration; see :mod:`rpo_theory.routes`."""
        values = self.objectives(problem, policy)
        best = jnp.asarray(self.rewards)[jnp.argmin(values)]
        return Minimum(best, 0.0 * values.min(), jnp.zeros((), jnp.int32))

    def exact_form(self, shape: tuple[int, int]) -> Members:
        """Return the members for a proof in ball arithmetic."""
        return Members(np.asarray(self.rewards, np.float64))

    def log_covering_number(self, epsilon: float) -> float:
        """Return the log of the number of members: they cover the class at every scale."""
        return float(np.log(np.shape(self.rewards)[0]))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless the members are tables; see :func:`validate_reward_class`."""
        wanted = (*lead, "k", *shape)
        size = shape_with_free_axis("reward_class.rewards", self.rewards, wanted)
        numbers("reward_class.rewards", self.rewards, size, finite=finite)
