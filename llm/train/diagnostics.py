r"""Diagnostics of a run: values that are not finite, likelihood displacement, data coverage.

The adversarial value of the policy, :math:`F` at its implicit reward, is among the metrics of every
step (:mod:`llm.evaluation.metrics`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from llm.types import Batch

PATIENCE = 20
"""Number of steps over which metrics are averaged before a warning."""
NAMED_ROWS = 16
"""Largest number of rows that an error names; the others are only counted."""


class NonFiniteError(ValueError):
    """A log-probability, loss, gradient or parameter is not finite."""


def locate_non_finite(metrics: Mapping[str, float], flags: np.ndarray, batch: Batch) -> str | None:
    """Find the first value of a step that is NaN or infinite.

    Args:
        metrics: metrics of the step.
        flags: True for each pair of the batch with a log-probability that is not finite.
        batch: the batch of the step.

    Returns:
        A phrase for an error message: the rows of the pairs, or the metric and all rows of the
        step if only a sum overflows. None if everything is finite.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([7]))
        >>> locate_non_finite({"loss": math.inf}, np.array([False]), batch)
        '`loss` of the step on rows 7'
    """
    if flags.any():
        return name_rows(batch, flags)
    for name, value in metrics.items():
        if not np.isfinite(value):
            return f"`{name}` of the step on {name_rows(batch, batch.present)}"
    return None


def name_rows(batch: Batch, selected: ArrayLike, first: int = 0) -> str:
    """Name rows of a batch by their numbers.

    Args:
        batch: the batch.
        selected: True for each pair to name.
        first: row id of the first row of the file; it is subtracted.

    Returns:
        ``rows`` and the first :data:`NAMED_ROWS` numbers in increasing order.

    Examples:
        >>> batch = Batch(None, None, np.ones((2, 2), int), np.ones(2, bool), np.array([7, 3]))
        >>> name_rows(batch, batch.present)
        'rows 3, 7'
    """
    rows = sorted({int(row) - first for row in np.asarray(batch.row_ids)[np.asarray(selected)]})
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"rows {', '.join(map(str, rows[:NAMED_ROWS]))}{more}"


class DisplacementMonitor:
    r"""Detector of likelihood displacement: chosen log-probabilities fall while margins grow.

    DPO can widen its margin by lowering both responses, the rejected one faster. The probability
    mass then goes to responses that are not in the data (`razin:24`). RPO's SFT term counteracts
    it. Rewards are :math:`\beta\log(\pi/\pi_{ref})`, so they show the change of a step's own rows
    since step 0; log-probabilities of different rows are not comparable.

    Examples:
        >>> monitor = DisplacementMonitor(beta=0.1, patience=1)
        >>> monitor.update({"rewards/chosen": 0.0, "rewards/margins": 0.0})
        >>> monitor.update({"rewards/chosen": -2.0, "rewards/margins": 0.5})[:55]
        'likelihood displacement: the chosen log-probability fel'
    """

    def __init__(self, beta: float, *, patience: int = PATIENCE, nats: float = 1.0) -> None:
        r"""Set the threshold.

        Args:
            beta: :math:`\beta` of the objective, the unit of the rewards.
            patience: number of steps to average over.
            nats: largest mean fall of the chosen log-probability without a warning.
        """
        self._beta, self._nats = beta, nats
        self._recent: deque[tuple[float, float]] = deque(maxlen=patience)
        self._warned = False

    def update(self, metrics: Mapping[str, float]) -> str | None:
        """Add the metrics of a step.

        Args:
            metrics: metrics with ``rewards/chosen`` and ``rewards/margins``; others are ignored.

        Returns:
            A warning the first time there is a displacement; None otherwise.
        """
        if self._warned or "rewards/margins" not in metrics:
            return None
        self._recent.append((metrics["rewards/chosen"], metrics["rewards/margins"]))
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        reward, margin = np.mean(self._recent, axis=0)
        fall = -float(reward) / self._beta
        self._warned = fall > self._nats and margin > 0
        if not self._warned:
            return None
        return (
            f"likelihood displacement: the chosen log-probability fell by {fall:.1f} nats while "
            f"margins grew by {margin:.3f}: the policy moves to responses that are not in the "
            "data; a larger eta (method rpo) counteracts it"
        )


def linear_coverage(
    samples: Float[np.ndarray, "m d"],
    baseline: Float[np.ndarray, "m d"],
    differences: Float[np.ndarray, "n d"],
    *,
    ridge: float = 1e-6,
) -> float:
    r"""Compute how well the data cover a policy's samples, for rewards linear in features.

    .. math:: C = \sqrt{v^\top\Sigma^+v},\qquad v = E\,\phi(x,a^1)-E\,\phi(x,a^0),\qquad
        \Sigma = E_D\,\delta\delta^\top,\ \delta=\phi(w)-\phi(l)

    Args:
        samples: features :math:`\phi(x, a^1)` of the policy's responses.
        baseline: features :math:`\phi(x, a^0)` of responses of :math:`\pi_{base}` to the same
            prompts.
        differences: feature differences :math:`\delta`, chosen minus rejected, of the pairs.
        ridge: added to :math:`\Sigma`, relative to its mean eigenvalue. It bounds the weight of
            directions in which the data hardly differ.

    Returns:
        :math:`C \ge 0`. Without ridge it is the coefficient of a ball that holds the true reward in
        its interior, if the data vary along :math:`v`; on the boundary of a ball the coefficient
        can be smaller, and outside of the range of :math:`\Sigma` larger. Infinite if all
        differences are zero and the mean features differ. For sampled responses it is too large on
        average, see :func:`llm.train.coverage_estimate.estimate_coverage`.

    References:
        `liu:24`, Assumption 5.2; :func:`rpo_theory.coverage.coverage_coefficient`.

    Examples:
        >>> samples = np.array([[1.0, 0.0]])
        >>> round(linear_coverage(samples, 0 * samples, np.eye(2)), 3)
        1.414
    """
    shift = np.mean(samples, axis=0) - np.mean(baseline, axis=0)
    covariance = differences.T @ differences / len(differences)
    lift = ridge * np.trace(covariance) / len(covariance)
    if not np.any(covariance):
        return math.inf if np.any(shift) else 0.0
    solved = np.linalg.solve(covariance + lift * np.eye(len(covariance)), shift)
    return float(np.sqrt(shift @ solved))
