r"""Tangents of a constrained minimizer by the implicit function theorem, as linear functions.

Let :math:`u` minimize a convex function :math:`f` whose gradient moves by :math:`\dot g` when the
arguments of the problem move. Differentiating the optimality conditions gives a linear system for
the tangent :math:`\dot u`. Each function here solves the system of one kind of constraint. The
result is linear in the tangents, so it transposes, and differentiable in the matrices, so that a
second derivative exists where the first is smooth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from .box_interior_point import EPSILON
from .laplacian_qp import connected_components

RANK_TOLERANCE = 1e-11
"""Singular values below this share of the largest count as zero."""


def laplacian_tangent(
    edge_weights: Float[Array, "a a"],
    fixed: Bool[Array, " a"],
    force: Float[Array, " a"],
    fixed_tangent: Float[Array, " a"],
) -> Float[Array, " a"]:
    r"""Solve :math:`L\dot u = -\dot g` at the free entries, where :math:`L` is a graph Laplacian.

    Args:
        edge_weights: weights of the graph, at least 0; the diagonal is ignored.
        fixed: entries at a bound.
        force: :math:`-\dot g`; its sum over a connected component without fixed entries is zero.
        fixed_tangent: tangents of the bounds of the fixed entries.

    Returns:
        The tangent. In a connected component without fixed entries, in which a constant is free,
        its mean is zero.

    Examples:
        >>> edges, nothing = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.zeros(2)
        >>> laplacian_tangent(edges, nothing > 0, jnp.array([1.0, -1.0]), nothing).tolist()
        [0.25, -0.25]
    """
    n_nodes = fixed.size
    same = jnp.eye(n_nodes, dtype=bool)
    edge_weights = jnp.where(same, 0.0, edge_weights)
    linked = jnp.where(fixed[:, None] | fixed[None, :], 0.0, edge_weights)
    # Rounding to zero must not cut a component in two: the test is on the weights themselves.
    component = connected_components(jax.lax.stop_gradient(linked)) & ~fixed[:, None] & ~fixed
    touches_fixed = jnp.any((edge_weights > 0) & fixed[None, :], axis=1)
    grounded = jnp.any(component & touches_fixed[None, :], axis=1)
    anchor = ~fixed & ~grounded & (jnp.argmax(component, axis=1) == jnp.arange(n_nodes))
    held = fixed | anchor

    def apply(vector: Float[Array, " a"]) -> Float[Array, " a"]:
        return jnp.sum(edge_weights * (vector[:, None] - vector[None, :]), axis=1)

    bound = jnp.where(fixed, fixed_tangent, 0.0)
    force = jnp.where(held, 0.0, force - apply(bound))
    degree = jnp.where(held, 1.0, edge_weights.sum(axis=1))
    scale = jax.lax.rsqrt(degree)
    coupling = jnp.where(held[:, None] | held[None, :] | same, 0.0, edge_weights)
    scaled = coupling * scale[:, None] * scale[None, :]
    lifted = jnp.where(same, 1.0 + 8.0 * EPSILON, -scaled)
    factor = jnp.linalg.cholesky(lifted, symmetrize_input=False)

    def solve(right: Float[Array, " a"]) -> Float[Array, " a"]:
        half = jax.lax.linalg.triangular_solve(
            factor, (scale * right)[:, None], left_side=True, lower=True
        )
        solution = jax.lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
        return jnp.where(held, 0.0, scale * solution[:, 0])

    free = solve(force)
    free = free + solve(jnp.where(held, 0.0, force - apply(free)))  # removes the lift
    size = jnp.maximum(component.sum(axis=1), 1).astype(free.dtype)
    mean = jnp.where(component, free[None, :], 0.0).sum(axis=1) / size
    return bound + free - jnp.where(grounded | fixed, 0.0, mean)


def face_tangent(
    hessian: Float[Array, "m m"],
    normals: Float[Array, "c m"],
    force: Float[Array, " m"],
    slack_tangent: Float[Array, " c"],
) -> Float[Array, " m"]:
    r"""Solve the optimality conditions on a face, :math:`H\dot u - J^\top\dot\lambda = -\dot g`.

    The active constraints stay active: :math:`J\dot u = -\dot c`. They may be redundant.

    Args:
        hessian: Hessian :math:`H` of the Lagrangian.
        normals: gradients :math:`J` of the active constraints; rows of zeros for the others.
        force: :math:`-\dot g`, with :math:`g` the gradient of the Lagrangian.
        slack_tangent: tangent :math:`\dot c` of the active constraints at a fixed point; zero for
            the others.

    Returns:
        The tangent; among several that of smallest norm along the face.

    Examples:
        >>> normal, force = jnp.array([[1.0, 0.0]]), jnp.array([0.0, 3.0])
        >>> face_tangent(jnp.eye(2), normal, force, jnp.array([-1.0])).tolist()
        [1.0, 3.0]
    """
    inverse = jnp.linalg.pinv(normals, rtol=RANK_TOLERANCE)
    along = jnp.eye(hessian.shape[0], dtype=hessian.dtype) - inverse @ normals
    onto = -inverse @ slack_tangent
    reduced = along.T @ hessian @ along
    # A face may be flat up to rounding. What counts as zero is relative to the Hessian itself: a
    # block with its size sets the largest singular value.
    size = jax.lax.stop_gradient(jnp.abs(hessian).max())
    blocks = jax.scipy.linalg.block_diag(0.5 * (reduced + reduced.T), size)
    curvature = jnp.linalg.pinv(blocks, rtol=RANK_TOLERANCE, hermitian=True)[:-1, :-1]
    return onto + along @ (curvature @ (along.T @ (force - hessian @ onto)))


def fixed_point_tangent(
    matrix: Float[Array, "m m"], force: Float[Array, " m"]
) -> Float[Array, " m"]:
    r"""Solve :math:`M\dot u = b`; among several solutions return the shortest.

    Args:
        matrix: any square matrix :math:`M`.
        force: right-hand side :math:`b`.

    Examples:
        >>> fixed_point_tangent(jnp.diag(jnp.array([2.0, 0.0])), jnp.array([1.0, 0.0])).tolist()
        [0.5, 0.0]
    """
    return jnp.linalg.pinv(matrix, rtol=RANK_TOLERANCE) @ force
