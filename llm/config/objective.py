"""The training objective and its constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from jaxtyping import Float

from rpo_theory.reductions import SftReduction
from rpo_theory.types import ArrayLike

from .checks import between, one_of, positive, zero_or_positive
from .preference_losses import RANKING_LOSS, PreferenceLoss, TokenStatistic, find_preference_loss
from .schedule import ScheduleConfig

COMPOSED = ("sft", "rpo")
"""Methods that are not a preference loss by itself."""


class ObjectiveConstants(NamedTuple):
    r"""The constants of an objective at one step; schedules change them.

    Attributes:
        beta: weight :math:`\beta` of the KL term.
        eta: weight :math:`\eta` of the adversarial term.
    """

    beta: Float[ArrayLike, ""] | float
    eta: Float[ArrayLike, ""] | float


class PreferenceTerm(NamedTuple):
    """One preference loss of an objective.

    Attributes:
        loss: record of the loss.
        options: its options, ``loss.options``.
        weight: factor of the loss in the objective.
        metric: name of its metric, ``loss/NAME``; a loss that occurs again has a number after it.
    """

    loss: PreferenceLoss
    options: Any
    weight: float
    metric: str


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    r"""The training objective and its constants.

    Attributes:
        method: ``"rpo"`` (a preference loss plus :math:`\eta\beta` times SFT; by default DPO,
            `liu:24`, eq. 4.8), ``"sft"``, or the name of a preference loss: ``"dpo"``, ``"ipo"``,
            ``"simpo"`` and others, see :mod:`llm.config.preference_losses`.
        beta: weight :math:`\beta > 0` of the KL term. ``"sft"`` and ``"ipo"`` train without it;
            the metrics report rewards in its unit under every method.
        eta: weight :math:`\eta \ge 0` of the adversarial term. Only ``"rpo"`` trains with it; the
            adversarial value is measured with it under every method.
        sft_reduction: average of the SFT loss: ``"sum"`` over the tokens of a response and mean
            over pairs (as in the theorem), ``"sequence_mean"`` or ``"pooled_mean"``.
        preference: preference loss of ``"rpo"``: its name; a mapping such as
            ``{loss: simpo, gamma: 0.5}`` with its options; or a list of such mappings, each with a
            ``weight``, for their weighted sum.
        options: options of the preference loss, if ``method`` or ``preference`` is its name.
        beta_schedule: how :math:`\beta` moves over the steps, such as
            ``{kind: linear, end: 0.05}``; constant by default.
        eta_schedule: how :math:`\eta` moves over the steps.
        label_smoothing: the option of that name of ``"dpo"``.
        tau: the option of that name of ``"ipo"``.
        penalty: the option of that name of ``"dpop"``.
        reward_max: the option of that name of ``"chi_po"``.

    Raises:
        ValueError: if a name is unknown, a value is out of range, or a loss does not have an
            option.

    Examples:
        >>> ObjectiveConfig(method="rpo", beta=0.1, eta=0.5).sft_weight
        0.05
        >>> ObjectiveConfig(preference={"loss": "simpo", "gamma": 0.3}).terms[0].options.gamma
        0.3
    """

    method: str = "rpo"
    beta: float = 0.01
    eta: float = 0.005
    sft_reduction: SftReduction = "sum"
    preference: str | dict[str, Any] | list[dict[str, Any]] = "dpo"
    options: dict[str, Any] = field(default_factory=dict)
    beta_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eta_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    label_smoothing: float = 0.0
    tau: float = 0.1
    penalty: float = 5.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        """Check the names, the ranges, and the options of every loss."""
        if self.method not in COMPOSED:
            find_preference_loss(self.method, "objective.method", besides=COMPOSED)
        one_of("objective.sft_reduction", self.sft_reduction, SftReduction)
        for name in ("beta", "tau", "reward_max"):
            positive(f"objective.{name}", getattr(self, name))
        for name in ("eta", "penalty"):
            zero_or_positive(f"objective.{name}", getattr(self, name))
        between("objective.label_smoothing", self.label_smoothing, 0.0, 0.5)
        if self.beta_schedule.end is not None:
            positive("objective.beta_schedule.end", self.beta_schedule.end)
        if "shared_length" in self.statistics and (self.method == "rpo" or len(self.terms) > 1):
            raise ValueError(
                "`objective.preference` must not have the loss 'ld_dpo', which changes the "
                "log-probabilities of all losses: set `objective.method` to ld_dpo"
            )
        smoothing = self.label_smoothing
        if smoothing > 0 and "label_smoothing" not in self.section_keys:
            raise ValueError(
                f"`objective.label_smoothing` must be 0 for method {self.method!r}, got "
                f"{smoothing}: only the loss 'dpo' has this key, others have it among their options"
            )

    def __hash__(self) -> int:
        """Hash the keys that are no mapping, so that an objective can be a static argument."""
        constants = self.beta, self.eta, self.beta_schedule, self.eta_schedule
        return hash((self.method, self.sft_reduction, *constants))

    @cached_property
    def terms(self) -> tuple[PreferenceTerm, ...]:
        """The preference losses of the objective; none for ``"sft"``."""
        if self.method == "sft":
            self._refuse_options("method 'sft' has no preference loss")
            return ()
        if self.method != "rpo":
            return self._number([self._named_term(self.method, "objective.method")])
        if isinstance(self.preference, str):
            return self._number([self._named_term(self.preference, "objective.preference")])
        self._refuse_options("`objective.preference` has the options of its losses")
        if isinstance(self.preference, Mapping):
            return self._number([self._mapped_term(self.preference, "objective.preference")])
        if not self.preference:
            raise ValueError("`objective.preference` must have at least one loss, got []")
        return self._number(
            self._mapped_term(item, f"objective.preference[{index}]")
            for index, item in enumerate(self.preference)
        )

    @property
    def section_keys(self) -> frozenset[str]:
        """Keys of this section that set options of a preference loss of the objective.

        Examples:
            >>> sorted(ObjectiveConfig(method="ipo").section_keys)
            ['tau']
        """
        return frozenset(key for term in self.terms for key in term.loss.section_keys)

    @property
    def constants(self) -> ObjectiveConstants:
        r""":math:`\beta` and :math:`\eta` at the first step."""
        return ObjectiveConstants(self.beta, self.eta)

    @property
    def sft_weight(self) -> float:
        r"""Weight of the SFT loss: :math:`\eta\beta` for RPO, 1 for SFT, 0 for the others."""
        return float(self.sft_weight_at(self.constants))

    def sft_weight_at(self, constants: ObjectiveConstants) -> Any:
        """Return the weight of the SFT loss for given constants.

        Args:
            constants: constants of a step.

        Returns:
            A number, traced if the constants are.

        Examples:
            >>> ObjectiveConfig(method="sft").sft_weight_at(ObjectiveConstants(0.1, 0.5))
            1.0
        """
        if self.method == "rpo":
            return constants.eta * constants.beta
        return 1.0 if self.method == "sft" else 0.0

    @property
    def trains_sft(self) -> bool:
        """Whether the objective has an SFT loss at some step."""
        return self.sft_weight > 0 or (self.method == "rpo" and bool(self.eta_schedule.end))

    @property
    def has_schedules(self) -> bool:
        r"""Whether :math:`\beta` or :math:`\eta` changes during the run.

        Examples:
            >>> ObjectiveConfig(eta_schedule=ScheduleConfig(kind="linear", end=0.0)).has_schedules
            True
        """
        return not self.beta_schedule.kind == self.eta_schedule.kind == "constant"

    @property
    def uses_beta(self) -> bool:
        r"""Whether the objective trains with :math:`\beta`."""
        return (self.method == "rpo" and self.trains_sft) or any(
            term.loss.uses_beta for term in self.terms
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the objective uses log-probabilities of a reference.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_reference for method in ("rpo", "sft")]
            [True, False]
        """
        return any(term.loss.needs_reference for term in self.terms)

    @property
    def needs_global_batch(self) -> bool:
        """Whether a loss is a function of the whole batch and no mean over its pairs.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_global_batch for method in ("rpo", "aot")]
            [False, True]
        """
        return any(term.loss.scope == "batch" for term in self.terms)

    @property
    def trains_on_rankings(self) -> bool:
        """Whether the objective is defined for ranked rows.

        Examples:
            >>> ObjectiveConfig(preference="plackett_luce").trains_on_rankings
            True
        """
        return bool(self.terms) and all(term.loss.name == RANKING_LOSS for term in self.terms)

    @property
    def statistics(self) -> frozenset[TokenStatistic]:
        """Token statistics that the losses take.

        Examples:
            >>> sorted(ObjectiveConfig(method="wpo").statistics)
            ['sum_squares']
        """
        return frozenset(term.loss.statistic for term in self.terms if term.loss.statistic)

    @property
    def preference_at_reference(self) -> float | None:
        r"""Exact preference loss of a policy equal to its reference: :math:`\log 2` for most.

        The loss of the first step of a run is this plus :attr:`sft_weight` times its SFT loss. None
        if it depends on the data, as for losses without a reference.
        """
        exact = 0.0
        for term in self.terms:
            if term.loss.at_reference is None:
                return None
            exact += term.weight * term.loss.at_reference(self.beta, term.options)
        return exact

    @property
    def length_alpha(self) -> float | None:
        r"""Weight :math:`\alpha` of the tokens of longer responses; None if all tokens count 1.

        Examples:
            >>> ObjectiveConfig(method="ld_dpo", options={"alpha": 0.5}).length_alpha
            0.5
        """
        alphas = [
            term.options.alpha for term in self.terms if term.loss.statistic == "shared_length"
        ]
        return alphas[0] if alphas else None

    def _named_term(self, name: str, key: str) -> tuple[PreferenceLoss, Any, float]:
        loss = find_preference_loss(name, key)
        values = {key: getattr(self, key) for key in loss.section_keys} | dict(self.options)
        return loss, loss.make_options(values, "objective.options"), 1.0

    def _mapped_term(self, item: Any, key: str) -> tuple[PreferenceLoss, Any, float]:
        if not isinstance(item, Mapping) or "loss" not in item:
            raise ValueError(
                f"`{key}` must be a mapping with the key `loss`, as in "
                f"{{loss: simpo, gamma: 0.5}}, got {item!r}"
            )
        loss = find_preference_loss(item["loss"], f"{key}.loss")
        weight = item.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"`{key}.weight` must be a number, got {weight!r}")
        positive(f"{key}.weight", weight)
        values = {key: getattr(self, key) for key in loss.section_keys}
        values |= {name: value for name, value in item.items() if name not in ("loss", "weight")}
        return loss, loss.make_options(values, key), float(weight)

    def _refuse_options(self, reason: str) -> None:
        if self.options:
            names = ", ".join(f"`{name}`" for name in self.options)
            raise ValueError(f"`objective.options` must be empty, got {names}: {reason}")

    @staticmethod
    def _number(terms: Any) -> tuple[PreferenceTerm, ...]:
        """Name the metric of every term; a loss that occurs again gets a number."""
        seen: Counter[str] = Counter()
        named = []
        for loss, options, weight in terms:
            seen[loss.name] += 1
            suffix = f"_{seen[loss.name]}" if seen[loss.name] > 1 else ""
            named.append(PreferenceTerm(loss, options, weight, f"loss/{loss.name}{suffix}"))
        return tuple(named)
