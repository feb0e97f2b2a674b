"""Class of Lipschitz reward tables."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import (
    InvalidProblemError,
    at_least_zero,
    greater_than_zero,
    numbers,
    scalar_shape,
)
from rpo_theory.numerics.linear_rows import DifferenceRows, Polyhedron
from rpo_theory.types import ArrayLike

from . import polyhedral
from .exact_forms import Inequalities

NEVER = 2.0
"""Limit of a difference, in units of the maximum, that no table between the bounds reaches."""
CLOSEST = 1e-12
"""Smallest limit of a difference in the smooth form, in units of the maximum; 0 has no interior."""


class Lipschitz(NamedTuple):
    r"""Class of tables that change little between near pairs of a context and an action.

    .. math:: |r(x,a)-r(x',a')| \le L\,\rho\big((x,a),(x',a')\big), \qquad 0\le r\le R_{max}

    Pairs count row by row: the pair of context ``x`` and action ``a`` has number
    ``x * n_actions + a``. As :math:`L\to\infty` the class becomes the box, and as :math:`L\to0`
    the constant tables, whose policy is the reference policy.

    Attributes:
        constant: :math:`L \ge 0`, reward per unit of distance.
        distance: symmetric distances :math:`\rho \ge 0` with a diagonal of zeros, shape ``[n n]``
            for ``n`` pairs of a context and an action.
        maximum: :math:`R_{max} > 0`.

    References:
        `liu:24`, remark after Assumption 5.5.

    Examples:
        >>> near = Lipschitz(1.0, np.array([[0.0, 0.5], [0.5, 0.0]]), 2.0)
        >>> near.project(np.array([[2.0, 0.5]])).tolist()
        [[1.5, 1.0]]
    """

    constant: Float[ArrayLike, ""] | float
    distance: Float[ArrayLike, "n n"]
    maximum: Float[ArrayLike, ""] | float

    @property
    def reward_max(self) -> Float[Array, "*B"]:
        r"""Upper bound on the largest difference of two rewards, the smaller of the two limits."""
        farthest = jnp.asarray(self.distance).max(axis=(-2, -1))
        return jnp.minimum(jnp.asarray(self.maximum), jnp.asarray(self.constant) * farthest)

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance."""
        return polyhedral.project(self._polyhedron(), self.maximum, reward)

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return a member that minimizes :math:`\langle v,r\rangle`, by a linear program."""
        return polyhedral.linear_minimizer(self._polyhedron(), self.maximum, direction)

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Bound the minimum of :math:`\langle v,r\rangle` from below, by the dual program."""
        return polyhedral.linear_minimum(self._polyhedron(), self.maximum, direction)

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        """Bound the linear gap of a member from above, by the dual program."""
        return polyhedral.linear_gap(self._polyhedron(), self.maximum, direction, reward)

    def interior(self, shape: tuple[int, int]) -> Float[Array, " m"]:
        """Return the parameters of the constant table in the middle of the bounds, zeros."""
        return jnp.zeros_like(jnp.asarray(self.distance)[0])

    def to_reward(
        self, parameter: Float[ArrayLike, " m"], shape: tuple[int, int]
    ) -> Float[Array, "x a"]:
        r"""Return the table :math:`R_{max}(u+\tfrac12)`.

        Zero is the middle of the bounds, so that small differences keep their relative precision.
        """
        return jnp.asarray(self.maximum * (jnp.asarray(parameter).reshape(shape) + 0.5))

    def to_parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " m"]:
        """Return the distances of a table from the middle, in units of the maximum."""
        return jnp.asarray(reward).reshape(-1) / self.maximum - 0.5

    def slack(self, parameter: Float[ArrayLike, " m"]) -> Float[Array, " c"]:
        """Return the distances from the bounds and of all differences from their limits."""
        parameter = jnp.asarray(parameter)
        first, second = np.nonzero(~np.eye(parameter.shape[0], dtype=bool))
        limits = jnp.maximum(self._limits()[first, second], CLOSEST)
        differences = parameter[first] - parameter[second]
        return jnp.concatenate([0.5 + parameter, 0.5 - parameter, limits - differences])

    def exact_form(self, shape: tuple[int, int]) -> Inequalities:
        """Return the limits of all differences for a proof in ball arithmetic.

        Pairs at distance 0 have equal rewards and form a group.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        distance, maximum = np.asarray(self.distance, np.float64), float(self.maximum)
        constant = float(self.constant)
        n_groups, groups = connected_components((distance == 0.0) | (constant == 0.0))
        nearest = np.full((n_groups, n_groups), np.inf)
        np.minimum.at(nearest, (groups[:, None], groups[None, :]), distance)
        # Beyond the maximum a limit is redundant.
        binding = (constant * nearest < 2.0 * maximum) & ~np.eye(n_groups, dtype=bool)
        first, second = np.nonzero(binding)
        identity = np.eye(n_groups)
        rows = csr_array(identity[first] - identity[second])
        limits = nearest[first, second]
        return Inequalities(0.0, maximum, rows, limits, scale=constant, groups=groups)

    def log_covering_number(self, epsilon: float) -> float:
        r"""Return the log of a bound on the covering number that is at most that of the box.

        Fix :math:`k` pairs and :math:`\delta` so that every pair is within :math:`\delta` of one:
        rewards on the :math:`k` pairs to :math:`\epsilon'=\epsilon-L\delta` determine all rewards
        to :math:`\epsilon`, and a pair at distance :math:`\rho` of an earlier one needs at most
        :math:`\lceil1+L\rho/\epsilon'\rceil` intervals. The smallest bound over :math:`k` counts.
        """
        maximum, constant = float(self.maximum), float(self.constant)
        radii = _net_radii(np.asarray(self.distance, np.float64)) * constant
        bounds = []
        for k in range(1, len(radii)):
            scale = epsilon - radii[k]
            if scale > 0:
                whole = np.ceil(maximum / (2 * scale))
                steps = np.minimum(whole, np.ceil(1.0 + radii[1:k] / scale))
                bounds.append(np.log(whole) + np.log(steps).sum())
        return float(min(bounds))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless the distances are valid; see :func:`validate_reward_class`."""
        size = scalar_shape(self.constant, lead)
        constant = numbers("reward_class.constant", self.constant, size, finite=finite)
        at_least_zero("reward_class.constant", constant)
        greater_than_zero("reward_class.maximum", self.maximum, lead, finite=finite)
        n = shape[0] * shape[1]
        distance = numbers("reward_class.distance", self.distance, (*lead, n, n), finite=finite)
        at_least_zero("reward_class.distance", distance)
        for wrong, rule in (
            (np.abs(distance) * np.eye(n) > 0, "must be 0 on the diagonal"),
            (distance != distance.swapaxes(-1, -2), "must be symmetric"),
        ):
            if wrong.any() and np.isfinite(distance).all():
                index = tuple(int(i) for i in np.argwhere(wrong)[0])
                got = f"{rule}, got {distance[index]:.9g}"
                if "symmetric" in rule:
                    mirrored = (*index[:-2], index[-1], index[-2])
                    got += f" and {distance[mirrored]:.9g} in the mirrored entry"
                raise InvalidProblemError("reward_class.distance", index, got)

    def _limits(self) -> Float[Array, "n n"]:
        """Return the limits of the differences in units of the maximum; those in the box are 2."""
        limits = jnp.asarray(self.constant) * jnp.asarray(self.distance) / self.maximum
        return jnp.where(jnp.eye(limits.shape[0], dtype=bool), NEVER, jnp.minimum(limits, NEVER))

    def _polyhedron(self) -> Polyhedron:
        """Return the class in units of the maximum."""
        limits = self._limits()
        return Polyhedron(jnp.ones_like(limits[0]), DifferenceRows(), limits.reshape(-1))


def _net_radii(distance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " k"]:
    """Return for k = 1, ..., n the distance within which the first k pairs reach all others.

    Each pair is the one farthest from the earlier ones, so entry k is also its distance from them.
    Entry 0 is 0.
    """
    n = len(distance)
    radii, nearest = [0.0], distance[0].copy()
    for _ in range(n):
        farthest = int(np.argmax(nearest))
        radii.append(float(nearest[farthest]))
        nearest = np.minimum(nearest, distance[farthest])
    radii[n] = 0.0
    return np.array(radii)
