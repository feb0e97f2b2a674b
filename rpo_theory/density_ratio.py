r"""Bound on the coverage coefficient by the largest ratio of densities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ._tracing import in_trace
from .array_checks import at_least_zero, numbers, validate_policy
from .types import ArrayLike


def density_ratio_bound(
    comparator: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    pair_distribution: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"],
) -> Float[ArrayLike, ""]:
    r"""Return a bound on the coverage coefficient by the largest ratio of densities.

    With the density :math:`q(x,i,j)=d_0(x)\,\pi(i|x)\,\pi_{base}(j|x)` of the pairs that comparator
    and baseline draw,

    .. math:: \sqrt{\sup_{x,\,i\ne j}\frac{q(x,i,j)+q(x,j,i)}{\mu_D(x,i,j)+\mu_D(x,j,i)}}

    By Jensen's inequality the squared numerator of :math:`C` is at most
    :math:`E_q|\Delta(i)-\Delta(j)|^2` for :math:`\Delta=r^\star-r`, to which the pairs
    :math:`(i,j)` and :math:`(j,i)` contribute equally, as they do to the denominator. The paper
    prints the ratio without the sums over both orders and without the root, which is valid and
    looser. The computation is in float64.

    Args:
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: distribution :math:`\mu_D(x, a^1, a^0)` of the compared pairs. It is
            divided by its sum, so counts may be given.

    Returns:
        At least :math:`C`; ``inf`` if the data lack a pair that comparator and baseline can draw.

    Raises:
        InvalidProblemError: if an argument is invalid. Values of traced arrays are not checked.
        RuntimeError: inside a trace without float64.

    References:
        `liu:24`, remark after Assumption 5.2.

    Examples:
        >>> first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> wins = np.array([[[0.0, 25.0], [75.0, 0.0]]])
        >>> float(density_ratio_bound(first, second, np.ones(1), wins))
        1.0
    """
    arguments = (comparator, baseline, context_weights, pair_distribution)
    if in_trace(arguments):
        return _density_ratio_bound(*arguments)
    shape = np.shape(comparator)
    validate_policy("comparator", comparator, shape)
    validate_policy("baseline", baseline, shape)
    validate_policy("context_weights", context_weights, shape[:1])
    counts = numbers("pair_distribution", pair_distribution, (*shape, shape[-1]))
    at_least_zero("pair_distribution", counts)
    with jax.enable_x64(True):
        return np.asarray(_density_ratio_bound(*(np.asarray(a, np.float64) for a in arguments)))


def _density_ratio_bound(
    comparator: ArrayLike, baseline: ArrayLike, context_weights: ArrayLike, pairs: ArrayLike
) -> Float[Array, ""]:
    comparator, baseline = _distribution(comparator, 1), _distribution(baseline, 1)
    needed = jnp.einsum("x,xi,xj->xij", _distribution(context_weights, 1), comparator, baseline)
    # A response compared with itself needs no data.
    needed = jnp.where(jnp.eye(needed.shape[-1], dtype=bool), 0.0, needed + needed.mT)
    density = _distribution(pairs, 3)
    density = density + density.mT
    ratio = jnp.where(density > 0, needed / jnp.where(density > 0, density, 1.0), jnp.inf)
    return jnp.sqrt(jnp.max(jnp.where(needed > 0, ratio, 0.0)))


def _distribution(frequencies: ArrayLike, axes: int) -> Array:
    """Divide frequencies by their sum over the last axes; zeros stay zeros."""
    frequencies = jnp.asarray(frequencies, jnp.float64)
    sums = frequencies.sum(axis=tuple(range(-axes, 0)), keepdims=True)
    return frequencies / jnp.where(sums > 0, sums, 1.0)
