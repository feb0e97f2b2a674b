r"""Laws of reward overoptimization: functional forms of the true gain, and their fits.

`gao:23` found that the true gain of a policy that is optimized against a proxy reward follows

.. math::
    \text{RL:}\quad & d\,(\alpha-\gamma\log d) \\
    \text{best-of-n:}\quad & d\,(\alpha-\gamma\,d)

in :math:`d=\sqrt{KL(\pi\|\pi_{ref})}`, with a gain of 0 at :math:`d=0`. (They write :math:`\beta`
for :math:`\gamma`.) `rafailov:24` found the first form for DPO and IPO. Both are linear in
:math:`(\alpha,\gamma)`. Only the second has a finite slope at 0, as every exact curve has
(:func:`bandits.overoptimization.gain.initial_slope`): the first describes an intermediate range.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

LawName = Literal["rl", "best_of_n"]
"""Names of the two forms."""

MIN_SEEDS = 5
"""Fewest seeds for intervals; a resample of fewer often has one seed only."""
CHUNK = 2**22
"""Numbers that the resamples computed at a time hold."""


class LawFit(NamedTuple):
    r"""Coefficients of a law with confidence intervals, and how well the law fits.

    Attributes:
        alpha: :math:`\alpha`, units of reward.
        alpha_low: lower end of its interval; NaN with fewer than :data:`MIN_SEEDS` seeds.
        alpha_high: upper end.
        gamma: :math:`\gamma`, units of reward.
        gamma_low: lower end of its interval.
        gamma_high: upper end.
        r_squared: share of the variance of the mean curve that the law explains; negative if a
            constant explains more.
        residual: root mean square distance of the mean curve from the law, units of reward.
        seeds: number of seeds with finite values.
    """

    alpha: float
    alpha_low: float
    alpha_high: float
    gamma: float
    gamma_low: float
    gamma_high: float
    r_squared: float
    residual: float
    seeds: int


def law_terms(
    law: LawName, sqrt_kl: Float[np.ndarray, "*s"]
) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
    r"""Return the terms whose sum with weights :math:`\alpha` and :math:`\gamma` is the law.

    Args:
        law: "rl" or "best_of_n".
        sqrt_kl: distances :math:`d\ge0`.

    Returns:
        :math:`d`, and :math:`-d\log d` or :math:`-d^2`.

    Raises:
        ValueError: if the law is unknown.

    Examples:
        >>> first, second = law_terms("best_of_n", np.array([0.0, 2.0]))
        >>> first.tolist(), second.tolist()
        ([0.0, 2.0], [-0.0, -4.0])
    """
    if law not in get_args(LawName):
        raise ValueError(f"`law` must be one of {', '.join(get_args(LawName))}, got {law!r}")
    if law == "best_of_n":
        return sqrt_kl, -(sqrt_kl**2)
    return sqrt_kl, -sqrt_kl * np.log(np.where(sqrt_kl > 0, sqrt_kl, 1.0))


def law_gain(
    law: LawName, sqrt_kl: Float[np.ndarray, "*s"], alpha: float, gamma: float
) -> Float[np.ndarray, "*s"]:
    r"""Return the gain that a law predicts.

    Args:
        law: "rl" for :math:`d(\alpha-\gamma\log d)`, "best_of_n" for :math:`d(\alpha-\gamma d)`.
        sqrt_kl: distances :math:`d\ge0`.
        alpha: :math:`\alpha`, units of reward.
        gamma: :math:`\gamma`, units of reward.

    Returns:
        Units of reward; 0 at :math:`d=0`.

    References:
        `gao:23`, sec. 3.1.

    Examples:
        >>> law_gain("rl", np.array([0.0, 1.0]), 0.5, 0.2).tolist()
        [0.0, 0.5]
    """
    first, second = law_terms(law, sqrt_kl)
    return alpha * first + gamma * second


def fit_law(
    sqrt_kl: Float[np.ndarray, "s p"],
    gain: Float[np.ndarray, "s p"],
    law: LawName,
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> LawFit:
    r"""Fit a law to curves by least squares, with bootstrap intervals over the seeds.

    The mean over the seeds of the gain at each point is regressed on the means of the two terms of
    the law. The fit is therefore exact if every curve follows the law with the same coefficients,
    also at distances that differ between the seeds. Intervals are those of the studentized
    bootstrap: whole curves are resampled, and each resample has a standard error from the influence
    of its seeds.

    Args:
        sqrt_kl: distances :math:`d` of each seed's curve at each point.
        gain: gains at the same points. Seeds with a value that is not finite are left out.
        law: "rl" or "best_of_n".
        seed: seed of the resamples, a whole number of at least 0.
        resamples: number of resamples.
        confidence: probability with which each interval covers its coefficient.

    Returns:
        The fit. All numbers are NaN if fewer than two points have different positive distances.

    Raises:
        ValueError: if an argument is out of range, or the curves differ in shape.

    References:
        `gao:23`; `hall:88`, the studentized bootstrap.

    Examples:
        >>> d = np.geomspace(0.1, 2.0, 9) * np.linspace(0.8, 1.2, 5)[:, None]
        >>> fit = fit_law(d, law_gain("rl", d, 0.7, 0.3), "rl", seed=0)
        >>> round(fit.alpha, 9), round(fit.gamma, 9), round(fit.r_squared, 9)
        (0.7, 0.3, 1.0)
    """
    _check(sqrt_kl, gain, resamples, confidence)
    finite = np.isfinite(sqrt_kl).all(axis=1) & np.isfinite(gain).all(axis=1)
    gain, n_seeds = gain[finite], int(finite.sum())
    terms = np.stack(law_terms(law, sqrt_kl[finite]), axis=-1)
    if n_seeds == 0 or not _is_determined(terms.mean(axis=0)):
        return LawFit(*[float("nan")] * 8, seeds=n_seeds)
    # Orthonormal terms keep the digits where the two terms are nearly parallel.
    triangle = np.linalg.inv(np.linalg.qr(terms.mean(axis=0), mode="r"))
    terms = terms @ triangle
    coefficients, errors = _estimate(np.full((1, n_seeds), 1.0 / n_seeds), terms, gain, triangle)
    mean_gain = gain.mean(axis=0)
    residual = mean_gain - terms.mean(axis=0) @ np.linalg.solve(triangle, coefficients[0])
    low, high = np.full((2, 2), np.nan)
    if n_seeds >= MIN_SEEDS:
        quantiles = _studentized_quantiles(
            terms, gain, triangle, coefficients[0], seed, resamples, confidence
        )
        low, high = coefficients[0] - quantiles[::-1] * errors[0]
    (alpha, gamma), variation = coefficients[0], np.sum(np.square(mean_gain - mean_gain.mean()))
    return LawFit(
        alpha=float(alpha),
        alpha_low=float(low[0]),
        alpha_high=float(high[0]),
        gamma=float(gamma),
        gamma_low=float(low[1]),
        gamma_high=float(high[1]),
        r_squared=float(1.0 - np.sum(residual**2) / variation) if variation > 0 else float("nan"),
        residual=float(np.sqrt(np.mean(residual**2))),
        seeds=n_seeds,
    )


def _check(
    sqrt_kl: Float[np.ndarray, "s p"],
    gain: Float[np.ndarray, "s p"],
    resamples: int,
    confidence: float,
) -> None:
    if np.any(sqrt_kl < 0):
        raise ValueError(f"`sqrt_kl` must be at least 0, got {np.nanmin(sqrt_kl)}")
    if gain.shape != sqrt_kl.shape:
        raise ValueError(f"`gain` must have shape {sqrt_kl.shape} like `sqrt_kl`, got {gain.shape}")
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}")


def _is_determined(mean_terms: Float[np.ndarray, "p 2"]) -> bool:
    """Return whether the mean terms determine both coefficients."""
    norms = np.linalg.norm(mean_terms, axis=0)
    return bool(norms.all()) and int(np.linalg.matrix_rank(mean_terms / norms)) == 2


def _estimate(
    weights: Float[np.ndarray, "b s"],
    terms: Float[np.ndarray, "s p 2"],
    gain: Float[np.ndarray, "s p"],
    triangle: Float[np.ndarray, "2 2"],
) -> tuple[Float[np.ndarray, "b 2"], Float[np.ndarray, "b 2"]]:
    r"""Return the coefficients and their standard errors for weights of the seeds.

    With the mean terms :math:`\bar X` and gains :math:`\bar y`, the coefficients solve
    :math:`\bar X'(\bar y-\bar X\theta)=0`. The derivative of this equation in the weight of a seed
    is its influence, and the variance of the influences gives the standard error.
    """
    mean_terms = np.einsum("bs,spk->bpk", weights, terms)
    mean_gain = weights @ gain
    gram = np.einsum("bpk,bpl->bkl", mean_terms, mean_terms)
    moment = np.einsum("bpk,bp->bk", mean_terms, mean_gain)
    theta = np.linalg.solve(gram, moment[..., None])[..., 0]
    residual = mean_gain - np.einsum("bpk,bk->bp", mean_terms, theta)
    pull = np.einsum("bpk,sp->bsk", mean_terms, gain, optimize=True)
    cross_terms = np.einsum("bpk,spl->bskl", mean_terms, terms, optimize=True)
    pull -= np.einsum("bskl,bl->bsk", cross_terms, theta)
    pull += np.einsum("bp,spk->bsk", residual, terms, optimize=True)
    pull -= np.einsum("bs,bsk->bk", weights, pull)[:, None]
    influence = np.einsum("bkl,bsl->bsk", triangle @ np.linalg.inv(gram), pull)
    variance = np.einsum("bs,bsk->bk", weights, influence**2)
    n_seeds = weights.shape[1]
    errors = np.sqrt(variance / max(n_seeds - 1, 1))
    return theta @ triangle.T, errors


def _studentized_quantiles(
    terms: Float[np.ndarray, "s p 2"],
    gain: Float[np.ndarray, "s p"],
    triangle: Float[np.ndarray, "2 2"],
    coefficients: Float[np.ndarray, " 2"],
    seed: int,
    resamples: int,
    confidence: float,
) -> Float[np.ndarray, "2 2"]:
    """Return the lower and the upper quantile of the errors of resamples, in standard errors."""
    n_seeds, n_points = gain.shape
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_seeds, np.full(n_seeds, 1.0 / n_seeds), size=resamples)
    size = max(1, CHUNK // (n_seeds * 4 + n_points * 2))
    ratios = []
    for start in range(0, resamples, size):
        weights = counts[start : start + size] / n_seeds
        found, errors = _estimate(weights, terms, gain, triangle)
        # A resample of equal curves has no error and no deviation.
        ratios.append((found - coefficients) / np.where(errors > 0, errors, np.inf))
    tail = 0.5 * (1.0 - confidence)
    return np.quantile(np.concatenate(ratios), [tail, 1.0 - tail], axis=0)
