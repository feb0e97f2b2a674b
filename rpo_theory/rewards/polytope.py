"""Polytope of reward tables."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import (
    InvalidProblemError,
    greater_than_zero,
    numbers,
    shape_with_free_axis,
)
from rpo_theory.numerics import linear_program
from rpo_theory.numerics.linear_rows import DenseRows, Polyhedron
from rpo_theory.types import ArrayLike

from . import polyhedral
from .exact_forms import Inequalities

THINNEST = 1e-9
"""Smallest radius of a ball inside a polytope with an interior, in units of the maximum."""


class Polytope(NamedTuple):
    r"""Class of tables :math:`0\le r\le R_{max}` with :math:`\langle G_j, r\rangle\le h_j`.

    Attributes:
        matrix: coefficients :math:`G_j(x,a)`, shape ``[m x a]``.
        limits: :math:`h_j`, shape ``[m]``.
        maximum: :math:`R_{max} > 0`.

    Examples:
        >>> order = Polytope(np.array([[[1.0, -1.0]]]), np.zeros(1), 2.0)  # r(0) at most r(1)
        >>> np.asarray(order.project(np.array([[1.5, 0.5]]))).round(6).tolist()
        [[1.0, 1.0]]
    """

    matrix: Float[ArrayLike, "m x a"]
    limits: Float[ArrayLike, " m"]
    maximum: Float[ArrayLike, ""] | float

    @property
    def reward_max(self) -> Float[ArrayLike, "*B"] | float:
        """Largest reward that the bounds allow."""
        return self.maximum

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
        """Return a center of a largest ball in the polytope, in units of the maximum."""
        polyhedron = jax.lax.stop_gradient(self._polyhedron())
        assert isinstance(polyhedron.rows, DenseRows)
        n = shape[0] * shape[1]
        identity = jnp.eye(n)
        rows = jnp.concatenate([-identity, identity, polyhedron.rows.matrix])
        radius = jnp.concatenate([jnp.ones(2 * n), polyhedron.rows.lengths(n)])
        wider = Polyhedron(
            jnp.ones(n + 1),
            DenseRows(jnp.concatenate([rows, radius[:, None]], axis=1)),
            polyhedron.all_limits(),
        )
        return linear_program.solve(-jnp.eye(n + 1)[n], wider).x[:n]

    def to_reward(
        self, parameter: Float[ArrayLike, " m"], shape: tuple[int, int]
    ) -> Float[Array, "x a"]:
        """Return the maximum times a table of parameters."""
        return jnp.asarray(self.maximum * jnp.asarray(parameter).reshape(shape))

    def to_parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " m"]:
        """Return the entries of a table in units of the maximum."""
        return jnp.asarray(reward).reshape(-1) / self.maximum

    def slack(self, parameter: Float[ArrayLike, " m"]) -> Float[Array, " c"]:
        """Return the distances from the bounds and of the inequalities from their limits."""
        polyhedron = self._polyhedron()
        return polyhedron.all_limits() - polyhedron.apply(jnp.asarray(parameter))

    def exact_form(self, shape: tuple[int, int]) -> Inequalities:
        """Return bounds and inequalities for a proof in ball arithmetic."""
        from scipy.sparse import csr_array

        limits = np.asarray(self.limits, np.float64)
        rows = csr_array(np.asarray(self.matrix, np.float64).reshape(len(limits), -1))
        return Inequalities(0.0, float(self.maximum), rows, limits)

    def log_covering_number(self, epsilon: float) -> float:
        r"""Return the log-covering number of the box around the polytope.

        Every cover of the box covers the tables in it: :math:`\lceil R_{max}/2\epsilon\rceil` to
        the number of cells.
        """
        _, n_contexts, n_actions = np.shape(self.matrix)
        return n_contexts * n_actions * float(np.log(np.ceil(float(self.maximum) / (2 * epsilon))))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless the polytope has an interior; see :func:`validate_reward_class`."""
        wanted = (*lead, "m", *shape)
        size = shape_with_free_axis("reward_class.matrix", self.matrix, wanted)
        matrix = numbers("reward_class.matrix", self.matrix, size, finite=finite)
        limits_shape = size[: len(lead) + 1]
        limits = numbers("reward_class.limits", self.limits, limits_shape, finite=finite)
        greater_than_zero("reward_class.maximum", self.maximum, lead, finite=finite)
        maximum = np.broadcast_to(np.asarray(self.maximum, np.float64), lead)
        for index in np.ndindex(lead):
            _require_interior(matrix[index], limits[index], maximum[index], index)

    def _polyhedron(self) -> Polyhedron:
        """Return the class in units of the maximum, with rows of length one."""
        matrix = jnp.asarray(self.matrix)
        matrix = matrix.reshape(matrix.shape[0], -1)
        lengths = DenseRows(matrix).lengths(matrix.shape[1])
        limits = jnp.asarray(self.limits) / (lengths * self.maximum)
        return Polyhedron(jnp.ones_like(matrix[0]), DenseRows(matrix / lengths[:, None]), limits)


def _require_interior(
    matrix: Float[np.ndarray, "m x a"],
    limits: Float[np.ndarray, " m"],
    maximum: np.ndarray | float,
    index: tuple[int, ...],
) -> None:
    """Raise if a polytope contains no ball, by a linear program for the radius of the largest."""
    rows = matrix.reshape(len(matrix), -1)
    if not (np.isfinite(rows).all() and np.isfinite(limits).all() and np.isfinite(maximum)):
        return
    lengths = np.linalg.norm(rows, axis=1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    identity = np.eye(rows.shape[1])
    normals = np.concatenate([rows / lengths[:, None], identity, -identity])
    reach = np.concatenate([limits / (lengths * maximum), np.ones(len(identity)), 0 * identity[0]])
    objective = np.append(np.zeros(len(identity)), -1.0)
    from scipy.optimize import linprog  # slow to import

    result = linprog(
        objective,
        A_ub=np.column_stack([normals, np.ones(len(normals))]),
        b_ub=reach,
        bounds=[*[(0.0, 1.0)] * len(identity), (None, 1.0)],
    )
    radius = -result.fun if result.status == 0 else -np.inf
    if radius < THINNEST:
        kind = "is empty" if radius < -THINNEST else "has no interior"
        rule = f"must leave room for rewards: the polytope {kind}; raise a limit"
        raise InvalidProblemError("reward_class.limits", index, rule)
