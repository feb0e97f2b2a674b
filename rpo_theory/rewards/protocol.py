r"""Protocol of reward classes, and the functions that solvers and certificates use them by.

A reward class is any JAX pytree with two methods, :meth:`RewardClass.project` and
:meth:`RewardClass.linear_minimizer`. The functions of this module derive everything else from the
two, unless the class defines a method of the same name:

========================== ==================================================================
optional attribute         meaning
========================== ==================================================================
``linear_minimum(v)``      minimum of :math:`\langle v,r\rangle` over the members
``linear_gap(v, r)``       upper bound on :math:`\langle v,r\rangle` minus that minimum
``contains(r)``            whether a table is a member
``reward_max``             largest difference between two rewards of one context, over all members
``log_covering_number(e)`` log of an upper bound on the covering number in the sup norm
``is_convex``              False if the class is not convex
``is_compact``             False if the class is not compact
``interior(shape)``        parameter strictly inside the class, shape ``[m]``
``to_reward(u, shape)``    table of a parameter, affine in it
``to_parameter(r)``        parameter of a table
``slack(u)``               concave functions of the parameter, at least 0 exactly on the class
``minimize(problem, ...)`` solver of one problem
``solves_only_wins``       True if that solver takes no choices and ties
``level_minimizer``        best member for a linear function within a level of another function
``exact_form(shape)``      exact set of members, for :mod:`rpo_theory.rigorous`
========================== ==================================================================

A class with the four methods ``interior``, ``to_reward``, ``to_parameter`` and ``slack`` has a
smooth form: Newton's method solves it, and its solutions have exact derivatives.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from rpo_theory.types import ArrayLike

ROUNDING = 1e-9
"""Largest relative distance of a reward from its class that counts as rounding."""
SMOOTH_FORM = ("interior", "to_reward", "to_parameter", "slack")


@runtime_checkable
class RewardClass(Protocol):
    """Set of reward tables that the adversary may choose from, as a JAX pytree."""

    def project(self, reward: Float[ArrayLike, "x a"], /) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance."""
        ...

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"], /) -> Float[Array, "x a"]:
        r"""Return a member that minimizes :math:`\langle v, r\rangle` over the class."""
        ...


AnyRewardClass: TypeAlias = Any
"""Type of a reward class of which optional attributes are used, where it is known to have them."""


class Minimum(NamedTuple):
    r"""Minimizer of a convex objective over a reward class.

    Attributes:
        reward: the minimizer, a member of the class, shape ``[x a]``.
        residual: violation of the optimality conditions at which the iteration stopped.
        steps: number of iterations.
    """

    reward: Float[Array, "x a"]
    residual: Float[Array, ""]
    steps: Array


def linear_minimum(reward_class: RewardClass, direction: Float[ArrayLike, "x a"]) -> Array:
    r"""Return the minimum of :math:`\langle v, r\rangle` over a class.

    Args:
        reward_class: a compact class.
        direction: :math:`v(x,a)`.

    Returns:
        The minimum, up to the accuracy of the class's linear minimizer.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> float(linear_minimum(TabularBox(2.0), np.array([[3.0, -1.0]])))
        -2.0
    """
    method = getattr(reward_class, "linear_minimum", None)
    if method is not None:
        return method(direction)
    return jnp.vdot(jnp.asarray(direction), reward_class.linear_minimizer(direction))


def linear_gap(
    reward_class: RewardClass, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
) -> Array:
    r"""Bound the linear (Frank-Wolfe) gap of a member from above.

    .. math:: \langle v,r\rangle-\min_{r'}\langle v,r'\rangle

    Args:
        reward_class: a compact class.
        direction: :math:`v(x,a)`.
        reward: a member, :math:`r(x,a)`.

    Returns:
        Number at least 0 up to rounding; at most the rounding errors for a minimizer.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> float(linear_gap(TabularBox(2.0), np.array([[3.0, -1.0]]), np.array([[0.5, 1.0]])))
        2.5
    """
    method = getattr(reward_class, "linear_gap", None)
    if method is not None:
        return method(direction, reward)
    direction, reward = jnp.asarray(direction), jnp.asarray(reward)
    lowest = reward_class.linear_minimizer(direction)
    magnitude = jnp.abs(direction * reward).sum() + jnp.abs(direction * lowest).sum()
    # The two terms nearly cancel at a minimizer: add a bound on their rounding errors.
    rounding = jnp.finfo(magnitude.dtype).eps * magnitude
    return jnp.vdot(direction, reward - lowest) + rounding


def class_residual(reward_class: RewardClass, reward: Float[ArrayLike, "x a"]) -> Array:
    r"""Return the distance of a reward from its class, relative to :math:`1+\max|r|`.

    Args:
        reward_class: rewards that the adversary may choose from.
        reward: any reward; ``-inf`` is a member of the unbounded class.

    Returns:
        Largest entry of the difference to the nearest member.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> float(class_residual(TabularBox(2.0), jnp.array([[3.0, 0.0]])))
        0.25
    """
    reward = jnp.asarray(reward)
    nearest = reward_class.project(reward)
    distance = jnp.where(nearest == reward, 0.0, jnp.abs(nearest - reward)).max()
    return distance / (1.0 + jnp.abs(reward).max())


def contains(reward_class: RewardClass, reward: Float[ArrayLike, "x a"]) -> Bool[Array, ""]:
    """Return whether a reward is a member of a class, up to rounding.

    Args:
        reward_class: rewards that the adversary may choose from.
        reward: any reward.

    Returns:
        Whether its relative distance from the class is at most :data:`ROUNDING`.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> bool(contains(TabularBox(2.0), np.array([[2.0, 0.0]])))
        True
    """
    method = getattr(reward_class, "contains", None)
    return class_residual(reward_class, reward) <= ROUNDING if method is None else method(reward)


def is_convex(reward_class: RewardClass) -> bool:
    """Return whether a class is convex; it is unless its ``is_convex`` is false.

    Args:
        reward_class: any reward class.

    Examples:
        >>> from rpo_theory.rewards import FiniteClass
        >>> is_convex(FiniteClass(np.zeros((1, 1, 2))))
        False
    """
    return bool(getattr(reward_class, "is_convex", True))


def is_compact(reward_class: RewardClass) -> bool:
    """Return whether a class is compact; it is unless its ``is_compact`` is false.

    Args:
        reward_class: any reward class.

    Examples:
        >>> from rpo_theory.rewards import Unbounded
        >>> is_compact(Unbounded())
        False
    """
    return bool(getattr(reward_class, "is_compact", True))


def is_smooth(reward_class: RewardClass) -> bool:
    """Return whether a class has a smooth form: ``interior``, ``to_reward`` and the other two.

    Args:
        reward_class: any reward class.

    Examples:
        >>> from rpo_theory.rewards import TabularBox, Unbounded
        >>> is_smooth(TabularBox(2.0)), is_smooth(Unbounded())
        (True, False)
    """
    return all(hasattr(reward_class, name) for name in SMOOTH_FORM)


def reward_max(reward_class: RewardClass) -> Any:
    r"""Return the range of a class, the :math:`R_{max}` of the bounds.

    Args:
        reward_class: any reward class.

    Returns:
        Largest difference between two rewards of one context; NaN if the class has no
        ``reward_max``.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> reward_max(TabularBox(2.0))
        2.0
    """
    return getattr(reward_class, "reward_max", np.nan)


def log_covering_number(
    reward_class: RewardClass,
    epsilon: float,
    n_parameters: int | None = None,
    *,
    shape: tuple[int, int] | None = None,
) -> float:
    r"""Return the log of an upper bound on the :math:`\epsilon`-covering number in the sup norm.

    The bound is :math:`\lceil R_{max}/2\epsilon\rceil` to the number of coordinates for a box,
    :math:`(1 + 2BL/\epsilon)^d` for a ball of radius :math:`B` with :math:`\|\phi\|\le L`, and the
    number of members for a finite class.

    Args:
        reward_class: a compact reward class.
        epsilon: covering scale :math:`\epsilon > 0`, in units of reward.
        n_parameters: number of free coordinates of a box, :math:`|X||A|`; at most :math:`d` for a
            ball. Other classes know theirs.
        shape: number of contexts and of actions; gives the number of coordinates of a class that
            does not know it.

    Returns:
        :math:`\log\mathcal N_\epsilon \ge 0`; NaN if the class has no ``log_covering_number``.

    Raises:
        ValueError: if the class is not compact, or a number is not greater than 0.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> round(log_covering_number(TabularBox(1.0), 0.25, 3), 4)
        2.0794
    """
    if not is_compact(reward_class):
        kind = type(reward_class).__name__
        raise ValueError(f"`reward_class` must be compact, got {kind}")
    method = getattr(reward_class, "log_covering_number", None)
    if method is None:
        return float("nan")
    for name, number in (("epsilon", epsilon), ("n_parameters", n_parameters)):
        if number is not None and not number > 0:
            raise ValueError(f"`{name}` must be greater than 0, got {number}")
    wanted = inspect.signature(method).parameters.get("n_parameters")
    if wanted is None:
        return float(method(epsilon))
    if n_parameters is None and wanted.default is inspect.Parameter.empty and shape is not None:
        n_parameters = shape[0] * shape[1]
    return float(method(epsilon) if n_parameters is None else method(epsilon, n_parameters))


def gradient_move(
    reward_class: RewardClass, reward: Float[ArrayLike, "x a"], gradient: Float[ArrayLike, "x a"]
) -> Float[Array, "..."]:
    r"""Return the move of a reward by a projected gradient step, :math:`r - P(r - g)`.

    Args:
        reward_class: a convex class.
        reward: a member, :math:`r(x,a)`.
        gradient: :math:`g(x,a)`.

    Returns:
        The move in the coordinates of the class, 0 at a minimum: its table, or what the class's own
        ``gradient_move`` returns.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> reward, gradient = np.array([[0.0, 2.0]]), np.array([[3.0, 0.5]])
        >>> gradient_move(TabularBox(2.0), reward, gradient).tolist()
        [[0.0, 0.5]]
    """
    method = getattr(reward_class, "gradient_move", None)
    if method is not None:
        return method(reward, gradient)
    reward = jnp.asarray(reward)
    return reward - reward_class.project(reward - jnp.asarray(gradient))
