r"""Reward classes :math:`\mathcal R`: the sets that the adversary chooses its reward from.

The theorem needs a compact class of rewards in :math:`[0, R_{max}]` (`liu:24`, A 5.1, A 5.5).

=============== ====================== ======================================================
class           members                Theorem 5.6
=============== ====================== ======================================================
``TabularBox``  tables between bounds  holds: compact and convex
``LinearBall``  linear in features     holds: compact and convex
``FiniteClass`` a list of tables       can fail: compact but not convex
``Unbounded``   all tables             the minimum need not be attained: convex, not compact
=============== ====================== ======================================================

A class provides what solvers and certificates use: the minimum of a linear function over its
members, the gap of a member to that minimum, and the projection of a reward onto it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from .types import ArrayLike


class TabularBox(NamedTuple):
    r"""Class of all reward tables with :math:`0 \le r(x,a) \le R_{max}`.

    Attributes:
        maximum: :math:`R_{max} > 0`.
    """

    maximum: Float[ArrayLike, ""] | float

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
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


class LinearBall(NamedTuple):
    r"""Class of linear rewards :math:`\langle\theta,\phi(x,a)\rangle`, :math:`\|\theta\| \le B`.

    Attributes:
        features: :math:`\phi(x,a)`, shape ``[x a d]``.
        radius: :math:`B > 0`.
    """

    features: Float[ArrayLike, "x a d"]
    radius: Float[ArrayLike, ""] | float

    def reward(self, theta: Float[ArrayLike, " d"]) -> Float[Array, "x a"]:
        r"""Return the reward table of a parameter, :math:`\langle\theta, \phi(x,a)\rangle`."""
        return jnp.asarray(self.features) @ jnp.asarray(theta)

    def parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " d"]:
        r"""Return the least-squares :math:`\theta` of smallest norm for a reward table."""
        features = jnp.asarray(self.features)
        flat = features.reshape(-1, features.shape[-1])
        return jnp.linalg.lstsq(flat, jnp.asarray(reward).reshape(-1))[0]

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
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
        return jnp.vdot(direction, reward) - self.minimum(direction) + rounding

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the member whose :math:`\theta` is nearest to that of a reward."""
        theta = self.parameter(reward)
        norm = jnp.linalg.norm(theta)
        return self.reward(theta * jnp.minimum(1.0, self.radius / jnp.where(norm > 0, norm, 1.0)))


class FiniteClass(NamedTuple):
    """Finite list of rewards; it is not convex, so maximin and minimax can differ.

    Attributes:
        rewards: the members, shape ``[k x a]``.
    """

    rewards: Float[ArrayLike, "k x a"]

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the minimum of :math:`\langle v, r_k\rangle` over the members."""
        return jnp.einsum("kxa,xa->k", jnp.asarray(self.rewards), jnp.asarray(direction)).min()

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance."""
        rewards = jnp.asarray(self.rewards)
        distance = jnp.square(rewards - jnp.asarray(reward)).sum(axis=(1, 2))
        return rewards[jnp.argmin(distance)]


class Unbounded(NamedTuple):
    r"""Class of all reward tables, as of the RPO loss of an unconstrained tabular policy.

    It is convex but not compact, so the minimum need not be attained: the reward of a response
    that never wins and that the baseline never picks tends to minus infinity. Linear functions have
    no minimum.
    """

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the reward itself: every table is a member."""
        return jnp.asarray(reward)


RewardClass: TypeAlias = TabularBox | LinearBall | FiniteClass | Unbounded
"""Any of the four reward classes."""


ROUNDING = 1e-9
"""Largest relative distance of a reward from its class that counts as rounding."""


def class_residual(reward_class: RewardClass, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""Return the distance of a reward from its class, relative to :math:`1+\max|r|`.

    Args:
        reward_class: rewards that the adversary may choose from.
        reward: any reward.

    Returns:
        Largest entry of the difference to the nearest member; 0 for the unbounded class.

    Examples:
        >>> float(class_residual(TabularBox(2.0), jnp.array([[3.0, 0.0]])))
        0.25
    """
    reward = jnp.asarray(reward)
    if isinstance(reward_class, Unbounded):
        return jnp.zeros_like(reward[0, 0])
    distance = jnp.abs(reward_class.project(reward) - reward).max()
    return distance / (1.0 + jnp.abs(reward).max())


def log_covering_number(
    reward_class: TabularBox | LinearBall | FiniteClass, epsilon: float, n_parameters: int
) -> float:
    r"""Return the log of an upper bound on the :math:`\epsilon`-covering number in the sup norm.

    The bound is :math:`\lceil R_{max}/2\epsilon\rceil` to the number of coordinates for a box,
    :math:`(1 + 2BL/\epsilon)^d` for a ball of radius :math:`B` with :math:`\|\phi\|\le L`, and the
    number of members for a finite class.

    Args:
        reward_class: a compact reward class.
        epsilon: covering scale :math:`\epsilon > 0`, in units of reward.
        n_parameters: number of free coordinates: :math:`|X||A|` for the box, :math:`d` for the
            ball; ignored for a finite class.

    Returns:
        :math:`\log\mathcal N_\epsilon \ge 0`.

    Raises:
        ValueError: if the class is not compact, or a number is not greater than 0.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(log_covering_number(TabularBox(1.0), 0.25, 3), 4)
        2.0794
    """
    for name, number in (("epsilon", epsilon), ("n_parameters", n_parameters)):
        if not number > 0 and not isinstance(reward_class, FiniteClass):
            raise ValueError(f"`{name}` must be greater than 0, got {number}")
    match reward_class:
        case TabularBox(maximum):
            return n_parameters * float(np.log(np.ceil(float(maximum) / (2 * epsilon))))
        case LinearBall(features, radius):
            longest = float(np.linalg.norm(np.asarray(features), axis=-1).max())
            return n_parameters * float(np.log1p(2 * float(radius) * longest / epsilon))
        case FiniteClass(rewards):
            return float(np.log(np.asarray(rewards).shape[0]))
        case _:
            kind = type(reward_class).__name__
            raise ValueError(f"`reward_class` must be compact, got {kind}")
