"""The training objective and its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rpo_theory.reductions import SftReduction

from .checks import one_of, positive, zero_or_positive

ObjectiveName = Literal["sft", "rpo", "dpo", "ipo", "dpop", "chi_po"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    r"""The training objective and its constants.

    Attributes:
        method: ``"rpo"`` (DPO plus :math:`\eta\beta` times SFT, `liu:24`, eq. 4.8), ``"dpo"``,
            ``"ipo"``, ``"dpop"``, ``"chi_po"`` or ``"sft"``.
        beta: weight :math:`\beta > 0` of the KL term. ``"sft"`` and ``"ipo"`` train without it;
            the metrics report rewards in its unit under every method.
        eta: weight :math:`\eta \ge 0` of the adversarial term. Only ``"rpo"`` trains with it; the
            adversarial value is measured with it under every method.
        sft_reduction: average of the SFT loss: ``"sum"`` over the tokens of a response and mean
            over pairs (as in the theorem), ``"sequence_mean"`` or ``"pooled_mean"``.
        label_smoothing: probability in [0, 1/2) that a label is flipped; ``"rpo"`` and ``"dpo"``.
        tau: regularization of ``"ipo"``, positive.
        penalty: weight :math:`\lambda \ge 0` of the penalty of ``"dpop"``.
        reward_max: bound :math:`R > 0` on rewards of ``"chi_po"``; margins are clipped at
            :math:`2R`.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> ObjectiveConfig(method="rpo", beta=0.1, eta=0.5).sft_weight
        0.05
    """

    method: ObjectiveName = "rpo"
    beta: float = 0.01
    eta: float = 0.005
    sft_reduction: SftReduction = "sum"
    label_smoothing: float = 0.0
    tau: float = 0.1
    penalty: float = 5.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("objective.method", self.method, ObjectiveName)
        one_of("objective.sft_reduction", self.sft_reduction, SftReduction)
        for name in ("beta", "tau", "reward_max"):
            positive(f"objective.{name}", getattr(self, name))
        for name in ("eta", "penalty"):
            zero_or_positive(f"objective.{name}", getattr(self, name))
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"`objective.label_smoothing` must be in [0, 0.5), got {smoothing}")
        if smoothing > 0 and self.method not in ("rpo", "dpo"):
            raise ValueError(
                f"`objective.label_smoothing` must be 0 for method {self.method!r}, got "
                f"{smoothing}: only 'rpo' and 'dpo' have it"
            )

    @property
    def sft_weight(self) -> float:
        r"""Weight of the SFT loss: :math:`\eta\beta` for RPO, 1 for SFT, 0 for the others."""
        return {"rpo": self.eta * self.beta, "sft": 1.0}.get(self.method, 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether the objective uses log-probabilities of a reference.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_reference for method in ("rpo", "sft")]
            [True, False]
        """
        return self.method != "sft"

    @property
    def preference_at_reference(self) -> float:
        r"""Exact preference loss of a policy equal to its reference: :math:`\log 2` for most.

        The loss of the first step of a run is this plus :attr:`sft_weight` times its SFT loss.
        """
        if self.method == "sft":
            return 0.0
        return 0.25 / self.tau**2 if self.method == "ipo" else math.log(2.0)
