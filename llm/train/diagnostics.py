r"""What theory has to say of a run while it trains.

The adversarial value of the policy, :math:`F` at its implicit reward, is among the metrics of every
step (:mod:`llm.train.objective`). Here are the alarm for likelihood displacement and, on the features of
a frozen model, the coverage of the policy's own samples by the data.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

PATIENCE = 20
"""Steps over which the metrics are averaged before an alarm is raised."""


class DisplacementMonitor:
    r"""Alarm for likelihood displacement: the chosen log-probability falls while margins grow.

    DPO can widen its margin by lowering both responses, the rejected one faster; the mass goes to
    responses that no data speak of (`razin:24`). RPO's second term works against it. Rewards are
    :math:`\beta\log(\pi/\pi_{ref})`, so that they tell what became of a step's own rows since step
    0; log-probabilities of different rows do not compare.

    Examples:
        >>> alarm = DisplacementMonitor(beta=0.1, patience=1)
        >>> steps = [(0.0, 0.0), (-2.0, 0.5)]
        >>> said = [alarm.update({"rewards/chosen": c, "rewards/margins": m}) for c, m in steps]
        >>> said[0] is None, "fell by 20.0 nats" in said[1]
        (True, True)
    """

    def __init__(self, beta: float, *, patience: int = PATIENCE, nats: float = 1.0) -> None:
        """Alarm after a fall of more nats than these, on average over so many steps."""
        self._beta, self._nats = beta, nats
        self._seen: deque[tuple[float, float]] = deque(maxlen=patience)
        self._raised = False

    def update(self, measured: Mapping[str, float]) -> str | None:
        """Look at the metrics of a step.

        Args:
            measured: of which ``rewards/chosen`` and ``rewards/margins`` count.

        Returns:
            A sentence, the first time that there is cause; None otherwise.
        """
        if self._raised or "rewards/margins" not in measured:
            return None
        self._seen.append((measured["rewards/chosen"], measured["rewards/margins"]))
        if len(self._seen) < (self._seen.maxlen or 0):
            return None
        reward, margin = np.mean(self._seen, axis=0)
        fall = -float(reward) / self._beta
        self._raised = fall > self._nats and margin > 0
        if not self._raised:
            return None
        return (
            f"likelihood displacement: the chosen log-probability fell by {fall:.1f} nats while "
            f"margins grew by {margin:.3f}: the policy moves to responses that the data do not "
            "show; a larger eta (method rpo) works against it"
        )


def linear_coverage(
    samples: Float[np.ndarray, "m d"],
    baseline: Float[np.ndarray, "m d"],
    differences: Float[np.ndarray, "n d"],
    *,
    ridge: float = 1e-6,
) -> float:
    r"""Coverage of a policy's samples by the data, for rewards linear in frozen features.

    .. math:: C = \sqrt{v^\top\Sigma^+v},\qquad v = E\,\phi(x,a^1)-E\,\phi(x,a^0),\qquad
        \Sigma = E_D\,\delta\delta^\top,\ \delta=\phi(w)-\phi(l)

    Args:
        samples: features of responses that the policy gives.
        baseline: features of responses of :math:`\pi_{base}` to the same prompts.
        differences: feature differences of the pairs of the data.
        ridge: added to :math:`\Sigma`, relative to its mean eigenvalue: directions that the data
            hardly show count as unseen but not as infinitely so.

    Returns:
        :math:`C \ge 0`; at least the coefficient of any ball of such rewards. Infinite if the data
        show no direction at all and the samples are not like the baseline.

    References:
        `liu:24`, Assumption 5.2; :func:`rpo_theory.coverage.coverage`.

    Examples:
        >>> one = np.eye(2)[:1]
        >>> round(linear_coverage(one, 0 * one, np.eye(2)), 3)
        1.414
    """
    ends = np.mean(samples, axis=0) - np.mean(baseline, axis=0)
    covariance = differences.T @ differences / len(differences)
    lift = ridge * np.trace(covariance) / len(covariance)
    if not np.any(covariance):
        return math.inf if np.any(ends) else 0.0
    solved = np.linalg.solve(covariance + lift * np.eye(len(covariance)), ends)
    return float(np.sqrt(ends @ solved))
