r"""Partial coverage :math:`C_{\mu_D}(\mathcal R;\pi,\pi_{base})`, exact for every reward class.

.. math:: C = \max\Big\{0, \sup_{r\in\mathcal R}
    \frac{E_{d_0,\pi,\pi_{base}}[(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))]}
    {\sqrt{E_{\mu_D}|(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))|^2}}\Big\}

(`liu:24`, A 5.2). The ratio does not change along a ray from :math:`r^\star`, so for a convex class
only the closed tangent cone at :math:`r^\star` matters, and with :math:`v` the linear form of the
numerator and :math:`\Sigma` the quadratic form of the denominator

.. math:: C^2 = 2\,\sup\{-\langle v,d\rangle - \tfrac12\langle d,\Sigma d\rangle:
          d \text{ in the cone}\}.

For tables :math:`\Sigma` is a graph Laplacian and the cone a list of signs: a resistor network with
diodes (:mod:`rpo_theory.numerics.laplacian_qp`). For a linear ball the cone is everything or a half-space, and
one multiplier decides. Infinity is decided by what the data connect, not by a number being large.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ._batching import map_in_groups, round_group_size
from .numerics.laplacian_qp import LaplacianQP, solve
from .problems import validate_policy, validate_reward
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike

ROUNDOFF_ULPS = 64
"""Units in the last place, of the coarsest input, that count as rounding and not as a number."""
RIM_TOLERANCE = 1e-9
"""Parameters this close to the rim of the ball, relatively, are on it: least squares rounds."""
MEMBER_TOLERANCE = 1e-6
"""How far, relatively, the true reward may miss its class: the rounding of seven digits."""
GROUP = 8192
"""Pairs of responses that are looked at together."""


class _Question(NamedTuple):
    """What coverage is asked about, in float64; ``roundoff`` is relative."""

    true_reward: Float[Array, "*B x a"]
    comparator: Float[Array, "*B x a"]
    baseline: Float[Array, "*B x a"]
    context_weights: Float[Array, "*B x"]
    pair_distribution: Float[Array, "*B x a a"]
    roundoff: Float[Array, "*B"]

    def weight(self) -> Float[Array, "x a"]:
        r"""The linear form :math:`v = d_0(\pi - \pi_{base})` on tables."""
        return self.context_weights[:, None] * (self.comparator - self.baseline)


class _Answer(NamedTuple):
    """The coefficient, how far the true reward misses its class, and whether a game converged."""

    coefficient: Float[Array, "*B"]
    misfit: Float[Array, "*B"]
    converged: Bool[Array, "*B"]


def coverage_coefficient(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "x a"],
    comparator: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    pair_distribution: Float[ArrayLike, "x a a"],
) -> Float[Array, ""]:
    r"""Coverage coefficient of the comparator against the baseline, exact.

    Computed in float64 whatever the inputs. Finite exactly when the data tell how much better the
    comparator is than the baseline, for every reward of the class that could be worse than it
    seems; other policies need no data.

    Args:
        reward_class: :math:`\mathcal R`; the unbounded class asks for data about every direction.
        true_reward: :math:`r^\star`, a member of the class.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: the law :math:`\mu_D(x, a^1, a^0)` of the compared pairs; divided by its sum, so
            counts will do. Pairs ``(i, j)`` and ``(j, i)`` tell the same.

    Returns:
        :math:`C \in [0, \infty]`.

    Raises:
        InvalidProblemError: wrong shapes, a number that is not finite, something that is not a law.
        ValueError: the true reward is not in the class, or a law of pairs is negative.

    References:
        `liu:24`, Assumption 5.2.

    Examples:
        >>> law = {"context_weights": np.ones(1), "pair_distribution": np.array([[[0.0, 1.0], [3.0, 0.0]]])}
        >>> first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> truth = np.array([[0.5, 0.5]])
        >>> box = TabularBox(np.array(1.0))
        >>> float(coverage_coefficient(box, true_reward=truth, comparator=first, baseline=second, **law))
        1.0
    """
    one = jax.tree.map(lambda field: np.asarray(field)[None], reward_class)
    question = (true_reward, comparator, baseline, context_weights, pair_distribution)
    names = ("true_reward", "comparator", "baseline", "context_weights", "pair_distribution")
    arrays = {name: np.asarray(a)[None] for name, a in zip(names, question, strict=True)}
    return coverage_coefficient_batch(one, **arrays)[0]


def coverage_coefficient_batch(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "B x a"],
    comparator: Float[ArrayLike, "B x a"],
    baseline: Float[ArrayLike, "B x a"],
    context_weights: Float[ArrayLike, "B x"],
    pair_distribution: Float[ArrayLike, "B x a a"],
) -> Float[Array, " B"]:
    r"""Coverage coefficients of many instances at once; see :func:`coverage_coefficient`.

    Args:
        reward_class: its arrays have a leading batch axis.
        true_reward: :math:`r^\star`.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: the laws of the compared pairs.

    Returns:
        :math:`C \in [0, \infty]` of every instance.

    Raises:
        InvalidProblemError: as :func:`coverage_coefficient`; a place in a field begins with the instance.
        ValueError: as :func:`coverage_coefficient`.

    References:
        `liu:24`, Assumption 5.2.
    """
    shape = np.shape(true_reward)
    validate_reward("true_reward", true_reward, shape)
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
    roundoff = ROUNDOFF_ULPS * max(map(_eps, jax.tree.leaves(rounded)))
    with jax.enable_x64(True):
        question = _Question(
            jnp.asarray(true_reward, jnp.float64),
            _law(comparator, 1),
            _law(baseline, 1),
            _law(context_weights, 1),
            _law(pair_distribution, 3),
            jnp.full(shape[0], roundoff, jnp.float64),
        )
    # Members and features multiply the pairs.
    per_table = [np.size(leaf) / np.size(true_reward) for leaf in jax.tree.leaves(reward_class)]
    per_instance = np.size(pair_distribution) / shape[0] * max([1.0, *per_table])
    answer = map_in_groups(
        _answers, reward_class, question, size=round_group_size(GROUP / per_instance)
    )
    _refuse_outsiders(answer.misfit)
    if not np.all(answer.converged):
        raise RuntimeError("the game of `networks` did not settle: please report the instance")
    with jax.enable_x64(True):
        return jnp.asarray(answer.coefficient)


def density_ratio_bound(
    comparator: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    pair_distribution: Float[ArrayLike, "x a a"],
) -> Float[Array, ""]:
    r"""Square root of the largest ratio of :math:`d_0\otimes\pi\otimes\pi_{base}` to :math:`\mu_D`.

    A response compared with itself tells nothing and needs no data: the diagonal is left out. The
    paper prints the bound without the root, valid and looser.

    Args:
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: the law :math:`\mu_D(x, a^1, a^0)`, sums to one.

    Returns:
        At least :math:`C`; ``inf`` where a pair of comparator and baseline has no data.

    References:
        `liu:24`, remark after Assumption 5.2.

    Examples:
        >>> first, second = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
        >>> mu = jnp.array([[[0.0, 0.25], [0.75, 0.0]]])
        >>> float(density_ratio_bound(first, second, jnp.ones(1), mu))
        2.0
    """
    needed = jnp.einsum("x,xi,xj->xij", *map(jnp.asarray, (context_weights, comparator, baseline)))
    needed = jnp.where(jnp.eye(needed.shape[-1], dtype=bool), 0.0, needed)
    had = jnp.asarray(pair_distribution)
    ratio = jnp.where(had > 0, needed / jnp.where(had > 0, had, 1.0), jnp.inf)
    return jnp.sqrt(jnp.max(jnp.where(needed > 0, ratio, 0.0)))


@jax.jit
@jax.vmap
def _answers(reward_class: RewardClass, question: _Question) -> _Answer:
    truth = question.true_reward
    misfit = jnp.max(jnp.abs(reward_class.project(truth) - truth))
    converged = jnp.array(True)
    match reward_class:
        case TabularBox(maximum):
            edge = question.roundoff * maximum
            squared, converged = _tabular(question, truth <= edge, truth >= maximum - edge)
        case Unbounded():
            nowhere = jnp.zeros_like(truth, bool)
            squared, converged = _tabular(question, nowhere, nowhere)
        case LinearBall():
            squared = _ball(reward_class, question)
        case FiniteClass(rewards):
            squared = _finite(jnp.asarray(rewards), question)
    return _Answer(jnp.sqrt(squared), misfit / (1.0 + jnp.max(jnp.abs(truth))), converged)


def _tabular(
    question: _Question, at_bottom: Bool[Array, "x a"], at_top: Bool[Array, "x a"]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Prompts are separate networks: frequencies of comparison conduct, minus v is fed in."""
    law = question.pair_distribution
    diagonal = jnp.eye(law.shape[-1], dtype=bool)
    edge_weights = jnp.where(diagonal, 0.0, law + law.mT)
    problems = LaplacianQP(edge_weights, -question.weight(), at_bottom, at_top)
    energy, converged = jax.vmap(solve)(problems, question.roundoff * question.context_weights)
    return energy.sum(), jnp.all(converged)


def _ball(ball: LinearBall, question: _Question) -> Float[Array, ""]:
    r"""Everything is in the cone, or the half-space :math:`\langle\theta^\star, d\rangle\le0`.

    The least-norm parameter is the right one: the class is the image of the ball in the row space
    of the features, and only there does the rim of the ball bound the class. By duality
    :math:`C^2` is the least :math:`|v+\lambda\theta^\star|^2` in the norm of :math:`\Sigma^+`
    over the multipliers :math:`\lambda\ge0` that bring :math:`v+\lambda\theta^\star` into the
    range of :math:`\Sigma`; infinite if there is none (Farkas).
    """
    features = jnp.asarray(ball.features)
    theta = ball.parameter(question.true_reward)
    v = jnp.einsum("xa,xad->d", question.weight(), features)
    size = jnp.einsum("xa,xa->", jnp.abs(question.weight()), jnp.linalg.norm(features, axis=-1))

    singular, axes = _data_axes(features, question.pair_distribution)
    seen = singular > question.roundoff * singular[0]
    inverse = jnp.where(seen, 1.0 / jnp.where(seen, singular, 1.0), 0.0)
    # Rounding turns the axes by the ratio of the extreme singular values.
    axis_error = question.roundoff * jnp.maximum(1.0, singular[0] * inverse.max())
    v, theta = axes @ v, axes @ theta
    v_unseen = _unless_small(jnp.where(seen, 0.0, v), axis_error * size)
    theta_unseen = _unless_small(jnp.where(seen, 0.0, theta), axis_error * jnp.linalg.norm(theta))
    on_rim = jnp.linalg.norm(theta) >= (1.0 - RIM_TOLERANCE) * ball.radius

    hidden = jnp.any(theta_unseen != 0)
    from_data = _multiplier(inverse * v, inverse * theta)
    multiplier = jnp.where(hidden, _multiplier(v_unseen, theta_unseen), from_data)
    multiplier = jnp.where(on_rim, multiplier, 0.0)
    left = _unless_small(v_unseen + multiplier * theta_unseen, axis_error * size)
    squared = jnp.square(inverse * (v + multiplier * theta)).sum()
    return jnp.where(jnp.any(left != 0), jnp.inf, squared)


def _data_axes(
    features: Float[Array, "x a d"], pair_distribution: Float[Array, "x a a"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    r"""Square roots of the eigenvalues of :math:`\Sigma`, decreasing, and its axes as rows.

    From the weighted differences, not from :math:`\Sigma`, which would square the rounding.
    """
    d = features.shape[-1]
    first, second = np.triu_indices(features.shape[1], 1)
    root = jnp.sqrt((pair_distribution + pair_distribution.mT)[:, first, second])
    rows = root[..., None] * (features[:, first] - features[:, second])
    # The zero rows make the triangle square when there are fewer pairs than features.
    rows = jnp.concatenate([rows.reshape(-1, d), jnp.zeros((d, d), rows.dtype)])
    _, singular, axes = jnp.linalg.svd(jnp.linalg.qr(rows, mode="r"))
    return singular, axes


def _unless_small(vector: Float[Array, " d"], tolerance: Float[Array, ""]) -> Float[Array, " d"]:
    return jnp.where(jnp.linalg.norm(vector) > tolerance, vector, 0.0)


def _multiplier(form: Float[Array, " d"], normal: Float[Array, " d"]) -> Float[Array, ""]:
    r"""The :math:`\lambda\ge0` that makes ``form + lambda * normal`` smallest."""
    length = normal @ normal
    return jnp.maximum(0.0, -(form @ normal) / jnp.where(length > 0, length, 1.0))


def _finite(rewards: Float[Array, "k x a"], question: _Question) -> Float[Array, ""]:
    """The largest ratio of a member; 0/0 is 0, and a positive number over 0 is infinite."""
    truth = question.true_reward
    scale = jnp.maximum(jnp.abs(rewards).max(axis=(1, 2)), jnp.abs(truth).max())
    rounding = question.roundoff * scale
    shortfall = truth - rewards
    signed = jnp.einsum("xa,kxa->k", question.weight(), shortfall)
    between = shortfall[:, :, :, None] - shortfall[:, :, None, :]
    between = jnp.where(jnp.abs(between) > rounding[:, None, None, None], between, 0.0)
    seen = jnp.einsum("xij,kxij->k", question.pair_distribution, jnp.square(between))
    ratio = jnp.where(seen > 0, jnp.square(signed) / jnp.where(seen > 0, seen, 1.0), jnp.inf)
    return jnp.max(jnp.where(signed > rounding, ratio, 0.0))


def _eps(array: ArrayLike) -> float:
    """Relative spacing of the numbers of an array; whole numbers are as good as float64."""
    dtype = np.asarray(array).dtype
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float64).eps)


def _law(frequencies: Float[ArrayLike, "..."], axes: int) -> Float[Array, "..."]:
    """Frequencies divided by their sum over the last axes, in float64; all zero without any."""
    frequencies = np.asarray(frequencies, np.float64)
    total = frequencies.sum(axis=tuple(range(-axes, 0)), keepdims=True)
    return jnp.asarray(frequencies / np.where(total > 0, total, 1.0))


def _refuse_outsiders(misfit: Float[np.ndarray, " B"]) -> None:
    if np.any(misfit > MEMBER_TOLERANCE):
        instance = int(np.argmax(misfit))
        raise ValueError(
            f"`true_reward` must be in the reward class, got one (number {instance}) that misses "
            f"it by {misfit[instance]:.3g} relatively: take a larger class or project it"
        )
