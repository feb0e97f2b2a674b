"""Ball of linear rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import greater_than_zero, numbers, shape_with_free_axis
from rpo_theory.numerics import ball_interior_point
from rpo_theory.numerics.projected_newton import into_ball, radius_multiplier
from rpo_theory.types import ArrayLike, Problem

from .exact_forms import FeatureBall
from .protocol import Minimum


class LinearBall(NamedTuple):
    r"""Class of linear rewards :math:`\langle\theta,\phi(x,a)\rangle`, :math:`\|\theta\| \le B`.

    Attributes:
        features: :math:`\phi(x,a)`, shape ``[x a d]``.
        radius: :math:`B > 0`.
    """

    features: Float[ArrayLike, "x a d"]
    radius: Float[ArrayLike, ""] | float
    solves_only_wins = True

    @property
    def reward_max(self) -> Float[Array, "*B"]:
        r"""Largest difference of rewards of one context, :math:`B\max\|\phi(x,a)-\phi(x,a')\|`."""
        features = jnp.asarray(self.features)
        difference = features[..., :, None, :] - features[..., None, :, :]
        longest = jnp.linalg.norm(difference, axis=-1).max(axis=(-3, -2, -1))
        return longest * jnp.asarray(self.radius)

    def reward(self, theta: Float[ArrayLike, " d"]) -> Float[Array, "x a"]:
        r"""Return the reward table of a parameter, :math:`\langle\theta, \phi(x,a)\rangle`."""
        return jnp.asarray(self.features) @ jnp.asarray(theta)

    def parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " d"]:
        r"""Return the least-squares :math:`\theta` of smallest norm for a reward table."""
        features = jnp.asarray(self.features)
        flat = features.reshape(-1, features.shape[-1])
        return jnp.linalg.lstsq(flat, jnp.asarray(reward).reshape(-1))[0]

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the nearest member of the class in Euclidean distance of tables.

        In the singular basis of the features the parameters are :math:`s_ic_i/(s_i^2+\nu)`, with
        the multiplier :math:`\nu\ge0` of the radius.
        """
        reward, radius = jnp.asarray(reward), jnp.asarray(self.radius)
        features = jnp.asarray(self.features)
        flat = features.reshape(-1, features.shape[-1])
        left, singular, _ = jnp.linalg.svd(flat, full_matrices=False)
        rounding = max(flat.shape) * jnp.finfo(flat.dtype).eps * singular[0]
        singular = jnp.where(singular > rounding, singular, 0.0)
        pull = singular * (reward.reshape(-1) @ left)
        multiplier = radius_multiplier(jnp.square(singular), pull, radius)
        curvature = jnp.square(singular) + multiplier
        theta = jnp.where(curvature > 0, pull / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        return (left @ (singular * into_ball(theta, radius))).reshape(reward.shape)

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the member of :math:`\theta=-B\,\Phi^\top v/\|\Phi^\top v\|`."""
        image = jnp.einsum("xad,xa->d", jnp.asarray(self.features), jnp.asarray(direction))
        norm = jnp.linalg.norm(image)
        return self.reward(image * (-self.radius / jnp.where(norm > 0, norm, 1.0)))

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the minimum of :math:`\langle v,r\rangle`, namely :math:`-B\|\Phi^\top v\|`."""
        image = jnp.einsum("xad,xa->d", jnp.asarray(self.features), jnp.asarray(direction))
        return -jnp.linalg.norm(image) * self.radius

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        r"""Bound the linear gap of a member from above.

        .. math:: \langle v,r\rangle-\min_{r'}\langle v,r'\rangle

        The two terms nearly cancel, so a bound on their rounding errors is added.
        """
        direction, reward = jnp.asarray(direction), jnp.asarray(reward)
        magnitude = jnp.abs(direction * reward).sum()
        longest = jnp.linalg.norm(jnp.asarray(self.features), axis=-1) * self.radius
        rounding = jnp.finfo(magnitude.dtype).eps * (
            magnitude + jnp.vdot(longest, jnp.abs(direction))
        )
        return jnp.vdot(direction, reward) - self.linear_minimum(direction) + rounding

    def interior(self, shape: tuple[int, int]) -> Float[Array, " m"]:
        r"""Return :math:`\theta=0`, the center of the ball."""
        features = jnp.asarray(self.features)
        return jnp.zeros(features.shape[-1], features.dtype)

    def to_reward(
        self, parameter: Float[ArrayLike, " m"], shape: tuple[int, int]
    ) -> Float[Array, "x a"]:
        r"""Return the reward table of :math:`B` times a parameter in the unit ball."""
        return self.reward(jnp.asarray(parameter) * self.radius)

    def to_parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " m"]:
        r"""Return the parameter of smallest norm of a table, in units of the radius."""
        return self.parameter(reward) / self.radius

    def slack(self, parameter: Float[ArrayLike, " m"]) -> Float[Array, " 1"]:
        r"""Return :math:`1-\|u\|^2`."""
        return (1.0 - jnp.square(jnp.asarray(parameter)).sum())[None]

    def minimize(
        self,
        problem: Problem,
        policy: Float[ArrayLike, "x a"] | None = None,
        *,
        tolerance: float,
        max_steps: int,
    ) -> Minimum:
        """Minimize by a Newton method on the parameter; see :mod:`rpo_theory.routes`."""
        scaled = jnp.asarray(self.features) * self.radius
        state = ball_interior_point.solve(
            problem, scaled, policy, tolerance=tolerance, max_steps=max_steps
        )
        # Rounding may put the parameter outside of the unit ball.
        norm = jnp.linalg.norm(state.parameter)
        reward = scaled @ (state.parameter / jnp.maximum(norm, 1.0))
        return Minimum(reward, state.residual, state.steps)

    def linear_form(
        self, shape: tuple[int, int]
    ) -> tuple[Float[ArrayLike, "x a d"], Float[ArrayLike, ""] | float]:
        """Return features and radius, for methods on the parameter."""
        return self.features, self.radius

    def padded(self, contexts: int, actions: int, round_up: Callable[[int], int]) -> LinearBall:
        """Return the class with more contexts, actions and features, all of them zeros."""
        d = np.shape(self.features)[-1]
        extra = ((0, contexts), (0, actions), (0, round_up(d) - d))
        return self._replace(features=np.pad(self.features, extra))

    def gradient_move(
        self, reward: Float[ArrayLike, "x a"], gradient: Float[ArrayLike, "x a"]
    ) -> Float[Array, " d"]:
        r"""Return the move of the parameter by a projected gradient step of unit length."""
        theta = self.parameter(reward)
        features = jnp.asarray(self.features)
        target = theta - jnp.einsum("xad,xa->d", features, jnp.asarray(gradient))
        norm = jnp.linalg.norm(target)
        return theta - target * jnp.minimum(1.0, self.radius / jnp.where(norm > 0, norm, 1.0))

    def exact_form(self, shape: tuple[int, int]) -> FeatureBall:
        """Return features and radius for a proof in ball arithmetic."""
        return FeatureBall(np.asarray(self.features, np.float64), float(self.radius))

    def log_covering_number(self, epsilon: float, n_parameters: int | None = None) -> float:
        r"""Return the log of :math:`(1 + 2BL/\epsilon)^d` with :math:`\|\phi\|\le L`.

        A net of the ball of parameters with distances :math:`\epsilon/L` covers the rewards.
        """
        features = np.asarray(self.features)
        longest = float(np.linalg.norm(features, axis=-1).max())
        dimension = features.shape[-1] if n_parameters is None else n_parameters
        return dimension * float(np.log1p(2 * float(self.radius) * longest / epsilon))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless features and radius are valid; see :func:`validate_reward_class`."""
        wanted = (*lead, *shape, "d")
        size = shape_with_free_axis("reward_class.features", self.features, wanted)
        numbers("reward_class.features", self.features, size, finite=finite)
        greater_than_zero("reward_class.radius", self.radius, lead, finite=finite)
