r"""Coverage coefficient :math:`C_{\mu_D}(\mathcal R;\pi,\pi_{base})`, exact for every reward class.

.. math:: C = \max\Big\{0, \sup_{r\in\mathcal R}
    \frac{E_{d_0,\pi,\pi_{base}}[(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))]}
    {\sqrt{E_{\mu_D}|(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))|^2}}\Big\}

(`liu:24`, A 5.2). The ratio is constant along rays from :math:`r^\star`, so for a convex class only
the closed tangent cone at :math:`r^\star` matters. With :math:`v` the linear form of the numerator
and :math:`\Sigma` the quadratic form of the denominator,

.. math:: C^2 = 2\,\sup\{-\langle v,d\rangle - \tfrac12\langle d,\Sigma d\rangle:
          d \text{ in the cone}\}.

The methods for the kinds of classes are in :mod:`rpo_theory.tangent_cones`. Whether :math:`C` is
infinite is decided by the directions that the data leave open, not by the size of a number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ._batching import broadcast_scalars, map_in_groups, round_group_size
from ._kernels import Kernel, check_kernel
from ._tracing import divided_by_sum, in_trace
from .numerics import laplacian_kernel
from .rewards import AnyRewardClass, RewardClass, to_float64
from .tangent_cones import (
    Query,
    entry_constraints,
    has_entry_constraints,
    squared_coefficient,
)
from .types import ArrayLike
from .validation import (
    InvalidProblemError,
    validate_policy,
    validate_reward,
    validate_reward_class,
)

ROUNDOFF_ULPS = 64
"""Differences below this number of units in the last place count as rounding."""
MEMBER_TOLERANCE = 1e-6
"""Accepted relative distance of the true reward from its class: rounding to seven digits."""
GROUP = 8192
"""Number of pairs of responses in one call of the compiled program."""


class _Result(NamedTuple):
    """Coefficient, distance of the true reward from its class, and convergence of the solver."""

    coefficient: Float[ArrayLike, "*B"]
    misfit: Float[ArrayLike, "*B"]
    converged: Bool[ArrayLike, "*B"]


def coverage_coefficient(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "x a"],
    comparator: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    pair_distribution: Float[ArrayLike, "x a a"],
) -> Float[ArrayLike, ""]:
    r"""Return the coverage coefficient of a comparator and a baseline policy.

    It is finite if and only if the data determine how much better the comparator is than the
    baseline, for all rewards of the class. Data about other policies are not needed. It is exact,
    except for a class with a projection only (see :mod:`rpo_theory.tangent_cones`). The
    computation is in float64 under any JAX configuration. Inside ``jit``, ``vmap`` and ``grad`` no
    value is checked, and the coefficient has exact derivatives.

    Args:
        reward_class: :math:`\mathcal R`; the unbounded class needs data about every direction.
        true_reward: :math:`r^\star`, a member of the class.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: distribution :math:`\mu_D(x, a^1, a^0)` of the compared pairs. It is
            divided by its sum, so counts may be given. ``(i, j)`` and ``(j, i)`` are equivalent.

    Returns:
        :math:`C \in [0, \infty]`.

    Raises:
        InvalidProblemError: if a shape is wrong, a number is not finite, or probabilities do not
            sum to one.
        ValueError: if the true reward is not in the class, or a pair probability is negative.

    References:
        `liu:24`, Assumption 5.2.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> coefficient = coverage_coefficient(
        ...     TabularBox(1.0),
        ...     true_reward=np.array([[0.5, 0.5]]),
        ...     comparator=first,
        ...     baseline=second,
        ...     context_weights=np.ones(1),
        ...     pair_distribution=np.array([[[0.0, 1.0], [3.0, 0.0]]]),
        ... )
        >>> float(coefficient)
        1.0
    """
    arguments = {
        "true_reward": true_reward,
        "comparator": comparator,
        "baseline": baseline,
        "context_weights": context_weights,
        "pair_distribution": pair_distribution,
    }
    if in_trace(reward_class, arguments):
        return _traced_coefficient(reward_class, **arguments)
    class_batch = jax.tree.map(lambda field: np.asarray(field)[None], reward_class)
    batch: dict[str, Any] = {name: np.asarray(array)[None] for name, array in arguments.items()}
    return np.asarray(coverage_coefficient_batch(class_batch, **batch)[0])


def coverage_coefficient_batch(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "B x a"],
    comparator: Float[ArrayLike, "B x a"],
    baseline: Float[ArrayLike, "B x a"],
    context_weights: Float[ArrayLike, "B x"],
    pair_distribution: Float[ArrayLike, "B x a a"],
    kernel: Kernel = "jax",
) -> Float[np.ndarray, " B"]:
    r"""Return the coverage coefficients of a batch of instances; see :func:`coverage_coefficient`.

    Args:
        reward_class: reward classes with a leading batch axis; scalars apply to all.
        true_reward: :math:`r^\star`, a member of the class.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: distribution or counts of the compared pairs.
        kernel: "numba" solves classes with bounds on entries by a kernel that is compiled once, in
            a few seconds, and kept on disk; it is about fifty times as fast afterwards. The others
            are solved as by "jax". The coefficients of the two agree to rounding; the bits of each
            depend neither on the rest of the batch nor on the number of threads.

    Returns:
        :math:`C \in [0, \infty]` of each instance.

    Raises:
        InvalidProblemError: if a shape is wrong, a number is not finite, or probabilities do not
            sum to one; an index in the message begins with that of the instance.
        ValueError: if a true reward is not in its class, a pair probability is negative, or the
            kernel is unknown.

    References:
        `liu:24`, Assumption 5.2.
    """
    check_kernel(kernel)
    shape = np.shape(true_reward)
    if len(shape) != 3 or 0 in shape:
        rule = f"must have one row per context and one column per action, got shape {shape[1:]}"
        raise InvalidProblemError("true_reward", (), rule)
    validate_reward("true_reward", true_reward, shape)
    validate_reward_class(reward_class, (shape[1], shape[2]), shape[:1])
    validate_policy("comparator", comparator, shape)
    validate_policy("baseline", baseline, shape)
    validate_policy("context_weights", context_weights, shape[:2])
    validate_reward("pair_distribution", pair_distribution, (*shape, shape[-1]))
    if np.any(np.asarray(pair_distribution) < 0):
        smallest = np.min(np.asarray(pair_distribution))
        raise ValueError(
            f"`pair_distribution` must be at least 0, got {smallest:.9g}: give frequencies"
        )
    rounded = (true_reward, comparator, baseline, context_weights, reward_class)
    roundoff = _roundoff(*rounded)
    tables: dict[str, Any] = {
        "true_reward": np.asarray(true_reward, np.float64),
        "comparator": _divided_by_sum(comparator, 1),
        "baseline": _divided_by_sum(baseline, 1),
        "context_weights": _divided_by_sum(context_weights, 1),
    }
    if kernel == "numba" and has_entry_constraints(reward_class):
        pairs = np.asarray(pair_distribution, np.float64)
        result = _coefficients_by_numba(
            to_float64(reward_class), **tables, pairs=pairs, roundoff=roundoff
        )
    else:
        tables["pair_distribution"] = _divided_by_sum(pair_distribution, 3)
        # Memory grows with the number of members and features.
        per_table = [np.size(leaf) / np.size(true_reward) for leaf in jax.tree.leaves(reward_class)]
        per_instance = np.size(pair_distribution) / shape[0] * max([1.0, *per_table])
        size = round_group_size(GROUP / per_instance)
        tables["roundoff"] = np.full(shape[0], roundoff)
        query = Query(**tables)
        result = map_in_groups(_coefficients, reward_class, query, size=size)
    _refuse_outsiders(np.asarray(result.misfit))
    if not np.all(result.converged):
        raise RuntimeError(
            "the active-set method of the coverage coefficient did not converge: "
            "please report the instance"
        )
    return np.asarray(result.coefficient, np.float64)


def _traced_coefficient(reward_class: RewardClass, **arguments: ArrayLike) -> Float[Array, ""]:
    """Return the coefficient inside a trace, where no value is checked."""
    roundoff = _roundoff(reward_class, *arguments.values())
    tables = {name: jnp.asarray(table, jnp.float64) for name, table in arguments.items()}
    for name in ("comparator", "baseline", "context_weights"):
        tables[name] = divided_by_sum(tables[name])
    pairs = tables["pair_distribution"]
    tables["pair_distribution"] = divided_by_sum(pairs.reshape(-1)).reshape(pairs.shape)
    query = Query(**tables, roundoff=jnp.full((), roundoff, jnp.float64))
    result = _coefficient(to_float64(reward_class), query)
    return jnp.where(result.converged, result.coefficient, jnp.nan)


def _coefficient(reward_class: RewardClass, query: Query) -> _Result:
    frozen, truth = jax.lax.stop_gradient((reward_class, query.true_reward))
    misfit = _misfit(frozen, truth)
    squared, converged = squared_coefficient(reward_class, query)
    # The derivative of the root is infinite at 0, where the coefficient has a kink.
    positive = squared > 0
    coefficient = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return _Result(coefficient, misfit, converged)


_coefficients = jax.jit(jax.vmap(_coefficient))


def _misfit(reward_class: AnyRewardClass, truth: Float[Array, "x a"]) -> Float[Array, ""]:
    """Return the relative distance of a reward from its class."""
    distance = jnp.max(jnp.abs(reward_class.project(truth) - truth))
    return distance / (1.0 + jnp.max(jnp.abs(truth)))


_misfits = jax.jit(jax.vmap(_misfit))


def _coefficients_by_numba(
    reward_class: AnyRewardClass,
    *,
    true_reward: Float[np.ndarray, "B x a"],
    comparator: Float[np.ndarray, "B x a"],
    baseline: Float[np.ndarray, "B x a"],
    context_weights: Float[np.ndarray, "B x"],
    pairs: Float[np.ndarray, "B x a a"],
    roundoff: float,
) -> _Result:
    """Return the coefficients of a batch whose tangent cones are given by signs of entries."""
    n_batch, n_contexts, n_actions = true_reward.shape
    reward_class = broadcast_scalars(reward_class, n_batch)
    with jax.enable_x64(True):
        misfit = _misfits(reward_class, true_reward)
        constraints = jax.vmap(entry_constraints, in_axes=(0, 0, None))(
            reward_class, true_reward, jnp.asarray(roundoff, jnp.float64)
        )
    weight = context_weights[..., None] * (comparator - baseline)
    at_bottom, at_top = map(np.asarray, constraints)
    found = laplacian_kernel.solve(
        pairs.reshape(-1, n_actions, n_actions),
        -weight.reshape(-1, n_actions),
        at_bottom.reshape(-1, n_actions),
        at_top.reshape(-1, n_actions),
        roundoff * context_weights.reshape(-1),
    )
    objective = found.objective.reshape(n_batch, n_contexts).sum(axis=1)
    # Frequencies that are s times as large make the square s times as small.
    sums = pairs.sum(axis=(1, 2, 3))
    coefficient = np.sqrt(np.where(sums > 0, sums, 1.0) * objective)
    converged = found.converged.reshape(n_batch, n_contexts).all(axis=1)
    return _Result(coefficient, np.asarray(misfit), np.asarray(converged))


def _roundoff(*rounded: Any) -> float:
    """Return the relative rounding error of the least precise array."""
    return ROUNDOFF_ULPS * max(map(_eps, jax.tree.leaves(rounded)))


def _eps(array: ArrayLike | float) -> float:
    """Return the relative rounding error of an array; integers count as float64."""
    dtype = getattr(array, "dtype", np.dtype(np.float64))
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float64).eps)


def _divided_by_sum(frequencies: Float[ArrayLike, "..."], axes: int) -> Float[np.ndarray, "..."]:
    """Divide frequencies by their sum over the last axes, in float64; zeros stay zeros."""
    frequencies = np.asarray(frequencies, np.float64)
    sums = frequencies.sum(axis=tuple(range(-axes, 0)), keepdims=True)
    return frequencies / np.where(sums > 0, sums, 1.0)


def _refuse_outsiders(misfit: Float[np.ndarray, " B"]) -> None:
    """Raise if a true reward is not in its class."""
    if np.any(misfit > MEMBER_TOLERANCE):
        instance = int(np.argmax(misfit))
        raise ValueError(
            f"`true_reward` must be in the reward class, got a relative distance of "
            f"{misfit[instance]:.3g} for instance {instance}: take a larger class or project it"
        )
