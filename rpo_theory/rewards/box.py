"""Box of reward tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import greater_than_zero
from rpo_theory.block_data import tabular_blocks
from rpo_theory.numerics import box_interior_point, box_slots
from rpo_theory.types import ArrayLike, Problem

from .exact_forms import Inequalities
from .protocol import Minimum


class TabularBox(NamedTuple):
    r"""Class of all reward tables with :math:`0 \le r(x,a) \le R_{max}`.

    Attributes:
        maximum: :math:`R_{max} > 0`.
    """

    maximum: Float[ArrayLike, ""] | float

    @property
    def reward_max(self) -> Float[ArrayLike, "*B"] | float:
        """Largest reward."""
        return self.maximum

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance.

        Args:
            reward: any table :math:`r(x,a)`.

        Returns:
            The member, shape ``[x a]``.

        Examples:
            >>> TabularBox(2.0).project(np.array([[-1.0, 0.5, 3.0]])).tolist()
            [[0.0, 0.5, 2.0]]
        """
        return jnp.clip(jnp.asarray(reward), 0.0, self.maximum)

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the corner that minimizes :math:`\langle v,r\rangle`."""
        direction = jnp.asarray(direction)
        return jnp.where(direction < 0, self.maximum, jnp.zeros_like(direction))

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the minimum of :math:`\langle v,r\rangle`, namely :math:`-R_{max}\sum v_-`."""
        return jnp.sum(jnp.minimum(jnp.asarray(direction), 0.0)) * self.maximum

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        r"""Return the linear (Frank-Wolfe) gap of a member.

        .. math:: \langle v,r\rangle-\min_{r'}\langle v,r'\rangle

        It is a sum of non-negative terms, so no cancellation occurs.

        Args:
            direction: :math:`v(x,a)`.
            reward: a member, :math:`r(x,a)`.

        Returns:
            Number at least 0; 0 for a minimizer.

        Examples:
            >>> box, direction = TabularBox(2.0), np.array([[3.0, -1.0]])
            >>> [float(box.linear_gap(direction, np.array([r]))) for r in ([0.0, 2.0], [0.5, 1.0])]
            [0.0, 2.5]
        """
        direction, reward = jnp.asarray(direction), jnp.asarray(reward)
        distance = jnp.where(direction > 0, reward, reward - self.maximum)
        return jnp.sum(direction * distance)

    def kernel_width(self) -> ArrayLike | float:
        """Return the width of the box, for the compiled kernel of box problems."""
        return self.maximum

    def entry_bounds(self) -> tuple[ArrayLike | float, ArrayLike | float]:
        """Return the lower and the upper bound of every entry."""
        return 0.0, self.maximum

    def interior(self, shape: tuple[int, int]) -> Float[Array, " m"]:
        """Return the center of the box, one parameter per cell."""
        return jnp.full(shape[0] * shape[1], 0.5 * jnp.asarray(self.maximum))

    def to_reward(
        self, parameter: Float[ArrayLike, " m"], shape: tuple[int, int]
    ) -> Float[Array, "x a"]:
        """Return the table whose entries are the parameters."""
        return jnp.asarray(parameter).reshape(shape)

    def to_parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " m"]:
        """Return the entries of a table."""
        return jnp.asarray(reward).reshape(-1)

    def slack(self, parameter: Float[ArrayLike, " m"]) -> Float[Array, " c"]:
        """Return the distances of the parameters from both bounds."""
        parameter = jnp.asarray(parameter)
        return jnp.concatenate([parameter, self.maximum - parameter])

    def padded(self, contexts: int, actions: int, round_up: Callable[[int], int]) -> TabularBox:
        """Return the class with more contexts and actions: the same bounds."""
        return self

    def minimize(
        self,
        problem: Problem,
        policy: Float[ArrayLike, "x a"] | None = None,
        *,
        tolerance: float,
        max_steps: int,
    ) -> Minimum:
        """Minimize by a Newton method with one block per context; see :mod:`rpo_theory.routes`."""
        blocks, data = tabular_blocks(problem, jnp.asarray(self.maximum))
        fixed = None if policy is None else jnp.asarray(policy).T
        state = box_interior_point.solve(
            blocks, fixed, tolerance=tolerance, max_steps=max_steps, data=data
        )
        reward = self.project(state.reward.T + 0.5 * self.maximum)
        return Minimum(reward, state.residual.max(), state.steps.max())

    def minimize_batch(self, problems: Problem, *, tolerance: float, max_steps: int) -> Minimum:
        """Minimize F for every problem of a batch; the arrays of the class have its axis too."""
        maximum = jnp.asarray(self.maximum)
        state = box_slots.solve_in_slots(
            problems, maximum, tolerance=tolerance, max_steps=max_steps
        )
        # A constant added to the rewards of a context changes nothing: center them in the box.
        middle = 0.5 * (state.reward.max(axis=-1) + state.reward.min(axis=-1))
        centered = state.reward - middle[..., None]
        reward = jnp.clip(centered + 0.5 * maximum[:, None, None], 0.0, maximum[:, None, None])
        return Minimum(reward, state.residual, state.steps)

    def conclude_batch(
        self, problems: Problem, reward: Float[Array, "p x a"]
    ) -> tuple[Float[Array, "p x a"], Float[Array, " p"], Float[Array, " p"]]:
        """Return the policy, objective and duality gap of a member for every problem of a batch."""
        return box_slots.conclude(problems, jnp.asarray(self.maximum), reward)

    def exact_form(self, shape: tuple[int, int]) -> Inequalities:
        """Return the bounds for a proof in ball arithmetic."""
        return Inequalities(0.0, float(self.maximum))

    def log_covering_number(self, epsilon: float, n_parameters: int) -> float:
        r"""Return the log of :math:`\lceil R_{max}/2\epsilon\rceil` to the number of cells.

        A grid of intervals of length :math:`2\epsilon` in every cell covers the box.
        """
        return n_parameters * float(np.log(np.ceil(float(self.maximum) / (2 * epsilon))))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless the maximum is greater than 0; see :func:`validate_reward_class`."""
        greater_than_zero("reward_class.maximum", self.maximum, lead, finite=finite)
