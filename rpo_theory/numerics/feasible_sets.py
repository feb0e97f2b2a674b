r"""Feasible sets of the adversary in the maximin method, in units in which rewards are about one.

Each set is :math:`\{y : c(y)\ge0\}` with concave :math:`c` (the simplex also has
:math:`\sum y=1`). A point :math:`y` stands for the reward table :math:`\Phi y`. The functions here
are all that the Newton method uses of a set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Bool, Float


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


FeasibleSet: TypeAlias = Box | Free | Ball | Simplex


def start(rewards: FeasibleSet, n_actions: int) -> Float[Array, " m"]:
    """Return a point well inside the set."""
    match rewards:
        case Box():
            return jnp.full(n_actions, 0.5)
        case Free():
            return jnp.zeros(n_actions)
        case Ball(features):
            return jnp.zeros_like(features[0, 0])
        case Simplex(_, losses):
            return jnp.full_like(losses, 1.0 / losses.size)


def reward(rewards: FeasibleSet, point: Float[Array, " m"]) -> Float[Array, "x a"]:
    r"""Return the reward table of a point, :math:`\Phi y`."""
    match rewards:
        case Box() | Free():
            return point[None]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,m->xa", features, point)


def adjoint(rewards: FeasibleSet, table: Float[Array, "x a"]) -> Float[Array, " m"]:
    r"""Apply the transpose of :func:`reward`, :math:`\Phi^\top v`."""
    match rewards:
        case Box() | Free():
            return table[0]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,xa->m", features, table)


def adjoint_form(rewards: FeasibleSet, matrix: Float[Array, "x a a"]) -> Float[Array, "m m"]:
    r"""Return a quadratic form of tables as one of points, :math:`\Phi^\top K\Phi`."""
    match rewards:
        case Box() | Free():
            return matrix[0]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,xan->mn", features, jnp.einsum("xab,xbn->xan", matrix, features))


def gradient(rewards: FeasibleSet, flow: Float[Array, "x a"]) -> Float[Array, " m"]:
    r"""Return the gradient of the adversary: :math:`\Phi^\top v` plus the losses of a mixture."""
    match rewards:
        case Simplex(_, losses):
            return adjoint(rewards, flow) + losses
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


def min_complementarity(rewards: FeasibleSet, multiplier: Float[Array, " c"]) -> Float[Array, " c"]:
    """Return the smallest products of slack and multiplier at which the slack exceeds roundoff.

    Slacks of linear bounds are updated with the point and keep their precision. The slack of the
    ball is compared with a norm.
    """
    return 1e-14 * multiplier if isinstance(rewards, Ball) else jnp.zeros_like(multiplier)


def curvature_loss(
    rewards: FeasibleSet, move: Float[Array, " m"], multiplier: Float[Array, " c"]
) -> Float[Array, " c"]:
    """Return the second-order change of slack times multiplier along a move, for curved bounds."""
    bend = jnp.vdot(move, move) if isinstance(rewards, Ball) else 0.0
    return bend * multiplier


def ridge_scale(
    rewards: FeasibleSet, curvature: Float[Array, "m m"], adversarial: Bool[Array, ""]
) -> Float[Array, " m"]:
    """Return the scale of the ridge for each entry of the point.

    For tables with an adversarial term, each diagonal entry of the curvature has full relative
    precision. With features, or with a likelihood only, small entries are differences of large
    ones, and the largest entry sets the scale.
    """
    stiffness = jnp.diagonal(curvature)
    if isinstance(rewards, Ball | Simplex):
        return jnp.full_like(stiffness, stiffness.max())
    return jnp.where(adversarial, stiffness, stiffness.max())


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
        case Box() | Free():
            return cho_solve((factor, True), force)
        case Ball():
            normal, softness, excess = point, slacks[0] / multiplier[0], 0.0
        case Simplex():
            normal, softness, excess = jnp.ones_like(point), 0.0, point.sum() - 1.0
    free, along_normal = cho_solve((factor, True), jnp.stack([force, normal], axis=1)).T
    step = (normal @ free + excess) / (normal @ along_normal + softness)
    return free - along_normal * step


def distance(
    rewards: FeasibleSet, point: Float[Array, " m"], gradient: Float[Array, " m"]
) -> Float[Array, ""]:
    """Return the distance of a point from its projected unit gradient step, 0 at a minimum."""
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
