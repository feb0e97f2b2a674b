r"""Polyhedra :math:`0\le x\le u,\;Gx\le h`, with :math:`G` a matrix or all differences."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


class DenseRows(NamedTuple):
    """Linear functions given by a matrix.

    Attributes:
        matrix: coefficients :math:`G`, shape ``[c m]``.
    """

    matrix: Float[Array, "c m"]

    def apply(self, point: Float[Array, " m"]) -> Float[Array, " c"]:
        """Return :math:`Gx`."""
        return self.matrix @ point

    def adjoint(self, dual: Float[Array, " c"]) -> Float[Array, " m"]:
        r"""Return :math:`G^\top\lambda`."""
        return dual @ self.matrix

    def gram(self, weights: Float[Array, " c"]) -> Float[Array, "m m"]:
        r"""Return :math:`G^\top\mathrm{diag}(w)\,G`."""
        return (self.matrix.T * weights) @ self.matrix

    def lengths(self, n_variables: int) -> Float[Array, " c"]:
        """Return the Euclidean norms of the rows; 1 for a row of zeros."""
        lengths = jnp.linalg.norm(self.matrix, axis=1)
        return jnp.where(lengths > 0, lengths, 1.0)

    def select(self, indices: Int[Array, " k"], n_variables: int) -> Float[Array, "k m"]:
        """Return some of the rows; indices out of range count modulo the number of rows."""
        return self.matrix[indices % self.matrix.shape[0]]


class DifferenceRows(NamedTuple):
    r"""All differences of two coordinates, row by row; those of a coordinate to itself are 0.

    They need no matrix: :math:`G^\top\mathrm{diag}(w)\,G` is the Laplacian of a graph.
    """

    def apply(self, point: Float[Array, " m"]) -> Float[Array, " c"]:
        """Return the differences :math:`x_i-x_j`."""
        return (point[:, None] - point[None, :]).reshape(-1)

    def adjoint(self, dual: Float[Array, " c"]) -> Float[Array, " m"]:
        r"""Return :math:`G^\top\lambda`, the net flow out of every coordinate."""
        size = round(dual.shape[0] ** 0.5)
        flow = dual.reshape(size, size)
        return flow.sum(axis=1) - flow.sum(axis=0)

    def gram(self, weights: Float[Array, " c"]) -> Float[Array, "m m"]:
        """Return the Laplacian of the graph with these weights in both directions."""
        size = round(weights.shape[0] ** 0.5)
        edges = weights.reshape(size, size)
        edges = edges + edges.T
        edges = edges - jnp.diag(jnp.diag(edges))
        return jnp.diag(edges.sum(axis=1)) - edges

    def lengths(self, n_variables: int) -> Float[Array, " c"]:
        """Return the Euclidean norm of the rows."""
        return jnp.full(n_variables**2, 2.0**0.5)

    def select(self, indices: Int[Array, " k"], n_variables: int) -> Float[Array, "k m"]:
        """Return some of the rows; indices out of range count modulo the number of rows."""
        identity = jnp.eye(n_variables)
        return identity[indices // n_variables % n_variables] - identity[indices % n_variables]


Rows: TypeAlias = DenseRows | DifferenceRows
"""Linear functions beside the coordinates themselves."""


class Polyhedron(NamedTuple):
    r"""Points between bounds at which linear functions stay below their limits.

    Attributes:
        upper: upper bounds :math:`u \ge 0`; the lower bounds are 0.
        rows: linear functions :math:`G`.
        limits: :math:`h`.
    """

    upper: Float[Array, " m"]
    rows: Rows
    limits: Float[Array, " c"]

    def apply(self, point: Float[Array, " m"]) -> Float[Array, " s"]:
        """Return lower bounds, upper bounds and rows as one list of linear functions."""
        return jnp.concatenate([-point, point, self.rows.apply(point)])

    def adjoint(self, dual: Float[Array, " s"]) -> Float[Array, " m"]:
        """Return the transpose of :meth:`apply`."""
        m = self.upper.shape[0]
        return dual[m : 2 * m] - dual[:m] + self.rows.adjoint(dual[2 * m :])

    def gram(self, weights: Float[Array, " s"]) -> Float[Array, "m m"]:
        """Return the matrix of :meth:`adjoint` after weights after :meth:`apply`."""
        m = self.upper.shape[0]
        return jnp.diag(weights[:m] + weights[m : 2 * m]) + self.rows.gram(weights[2 * m :])

    def all_limits(self) -> Float[Array, " s"]:
        """Return the limits of :meth:`apply`."""
        return jnp.concatenate([jnp.zeros_like(self.upper), self.upper, self.limits])

    def lengths(self) -> Float[Array, " s"]:
        """Return the Euclidean norms of the rows of :meth:`apply`."""
        m = self.upper.shape[0]
        return jnp.concatenate([jnp.ones(2 * m), self.rows.lengths(m)])

    def select(self, indices: Int[Array, " k"]) -> Float[Array, "k m"]:
        """Return some rows of :meth:`apply`, each divided by its length."""
        m = self.upper.shape[0]
        unit = jnp.eye(m)[indices % m]
        bounds = jnp.where((indices < m)[:, None], -unit, unit)
        rows = self.rows.select(indices - 2 * m, m) / self.lengths()[indices][:, None]
        return jnp.where((indices < 2 * m)[:, None], bounds, rows)
