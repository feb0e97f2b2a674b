r"""What the adversary of the maximin method chooses from, in units in which rewards are about one.

Each set is :math:`\{y : c(y)\ge0\}` with concave :math:`c` (the simplex also has
:math:`\sum y=1`), and each of its members means a reward table :math:`\Phi y`. The Newton method
asks of a set only what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Bool, Float


class Box(NamedTuple):
    """Reward tables of one prompt in [0, 1]."""


class Free(NamedTuple):
    """All reward tables of one prompt."""


class Ball(NamedTuple):
    """Linear rewards with parameters in the unit ball."""

    features: Float[Array, "x a m"]


class Simplex(NamedTuple):
    """Mixtures of finitely many reward tables, each with a loss of its own."""

    features: Float[Array, "x a m"]
    losses: Float[Array, " m"]


FeasibleSet = Box | Free | Ball | Simplex


def start(rewards: FeasibleSet, n_actions: int) -> Float[Array, " m"]:
    """A point well inside the set."""
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
    r"""Reward table of a point, :math:`\Phi y`."""
    match rewards:
        case Box() | Free():
            return point[None]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,m->xa", features, point)


def adjoint(rewards: FeasibleSet, table: Float[Array, "x a"]) -> Float[Array, " m"]:
    r"""Transpose of :func:`reward`, :math:`\Phi^\top v`."""
    match rewards:
        case Box() | Free():
            return table[0]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,xa->m", features, table)


def adjoint_form(rewards: FeasibleSet, matrix: Float[Array, "x a a"]) -> Float[Array, "m m"]:
    r"""Quadratic form of tables as one of choices, :math:`\Phi^\top K\Phi`."""
    match rewards:
        case Box() | Free():
            return matrix[0]
        case Ball(features) | Simplex(features):
            return jnp.einsum("xam,xan->mn", features, jnp.einsum("xab,xbn->xan", matrix, features))


def gradient(rewards: FeasibleSet, flow: Float[Array, "x a"]) -> Float[Array, " m"]:
    r"""Gradient of what the adversary pays, :math:`\Phi^\top v` and the losses of the members."""
    match rewards:
        case Simplex(_, losses):
            return adjoint(rewards, flow) + losses
        case _:
            return adjoint(rewards, flow)


def slack(rewards: FeasibleSet, point: Float[Array, " m"]) -> Float[Array, " c"]:
    """Distances to the bounds, :math:`c(y)`."""
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
    """Derivative of the slack along a move of the point, and its transpose."""

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
    """What the bounds add to the Newton matrix: of their barrier, and of the ball's own bend."""
    stiffness = multiplier / slacks
    match rewards:
        case Box():
            return jnp.diag(stiffness[: point.size] + stiffness[point.size :])
        case Free():
            return jnp.zeros((point.size, point.size))
        case Ball():
            # The barrier's own part, a multiple of y y', would drown the rest: see newton_move.
            return multiplier * jnp.eye(point.size)
        case Simplex():
            return jnp.diag(stiffness)


def min_complementarity(rewards: FeasibleSet, multiplier: Float[Array, " c"]) -> Float[Array, " c"]:
    """Products of slack and multiplier below which the slack would be roundoff.

    The slacks of linear bounds move with the point and keep their precision; the ball's is
    compared with a norm.
    """
    return 1e-14 * multiplier if isinstance(rewards, Ball) else jnp.zeros_like(multiplier)


def curvature_loss(
    rewards: FeasibleSet, move: Float[Array, " m"], multiplier: Float[Array, " c"]
) -> Float[Array, " c"]:
    """Products of multiplier and slack that a move loses because the bound is not straight."""
    bend = jnp.vdot(move, move) if isinstance(rewards, Ball) else 0.0
    return bend * multiplier


def ridge_scale(
    rewards: FeasibleSet, curvature: Float[Array, "m m"], priced: Bool[Array, ""]
) -> Float[Array, " m"]:
    """Size of each entry of the curvature, as far as it is known to relative precision.

    Tables are, if the policy prices them; in features, and in the free directions of a likelihood
    alone, small entries are differences of large ones.
    """
    stiffness = jnp.diagonal(curvature)
    if isinstance(rewards, Ball | Simplex):
        return jnp.full_like(stiffness, stiffness.max())
    return jnp.where(priced, stiffness, stiffness.max())


def newton_move(
    rewards: FeasibleSet,
    factor: Float[Array, "m m"],
    force: Float[Array, " m"],
    point: Float[Array, " m"],
    slacks: Float[Array, " c"],
    multiplier: Float[Array, " c"],
) -> Float[Array, " m"]:
    """Move of the point under a force, given the Cholesky factor of the Newton matrix.

    The sphere's barrier and the simplex's sum act along one direction and are bordered.
    """
    match rewards:
        case Box() | Free():
            return cho_solve((factor, True), force)
        case Ball():
            normal, softness, excess = point, slacks[0] / multiplier[0], 0.0
        case Simplex():
            normal, softness, excess = jnp.ones_like(point), 0.0, point.sum() - 1.0
    free, aside = cho_solve((factor, True), jnp.stack([force, normal], axis=1)).T
    return free - aside * ((normal @ free + excess) / (normal @ aside + softness))


def distance(
    rewards: FeasibleSet, point: Float[Array, " m"], gradient: Float[Array, " m"]
) -> Float[Array, ""]:
    """How far a unit gradient step and projection move the point; 0 where it is minimal."""
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
            # Of the simplex: members that are not the best must have no weight.
            return jnp.max(jnp.minimum(point, gradient - gradient.min()))
