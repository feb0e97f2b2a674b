r"""Estimate of the coverage of a policy from sampled replies, without the bias of sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

RESAMPLES = 1000
"""Number of bootstrap samples of the prompts."""


class CoverageEstimate(NamedTuple):
    """Coverage coefficient with an interval.

    Attributes:
        squared: estimate of the squared coefficient without bias; it may be negative.
        coefficient: root of the estimate, 0 if that is negative.
        lower: lower end of the 95 % interval of the coefficient.
        upper: upper end.
    """

    squared: float
    coefficient: float
    lower: float
    upper: float

    def metrics(self) -> dict[str, float]:
        """Return the coefficient and its interval by the names of metrics."""
        ends = {"theory/coverage_lower": self.lower, "theory/coverage_upper": self.upper}
        return {"theory/coverage": self.coefficient, **ends}


def estimate_coverage(
    samples: Float[np.ndarray, "m d"],
    baseline: Float[np.ndarray, "m d"],
    differences: Float[np.ndarray, "n d"],
    key: Array,
    *,
    ridge: float = 1e-6,
) -> CoverageEstimate:
    r"""Estimate how well the data cover a policy, from one sampled reply to each prompt.

    With :math:`z_i=\phi(x_i,a^1_i)-\phi(x_i,a^0_i)` and their mean :math:`\bar z`, the expectation
    of :math:`\bar z^\top\Sigma^{-1}\bar z` exceeds :math:`C^2` by
    :math:`\mathrm{tr}(\Sigma^{-1}\mathrm{Cov}\,z)/m`. So the estimate is

    .. math:: \hat{C^2} = \bar z^\top\Sigma^{-1}\bar z - \mathrm{tr}(\Sigma^{-1}\hat S)/m,

    with the sample covariance :math:`\hat S` of the :math:`z_i`. The interval is the basic
    bootstrap over prompts; data and features are taken as fixed.

    Args:
        samples: features :math:`\phi(x, a^1)` of the policy's replies, one per prompt.
        baseline: features :math:`\phi(x, a^0)` of responses of :math:`\pi_{base}` to the same
            prompts.
        differences: feature differences, chosen minus rejected, of the pairs of the data.
        key: random key of the bootstrap.
        ridge: added to :math:`\Sigma`, relative to its mean eigenvalue.

    Returns:
        The estimate. It is infinite if the data have no differences but replies and baseline do.

    Raises:
        ValueError: if there are fewer than two prompts.

    Examples:
        >>> samples, baseline = np.array([[1.0], [1.0]]), np.zeros((2, 1))
        >>> estimate = estimate_coverage(samples, baseline, np.ones((3, 1)), jax.random.key(0))
        >>> round(estimate.coefficient, 3)
        1.0
    """
    n_prompts = len(samples)
    if n_prompts < 2:
        raise ValueError(
            f"`samples` must have at least 2 rows, got {n_prompts}: ask for more prompts"
        )
    covariance = differences.T @ differences / len(differences)
    shifts = np.asarray(samples, np.float64) - baseline
    if not np.any(covariance):
        unseen = math.inf if np.any(shifts) else 0.0
        return CoverageEstimate(unseen, unseen, unseen, unseen)
    lift = ridge * np.trace(covariance) / len(covariance)
    factor = np.linalg.cholesky(covariance + lift * np.eye(len(covariance)))
    whitened = np.linalg.solve(factor, shifts.T).T

    rows = np.asarray(jax.random.randint(key, (RESAMPLES, n_prompts), 0, n_prompts))
    cells = rows + n_prompts * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(float)
    plain, squared = (float(part[0]) for part in _squares(whitened, np.ones((1, n_prompts))))
    # The resamples are drawn from a distribution whose squared coefficient is the plain one.
    low, high = np.quantile(_squares(whitened, counts)[1] - plain, (0.025, 0.975))
    ends = (squared, squared - high, squared - low)
    return CoverageEstimate(squared, *(math.sqrt(max(0.0, float(end))) for end in ends))


def _squares(
    whitened: Float[np.ndarray, "m d"], counts: Float[np.ndarray, "B m"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Return the squared norm of the mean of weighted rows, and its estimate without bias."""
    n_rows = len(whitened)
    plain = np.square(counts @ whitened / n_rows).sum(axis=1)
    mean_square = counts @ np.square(whitened).sum(axis=1) / n_rows
    return plain, plain - (mean_square - plain) / (n_rows - 1)
