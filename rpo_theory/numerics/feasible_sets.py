r"""Feasible sets of the adversary in the maximin method, in units in which rewards are about one.

Each set is :math:`\{y : c(y)\ge0\}` with concave :math:`c` (the simplex also has
:math:`\sum y=1`). A point :math:`y` stands for the reward table :math:`\Phi y`. The functions here
are all that the Newton method uses of a set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Bool, Float

ROUNDING = 2.0**-45  # relative slack of a smooth set that rounding decides
LIFT = 64.0  # in units of roundoff, relative to a unit diagonal


class Box(NamedTuple):
    """Reward tables of one context with entries in [0, 1]."""


class Free(NamedTuple):
    """All reward tables of one context."""


class Ball(NamedTuple):
    """Linear rewards with parameters in the unit ball."""

    features: Float[Array, "x a m"]


class Simplex(NamedTuple):
    """Mixtures of finitely many reward tables, each with a loss."""

    features: Float[Array, "x a m"]
    losses: Float[Array, " m"]


class Smooth(NamedTuple):
    r"""Rewards that are affine in a parameter with concave constraints, such as a polyhedron.

    A point is the parameter relative to ``interior``, in units of ``widths``.

    Attributes:
        features: slopes :math:`\Phi` of the reward table in the point.
        origin: reward table of the point zero.
        interior: parameter strictly inside the set.
        widths: half-widths of the set along the parameters.
        members: object with a method ``slack`` of the parameter.
        loss: convex loss of a table that the adversary adds; None for none.
    """

    features: Float[Array, "x a m"]
    origin: Float[Array, "x a"]
    interior: Float[Array, " m"]
    widths: Float[Array, " m"]
    members: Any
    loss: Any = None


FeasibleSet: TypeAlias = Box | Free | Ball | Simplex | Smooth


def start(rewards: FeasibleSet, n_actions: int) -> Float[Array, " m"]:
    """Return a point well inside the set."""
    match rewards:
        case Box():
            return jnp.full(n_actions, 0.5)
        case Free():
            return jnp.zeros(n_actions)
        case Ball(features) | Smooth(features):
            return jnp.zeros_like(features[0, 0])
        case Simplex(_, losses):
            return jnp.full_like(losses, 1.0 / losses.size)


def reward(rewards: FeasibleSet, point: Float[Array, " m"]) -> Float[Array, "x a"]:
    r"""Return the reward table of a move, :math:`\Phi y`."""
    match rewards:
        case Box() | Free():
            return point[None]
        case Ball(features) | Simplex(features) | Smooth(features):
            return jnp.einsum("xam,m->xa", features, point)


def table(rewards: FeasibleSet, point: Float[Array, " m"]) -> Float[Array, "x a"]:
    """Return the reward table of a point.

    Examples:
        >>> features, origin = jnp.ones((1, 2, 1)), jnp.array([[0.0, 1.0]])
        >>> lifted = Smooth(features, origin, jnp.zeros(1), jnp.ones(1), None)
        >>> table(lifted, jnp.array([0.5])).tolist()
        [[0.5, 1.5]]
    """
    moved = reward(rewards, point)
    return moved + rewards.origin if isinstance(rewards, Smooth) else moved


def adjoint(rewards: FeasibleSet, table: Float[Array, "x a"]) -> Float[Array, " m"]:
    r"""Apply the transpose of :func:`reward`, :math:`\Phi^\top v`."""
    match rewards:
        case Box() | Free():
            return table[0]
        case Ball(features) | Simplex(features) | Smooth(features):
            return jnp.einsum("xam,xa->m", features, table)


def adjoint_form(rewards: FeasibleSet, matrix: Float[Array, "x a a"]) -> Float[Array, "m m"]:
    r"""Return a quadratic form of tables as one of points, :math:`\Phi^\top K\Phi`."""
    match rewards:
        case Box() | Free():
            return matrix[0]
        case Ball(features) | Simplex(features) | Smooth(features):
            return jnp.einsum("xam,xan->mn", features, jnp.einsum("xab,xbn->xan", matrix, features))


def gradient(
    rewards: FeasibleSet, flow: Float[Array, "x a"], point: Float[Array, " m"]
) -> Float[Array, " m"]:
    r"""Return the gradient of the adversary: :math:`\Phi^\top v` plus that of its own losses."""
    match rewards:
        case Simplex(_, losses):
            return adjoint(rewards, flow) + losses
        case Smooth(loss=loss) if loss is not None:
            return adjoint(rewards, flow + jax.grad(loss)(table(rewards, point)))
        case _:
            return adjoint(rewards, flow)


def slack(rewards: FeasibleSet, point: Float[Array, " m"]) -> Float[Array, " c"]:
    """Return the distances to the bounds, :math:`c(y)`."""
    match rewards:
        case Box():
            return jnp.concatenate([point, 1.0 - point])
        case Free():
            return point[:0]
        case Ball():
            return 0.5 * (1.0 - jnp.vdot(point, point))[None]
        case Simplex():
            return point
        case Smooth(_, _, interior, widths, members):
            return members.slack(interior + widths * point) / members.slack(interior)


def bound_maps(
    rewards: FeasibleSet, point: Float[Array, " m"]
) -> tuple[
    Callable[[Float[Array, " m"]], Float[Array, " c"]],
    Callable[[Float[Array, " c"]], Float[Array, " m"]],
]:
    """Return the derivative of the slack as a linear map of moves, and its transpose."""

    def slack_of(moved: Float[Array, " m"]) -> Float[Array, " c"]:
        return slack(rewards, moved)

    _, transpose = jax.vjp(slack_of, point)
    return (
        lambda move: jax.jvp(slack_of, (point,), (move,))[1],
        lambda multiplier: transpose(multiplier)[0],
    )


def bound_curvature(
    rewards: FeasibleSet,
    point: Float[Array, " m"],
    slacks: Float[Array, " c"],
    multiplier: Float[Array, " c"],
) -> Float[Array, "m m"]:
    """Return the contribution of the bounds to the Newton matrix."""
    stiffness = multiplier / slacks
    match rewards:
        case Box():
            return jnp.diag(stiffness[: point.size] + stiffness[point.size :])
        case Free():
            return jnp.zeros((point.size, point.size))
        case Ball():
            # The barrier term, a multiple of y y', would dominate: `newton_move` adds it.
            return multiplier * jnp.eye(point.size)
        case Simplex():
            return jnp.diag(stiffness)
        case Smooth(loss=loss):
            slopes = jax.jacfwd(lambda moved: slack(rewards, moved))(point)

            def lagrangian(moved: Float[Array, " m"]) -> Float[Array, ""]:
                losses = 0.0 if loss is None else loss(table(rewards, moved))
                return losses - jnp.vdot(multiplier, slack(rewards, moved))

            return jax.hessian(lagrangian)(point) + (slopes.T * stiffness) @ slopes


def min_complementarity(rewards: FeasibleSet, multiplier: Float[Array, " c"]) -> Float[Array, " c"]:
    """Return the smallest products of slack and multiplier at which the slack exceeds roundoff.

    Slacks of linear bounds are updated with the point and keep their precision. The slack of the
    ball is compared with a norm.
    """
    curved = isinstance(rewards, Ball | Smooth)
    return 1e-14 * multiplier if curved else jnp.zeros_like(multiplier)


def curvature_loss(
    rewards: FeasibleSet,
    point: Float[Array, " m"],
    move: Float[Array, " m"],
    multiplier: Float[Array, " c"],
) -> Float[Array, " c"]:
    """Return the second-order change of slack times multiplier along a move, for curved bounds."""
    match rewards:
        case Ball():
            return jnp.vdot(move, move) * multiplier
        case Smooth():
            rise = bound_maps(rewards, point)[0](move)
            bend = slack(rewards, point) + rise - slack(rewards, point + move)
            return jnp.where(bend > ROUNDING, bend, 0.0) * multiplier
        case _:
            return 0.0 * multiplier


def ridge_scale(
    rewards: FeasibleSet, curvature: Float[Array, "m m"], adversarial: Bool[Array, ""]
) -> Float[Array, " m"]:
    """Return the scale of the ridge for each entry of the point.

    For tables with an adversarial term, each diagonal entry of the curvature has full relative
    precision. With features, or with a likelihood only, small entries are differences of large
    ones, and the largest entry sets the scale.
    """
    stiffness = jnp.diagonal(curvature)
    if isinstance(rewards, Ball | Simplex | Smooth):
        return jnp.full_like(stiffness, stiffness.max())
    return jnp.where(adversarial, stiffness, stiffness.max())


def factor(rewards: FeasibleSet, matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return the lower Cholesky factor of a Newton matrix.

    Entries of the matrix of a smooth set can differ by more than the precision of float64. It is
    scaled to a unit diagonal, and a small multiple of the identity keeps it positive definite.
    """
    if not isinstance(rewards, Smooth):
        return jnp.linalg.cholesky(matrix, symmetrize_input=False)
    scale = jax.lax.rsqrt(jnp.diagonal(matrix))
    identity = jnp.eye(len(scale), dtype=matrix.dtype)
    lifted = matrix * scale[:, None] * scale + LIFT * jnp.finfo(matrix.dtype).eps * identity
    return jnp.linalg.cholesky(lifted, symmetrize_input=False) / scale[:, None]


def newton_move(
    rewards: FeasibleSet,
    factor: Float[Array, "m m"],
    force: Float[Array, " m"],
    point: Float[Array, " m"],
    slacks: Float[Array, " c"],
    multiplier: Float[Array, " c"],
) -> Float[Array, " m"]:
    """Return the Newton move of the point under a force.

    The barrier of the ball and the sum of the simplex act along one direction; they border the
    system of the given Cholesky factor.
    """
    match rewards:
        case Box() | Free() | Smooth():
            return cho_solve((factor, True), force)
        case Ball():
            normal, softness, excess = point, slacks[0] / multiplier[0], 0.0
        case Simplex():
            normal, softness, excess = jnp.ones_like(point), 0.0, point.sum() - 1.0
    free, along_normal = cho_solve((factor, True), jnp.stack([force, normal], axis=1)).T
    step = (normal @ free + excess) / (normal @ along_normal + softness)
    return free - along_normal * step


def distance(
    rewards: FeasibleSet,
    point: Float[Array, " m"],
    gradient: Float[Array, " m"],
    multiplier: Float[Array, " c"],
) -> Float[Array, ""]:
    """Return the distance of a point from its projected unit gradient step, 0 at a minimum.

    A smooth set has no such step: the error of its optimality conditions takes its place.
    """
    match rewards:
        case Box():
            return jnp.max(jnp.abs(point - jnp.clip(point - gradient, 0.0, 1.0)))
        case Free():
            return jnp.max(jnp.abs(gradient))
        case Ball():
            moved = point - gradient
            inside = moved / jnp.maximum(1.0, jnp.linalg.norm(moved))
            return jnp.linalg.norm(point - inside)
        case Simplex():
            # On the simplex, members that are not minimal must have weight zero.
            return jnp.max(jnp.minimum(point, gradient - gradient.min()))
        case Smooth():
            unexplained = gradient - bound_maps(rewards, point)[1](multiplier)
            gap = multiplier * jnp.maximum(jnp.abs(slack(rewards, point)) - ROUNDING, 0.0)
            return jnp.maximum(jnp.abs(unexplained).max(), gap.max())
