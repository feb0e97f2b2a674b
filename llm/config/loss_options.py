"""Options of the preference losses, as frozen dataclasses; `beta` is a key of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rpo_theory.losses import Divergence

from .checks import between, one_of, positive, zero_or_positive

ReferencePoint = Literal["batch", "zero"]
"""Reference point of KTO, see :class:`KtoOptions`."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of a loss that has none; the base class of all options."""


@dataclass(frozen=True, kw_only=True)
class SmoothingOptions(LossOptions):
    r"""Options of ``dpo``, ``wpo``, ``aot`` and ``aot_unpaired``.

    Attributes:
        label_smoothing: probability in [0, 1/2) that a label is flipped.

    Raises:
        ValueError: if it is out of range.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        between("label_smoothing", self.label_smoothing, 0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class IpoOptions(LossOptions):
    r"""Options of ``ipo``.

    Attributes:
        tau: regularization :math:`\tau > 0`.
        per_token: divide the log-ratios of a response by its length, as TRL does.

    Raises:
        ValueError: if an option is out of range.
    """

    tau: float = 0.1
    per_token: bool = False

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        positive("tau", self.tau)


@dataclass(frozen=True, kw_only=True)
class DpopOptions(LossOptions):
    r"""Options of ``dpop``.

    Attributes:
        penalty: weight :math:`\lambda \ge 0` of the penalty.

    Raises:
        ValueError: if it is out of range.
    """

    penalty: float = 5.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("penalty", self.penalty)


@dataclass(frozen=True, kw_only=True)
class ChiPoOptions(LossOptions):
    r"""Options of ``chi_po``.

    Attributes:
        reward_max: bound :math:`R > 0` on rewards; margins are clipped at :math:`2R`.

    Raises:
        ValueError: if it is out of range.
    """

    reward_max: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        positive("reward_max", self.reward_max)


@dataclass(frozen=True, kw_only=True)
class RobustOptions(LossOptions):
    r"""Options of ``robust``.

    Attributes:
        flip_probability: probability :math:`\epsilon` in [0, 1/2) that a label is flipped.

    Raises:
        ValueError: if it is out of range.
    """

    flip_probability: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        between("flip_probability", self.flip_probability, 0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class ExoOptions(LossOptions):
    r"""Options of ``exo_pair``.

    Attributes:
        label_smoothing: probability :math:`\epsilon` in (0, 1/2) that a label is flipped.

    Raises:
        ValueError: if it is out of range.
    """

    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        positive("label_smoothing", self.label_smoothing)
        between("label_smoothing", self.label_smoothing, 0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class DiscoPopOptions(LossOptions):
    r"""Options of ``discopop``.

    Attributes:
        tau: temperature :math:`\tau` in (0, 1) of the mixture.

    Raises:
        ValueError: if it is out of range.
    """

    tau: float = 0.05

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        positive("tau", self.tau)
        between("tau", self.tau, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions(LossOptions):
    r"""Options of ``f_dpo``.

    Attributes:
        divergence: name of the divergence, see :func:`rpo_theory.losses.f_dpo`.
        alpha: order of ``"alpha_divergence"``.

    Raises:
        ValueError: if an option is out of range.
    """

    divergence: Divergence = "reverse_kl"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        one_of("divergence", self.divergence, Divergence)
        zero_or_positive("alpha", self.alpha)


@dataclass(frozen=True, kw_only=True)
class BcoOptions(LossOptions):
    r"""Options of ``bco_pair``.

    Attributes:
        shift: reward :math:`\delta \ge 0` at which a response is as good as bad.

    Raises:
        ValueError: if it is out of range.
    """

    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("shift", self.shift)


@dataclass(frozen=True, kw_only=True)
class KtoOptions(LossOptions):
    r"""Options of ``kto``.

    Attributes:
        desirable_weight: :math:`\lambda_D`, weight of desirable or chosen responses.
        undesirable_weight: :math:`\lambda_U`, weight of undesirable or rejected responses.
        reference_point: :math:`z`: ``"batch"`` for a mean log-ratio of the global batch, at least
            0: of the prompts with responses to other prompts if rows are unpaired, and of all
            responses of pairs; or ``"zero"``.

    Raises:
        ValueError: if an option is out of range.
    """

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference_point: ReferencePoint = "batch"

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        positive("desirable_weight", self.desirable_weight)
        positive("undesirable_weight", self.undesirable_weight)
        one_of("reference_point", self.reference_point, ReferencePoint)


@dataclass(frozen=True, kw_only=True)
class SimpoOptions(LossOptions):
    r"""Options of ``simpo``.

    Attributes:
        gamma: target :math:`\gamma \ge 0` of the reward margin.

    Raises:
        ValueError: if it is out of range.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("gamma", self.gamma)


@dataclass(frozen=True, kw_only=True)
class OrpoOptions(LossOptions):
    r"""Options of ``orpo``.

    Attributes:
        penalty: weight :math:`\lambda \ge 0` of the odds ratio.

    Raises:
        ValueError: if it is out of range.
    """

    penalty: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("penalty", self.penalty)


@dataclass(frozen=True, kw_only=True)
class CpoOptions(LossOptions):
    r"""Options of ``cpo``.

    Attributes:
        sft_weight: weight :math:`\lambda \ge 0` of the token-summed SFT loss of the chosen
            response.

    Raises:
        ValueError: if it is out of range.
    """

    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("sft_weight", self.sft_weight)


@dataclass(frozen=True, kw_only=True)
class SlicOptions(CpoOptions):
    r"""Options of ``slic``.

    Attributes:
        delta: target :math:`\delta > 0` of the margin of log-probabilities, nats.

    Raises:
        ValueError: if an option is out of range.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        CpoOptions.__post_init__(self)
        positive("delta", self.delta)


@dataclass(frozen=True, kw_only=True)
class PowerOptions(LossOptions):
    r"""Options of ``power``.

    Attributes:
        eta: weight :math:`\eta \ge 0` of the SFT term, in units of :math:`\beta`.

    Raises:
        ValueError: if it is out of range.
    """

    eta: float = 0.005

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        zero_or_positive("eta", self.eta)


@dataclass(frozen=True, kw_only=True)
class LengthOptions(LossOptions):
    r"""Options of ``ld_dpo``.

    Attributes:
        alpha: weight :math:`\alpha` in [0, 1] of the tokens by which a response is longer than
            the other one; 1 gives DPO.

    Raises:
        ValueError: if it is out of range.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"`alpha` must be in [0, 1], got {self.alpha}")
