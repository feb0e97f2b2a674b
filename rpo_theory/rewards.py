r"""Reward classes :math:`\mathcal R`: what the adversary may choose from.

The theorem asks for a compact class of rewards in :math:`[0, R_{max}]` (`liu:24`, A 5.1, A 5.5).
Four classes are here: the tabular box and the linear ball (compact and convex: Theorem 5.6 holds),
a finite list (compact, not convex: it can fail), and all rewards (convex, not compact: the minimum
need not be attained). Each says of itself what the solvers and the certificate ask: its minimum
over linear functions, and the nearest member to a reward.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from .types import ArrayLike


class TabularBox(NamedTuple):
    r"""All tables with :math:`0 \le r(x,a) \le R_{max}`.

    Attributes:
        maximum: :math:`R_{max} > 0`.
    """

    maximum: Float[ArrayLike, ""] | float

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Minimum of :math:`\langle v, r\rangle` over the class: :math:`-R_{max}\sum v_-`."""
        return jnp.sum(jnp.minimum(jnp.asarray(direction), 0.0)) * self.maximum

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        r"""How far a member is from minimal, :math:`\langle v,r\rangle-\min\ge 0`, term by term.

        Args:
            direction: :math:`v(x,a)`.
            reward: a member, :math:`r(x,a)`.

        Returns:
            The regret, 0 for a minimiser.

        Examples:
            >>> box, direction = TabularBox(np.array(2.0)), np.array([[3.0, -1.0]])
            >>> [float(box.linear_gap(direction, np.array([r]))) for r in ([0.0, 2.0], [0.5, 1.0])]
            [0.0, 2.5]
        """
        direction, reward = jnp.asarray(direction), jnp.asarray(reward)
        distance = jnp.where(direction > 0, reward, reward - self.maximum)
        return jnp.sum(direction * distance)

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Nearest member of the class in Euclidean distance.

        Args:
            reward: :math:`r(x,a)`, any.

        Returns:
            The member.

        Examples:
            >>> TabularBox(np.array(2.0)).project(np.array([[-1.0, 0.5, 3.0]])).tolist()
            [[0.0, 0.5, 2.0]]
        """
        return jnp.clip(jnp.asarray(reward), 0.0, self.maximum)


class LinearBall(NamedTuple):
    r"""Linear rewards :math:`r = \langle\theta, \phi(x,a)\rangle` with :math:`\|\theta\| \le B`.

    Attributes:
        features: :math:`\phi(x,a)`, shape ``[x a d]``.
        radius: :math:`B > 0`.
    """

    features: Float[ArrayLike, "x a d"]
    radius: Float[ArrayLike, ""] | float

    def reward(self, theta: Float[ArrayLike, " d"]) -> Float[Array, "x a"]:
        r"""Reward table of a parameter, :math:`\langle\theta, \phi(x,a)\rangle`."""
        return jnp.asarray(self.features) @ jnp.asarray(theta)

    def parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " d"]:
        r"""Least-squares :math:`\theta` of smallest norm for a reward table."""
        features = jnp.asarray(self.features)
        flat = features.reshape(-1, features.shape[-1])
        return jnp.linalg.lstsq(flat, jnp.asarray(reward).reshape(-1))[0]

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Minimum of :math:`\langle v, r\rangle` over the class: :math:`-B\|\Phi^\top v\|`."""
        image = jnp.einsum("xad,xa->d", jnp.asarray(self.features), jnp.asarray(direction))
        return -jnp.linalg.norm(image) * self.radius

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        r"""How far a member is from minimal, :math:`\langle v, r\rangle - \min \ge 0`, at most.

        The two numbers nearly cancel: what rounding may have taken from them is added.
        """
        direction, reward = jnp.asarray(direction), jnp.asarray(reward)
        reached = jnp.abs(direction * reward).sum()
        longest = jnp.linalg.norm(jnp.asarray(self.features), axis=-1) * self.radius
        rounding = jnp.finfo(reached.dtype).eps * (reached + jnp.vdot(longest, jnp.abs(direction)))
        return jnp.vdot(direction, reward) - self.minimum(direction) + rounding

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Member of the class whose :math:`\theta` is nearest to the reward's own."""
        theta = self.parameter(reward)
        norm = jnp.linalg.norm(theta)
        return self.reward(theta * jnp.minimum(1.0, self.radius / jnp.where(norm > 0, norm, 1.0)))


class FiniteClass(NamedTuple):
    """A finite list of rewards: compact but not convex, so the two formulations can differ.

    Attributes:
        rewards: the members, shape ``[k x a]``.
    """

    rewards: Float[ArrayLike, "k x a"]

    def minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Minimum of :math:`\langle v, r_k\rangle` over the members."""
        return jnp.einsum("kxa,xa->k", jnp.asarray(self.rewards), jnp.asarray(direction)).min()

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Nearest member of the class in Euclidean distance."""
        rewards = jnp.asarray(self.rewards)
        distance = jnp.square(rewards - jnp.asarray(reward)).sum(axis=(1, 2))
        return rewards[jnp.argmin(distance)]


class Unbounded(NamedTuple):
    r"""All reward tables: the class of policy-parameterised RPO with a tabular policy.

    Convex but not compact: the minimum need not be attained (a response that never wins and that
    the baseline never picks is sent to minus infinity), and linear functions have no minimum.
    """

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Every reward is a member: the reward itself."""
        return jnp.asarray(reward)


RewardClass = TabularBox | LinearBall | FiniteClass | Unbounded


def log_covering_number(
    reward_class: TabularBox | LinearBall | FiniteClass, epsilon: float, n_parameters: int
) -> float:
    r"""Log of an upper bound on the :math:`\epsilon`-covering number in the sup norm.

    Box: :math:`\lceil R_{max}/2\epsilon\rceil` intervals a coordinate. Ball of radius :math:`B`
    with :math:`\|\phi\|\le L`: :math:`(1 + 2BL/\epsilon)^d`. Finite class: its size.

    Args:
        reward_class: a compact class.
        epsilon: covering scale :math:`\epsilon > 0`, in units of reward.
        n_parameters: free coordinates: :math:`|X||A|` for the box, :math:`d` for the ball; ignored
            for a finite class.

    Returns:
        :math:`\log\mathcal N_\epsilon \ge 0`.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(log_covering_number(TabularBox(jnp.array(1.0)), 0.25, 3), 4)
        2.0794
    """
    match reward_class:
        case TabularBox(maximum):
            return n_parameters * float(np.log(np.ceil(float(maximum) / (2 * epsilon))))
        case LinearBall(features, radius):
            longest = float(np.linalg.norm(np.asarray(features), axis=-1).max())
            return n_parameters * float(np.log1p(2 * float(radius) * longest / epsilon))
        case FiniteClass(rewards):
            return float(np.log(np.asarray(rewards).shape[0]))
